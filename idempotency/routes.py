"""What a project's URLconf leads to, and which methods it answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.admindocs.utils import (
    remove_non_capturing_groups,
    replace_metacharacters,
    replace_named_groups,
    replace_unnamed_groups,
)
from django.urls import get_resolver
from django.urls.resolvers import RegexPattern, URLResolver
from django.views import View

# What Django REST framework's format suffixes end in, as regex and as converter.
FORMAT_SUFFIX = re.compile(r"(\.<format>|<drf_format_suffix\w*:format>)/?$")


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
    def view_class(self) -> Any:
        """The class of the view, or None for a function of Django's own kind."""
        return _class_of(self.callback)

    def view(self, method: str) -> str:
        """Return the dotted name of what answers a method, a ViewSet's action too."""
        view, view_class = self.callback, self.view_class
        if view_class is not None:
            action = (getattr(view, "actions", None) or {}).get(method.lower())
            ends = [view_class.__name__, *([action] if action else [])]
            return ".".join([view_class.__module__, *ends])
        return dotted_name(view)

    def methods(self) -> Iterator[str]:
        """Yield the HTTP methods that it answers, in capitals."""
        for method in map(str.upper, View.http_method_names):
            if answers(self.callback, method):
                yield method


def _class_of(view: Any) -> Any:
    return getattr(view, "cls", None) or getattr(view, "view_class", None)


def dotted_name(function: Any) -> str:
    """Return where a callable stands; one that has no name stands for its class."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


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
        view = (route.name, route.callback)
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
    if isinstance(pattern, RegexPattern):
        # As admindocs, whose views can't be imported without the admin, put it.
        for simplify in (
            remove_non_capturing_groups,
            replace_named_groups,
            replace_unnamed_groups,
            replace_metacharacters,
        ):
            written = simplify(written)
    return written


def answers(callback: Any, method: str) -> bool:
    """Tell whether a view answers an HTTP method, as far as it can be told.

    A function of Django's own kind answers all that ``require_http_methods`` and its
    like let through.
    """
    view_class = _class_of(callback)
    if view_class is None:
        return all(method in allowed for allowed in _required_methods(callback))
    name = method.lower()
    arguments = getattr(callback, "initkwargs", None)
    if arguments is None:
        arguments = getattr(callback, "view_initkwargs", {})
    allowed = arguments.get("http_method_names", view_class.http_method_names)
    handlers = getattr(callback, "actions", None) or {}
    return name in allowed and (name in handlers or hasattr(view_class, name))


def _required_methods(view: Any) -> Iterator[Iterable[str]]:
    """Yield what each ``require_http_methods`` around a function was told."""
    while view is not None:
        code = getattr(view, "__code__", None)
        if code is not None and "request_method_list" in code.co_freevars:
            cell = view.__closure__[code.co_freevars.index("request_method_list")]
            yield cell.cell_contents
        view = getattr(view, "__wrapped__", None)
