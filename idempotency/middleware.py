"""Warn of keys that no protected handler saw (contract K5). Optional."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponseBase

from idempotency import client_warnings, keys
from idempotency.client_warnings import KEY_IGNORED, KEY_UNSUPPORTED
from idempotency.conf import get_settings
from idempotency.context import RequestContext
from idempotency.handlers import parts_of
from idempotency.protection import protection_of


class IdempotencyMiddleware:
    """Put a warning on answers to requests whose key had no effect.

    Stands anywhere in MIDDLEWARE. Adds no query.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Add the header."""
        response = self.get_response(request)
        context = _unprotected_context(request, response)
        if context is not None:
            client_warnings.add_to_header(response, context.warnings)
        return response

    def process_template_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        """Add the warning to the data of an answer that is about to be rendered."""
        context = _unprotected_context(request, response)
        if context is not None:
            # For renderers with an envelope of their own.
            request.idempotency = context  # type: ignore[attr-defined]  # by this app
            if keys.find_raw(request.META)[0]:
                client_warnings.add_to_body(response, context.warnings)
        return response


def _unprotected_context(
    request: HttpRequest, response: HttpResponseBase
) -> RequestContext | None:
    """Return a context with the warning that a request earned, if any."""
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
    """The context of a request that the middleware alone has seen."""

    __slots__ = ()


def _may_have_acted(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Tell whether a handler may have acted that had no eye for the key.

    A protected one would have seen it, had the view got that far. None was found or
    looked for where the resolver says 404, which CommonMiddleware may turn into a
    redirect, or where another middleware answers.
    """
    match, method = request.resolver_match, request.method or ""
    if match is None or protection_of(match.func, method) is not None:
        return False
    return method != "OPTIONS" and not _is_not_allowed(match.func, method, response)


def _is_not_allowed(view: Any, method: str, response: HttpResponseBase) -> bool:
    """Tell whether an answer is a 405, or what an EXCEPTION_HANDLER makes of one.

    A view without a handler may act in its ``dispatch``. So what the project calls a
    405 is known by what Django REST framework says, too: that it is of an exception.
    """
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return True
    parts = parts_of(view) if getattr(response, "exception", False) else None
    # Django answers HEAD by GET.
    methods = {method, "GET"} if method == "HEAD" else {method}
    return parts is not None and not any(map(parts.answers, methods))
