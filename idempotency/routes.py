"""The routes of a project's URLconf, and the methods that they accept."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
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
from django.utils.translation import get_language_from_path, override
from django.views import View
from django.views.decorators import http

from idempotency.handlers import Parts, dotted_name, function_of, parts_of

# The endings of Django REST framework's format suffixes, as regex and as converter.
FORMAT_SUFFIX = re.compile(r"(\.<format>|<drf_format_suffix\w*:format>)/?$")

# Characters of a stored route.
MAX_LENGTH = 255

# The argument of require_http_methods.
REQUIRED = "request_method_list"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route of a project.

    ``path`` is the URLconf's, with regular expressions in the short form of Django's
    admindocs. ``name`` includes the namespaces.
    """

    path: str
    name: str | None
    callback: Any

    @property
    def parts(self) -> Parts | None:
        """The parts of a class-based view, or None for a function."""
        return parts_of(self.callback)

    def view(self, method: str) -> str:
        """Return the dotted name of the view, and of a ViewSet's action."""
        parts = self.parts
        if parts is None:
            return dotted_name(self.callback)
        action = parts.actions.get(method.lower())
        ends = [parts.cls.__name__, *([action] if action else [])]
        return ".".join([parts.cls.__module__, *ends])

    def methods(self) -> Iterator[str]:
        """Yield the HTTP methods that the route accepts, in capitals."""
        for method in map(str.upper, View.http_method_names):
            if answers(self.callback, method):
                yield method


def find_routes() -> list[Route]:
    """Return the project's routes in the URLconf's order, without format suffixes."""
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
        is_regex = isinstance(entry.pattern, RegexPattern)
        written = str(entry.pattern)
        path = prefix + (_shortened(written) if is_regex else written)
        if isinstance(entry, URLResolver):
            inner = (*namespaces, entry.namespace) if entry.namespace else namespaces
            yield from _walk(entry.url_patterns, path, inner)
        else:
            name = ":".join([*namespaces, entry.name]) if entry.name else None
            yield Route(path=path, name=name, callback=entry.callback)


# Each request with a new key asks for its route; a project has few.
@lru_cache(maxsize=1024)
def _shortened(expression: str) -> str:
    # As simplify_regex() of admindocs' views, whose import needs the admin.
    for simplify in (
        remove_non_capturing_groups,
        replace_named_groups,
        replace_unnamed_groups,
        replace_metacharacters,
    ):
        expression = simplify(expression)
    return expression


def match_of(path: str) -> ResolverMatch:
    """Return the match of a request's path in the current URLconf.

    ``i18n_patterns`` match in the path's language alone.

    Raise ``Resolver404``, or any error of a project's converter.
    """
    local = "/" + path.removeprefix(get_script_prefix())
    with override(get_language_from_path(local) or settings.LANGUAGE_CODE):
        return resolve(local)


def route_of(path: str) -> str | None:
    """Return the route that a path matches, or None. It has no text from a client."""
    try:
        match = match_of(path)
    except Exception:  # noqa: BLE001  # a converter is the project's
        return None
    return route_in(match)


def route_in(match: ResolverMatch | None) -> str | None:
    """Return a match's route as it is stored, or None without a match."""
    if match is None:
        return None
    return ("/" + _shortened(match.route))[:MAX_LENGTH]


def view_of(path: str, method: str) -> str | None:
    """Return the dotted name of the view that a path leads to, or None."""
    try:
        callback = match_of(path).func
        return Route(path=path, name=None, callback=callback).view(method)
    except Exception:  # noqa: BLE001  # a converter is the project's
        return None


def answers(callback: Any, method: str) -> bool:
    """Return whether a view accepts an HTTP method, as far as its code tells.

    A function accepts every method that ``require_http_methods`` and the like allow.
    """
    parts = parts_of(callback)
    if parts is None:
        return all(method in allowed for allowed in _required_methods(callback))
    return parts.answers(method)


def _required_methods(view: Any) -> Iterator[Collection[str]]:
    """Yield the argument of each ``require_http_methods`` around a function."""
    while type(function := function_of(view)) is FunctionType:
        if function.__globals__ is vars(http):
            names, cells = function.__code__.co_freevars, function.__closure__ or ()
            held = dict(zip(names, cells, strict=True))
            if REQUIRED in held:
                yield held[REQUIRED].cell_contents
        view = vars(function).get("__wrapped__")
