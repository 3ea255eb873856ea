"""A test client that sends idempotency keys."""

from __future__ import annotations

from typing import Any

from django.test.client import FakePayload
from rest_framework.test import APIClient

from idempotency import keys
from idempotency.conf import get_settings
from idempotency.modes.stray_writes import stray_writes_reported
from idempotency.testing.sending import environ_name, marks_taken_back, new_key


class IdempotentClient(APIClient):
    """An APIClient that sends a fresh key with each request in the setting METHODS.

    METHODS is POST by default. A key from the call, ``credentials()`` or the
    constructor takes precedence. ``last_key`` is the key of the last request, None if
    it had none.
    """

    _credentials: dict[str, Any]  # missing in the stubs of APIClient

    last_key: str | None = None
    _last: tuple[dict[str, Any], bytes] | None = None

    def request(self, **kwargs: Any) -> Any:
        """Send a request, with a fresh key if it has none."""
        environ = {**self.defaults, **kwargs, **self._credentials}
        in_query, in_header = keys.find_raw(environ)
        found = [*in_query, *([] if in_header is None else [in_header])]
        settings = get_settings()
        if not found and environ["REQUEST_METHOD"] in settings.policy.methods:
            found = [new_key()]
            if settings.HEADER:
                kwargs[environ_name(settings.HEADER)] = found[0]
            else:
                query = environ.get("QUERY_STRING")
                pair = f"{settings.QUERY_PARAM}={found[0]}"
                kwargs["QUERY_STRING"] = f"{query}&{pair}" if query else pair
        self.last_key = found[0] if found else None
        payload = kwargs.pop("wsgi.input", None)
        self._last = kwargs, payload.read() if payload else b""
        return self._send(*self._last)

    def retry(self) -> Any:
        """Send the last request again, with the client's current credentials.

        Raise ``ValueError`` if there was no request, or if it had no key.
        """
        if self._last is None or self.last_key is None:
            raise ValueError(
                "There is nothing to retry: this client's last request had no "
                "idempotency key, or there was none."
            )
        return self._send(*self._last)

    def _send(self, environ: dict[str, Any], body: bytes) -> Any:
        with marks_taken_back(), stray_writes_reported():
            return super().request(**environ, **{"wsgi.input": FakePayload(body)})
