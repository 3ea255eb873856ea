"""What a project's URLconf leads to, and which methods it answers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from django.conf import settings
from django.contrib.admindocs.utils import (
    remove_non_capturing_groups,
    replace_metacharacters,
    replace_named_groups,
    replace_unnamed_groups,
)
from django.urls import ResolverMatch, get_resolver, get_script_prefix, resolve
from django.urls.resolvers import RegexPattern, URLResolver
from django.views import View
from django.views.decorators import http

from idempotency.handlers import Parts, dotted_name, function_of, parts_of

# What Django REST framework's format suffixes end in, as regex and as converter.
FORMAT_SUFFIX = re.compile(r"(\.<format>|<drf_format_suffix\w*:format>)/?$")

# The name by which require_http_methods knows what it was told.
REQUIRED = "request_method_list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One address of a project.

    ``path`` is as the URLconf has it, from the first slash on, regular expressions in
    the short form of Django's admindocs. ``name`` has the namespaces before it.
    """

    path: str
    name: str | None
    callback: Any

    @property
    def parts(self) -> Parts | None:
        """What the view is made of, or None for a function of Django's own kind."""
        return parts_of(self.callback)

    def view(self, method: str) -> str:
        """Return the dotted name of what answers a method, a ViewSet's action too."""
        parts = self.parts
        if parts is None:
            return dotted_name(self.callback)
        action = parts.actions.get(method.lower())
        ends = [parts.cls.__name__, *([action] if action else [])]
        return ".".join([parts.cls.__module__, *ends])

    def methods(self) -> Iterator[str]:
        """Yield the HTTP methods that it answers, in capitals."""
        for method in map(str.upper, View.http_method_names):
            if answers(self.callback, method):
                yield method


def find_routes() -> list[Route]:
    """Return the project's routes in the URLconf's order.

    The suffix for a format, which Django REST framework's routers add to an address,
    makes no route of its own.
    """
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    found: list[Route] = []
    seen = set()
    for route in _walk(get_resolver().url_patterns, "/", ()):
        view = (route.name, id(route.callback))
        if view not in seen or not FORMAT_SUFFIX.search(route.path):
            found.append(route)
            seen.add(view)
    return found


def _walk(
    patterns: Iterable[Any], prefix: str, namespaces: tuple[str, ...]
) -> Iterator[Route]:
    for entry in patterns:
        path = prefix + _path(entry.pattern)
        if isinstance(entry, URLResolver):
            inner = (*namespaces, entry.namespace) if entry.namespace else namespaces
            yield from _walk(entry.url_patterns, path, inner)
        else:
            name = ":".join([*namespaces, entry.name]) if entry.name else None
            yield Route(path=path, name=name, callback=entry.callback)


def _path(pattern: Any) -> str:
    written = str(pattern)
    return _shortened(written) if isinstance(pattern, RegexPattern) else written


def _shortened(expression: str) -> str:
    # As admindocs, whose views can't be imported without the admin, put it.
    for simplify in (
        remove_non_capturing_groups,
        replace_named_groups,
        replace_unnamed_groups,
        replace_metacharacters,
    ):
        expression = simplify(expression)
    return expression


def match_of(path: str) -> ResolverMatch:
    """Return what a request's path leads to, in the URLconf in force.

    Raises ``Resolver404``, and whatever a converter of the project's does.
    """
    return resolve("/" + path.removeprefix(get_script_prefix()))


def route_of(path: str) -> str | None:
    """Return the route that a path matches: nothing in it was a client's choice.

    None where the path leads nowhere, or not any more.
    """
    try:
        route = match_of(path).route
    except Exception:  # noqa: BLE001  # a converter is the project's
        return None
    return "/" + _shortened(route)


def answers(callback: Any, method: str) -> bool:
    """Tell whether a view answers an HTTP method, as far as it can be told.

    A function of Django's own kind answers all that ``require_http_methods`` and its
    like let through.
    """
    parts = parts_of(callback)
    if parts is None:
        return all(method in allowed for allowed in _required_methods(callback))
    return parts.answers(method)


def _required_methods(view: Any) -> Iterator[Collection[str]]:
    """Yield what each ``require_http_methods`` around a function was told."""
    while type(function := function_of(view)) is FunctionType:
        if function.__globals__ is vars(http):
            names, cells = function.__code__.co_freevars, function.__closure__ or ()
            held = dict(zip(names, cells, strict=True))
            if REQUIRED in held:
                yield held[REQUIRED].cell_contents
        view = vars(function).get("__wrapped__")
