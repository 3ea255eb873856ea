"""Mistakes in how endpoints are protected, found through the URLconf."""

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
    mark_of,
)
from idempotency.hooks import PREFIX, Hooks
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.modes.leased import opt_out_of_atomic_requests
from idempotency.protection import Protection, protection_of
from idempotency.routes import Route, find_routes

ATTRIBUTES = tuple(PREFIX + name for name in OPTIONS)
# Its names are unmistakable only where a handler is protected.
HOOKS = tuple(name for name in vars(Hooks) if not name.startswith(("_", PREFIX)))


class Endpoint(NamedTuple):
    """A protected handler: its name, what the URLconf calls, and how."""

    name: str
    callback: Any
    protection: Protection

    @property
    def alias(self) -> str:
        """The database of its records."""
        return self.protection.policy.using or default_alias()


def default_alias() -> str:
    """Return the database of the records where an endpoint does not choose one."""
    if settings_are_right():
        return models.default_alias()
    return router.db_for_write(IdempotencyRecord)


def find_endpoints() -> Iterator[Endpoint]:
    """Yield what is protected, each view once, if the settings can be worked with."""
    if not settings_are_right():
        return  # the mistakes there are reported
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
    """Report leased handlers that Django would run inside a transaction (E11)."""
    if not any(
        database["ATOMIC_REQUESTS"] for database in connections.settings.values()
    ):
        return []
    return [
        _wrapped(name, opt_out_of_atomic_requests(alias))
        for name, alias in dict.fromkeys(
            (endpoint.name, endpoint.alias)
            for endpoint in find_endpoints()
            if not endpoint.protection.policy.atomic and _is_in_transaction(endpoint)
        )
    ]


def _wrapped(name: str, opt_out: str) -> CheckMessage:
    return Error(
        f"{name} is leased, and ATOMIC_REQUESTS puts a transaction around it.",
        hint=(
            f"Write @{opt_out} above @api_view, or "
            f'@method_decorator({opt_out}, name="dispatch") above the view class.'
        ),
        id="idempotency.E005",
    )


def _is_in_transaction(endpoint: Endpoint) -> bool:
    # As Django looks for it.
    opted_out = getattr(endpoint.callback, "_non_atomic_requests", ())
    alias = endpoint.alias
    return connections.settings[alias]["ATOMIC_REQUESTS"] and alias not in opted_out


@checks.register("idempotency")
def check_views_without_the_mixin(**kwargs: Any) -> list[CheckMessage]:
    """Report options and hooks that a view has and nobody reads."""
    without: dict[str, str] = {}
    for route in find_routes():
        parts = route.parts
        if parts is not None and not issubclass(parts.cls, IdempotencyMixin):
            names = [*ATTRIBUTES, *(HOOKS if [*_decorated(route)] else ())]
            own = attributes_of(parts.cls)
            found = [name for name in names if name in own]
            if found:
                without[dotted_name(parts.cls)] = found[0]
    return [
        Error(
            f"{name} has {option}, and not the mixin that reads it.",
            hint=(
                "Put IdempotencyMixin left of its other base classes. Options, hooks "
                "apart, can also be given to @idempotent."
            ),
            id="idempotency.E011",
        )
        for name, option in without.items()
    ]


def _decorated(route: Route) -> Iterator[tuple[str, Any]]:
    """Yield a route's methods with what @idempotent has made of their handlers."""
    for method in route.methods():
        for handler in handlers_of(route.parts, method):
            mark = mark_of(handler)
            if mark is not None and mark.options is not None:
                yield method, function_of(handler)


@checks.register("idempotency")
def check_methods(**kwargs: Any) -> list[CheckMessage]:
    """Report decorated handlers of methods on which keys mean nothing (K5)."""
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
            f"@idempotent does nothing for {name}: keys mean nothing on {method}.",
            hint=f'Write @idempotent(methods=("{method}",)), or leave it out.',
            id="idempotency.W008",
        )
        for handler, (name, method) in idle.items()
        if handler not in at_work
    ]


@checks.register("idempotency")
def check_endpoints(**kwargs: Any) -> list[CheckMessage]:
    """Report options that are wrong only together with what the project has else."""
    # By what they say: a view may have several addresses.
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
                f"{endpoint.name}: nothing is found at its {name}, {value!r}.",
                hint=hint,
                id="idempotency.E008",
            )
