"""Warn about cookies, which replays do not set (contract R2)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from django.conf import settings

from idempotency.signals import extras

if TYPE_CHECKING:
    from django.http import HttpResponseBase
    from rest_framework.request import Request

    from idempotency.keyed_request import KeyedRequest

logger = logging.getLogger("idempotency")

# Endpoints that this process has warned about.
_warned_of: set[tuple[str, str | None, str]] = set()


def warn_of_cookies(keyed: KeyedRequest, response: HttpResponseBase) -> None:
    """Log that replays of a response lack its cookies, once per endpoint."""
    if not (
        response.cookies
        or _has_new_session(keyed.request)
        or _has_new_messages(keyed.request)
    ):
        return
    name, action, method = endpoint = keyed.view_name, keyed.action, keyed.method
    if endpoint in _warned_of:
        return
    _warned_of.add(endpoint)
    logger.warning(
        "A response with a cookie was stored, but its replays do not set the cookie: "
        "view=%s action=%s method=%s. Exempt endpoints that return credentials",
        name,
        action,
        method,
        extra=extras("cookie_not_stored", view=name, action=action, method=method),
    )


def _has_new_session(request: Request) -> bool:
    """Return whether SessionMiddleware will set or delete the session's cookie.

    It does that after the view, so the response does not show it yet.
    """
    session: Any = getattr(request, "session", None)
    if session is None or not session.modified:
        return False
    sent = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    # A new session may get its key only when the middleware saves it.
    return (None if session.is_empty() else session.session_key or "") != sent


def _has_new_messages(request: Request) -> bool:
    """Return whether MessageMiddleware will store messages for the client."""
    messages: Any = getattr(request, "_messages", None)
    return messages is not None and messages.added_new
