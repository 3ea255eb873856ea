"""Optional middleware for what happens around protected handlers (contract K5, E4)."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponseBase

from idempotency import client_warnings, keys
from idempotency.client_warnings import KEY_IGNORED, KEY_UNSUPPORTED
from idempotency.conf import get_settings
from idempotency.context import RequestContext
from idempotency.failures import response_to_failure
from idempotency.handlers import parts_of
from idempotency.protection import protection_of


class IdempotencyMiddleware:
    """Add a warning if the request's key had no effect, and refuse what may be retried.

    It can stand anywhere in MIDDLEWARE, and makes no query unless a COMMIT failed.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Add the warning's header."""
        response = self.get_response(request)
        context = _unprotected_context(request, response)
        if context is not None:
            client_warnings.add_to_header(response, context.warnings)
        return response

    def process_exception(
        self, request: HttpRequest, error: Exception
    ) -> HttpResponseBase | None:
        """Refuse the request if the database failed around its protected handler."""
        return response_to_failure(request, error)

    def process_template_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        """Add the warning to the data of a response that is not yet rendered."""
        context = _unprotected_context(request, response)
        if context is not None:
            # Renderers with an envelope read it there.
            request.idempotency = context  # type: ignore[attr-defined]  # by this app
            if keys.find_raw(request.META)[0]:
                client_warnings.add_to_body(response, context.warnings)
        return response


def _unprotected_context(
    request: HttpRequest, response: HttpResponseBase
) -> RequestContext | None:
    """Return a context with the warning that the request needs, if any."""
    known = getattr(request, "idempotency", None)
    if isinstance(known, UnprotectedContext):
        return known
    if known is not None or not get_settings().ENABLED:
        return None
    in_query, in_header = keys.find_raw(request.META)
    if (not in_query and in_header is None) or not _may_have_acted(request, response):
        return None
    warning = KEY_UNSUPPORTED if request.method == "POST" else KEY_IGNORED
    return UnprotectedContext(warnings=(warning,))


class UnprotectedContext(RequestContext):
    """The context of a request to an unprotected handler."""

    __slots__ = ()


def _may_have_acted(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Return whether an unprotected handler may have run.

    Without a ``resolver_match`` no view was called: there was no route, or another
    middleware sent the response.
    """
    match, method = request.resolver_match, request.method or ""
    if match is None or protection_of(match.func, method) is not None:
        return False
    return method != "OPTIONS" and not _is_not_allowed(match.func, method, response)


def _is_not_allowed(view: Any, method: str, response: HttpResponseBase) -> bool:
    """Return whether the response is a 405, or an EXCEPTION_HANDLER's version of one.

    The lack of a handler does not suffice: the view's ``dispatch`` may have acted. So
    the response must also come from an exception.
    """
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return True
    parts = parts_of(view) if getattr(response, "exception", False) else None
    # Django answers HEAD by GET.
    methods = {method, "GET"} if method == "HEAD" else {method}
    return parts is not None and not any(map(parts.answers, methods))
