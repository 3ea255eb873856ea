"""Check the URLconf for decorators that can't protect anything."""

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
    hidden_in,
    mark_of,
    places_of,
)
from idempotency.routes import Route, find_routes

# Methods that are called before the view's checks, or without a request.
NO_HANDLERS = ("dispatch", "perform_create", "perform_update", "perform_destroy")

NOT_NINJA = "Rewrite it with Django or Django REST framework."
ON_HANDLER = (
    "Decorate a method that gets the request, such as post() or create(). To protect "
    "the whole view, use IdempotencyMixin."
)


class Misplaced(NamedTuple):
    """A place where @idempotent does not work, and a hint."""

    handler: Any
    place: str
    hint: str
    name: str | None = None


@checks.register("idempotency")
def check_decorators(**kwargs: Any) -> list[CheckMessage]:
    """Report decorated functions that are no handlers."""
    found: dict[str, Misplaced] = {}
    for route in find_routes():
        for each in _places(route):
            for function in (function_of(each.handler), *hidden_in(each.handler)):
                mark = mark_of(function)
                if mark is not None and mark.options is not None:
                    found.setdefault(each.name or dotted_name(function), each)
    return [
        Error(
            f"@idempotent can't protect {name}, which is {misplaced.place}: every "
            "request fails.",
            hint=misplaced.hint,
            id="idempotency.E013",
        )
        for name, misplaced in found.items()
    ]


def _places(route: Route) -> Iterator[Misplaced]:
    parts = route.parts
    if parts is None:
        for operation in _ninja_operations(route.callback):
            yield Misplaced(operation, "an operation of Django Ninja", NOT_NINJA)
        return
    for name in NO_HANDLERS if parts.is_drf else NO_HANDLERS[:1]:
        # Name the view: the function may be inherited or renamed by a decorator.
        own_name = f"{dotted_name(parts.cls)}.{name}"
        handler = attribute_of(parts.cls, name)
        yield Misplaced(handler, "not a handler", ON_HANDLER, own_name)


def _ninja_operations(callback: Any) -> Iterator[Any]:
    """Yield the operations of Django Ninja behind a callback.

    The callback is a method of a PathView, or a function that contains one.
    """
    held: Iterable[Any] = contents_of(function_of(callback))
    if type(callback) is MethodType:
        held = [callback.__self__]
    for owner in held:
        if ("ninja.operation", "PathView") in places_of(type(owner)):
            for operation in vars(owner)["operations"]:
                yield vars(operation)["view_func"]
