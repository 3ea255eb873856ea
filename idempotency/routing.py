"""Protect every view of a URLconf, also of other packages, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from functools import WRAPPER_ASSIGNMENTS, partial, wraps
from importlib import import_module
from types import CellType, FunctionType, ModuleType, new_class
from typing import Any, TypeAlias

from django.core.exceptions import ImproperlyConfigured
from django.urls import URLPattern, URLResolver
from django.utils.module_loading import import_string

from idempotency.conf.policy import validate_options
from idempotency.handlers import (
    VIA,
    Mark,
    Parts,
    attributes_of,
    dotted_name,
    hidden_in,
    is_proxy,
    leave_mark,
    mark_of,
    parts_of,
)
from idempotency.hooks import ORIGINAL, PREFIX, Hooks
from idempotency.mixins import IdempotencyMixin, opted_out_if_leased, refuse_handlers

View: TypeAlias = "str | type | Callable[..., Any]"


def protected(patterns: Any, /, *, exempt: Iterable[View] = (), **options: Any) -> Any:
    """Return URL patterns in which the mixin protects every view of DRF.

    - ``patterns``: what ``include()`` takes: a list, a tuple of a list and an
      ``app_name``, a module, or its dotted path
    - ``exempt``: views to leave out, each by the name of its route (with namespaces
      within the patterns), by its dotted path or as the audit names it, or the class or
      function itself
    - ``options``: those of ``@idempotent``

    Use the result as ``urlpatterns``, or pass it to ``include()``. It has copies of the
    views, so other routes to the same views stay unprotected. Views that are protected
    already keep their own options, and views with ``@idempotency_exempt`` stay exempt.

    Raise ``ImproperlyConfigured`` for a wrong option, for an ``exempt`` that no view
    has or whose view has the mixin, for patterns without a view of Django REST
    framework, and for a view in a decorator that is not a function. Raise ``TypeError``
    for a coroutine.
    """
    validate_options(options, where="protected()")
    if isinstance(exempt, str):
        raise ImproperlyConfigured(
            f"The argument exempt of protected() is a list. Write: exempt=[{exempt!r}]"
        )
    urls, app_name = _read(patterns)
    copies = _Copies([*exempt], options)
    found = copies.of_patterns(urls)
    copies.check()
    return found if app_name is None else (found, app_name)


def _read(patterns: Any) -> tuple[Any, str | None]:
    """Return the list of patterns and the ``app_name``, as ``include()`` does."""
    app_name = None
    if isinstance(patterns, tuple):
        if len(patterns) != 2:
            raise ImproperlyConfigured(
                "protected() takes what include() takes, not what it returns. "
                "Write: include(protected(...))"
            )
        patterns, app_name = patterns
    if isinstance(patterns, str):
        patterns = import_module(patterns)
    if isinstance(patterns, ModuleType):
        app_name = getattr(patterns, "app_name", app_name)
        patterns = patterns.urlpatterns
    return patterns, app_name


def original_of(cls: type) -> type | None:
    """Return the view class that ``protected()`` has copied, or None."""
    found: type | None = vars(cls).get(ORIGINAL)
    return found


def copy_like(copy: type, cls: type) -> type:
    """Return a copy of a view class that is protected as another copy is."""
    own = {name: value for name, value in vars(copy).items() if name.startswith(PREFIX)}
    options = {name.removeprefix(PREFIX): value for name, value in own.items()}
    return _Copies([], options).of_class(cls)


class _Copies:
    """Copies of URL patterns and of their views."""

    def __init__(self, exempt: list[View], options: dict[str, Any]) -> None:
        self.exempt = [(view, _imported(view)) for view in exempt]
        self.unused = [*exempt]
        self.names: set[str] = set()
        self.options = options
        self.attributes = {PREFIX + name: value for name, value in options.items()}
        self.has_views = False
        # By identity: a route with a format suffix has the same view as without.
        self.callbacks: dict[int, tuple[Any, Any]] = {}
        self.classes: dict[type, type] = {}

    def check(self) -> None:
        """Raise ``ImproperlyConfigured`` for an argument without effect."""
        if self.unused:
            view = self.unused[0]
            alike = get_close_matches(str(view), sorted(self.names), cutoff=0.5)
            raise ImproperlyConfigured(
                f"protected() can't exempt {view!r}, because none of the patterns has "
                "such a view. Name a route, or give the dotted path of a view."
                + (f" Similar names are: {', '.join(alike)}" if alike else "")
            )
        if not self.has_views:
            raise ImproperlyConfigured(
                "protected() has found no view of Django REST framework."
            )

    def of_patterns(self, urls: Iterable[Any], namespaces: str = "") -> list[Any]:
        """Return the patterns with protected views."""
        return [self._of_entry(entry, namespaces) for entry in urls]

    def _of_entry(self, entry: Any, namespaces: str) -> Any:
        if isinstance(entry, URLResolver):
            inner = f"{namespaces}{entry.namespace}:" if entry.namespace else namespaces
            urls = self.of_patterns(entry.url_patterns, inner)
            more = entry.default_kwargs, entry.app_name, entry.namespace
            return type(entry)(entry.pattern, urls, *more)
        if not isinstance(entry, URLPattern):
            raise ImproperlyConfigured(
                f"protected() takes URL patterns, and {entry!r} is not one."
            )
        callback = self._of_callback(entry.callback, f"{namespaces}{entry.name}")
        return type(entry)(entry.pattern, callback, entry.default_args, entry.name)

    def _of_callback(self, callback: Any, name: str) -> Any:
        parts = parts_of(callback)
        is_drf = parts is not None and parts.is_drf
        self.has_views |= is_drf
        if self._is_exempt(callback, parts, name):
            if parts is not None and issubclass(parts.cls, Hooks):
                raise ImproperlyConfigured(
                    f"protected() can't exempt {dotted_name(parts.cls)}, which is "
                    "protected by itself. Write @idempotency_exempt above its handler."
                )
            return _exempted(callback)
        if parts is None or not is_drf or issubclass(parts.cls, Hooks):
            return callback
        if id(callback) not in self.callbacks:
            # With the callback, whose id must not be used again.
            self.callbacks[id(callback)] = callback, self._protect(callback, parts)
        return self.callbacks[id(callback)][1]

    def _is_exempt(self, callback: Any, parts: Parts | None, name: str) -> bool:
        names = {name, dotted_name(callback)}
        views = [callback]
        if parts is not None:
            cls = f"{parts.cls.__module__}.{parts.cls.__name__}"
            names.add(cls)
            if "post" in parts.actions:
                names.add(f"{cls}.{parts.actions['post']}")
            views.append(parts.cls)
        self.names |= names

        def is_meant(given: View, view: Any) -> bool:
            if isinstance(given, str) and given in names:
                return True
            own = parts_of(view)
            return any(each is (own.cls if own else view) for each in views)

        used = [given for given, view in self.exempt if is_meant(given, view)]
        self.unused = [view for view in self.unused if view not in used]
        return bool(used)

    def _protect(self, callback: Any, parts: Parts) -> Any:
        try:
            refuse_handlers(parts.cls, parts.actions, self.options)
        except TypeError as error:
            raise TypeError(
                f"{error} Exempt the view: protected(..., exempt=[...])."
            ) from None
        if parts.cls not in self.classes:
            self.classes[parts.cls] = self.of_class(parts.cls)
        cls = self.classes[parts.cls]
        view = _Replacement(parts.cls, cls).of(callback)
        if view is callback:
            raise ImproperlyConfigured(
                f"protected() can't protect {dotted_name(parts.cls)}, because the view "
                "is in a decorator that is not a function. Exempt the view here, and "
                "protect it with IdempotencyMixin or @idempotent."
            )
        return opted_out_if_leased(view, cls, parts.arguments)

    def of_class(self, cls: Any) -> type:
        """Return a copy of a view class, which is its protected subclass."""
        own = {name: getattr(cls, name) for name in ("__module__", "__qualname__")}
        own |= {"__doc__": cls.__doc__, VIA: "routing", ORIGINAL: cls}
        own |= self.attributes
        for name, handler in attributes_of(cls).items():
            mark = _hidden_mark(handler)
            if mark is not None:
                own[name] = _delegating(handler, mark)
        bases = (IdempotencyMixin, cls)
        return new_class(cls.__name__, bases, exec_body=lambda body: body.update(own))


def _imported(view: View) -> Any:
    """Return what is at a dotted path, or what is given if nothing is there."""
    if isinstance(view, str):
        with suppress(ImportError):
            return import_string(view)
    return view


def _exempted(callback: Any) -> Any:
    """Return a copy of a view that the audit shows as exempt."""
    if type(callback) is not FunctionType:
        return callback
    copy = _copy(callback, callback.__closure__)
    leave_mark(copy, Mark(None))
    return copy


def _hidden_mark(handler: Any) -> Mark | None:
    """Return the mark of a function inside a handler that has none itself."""
    if type(handler) is not FunctionType or mark_of(handler) is not None:
        return None
    marks = [mark_of(function) for function in hidden_in(handler)]
    return next((mark for mark in marks if mark is not None), None)


def _delegating(handler: Any, mark: Mark) -> Any:
    """Return a handler that shows the mark, so that the mixin respects it."""

    @wraps(handler)
    def delegating(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    leave_mark(delegating, mark)
    return delegating


class _Replacement:
    """Replaces a class in copies of the functions that hold it."""

    def __init__(self, old: type, new: type) -> None:
        self.old, self.new = old, new
        self.copies: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """Return a copy if the value holds the class, or the value itself."""
        if value is self.old:
            return self.new
        kind = type(value)
        if kind is not FunctionType and kind is not partial and not is_proxy(kind):
            return value
        if id(value) not in self.copies:
            self.copies[id(value)] = value  # functions may hold each other
            self.copies[id(value)] = self._copied(value)
        return self.copies[id(value)]

    def _copied(self, value: Any) -> Any:
        if type(value) is FunctionType:
            cells = value.__closure__ or ()
            closure = tuple(map(self._of_cell, cells))
            if all(new is old for new, old in zip(closure, cells, strict=True)):
                return value
            copy = _copy(value, closure)
        else:
            inner = value.func if type(value) is partial else value.__wrapped__
            held = self.of(inner)
            if held is inner:
                return value
            if type(value) is not partial:
                return type(value)(held, value._self_wrapper)
            copy = partial(held, *value.args, **value.keywords)
        for name, attribute in vars(value).items():
            vars(copy)[name] = self.of(attribute)
        return copy

    def _of_cell(self, cell: CellType) -> CellType:
        try:
            held = cell.cell_contents
        except ValueError:  # an unbound name
            return cell
        copy = self.of(held)
        return cell if copy is held else CellType(copy)


def _copy(function: FunctionType, closure: Any) -> Any:
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        closure,
    )
    for name in (*WRAPPER_ASSIGNMENTS, "__kwdefaults__"):
        setattr(copy, name, getattr(function, name))
    vars(copy).update(vars(function))
    return copy
