"""Warn of keys that no protected handler saw (contract K5). Optional."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from django.http import HttpRequest, HttpResponseBase

from idempotency import client_warnings, keys
from idempotency.client_warnings import KEY_IGNORED, KEY_UNSUPPORTED
from idempotency.conf import get_settings
from idempotency.context import RequestContext
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
    if (not in_query and in_header is None) or _is_protected(request):
        return None
    if request.method != "POST":
        return UnprotectedContext(warnings=(KEY_IGNORED,))
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return None  # nothing has acted, and nothing will
    return UnprotectedContext(warnings=(KEY_UNSUPPORTED,))


class UnprotectedContext(RequestContext):
    """The context of a request that the middleware alone has seen."""

    __slots__ = ()


def _is_protected(request: HttpRequest) -> bool:
    """Tell whether the handler would have seen the key, had the view got that far.

    So it may be where no view was found or looked for: the resolver says 404, which
    CommonMiddleware may turn into a redirect, or another middleware answers.
    """
    if request.resolver_match is None:
        return True
    return protection_of(request.resolver_match.func, request.method or "") is not None
