"""Check how the endpoints in the URLconf are protected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.core import checks
from django.core.checks import CheckMessage, Error
from django.db import connections, router

from idempotency import models
from idempotency.checks.settings import lease_error, misfit, settings_are_right
from idempotency.conf import get_settings
from idempotency.conf.policy import OPTIONS
from idempotency.handlers import (
    attributes_of,
    dotted_name,
    function_of,
    handlers_of,
    hidden_in,
    mark_of,
)
from idempotency.hooks import PREFIX, Hooks
from idempotency.models import IdempotencyRecord
from idempotency.modes.leased import opt_out_of_atomic_requests
from idempotency.protection import Protection, protection_of
from idempotency.routes import Route, find_routes

ATTRIBUTES = tuple(PREFIX + name for name in OPTIONS)
# Their names are common, so they count only if a handler is protected.
HOOKS = tuple(name for name in vars(Hooks) if not name.startswith(("_", PREFIX)))


class Endpoint(NamedTuple):
    """A protected handler, and the URLconf's callback for it."""

    name: str
    callback: Any
    protection: Protection

    @property
    def alias(self) -> str:
        """The database of its records."""
        return self.protection.policy.using or default_alias()


def default_alias() -> str:
    """Return the default database of records, also if the settings are wrong."""
    if settings_are_right():
        return models.default_alias()
    return router.db_for_write(IdempotencyRecord)


def find_endpoints() -> Iterator[Endpoint]:
    """Yield each protected handler once; nothing if the settings are wrong."""
    if not settings_are_right():
        return  # another check reports the mistakes
    seen = set()
    for route in find_routes():
        for method in route.methods():
            protection = protection_of(route.callback, method)
            endpoint = (route.view(method), id(route.callback))
            if protection is not None and endpoint not in seen:
                seen.add(endpoint)
                yield Endpoint(route.view(method), route.callback, protection)


@checks.register("idempotency")
def check_leased_views(**kwargs: Any) -> list[CheckMessage]:
    """Report leased handlers that ATOMIC_REQUESTS wraps in a transaction (E11)."""
    databases = connections.settings
    if not any(database["ATOMIC_REQUESTS"] for database in databases.values()):
        return []
    found = {
        (endpoint.name, opt_out_of_atomic_requests(endpoint.alias)): None
        for endpoint in find_endpoints()
        if not endpoint.protection.policy.atomic
        and databases[endpoint.alias]["ATOMIC_REQUESTS"]
        and endpoint.alias not in getattr(endpoint.callback, "_non_atomic_requests", ())
    }
    return [
        Error(
            f"{name} is leased, but ATOMIC_REQUESTS wraps it in a transaction.",
            hint=(
                f"Write @{opt_out} above a function's other decorators, or "
                f'@method_decorator({opt_out}, name="dispatch") above a view class.'
            ),
            id="idempotency.E005",
        )
        for name, opt_out in found
    ]


@checks.register("idempotency")
def check_views_without_the_mixin(**kwargs: Any) -> list[CheckMessage]:
    """Report options and hooks of views without the mixin that reads them."""
    without: dict[str, str] = {}
    for route in find_routes():
        parts = route.parts
        if parts is not None and not issubclass(parts.cls, Hooks):
            names = [*ATTRIBUTES, *(HOOKS if [*_decorated(route)] else ())]
            own = attributes_of(parts.cls)
            found = [name for name in names if name in own]
            if found:
                without[dotted_name(parts.cls)] = found[0]
    return [
        Error(
            f"{name} has {option}, but not the mixin that reads it.",
            hint=(
                "Put IdempotencyMixin left of its other base classes. Options, but not "
                "hooks, can also be arguments of @idempotent."
            ),
            id="idempotency.E011",
        )
        for name, option in without.items()
    ]


def _decorated(route: Route) -> Iterator[tuple[str, Any]]:
    """Yield the methods and handlers of a route that have @idempotent."""
    for method in route.methods():
        found = handlers_of(route.parts, method)
        if route.parts is None:
            # Decorators that show the mark stand around the function that has it.
            marked = [each for each in hidden_in(route.callback) if mark_of(each)]
            found = marked[-1:] or [route.callback]
        for handler in found:
            mark = mark_of(handler)
            if mark is not None and mark.options is not None:
                yield method, function_of(handler)


@checks.register("idempotency")
def check_methods(**kwargs: Any) -> list[CheckMessage]:
    """Report decorated handlers of methods on which keys have no effect (K5)."""
    if not settings_are_right():
        return []
    idle: dict[Any, tuple[str, str]] = {}
    at_work = set()
    for route in find_routes():
        for method, handler in _decorated(route):
            if protection_of(route.callback, method) is not None:
                at_work.add(handler)
            else:
                idle[handler] = (route.view(method), method)
    return [
        checks.Warning(
            f"@idempotent does nothing for {name}: keys have no effect on {method}.",
            hint=f'Write @idempotent(methods=("{method}",)), or remove it.',
            id="idempotency.W008",
        )
        for handler, (name, method) in idle.items()
        if handler not in at_work
    ]


@checks.register("idempotency")
def check_endpoints(**kwargs: Any) -> list[CheckMessage]:
    """Report options that are wrong in this project."""
    # By message: a view may have several routes.
    found = {
        mistake.msg: mistake
        for each in find_endpoints()
        for mistake in _mistakes_of(each)
    }
    return list(found.values())


def _mistakes_of(endpoint: Endpoint) -> Iterator[CheckMessage]:
    policy, project = endpoint.protection.policy, get_settings().policy
    if not policy.atomic and policy.lease >= policy.retention:
        yield lease_error(endpoint.name, policy.lease, policy.retention)
    for name, option in OPTIONS.items():
        value = getattr(policy, name)
        if value is getattr(project, name) or not option.rule.takes_path:
            continue  # the settings are checked by themselves
        hint = misfit(option.rule, value)
        if hint is not None:
            yield Error(
                f"{endpoint.name}: its {name} can't be {value!r}.",
                hint=hint,
                id="idempotency.E008",
            )
