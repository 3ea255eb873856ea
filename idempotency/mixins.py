"""The mixin that protects every POST action of a view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial, wraps
from types import MethodType
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.views import View
from rest_framework.exceptions import APIException
from rest_framework.views import APIView

from idempotency import keys
from idempotency.conf import get_settings
from idempotency.conf.policy import Options, validate_options
from idempotency.execution import execute, execute_plain, ignore_key
from idempotency.fingerprints.bodies import record_body
from idempotency.handlers import (
    answering,
    attribute_of,
    attributes_of,
    dotted_name,
    is_coroutine_function,
    late_check_of,
    mark_of,
)
from idempotency.hooks import PREFIX, Hooks, options_of
from idempotency.protection import protection_of_request

if TYPE_CHECKING:
    from django.http import HttpRequest
    from rest_framework.request import Request


class IdempotencyMixin(Hooks):
    """Protect a view with idempotency keys; put it left of the view class.

    Each attribute ``idempotency_<option>`` sets an option, or leaves it to the settings
    if it is None. Functions are called without the view. Defining a class raises
    ``ImproperlyConfigured`` for a wrong option, and ``TypeError`` if the mixin is right
    of the view class.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mro = cls.__mro__
        if View in mro and mro.index(View) < mro.index(IdempotencyMixin):
            bases = [base for base in cls.__bases__ if base is not IdempotencyMixin]
            names = ", ".join(base.__name__ for base in [IdempotencyMixin, *bases])
            raise TypeError(
                "IdempotencyMixin must be left of the view class. "
                f"Write: class {cls.__name__}({names})"
            )
        validate_options(_options(cls, {}), where=cls.__qualname__)

    @classmethod
    def as_view(cls, *args: Any, **initkwargs: Any) -> Any:
        """Return the view, after a check of the options among ``initkwargs``.

        Exempt a view with a leased handler from ATOMIC_REQUESTS (E11), and give its
        other requests their transaction. Raise ``TypeError`` for a class that is not a
        view, and for a handler that can't be protected.
        """
        if not issubclass(cls, View):
            raise TypeError(
                f"IdempotencyMixin protects views, and {cls.__qualname__} is not one. "
                "Derive it from APIView or from Django's View."
            )
        options = _options(cls, initkwargs)
        validate_options(options, where=f"{cls.__qualname__}.as_view()")
        actions = args[0] if args else initkwargs.get("actions")
        refuse_handlers(cls, actions, options)
        view = super().as_view(*args, **initkwargs)  # type: ignore[misc]  # of the view class
        return opted_out_if_leased(view, cls, initkwargs)

    def initialize_request(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> Request:
        """Wrap the handler that ``dispatch`` is going to call."""
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
                using = options.get("using")
                ignore_key(self, drf_request, acts=acts, using=using)  # type: ignore[arg-type]  # a view, too
        elif handler is not None:
            _keep_body(request)
            setattr(self, name, self._protect(handler, options))
        return drf_request

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        """Wrap the handler of a plain Django view."""
        super().setup(request, *args, **kwargs)  # type: ignore[misc]  # of the view class
        if isinstance(self, APIView):
            return  # initialize_request() does it for a view of DRF
        name = (request.method or "").lower()
        handler = getattr(self, name, None)
        if handler is not None and mark_of(handler) is None:
            setattr(self, name, self._protect_plain(handler))

    def _protect_plain(self, handler: Any) -> Any:
        owner: Any = self

        @wraps(handler.__func__ if type(handler) is MethodType else handler)
        def protected(request: HttpRequest, /, *args: Any, **kwargs: Any) -> Any:
            run = partial(handler, request, *args, **kwargs)
            name = dotted_name(type(self))
            return execute_plain(
                request, run, options_of(owner), name=name, owner=owner
            )

        return protected

    def _protect(self, handler: Any, options: Options) -> Any:
        # A bound method with the handler's attributes, because permissions and schemas
        # read those, and loggers read the view.
        @wraps(handler.__func__ if type(handler) is MethodType else handler)
        def protected(view: Any, request: Request, /, *args: Any, **kwargs: Any) -> Any:
            run = partial(handler, request, *args, **kwargs)
            return execute(view, request, run, options)

        return MethodType(protected, self)


def _keep_body(request: HttpRequest) -> None:
    """Record the body of a keyed request, so that others may read it first (F3)."""
    in_query, in_header = keys.find_raw(request.META)
    if get_settings().ENABLED and (in_query or in_header is not None):
        record_body(request)


def refuse_handlers(cls: type, actions: Any, options: Options) -> None:
    """Raise ``TypeError`` if a handler of a view or ViewSet can't be protected.

    That is a coroutine, or a handler that checks requests by decorators of Django's,
    which come after the key (S2).
    """
    methods = options.get("methods", get_settings().policy.methods)
    for method, name in (actions or {m: m for m in View.http_method_names}).items():
        handler = attribute_of(cls, name)
        last = answering(cls, handler)
        if is_coroutine_function(last):
            raise TypeError(
                f"IdempotencyMixin can't protect {dotted_name(last)}(): it is a "
                "coroutine, and Django's transactions are synchronous. In protected(), "
                "leave its view out with exempt=."
            )
        if method.upper() in methods and mark_of(last) is None:
            check = late_check_of(handler) or late_check_of(last)
            if check is not None:
                raise TypeError(
                    f"{check} must be on dispatch(), so that {dotted_name(last)}() is "
                    "checked before its key is used. Write above the view class: "
                    '@method_decorator(..., name="dispatch")'
                )


def opted_out_if_leased(view: Any, cls: type, initkwargs: Options) -> Any:
    """Exempt a view with a leased handler from ATOMIC_REQUESTS (E11)."""
    leased = [*_leased_handlers(cls, _options(cls, initkwargs))]
    if not leased:
        return view
    resumes = any(options.get("on_abandoned") == "resume" for options in leased)
    return _opted_out(view, resumes=resumes)


def _leased_handlers(cls: type, options: Options) -> Iterator[Any]:
    """Yield the options of a view and its handlers if they choose leased mode."""
    marks = map(mark_of, attributes_of(cls).values())
    decorated = [mark.options for mark in marks if mark is not None]
    for own in [options, *decorated]:
        if own and not own.get("atomic", True):
            yield own


class _OptedOut(set[str]):
    """All databases for Django, and in ``own`` those that the project exempts.

    A decorator in the URLconf may add to the latter after ``as_view()``.
    """

    def __init__(self, own: Iterable[str]) -> None:
        super().__init__(connections)
        self.own = {*own}

    def add(self, alias: str) -> None:
        self.own.add(alias)
        super().add(alias)


def _opted_out(view: Any, *, resumes: bool) -> Any:
    """Exempt a view from ATOMIC_REQUESTS, except for requests that are not leased.

    ``resumes`` says whether a handler may have steps, which have transactions of their
    own without a key, too (E14).
    """

    @wraps(view)
    def opted_out(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        run = view
        is_leased = resumes or _has_key(request)
        if not is_leased or not _is_leased(view, request, *args, **kwargs):
            for alias, database in connections.settings.items():
                if database["ATOMIC_REQUESTS"] and alias not in aliases.own:
                    run = transaction.atomic(using=alias)(run)
        return run(request, *args, **kwargs)

    aliases = _OptedOut(getattr(view, "_non_atomic_requests", ()))
    vars(opted_out)["_non_atomic_requests"] = aliases
    return opted_out


def _has_key(request: HttpRequest) -> bool:
    """Return whether a request has a key that has an effect."""
    try:
        return get_settings().ENABLED and keys.find_key(request.META) is not None
    except APIException:
        return False  # to be refused


def _is_leased(view: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> bool:
    """Return whether a request is going to run in leased mode, or in its steps."""
    protection = protection_of_request(view, request, *args, **kwargs)
    if protection is None or protection.policy.atomic:
        return False
    return protection.policy.on_abandoned == "resume" or _has_key(request)


def _options(cls: type, initkwargs: Options) -> dict[str, Any]:
    """Return the options that a class, its bases or ``initkwargs`` set."""
    names = [name for name in attributes_of(cls) if name.startswith(PREFIX)]
    own = {name: getattr(cls, name) for name in names}
    return {
        name.removeprefix(PREFIX): value
        for name, value in {**own, **initkwargs}.items()
        if name.startswith(PREFIX) and value is not None
    }
