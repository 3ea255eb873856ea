"""The ``IDEMPOTENCY`` setting: annotated defaults, read live."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings as django_settings


class Settings:
    """Each attribute is the default of the key of the same name.

    Looked up in ``settings.IDEMPOTENCY`` at every access, so ``override_settings``
    works and no copy can go stale.
    """

    # How endpoints are protected unless their own options say otherwise.
    REQUIRED: bool = False
    METHODS: Collection[str] = ("POST",)
    RETENTION: timedelta = timedelta(days=30)
    USING: str | None = None
    SCOPE: str | Callable[..., str] | None = None
    RELEASED_STATUSES: Collection[int] = (400, 401, 403, 404, 409, 422, 429)
    ON_CONCURRENT: str = "refuse"
    WAIT_TIMEOUT: timedelta = timedelta(seconds=5)

    # The app as a whole.
    ENABLED: bool = True
    QUERY_PARAM: str | None = "$idempotency"
    HEADER: str | None = "Idempotency-Key"
    FINGERPRINT: str | Callable[..., str] | None = None
    WARNINGS: Collection[str] = ("body", "header")
    UNSTORED_HEADERS: Collection[str] = ()
    MAX_RESPONSE_BYTES: int = 10 * 1024 * 1024
    DERIVATION_SECRET: str | None = None
    PURGE_BATCH_SIZE: int = 1000
    PURGE_TIME_BUDGET: timedelta = timedelta(minutes=5)

    def __getattribute__(self, name: str) -> Any:
        if name.isupper():
            project = getattr(django_settings, "IDEMPOTENCY", None)
            if project and name in project:
                return project[name]
        return super().__getattribute__(name)

    @property
    def project(self) -> Mapping[str, Any]:
        """What the project wrote, with nothing added."""
        return getattr(django_settings, "IDEMPOTENCY", None) or {}

    @property
    def secret(self) -> str:
        """The secret of keyed digests: DERIVATION_SECRET, or else SECRET_KEY."""
        return self.DERIVATION_SECRET or django_settings.SECRET_KEY

    @property
    def header_in_meta(self) -> str:
        """The name under which ``request.META`` carries the header."""
        return "HTTP_" + (self.HEADER or "").upper().replace("-", "_")


conf = Settings()
NAMES = tuple(Settings.__annotations__)
