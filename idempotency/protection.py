"""How a handler is protected, for the mixin, middleware, schema, checks and audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from idempotency.conf import get_settings
from idempotency.conf.policy import Options, Policy
from idempotency.handlers import (
    VIA,
    Parts,
    attribute_of,
    handlers_of,
    hidden_in,
    mark_of,
    parts_of,
)
from idempotency.hooks import Hooks, options_of

if TYPE_CHECKING:
    from django.http import HttpRequest

Via: TypeAlias = Literal["mixin", "decorator", "routing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """How one method of one route is protected."""

    via: Via
    policy: Policy


def protection_of(callback: Any, method: str) -> Protection | None:
    """Return how the callback of a URL pattern is protected, or None if it is not.

    ``method`` is an HTTP method in capitals. The setting ``ENABLED`` is ignored.
    """
    parts = parts_of(callback)
    return (
        _of_function(callback, method) if parts is None else _protection(parts, method)
    )


def protection_of_request(
    callback: Any, request: HttpRequest, *args: Any, **kwargs: Any
) -> Protection | None:
    """Return the same for a request to the callback."""
    attributes: Any = {"request": request, "args": args, "kwargs": kwargs}
    return _protection(parts_of(callback), request.method or "", **attributes)


def protection_of_view(view: Any, method: str) -> Protection | None:
    """Return the same for a view instance."""
    actions = attribute_of(view, "action_map") or {}
    parts = Parts(cls=type(view), arguments={}, actions=actions)
    return _protection(parts, method, view)


def is_exempt(callback: Any, method: str) -> bool:
    """Return whether a handler is unprotected because somebody has exempted it."""
    handlers = [callback, *handlers_of(parts_of(callback), method)]
    marks = map(mark_of, handlers)
    return protection_of(callback, method) is None and any(
        mark is not None and mark.options is None for mark in marks
    )


def _of_function(callback: Any, method: str) -> Protection | None:
    """Return how a plain Django view, a function, is protected."""
    marks = [mark_of(function) for function in [callback, *hidden_in(callback)]]
    decorated = (mark.options for mark in marks if mark is not None)
    options = next((own for own in decorated if own is not None), None)
    return None if options is None else _resolved("decorator", options, method)


def _resolved(via: Via, options: Options, method: str) -> Protection | None:
    policy = get_settings().policy.with_options(options)
    return Protection(via=via, policy=policy) if method in policy.methods else None


def _protection(
    parts: Parts | None, method: str, view: Any = None, **attributes: Any
) -> Protection | None:
    handlers = handlers_of(parts, method)
    if parts is None or not handlers:
        return None
    via, options = _via_of(parts, handlers)
    if options is None:
        return None
    if view is None:
        # What hooks may read: without a request, what DRF's own schemas set.
        view = parts.cls(**parts.arguments)
        for name, value in {"request": None, **attributes}.items():
            setattr(view, name, value)
        if parts.actions:
            view.action = parts.actions.get(method.lower())
    return _resolved(via, {**options_of(view), **options}, method)


def _via_of(parts: Parts, handlers: list[Any]) -> tuple[Via, Options | None]:
    """Return what protects a handler, and its options, or None if nothing does."""
    marks = [mark_of(handler) for handler in handlers]
    # The mixin looks at the outermost handler alone, and protects all within (E6).
    if issubclass(parts.cls, Hooks) and marks[0] is None:
        return attribute_of(parts.cls, VIA) or "mixin", {}
    decorated = (mark.options for mark in marks if mark is not None)
    return "decorator", next((own for own in decorated if own is not None), None)
