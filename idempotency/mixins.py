"""The mixin: every POST action of a view is protected."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.views import View
from rest_framework.views import APIView

from idempotency import keys
from idempotency.conf import get_settings
from idempotency.conf.policy import Options, validate_options
from idempotency.exceptions import IdempotencyError
from idempotency.execution import execute, ignore_key
from idempotency.fingerprints.bodies import record_body
from idempotency.handlers import (
    answering,
    attribute_of,
    attributes_of,
    dotted_name,
    is_coroutine_function,
    mark_of,
)
from idempotency.hooks import PREFIX, Hooks, options_of
from idempotency.protection import protection_of_request

if TYPE_CHECKING:
    from django.http import HttpRequest
    from rest_framework.request import Request


class IdempotencyMixin(Hooks):
    """Give a view idempotency keys; stands left of the view class.

    Each attribute is an option of the same name; None leaves it to the settings.
    Durations are ``timedelta``; functions are called without the view. Wrong options
    are refused when the class is made, with ``ImproperlyConfigured``, and so is a mixin
    right of the view class, with ``TypeError``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mro = cls.__mro__
        if APIView in mro and mro.index(APIView) < mro.index(IdempotencyMixin):
            bases = [base for base in cls.__bases__ if base is not IdempotencyMixin]
            names = ", ".join(base.__name__ for base in [IdempotencyMixin, *bases])
            raise TypeError(
                "IdempotencyMixin must stand left of the view class. "
                f"Write: class {cls.__name__}({names})"
            )
        _validate(cls, {}, where=cls.__qualname__)

    @classmethod
    def as_view(cls, *args: Any, **initkwargs: Any) -> Any:
        """Check the options among ``initkwargs``, as those of ``@action`` are.

        A view with a leased handler is opted out of ATOMIC_REQUESTS (E11), and gives
        its other requests their transaction.

        Raises ``TypeError`` for a view of Django's own kind and for handlers that are
        coroutines, which it can't protect.
        """
        if not issubclass(cls, APIView):
            raise TypeError(
                f"IdempotencyMixin protects views of Django REST framework only, and "
                f"{cls.__qualname__} is none: derive it from APIView, or from a class "
                "that does."
            )
        _refuse_coroutines(cls, *args, **initkwargs)
        _validate(cls, initkwargs, where=f"{cls.__qualname__}.as_view()")
        view = super().as_view(*args, **initkwargs)  # type: ignore[misc]  # of the view class
        return _opted_out(view) if _has_leased_handler(cls, initkwargs) else view

    def initialize_request(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> Request:
        """Put the protection around the handler that ``dispatch`` is going to call."""
        drf_request: Request = super().initialize_request(request, *args, **kwargs)  # type: ignore[misc]  # of the view class
        name = (request.method or "").lower()
        handler = getattr(self, name, None)
        mark = mark_of(answering(self, handler))
        if mark is not None:
            if mark.options is not None:
                _keep_body(request)
            return drf_request
        options = options_of(self)  # type: ignore[arg-type]  # a view, too
        settings = get_settings()
        if request.method not in options.get("methods", settings.policy.methods):
            if settings.ENABLED:
                acts = handler is not None and name in self.http_method_names  # type: ignore[attr-defined]  # of the view class
                ignore_key(self, drf_request, acts=acts)  # type: ignore[arg-type]  # a view, too
        elif handler is not None:
            _keep_body(request)
            setattr(self, name, self._protect(handler, options))
        return drf_request

    def _protect(self, handler: Any, options: Options) -> Any:
        """Return what the view has in the handler's place, to all who look a method.

        With the handler's own marks: permissions and schemas look for them, and loggers
        for the view that a method is bound to.
        """

        @wraps(handler.__func__ if type(handler) is MethodType else handler)
        def protected(view: IdempotencyMixin, /, *args: Any, **kwargs: Any) -> Any:
            return view._execute(handler, options, *args, **kwargs)

        return MethodType(protected, self)

    def _execute(
        self,
        handler: Any,
        options: Options,
        request: Request,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = partial(handler, request, *args, **kwargs)
        return execute(self, request, run, options)  # type: ignore[arg-type]  # a view, too


def _keep_body(request: HttpRequest) -> None:
    """Let a keyed request be known by what came, whoever reads it first (F3)."""
    in_query, in_header = keys.find_raw(request.META)
    if get_settings().ENABLED and (in_query or in_header is not None):
        record_body(request)


def _refuse_coroutines(cls: type, actions: Any = None, **initkwargs: Any) -> None:
    """Refuse what a view or a ViewSet answers with, if there is a coroutine in it."""
    for name in (actions or {}).values() or View.http_method_names:
        handler = answering(cls, attribute_of(cls, name))
        if is_coroutine_function(handler):
            raise TypeError(
                f"IdempotencyMixin can't protect {dotted_name(handler)}(): it is a "
                "coroutine, and Django has no transactions for those."
            )


def _has_leased_handler(cls: type[Hooks], initkwargs: Options) -> bool:
    if not _attributes(cls, initkwargs).get("idempotency_atomic", True):
        return True
    marks = map(mark_of, attributes_of(cls).values())
    options = (mark.options for mark in marks if mark is not None)
    return any(not (own or {}).get("atomic", True) for own in options)


class _OptedOut(set[str]):
    """All databases, for Django to see, and those that the project itself has named.

    A decorator in the URLconf adds to what ``as_view()`` returns.
    """

    def __init__(self, own: Iterable[str]) -> None:
        super().__init__(connections)
        self.own = {*own}

    def add(self, alias: str) -> None:
        self.own.add(alias)
        super().add(alias)


def _opted_out(view: Any) -> Any:
    """Opt a view out of ATOMIC_REQUESTS; what is not leased gets what Django gives."""

    @wraps(view)
    def opted_out(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        run = view
        if not _is_leased(view, request, *args, **kwargs):
            for alias, database in connections.settings.items():
                if database["ATOMIC_REQUESTS"] and alias not in aliases.own:
                    run = transaction.atomic(using=alias)(run)
        return run(request, *args, **kwargs)

    aliases = _OptedOut(getattr(view, "_non_atomic_requests", ()))
    vars(opted_out)["_non_atomic_requests"] = aliases
    return opted_out


def _is_leased(view: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> bool:
    """Tell whether a request is going to be executed in leased mode."""
    try:
        if not get_settings().ENABLED or keys.find_key(request.META) is None:
            return False
    except IdempotencyError:
        return False  # it will be refused
    protection = protection_of_request(view, request, *args, **kwargs)
    return protection is not None and not protection.policy.atomic


def _validate(cls: type, initkwargs: Options, *, where: str) -> None:
    """Check the options of a class as they are with its base classes' and arguments."""
    attributes = _attributes(cls, initkwargs)
    validate_options(
        {name.removeprefix(PREFIX): value for name, value in attributes.items()},
        where=where,
    )


def _attributes(cls: type, initkwargs: Options) -> dict[str, Any]:
    """Return the options among a class's attributes, its base classes' too."""
    names = [name for name in attributes_of(cls) if name.startswith(PREFIX)]
    own = {name: getattr(cls, name) for name in names}
    arguments = {
        name: initkwargs[name] for name in initkwargs if name.startswith(PREFIX)
    }
    return {k: v for k, v in {**own, **arguments}.items() if v is not None}
