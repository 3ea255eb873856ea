"""Respond to what the database refuses around a protected handler (contract E4)."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponseBase

from idempotency import keys
from idempotency.conf import get_settings
from idempotency.context import RequestContext
from idempotency.database_errors import is_unavailable
from idempotency.discretion import discreet
from idempotency.exceptions import DatabaseUnavailable
from idempotency.execution import respond
from idempotency.finalizing import finalizer_of
from idempotency.handlers import dotted_name, parts_of
from idempotency.keyed_request import KeyedRequest, PlainView
from idempotency.modes.reporting import Reporter
from idempotency.protection import protection_of


@discreet
def response_to_failure(
    request: HttpRequest, error: Exception
) -> HttpResponseBase | None:
    """Return a refusal or a replay, or None if the error is the project's.

    Before the handler, that is a connection that can't be had: authentication or
    ATOMIC_REQUESTS needs one. After it, that is the COMMIT of ATOMIC_REQUESTS.
    """
    context = getattr(request, "idempotency", None)
    if context is None:
        return _refuse_unavailable(request, error)
    at_commit = getattr(context, "at_commit", None)
    return None if at_commit is None else at_commit(error)


def _refuse_unavailable(
    request: HttpRequest, error: Exception
) -> HttpResponseBase | None:
    match = request.resolver_match
    if match is None or not is_unavailable(error) or not get_settings().ENABLED:
        return None
    in_query, in_header = keys.find_raw(request.META)
    if not in_query and in_header is None:
        return None
    protection = protection_of(match.func, request.method or "")
    if protection is None:
        return None
    context = RequestContext(policy=protection.policy)
    request.idempotency = context  # type: ignore[attr-defined]  # by this app
    view, own_request = _new_view(request)
    keyed = KeyedRequest(
        view=view, request=own_request, context=context, policy=protection.policy
    )
    refusal = Reporter(keyed).blamed(DatabaseUnavailable(), error)
    finalizer_of(keyed).refuse_success()
    return respond(keyed, refusal)


def _new_view(request: HttpRequest) -> tuple[Any, Any]:
    """Return the request's view before its ``initial()``, and its own request."""
    match: Any = request.resolver_match
    parts = parts_of(match.func)
    if parts is None or not parts.is_drf:
        name = dotted_name(match.func if parts is None else parts.cls)
        return PlainView(request, name, None), request
    view = parts.cls(**parts.arguments)
    if parts.actions:
        view.action_map = parts.actions
    # As DRF's views have it while they wrap it: get_authenticators() may read it.
    view.request, view.args, view.kwargs = request, match.args, match.kwargs
    view.request = view.initialize_request(request, *match.args, **match.kwargs)
    view.headers = view.default_response_headers
    view.format_kwarg = view.get_format_suffix(**match.kwargs)
    return view, view.request
