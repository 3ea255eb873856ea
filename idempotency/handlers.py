"""What the functions of a project say of themselves, and nothing else of it.

Classes and closures hold whatever a project puts there: clients of databases and of
services, proxies, lazy objects. Such things may act as soon as they are compared,
tested or asked for an attribute, be it ``__class__``, as ``isinstance()`` does. So
types are told by identity, classes are read without evaluating what stands in them, and
attributes are read of functions alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.views import View
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSetMixin

# Tracers put wrapt's transparent proxies, or those of their own copy of wrapt, around
# views and handlers.
PROXIES = {"FunctionWrapper", "BoundFunctionWrapper"}

# What Django REST framework's own methods hand on to: projects override these.
DELEGATES = {
    ("rest_framework.generics", "post"): "create",
    ("rest_framework.generics", "put"): "update",
    ("rest_framework.generics", "patch"): "partial_update",
    ("rest_framework.generics", "delete"): "destroy",
    ("rest_framework.mixins", "partial_update"): "update",
}


def function_of(value: Any) -> Any:
    """Return the function, or ``functools.partial``, that a value is or binds.

    None for anything else, which is left alone.
    """
    while True:
        kind = type(value)
        if kind is FunctionType or kind is partial:
            return value
        if kind is MethodType or kind is staticmethod or kind is classmethod:
            value = value.__func__
        elif any(name in PROXIES for _module, name in places_of(kind)):
            value = value.__wrapped__
        else:
            return None


def places_of(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of a class and of its bases.

    A metaclass is not asked: it may answer for its classes.
    """
    read = type.__getattribute__
    for base in read(cls, "__mro__"):
        yield read(base, "__module__"), read(base, "__name__")


def dotted_name(value: Any) -> str:
    """Return where a callable stands; one that has no name stands for its class."""
    while type(found := function_of(value)) is partial:
        value = found.func
    named = value if found is None else found
    if not (is_class(named) or type(named) in (FunctionType, BuiltinFunctionType)):
        named = type(named)
    return f"{named.__module__}.{named.__qualname__}"


def is_class(value: Any) -> bool:
    """Tell whether a value is a class."""
    return issubclass(type(value), type)


def is_coroutine_function(value: Any) -> bool:
    """Tell whether a call of a handler makes a coroutine."""
    function = function_of(value)
    if function is None:
        function = function_of(attribute_of(type(value), "__call__"))
    return function is not None and iscoroutinefunction(function)


# What the app itself leaves on functions.

ATTRIBUTE = "_idempotency_mark"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a decorator of this app says of a function.

    It travels with the function's attributes, as ``functools.wraps`` copies them.
    ``options`` are those of ``@idempotent``; None, of ``@idempotency_exempt``.
    """

    options: Mapping[str, Any] | None


def leave_mark(function: Any, mark: Mark) -> None:
    """Leave a mark on a function, in place of any other."""
    vars(function_of(function))[ATTRIBUTE] = mark


def mark_of(value: Any) -> Mark | None:
    """Return the mark on a handler."""
    function = function_of(value)
    found = None if function is None else vars(function).get(ATTRIBUTE)
    return found if type(found) is Mark else None


# What stands in classes.


def attributes_of(cls: type) -> dict[str, Any]:
    """Return what a class has, its base classes' too, as it stands there."""
    return {
        name: value
        for base in reversed(cls.__mro__)
        for name, value in vars(base).items()
    }


def attribute_of(owner: Any, name: str) -> Any:
    """Return an attribute of a class or of a view as it stands there, or None."""
    places = owner.__mro__ if is_class(owner) else (owner, *type(owner).__mro__)
    return next((vars(place)[name] for place in places if name in vars(place)), None)


def answering(view: Any, handler: Any) -> Any:
    """Return the method of a view, or of its class, that a handler hands on to.

    That is the handler itself, unless it is one of Django REST framework's generic
    views.
    """
    while True:
        function = function_of(handler)
        if type(function) is not FunctionType:
            return handler
        place = function.__module__, function.__name__
        if place not in DELEGATES:
            return handler
        handler = attribute_of(view, DELEGATES[place])


# What a URL pattern calls.


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What ``as_view()`` has left on what it returns."""

    cls: Any
    arguments: Mapping[str, Any]
    actions: Mapping[str, str]

    @property
    def is_drf(self) -> bool:
        """Whether it is a view of Django REST framework."""
        return issubclass(self.cls, APIView)

    def handler(self, method: str) -> Any:
        """Return what answers an HTTP method, in capitals or not, or None."""
        name = method.lower()
        return attribute_of(self.cls, self.actions.get(name, name))

    def answers(self, method: str) -> bool:
        """Tell whether an HTTP method is answered otherwise than by 405."""
        return method.lower() in self._allowed() and self.handler(method) is not None

    def _allowed(self) -> Collection[str]:
        own = attribute_of(self.cls, "http_method_names")
        allowed = self.arguments.get("http_method_names", own)
        # What is made for each view, by a property, only a view can tell.
        is_plain = type(allowed) in (list, tuple, set, frozenset)
        return allowed if is_plain else View.http_method_names


def parts_of(callback: Any) -> Parts | None:
    """Return what a view is made of, or None for one of another kind."""
    function = function_of(callback)
    own = {} if function is None else vars(function)
    for cls, arguments in (("cls", "initkwargs"), ("view_class", "view_initkwargs")):
        if is_class(own.get(cls)) and issubclass(own[cls], View):
            # On other views the name is anybody's.
            is_view_set = issubclass(own[cls], ViewSetMixin)
            return Parts(
                cls=own[cls],
                arguments=own.get(arguments, {}),
                actions=own.get("actions", {}) if is_view_set else {},
            )
    return None


def handlers_of(parts: Parts | None, method: str) -> list[Any]:
    """Return what answers a method, and what is hidden in it, outer ones first.

    ``@api_view`` keeps the function that it wraps in a closure, and so does every
    decorator around a handler. The list is empty where nothing answers.
    """
    if parts is None:
        return []
    handler = answering(parts.cls, parts.handler(method))
    return [] if handler is None else [handler, *hidden_in(handler)]


def hidden_in(handler: Any) -> list[Any]:
    """Return the functions that a handler holds, outer ones first."""
    found = [function_of(handler)]
    # It grows while it is walked; functions may well hold each other.
    for function in found:
        for held in map(function_of, contents_of(function)):
            if held is not None and not any(held is known for known in found):
                found.append(held)
    return found[1:]


def contents_of(function: Any) -> list[Any]:
    """Return what a function holds, of whatever kind: what it encloses or binds."""
    if type(function) is partial:
        return [function.func]
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # a name that is not bound, any more or so far
            found.append(cell.cell_contents)
    return found
