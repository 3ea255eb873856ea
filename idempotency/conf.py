"""The ``IDEMPOTENCY`` setting: annotated defaults, read live."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from django.conf import settings as django_settings
from django.utils.encoding import force_bytes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each field is the default of the key of the same name."""

    # How endpoints are protected unless their own options say otherwise.
    REQUIRED: bool = False
    METHODS: Collection[str] = ("POST",)
    RETENTION: timedelta = timedelta(days=30)
    USING: str | None = None
    SCOPE: str | Callable[..., str] | None = None
    RELEASED_STATUSES: Collection[int] = (
        *(400, 401, 403, 404, 409, 412, 422, 423, 425, 428, 429),
    )
    STORE: bool | str | Callable[..., bool] = True
    CHECK_REPLAY: str | Callable[..., None] | None = None
    ON_CONCURRENT: str = "refuse"
    WAIT_TIMEOUT: timedelta = timedelta(seconds=5)
    LEASE: timedelta = timedelta(seconds=60)

    # The app as a whole.
    ENABLED: bool = True
    QUERY_PARAM: str | None = "$idempotency"
    HEADER: str | None = "Idempotency-Key"
    ANONYMOUS: str = "allow"
    FINGERPRINT: str | Callable[..., str] | None = None
    WARNINGS: Collection[str] = ("body", "header")
    UNSTORED_HEADERS: Collection[str] = ()
    MAX_RESPONSE_BYTES: int = 10 * 1024 * 1024
    DERIVATION_SECRET: str | None = None
    PURGE_BATCH_SIZE: int = 1000
    PURGE_TIME_BUDGET: timedelta = timedelta(minutes=5)


NAMES = tuple(field.name for field in fields(Settings))

_project: Mapping[str, Any] = {}
_settings = Settings()


def get_settings() -> Settings:
    """Return the settings as they are now, so ``override_settings`` works.

    Unknown keys are for the system checks to report.
    """
    global _project, _settings  # noqa: PLW0603  # made again only when they change
    project = getattr(django_settings, "IDEMPOTENCY", None) or {}
    if project != _project:
        known = {name: value for name, value in project.items() if name in NAMES}
        _settings = Settings(**known)
        _project = dict(project)
    return _settings


def get_secret() -> bytes:
    """Return the secret of keyed digests: DERIVATION_SECRET, or else SECRET_KEY.

    Django lets SECRET_KEY be text or bytes.
    """
    return force_bytes(get_settings().DERIVATION_SECRET or django_settings.SECRET_KEY)
