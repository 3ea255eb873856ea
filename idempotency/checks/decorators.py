"""Decorators where they can't protect, found through the URLconf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import MethodType
from typing import Any, NamedTuple

from django.core import checks
from django.core.checks import CheckMessage, Error

from idempotency.handlers import (
    attribute_of,
    contents_of,
    dotted_name,
    function_of,
    handlers_of,
    hidden_in,
    mark_of,
    places_of,
)
from idempotency.routes import Route, find_routes

# What Django REST framework calls without a request of its own.
NO_HANDLERS = ("dispatch", "perform_create", "perform_update", "perform_destroy")

BELOW_API_VIEW = 'Write @api_view(["POST"]) above @idempotent.'
ON_API_VIEW = "Derive its class from rest_framework.views.APIView."
NOT_NINJA = (
    "Write it as a handler of Django REST framework, whose handlers the app protects."
)
ON_HANDLER = (
    "Decorate what gets the request, such as post() or create(). For the whole view "
    "there is IdempotencyMixin."
)


class Misplaced(NamedTuple):
    """What may hold a function that @idempotent has made, and what to do about it."""

    handler: Any
    place: str
    hint: str
    name: str | None = None


@checks.register("idempotency")
def check_decorators(**kwargs: Any) -> list[CheckMessage]:
    """Report decorated functions that nobody calls with a request of DRF's."""
    found: dict[str, Misplaced] = {}
    for route in find_routes():
        for each in _places(route):
            for function in (function_of(each.handler), *hidden_in(each.handler)):
                mark = mark_of(function)
                if mark is not None and mark.options is not None:
                    found.setdefault(each.name or dotted_name(function), each)
    return [
        Error(
            f"@idempotent can't protect {name}, which is {misplaced.place}: each "
            "request fails.",
            hint=misplaced.hint,
            id="idempotency.E013",
        )
        for name, misplaced in found.items()
    ]


def _places(route: Route) -> Iterator[Misplaced]:
    parts = route.parts
    if parts is None:
        call = attribute_of(type(route.callback), "__call__")
        for handler in (route.callback, call):
            yield Misplaced(handler, "no view of DRF's", BELOW_API_VIEW)
        for operation in _ninja_operations(route.callback):
            yield Misplaced(operation, "an operation of Django Ninja", NOT_NINJA)
    elif parts.is_drf:
        for name in NO_HANDLERS:
            # Wherever it stands, and whatever name decorators have given it.
            own_name = f"{dotted_name(parts.cls)}.{name}"
            handler = attribute_of(parts.cls, name)
            yield Misplaced(handler, "no handler", ON_HANDLER, own_name)
    else:
        own_name = f"{dotted_name(parts.cls)}.dispatch"
        handler = attribute_of(parts.cls, "dispatch")
        yield Misplaced(handler, "no view of DRF's", ON_API_VIEW, own_name)
        for method in route.methods():
            for handler in handlers_of(parts, method):
                yield Misplaced(handler, "no view of DRF's", ON_API_VIEW)


def _ninja_operations(callback: Any) -> Iterator[Any]:
    """Yield the functions that answer for Django Ninja at one address.

    What it calls by its PathView is a method of it, or a function that holds it.
    """
    held: Iterable[Any] = contents_of(function_of(callback))
    if type(callback) is MethodType:
        held = [callback.__self__]
    for owner in held:
        if _is_of(owner, "ninja.operation", "PathView"):
            for operation in vars(owner)["operations"]:
                yield vars(operation)["view_func"]


def _is_of(value: Any, module: str, name: str) -> bool:
    return (module, name) in places_of(type(value))
