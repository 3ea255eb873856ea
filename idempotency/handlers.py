"""Inspect a project's handlers without running any code of the project.

Classes and closures may hold lazy objects, proxies and service clients, which may act
when they are compared, tested or asked for an attribute, even for ``__class__`` by
``isinstance()``. So this module compares types by identity, reads classes without
descriptors, and reads attributes only from functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.middleware.csrf import CsrfViewMiddleware
from django.views import View
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSetMixin

# Tracers wrap views and handlers in the proxies of wrapt, or of their own copy of it.
PROXIES = {"FunctionWrapper", "BoundFunctionWrapper"}
CSRF = CsrfViewMiddleware.__module__, CsrfViewMiddleware.__name__
# Django's decorators that ask for a user or a permission are in this module.
CHECKS_OF_USERS = "django.contrib.auth.decorators"
# The attribute of a class that was protected in another way than by the mixin.
VIA = "_idempotency_via"

# The methods that Django REST framework's own ones delegate to; projects override them.
DELEGATES = {
    ("rest_framework.generics", "post"): "create",
    ("rest_framework.generics", "put"): "update",
    ("rest_framework.generics", "patch"): "partial_update",
    ("rest_framework.generics", "delete"): "destroy",
    ("rest_framework.mixins", "partial_update"): "update",
}


def function_of(value: Any) -> Any:
    """Return the function or ``partial`` that a value is or binds, or None."""
    while True:
        kind = type(value)
        if kind is FunctionType or kind is partial:
            return value
        if kind is MethodType or kind is staticmethod or kind is classmethod:
            value = value.__func__
        elif is_proxy(kind):
            value = value.__wrapped__
        else:
            return None


def is_proxy(kind: type) -> bool:
    """Return whether a class is that of a tracer's proxies."""
    return any(name in PROXIES for _module, name in places_of(kind))


def places_of(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of a class and of its bases."""
    read = type.__getattribute__  # a metaclass may have its own
    for base in read(cls, "__mro__"):
        yield read(base, "__module__"), read(base, "__name__")


def dotted_name(value: Any) -> str:
    """Return the dotted name of a callable, or of its class if it has no name."""
    while type(found := function_of(value)) is partial:
        value = found.func
    named = value if found is None else found
    if not (is_class(named) or type(named) in (FunctionType, BuiltinFunctionType)):
        named = type(named)
    return f"{named.__module__}.{named.__qualname__}"


def is_class(value: Any) -> bool:
    """Return whether a value is a class."""
    return issubclass(type(value), type)


def is_coroutine_function(value: Any) -> bool:
    """Return whether a handler is a coroutine function."""
    function = function_of(value)
    if function is None:
        function = function_of(attribute_of(type(value), "__call__"))
    return function is not None and iscoroutinefunction(function)


ATTRIBUTE = "_idempotency_mark"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a decorator of this app stores on a function; ``functools.wraps`` copies it.

    ``options`` are those of ``@idempotent``, or None for ``@idempotency_exempt``.
    """

    options: Mapping[str, Any] | None


def leave_mark(function: Any, mark: Mark) -> None:
    """Set the mark on a function."""
    vars(function_of(function))[ATTRIBUTE] = mark


def mark_of(value: Any) -> Mark | None:
    """Return the mark on a handler, or None."""
    function = function_of(value)
    found = None if function is None else vars(function).get(ATTRIBUTE)
    return found if type(found) is Mark else None


def attributes_of(cls: type) -> dict[str, Any]:
    """Return a class's attributes, inherited ones too, without descriptors' results."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    return found


def attribute_of(owner: Any, name: str) -> Any:
    """Return an attribute of a class or a view without calling descriptors, or None."""
    places = owner.__mro__ if is_class(owner) else (owner, *type(owner).__mro__)
    return next((vars(place)[name] for place in places if name in vars(place)), None)


def answering(view: Any, handler: Any) -> Any:
    """Return the method of a view, or of its class, that a handler delegates to.

    That is the handler itself, unless Django REST framework's generic views define it.
    """
    while True:
        function = function_of(handler)
        if type(function) is not FunctionType:
            return handler
        place = function.__module__, function.__name__
        if place not in DELEGATES:
            return handler
        handler = attribute_of(view, DELEGATES[place])


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What ``as_view()`` stores on the view that it returns."""

    cls: Any
    arguments: Mapping[str, Any]
    actions: Mapping[str, str]

    @property
    def is_drf(self) -> bool:
        """Whether it is a view of Django REST framework."""
        return issubclass(self.cls, APIView)

    def handler(self, method: str) -> Any:
        """Return the handler of an HTTP method, or None."""
        name = method.lower()
        return attribute_of(self.cls, self.actions.get(name, name))

    def answers(self, method: str) -> bool:
        """Return whether the view has a handler for an HTTP method and allows it."""
        own = attribute_of(self.cls, "http_method_names")
        allowed = self.arguments.get("http_method_names", own)
        if type(allowed) not in (list, tuple, set, frozenset):
            allowed = View.http_method_names  # a property's value is unknown
        return method.lower() in allowed and self.handler(method) is not None


def parts_of(callback: Any) -> Parts | None:
    """Return the parts of a class-based view, or None for another callback."""
    function = function_of(callback)
    own = {} if function is None else vars(function)
    for cls, arguments in (("cls", "initkwargs"), ("view_class", "view_initkwargs")):
        if is_class(own.get(cls)) and issubclass(own[cls], View):
            # Other views may use the name for anything.
            is_view_set = issubclass(own[cls], ViewSetMixin)
            return Parts(
                cls=own[cls],
                arguments=own.get(arguments, {}),
                actions=own.get("actions", {}) if is_view_set else {},
            )
    return None


def handlers_of(parts: Parts | None, method: str) -> list[Any]:
    """Return the handler of a method and the functions inside it, outer ones first.

    ``@api_view`` and other decorators keep the function that they wrap in a closure.
    Without a handler, the list is empty.
    """
    if parts is None:
        return []
    handler = answering(parts.cls, parts.handler(method))
    return [] if handler is None else [handler, *hidden_in(handler)]


def hidden_in(handler: Any) -> list[Any]:
    """Return the functions that a handler holds, outer ones first."""
    found = [function_of(handler)]
    # The loop extends its own list; functions may hold each other.
    for function in found:
        for held in map(function_of, contents_of(function)):
            if held is not None and not any(held is known for known in found):
                found.append(held)
    return found[1:]


def contents_of(function: Any) -> list[Any]:
    """Return the objects in a function's closure, or the function of a partial."""
    if type(function) is partial:
        return [function.func]
    found: list[Any] = []
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an unbound name
            held = cell.cell_contents
            # method_decorator() holds a list of decorators.
            found += held if type(held) is list or type(held) is tuple else [held]
    return found


def late_check_of(handler: Any) -> str | None:
    """Return the decorator by which a handler checks requests itself, or None (S2)."""
    for function in [function_of(handler), *hidden_in(handler)]:
        place = getattr(function, "__globals__", {}).get("__name__")
        held = contents_of(function) if type(function) is FunctionType else []
        # The class in the decorator itself, an instance in what it returns.
        kinds = (each if is_class(each) else type(each) for each in held)
        if any(CSRF in places_of(kind) for kind in kinds):
            return "csrf_protect"
        if place == CHECKS_OF_USERS:
            return "login_required and the like"
    return None
