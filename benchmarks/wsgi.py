"""``gunicorn benchmarks.wsgi``, and requests to the same application in process."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from django.core.wsgi import get_wsgi_application

application: Any = get_wsgi_application()
BODY = b'{"title": "Essay on tides", "due": "2026-12-01", "points": 10}'


def post(
    place: str, key: str | None, body: bytes = BODY, user: str = "ada"
) -> Callable[[], int]:
    """Return a call that sends a user's request and returns its status."""

    def send() -> int:
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": place,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_X_USER": user,
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
        }
        if key is not None:
            environ["HTTP_IDEMPOTENCY_KEY"] = key
        told: list[str] = []
        answer = application(environ, lambda status, headers: told.append(status))
        for _part in answer:
            pass
        answer.close()
        return int(told[0][:3])

    return send
