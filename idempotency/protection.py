"""How a handler is protected, asked from outside: middleware, schema, audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from idempotency.conf import get_settings
from idempotency.decorators import EXEMPT_ATTRIBUTE, OPTIONS_ATTRIBUTE, handlers_of
from idempotency.hooks import Hooks, hooks_of
from idempotency.mixins import IdempotencyMixin
from idempotency.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """How one method of one route is protected.

    ``scope`` is what says whose key it is: a function, its dotted path, or None for the
    app's own rule (S1).
    """

    door: Literal["mixin", "decorator"]
    policy: Policy
    scope: str | Callable[..., str] | None


def protection_of(callback: Any, method: str) -> Protection | None:
    """Return how a view's handler is protected, or None where keys have no effect.

    Takes what a URL pattern calls, and an HTTP method in capitals. Whether the app is
    ``ENABLED`` at all is not asked here.
    """
    handlers = [*handlers_of(callback, method)]
    if not _may_be_protected(handlers, getattr(callback, "cls", None)):
        return None
    view = callback.cls(**callback.initkwargs)
    # What an override may look at, as in views that are made for DRF's own schemas.
    view.request = None
    if actions := getattr(callback, "actions", None):
        view.action = actions.get(method.lower())
    return _protection(handlers, view, method)


def protection_of_view(view: Any, method: str) -> Protection | None:
    """Return the same for a view that somebody has made of what a URL pattern calls."""
    actions = getattr(view, "action_map", None)
    handlers = [*handlers_of(SimpleNamespace(cls=type(view), actions=actions), method)]
    if not _may_be_protected(handlers, type(view)):
        return None
    return _protection(handlers, view, method)


def is_exempt(callback: Any, method: str) -> bool:
    """Tell whether a handler that is not protected is so on purpose."""
    return protection_of(callback, method) is None and any(
        hasattr(handler, EXEMPT_ATTRIBUTE) for handler in handlers_of(callback, method)
    )


def _may_be_protected(handlers: list[Any], cls: Any) -> bool:
    """Tell whether it takes a view to find out."""
    if handlers[0] is None:
        return False
    return issubclass(cls, IdempotencyMixin) or any(
        hasattr(handler, OPTIONS_ATTRIBUTE) for handler in handlers
    )


def _protection(handlers: list[Any], view: Any, method: str) -> Protection | None:
    handler, *wrapped = handlers
    has_mixin = isinstance(view, IdempotencyMixin)
    # The mixin looks at the handler alone, and protects what is hidden within (E6).
    candidates = [handler] if has_mixin else [handler, *wrapped]
    decorated = (getattr(each, OPTIONS_ATTRIBUTE, None) for each in candidates)
    options = next((own for own in decorated if own is not None), None)
    if options is None and hasattr(handler, EXEMPT_ATTRIBUTE):
        return None
    hooks = hooks_of(view)
    policy = Policy.resolve({**hooks.get_idempotency_options(), **(options or {})})
    if method not in policy.methods:
        return None
    return Protection(
        door="mixin" if options is None else "decorator",
        policy=policy,
        scope=policy.scope or _scope_of(hooks),
    )


def _scope_of(hooks: Hooks) -> str | Callable[..., str] | None:
    if type(hooks).get_idempotency_scope is not Hooks.get_idempotency_scope:
        return hooks.get_idempotency_scope
    own = vars(hooks).get("idempotency_scope", type(hooks).idempotency_scope)
    return own or get_settings().SCOPE
