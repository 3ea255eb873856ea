"""The mixin: every POST action of a view is protected."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.utils.decorators import classonlymethod
from django.views import View
from rest_framework.views import APIView

from idempotency import keys
from idempotency.conf import get_settings
from idempotency.decorators import EXEMPT_ATTRIBUTE, OPTIONS_ATTRIBUTE, answering
from idempotency.exceptions import IdempotencyError
from idempotency.execution import execute, ignore_key
from idempotency.hooks import Hooks
from idempotency.policy import RULES, Options, validate_options

if TYPE_CHECKING:
    from django.http import HttpRequest
    from rest_framework.request import Request

PREFIX = "idempotency_"


class IdempotencyMixin(Hooks):
    """Give a view idempotency keys; stands left of the view class.

    Each attribute is an option of the same name; None leaves it to the settings.
    Durations are ``timedelta``; functions are called without the view. Wrong options
    are refused when the class is made, with ``ImproperlyConfigured``, and so is a mixin
    right of the view class, with ``TypeError``.
    """

    idempotency_required: bool | None = None
    idempotency_methods: Collection[str] | None = None
    idempotency_retention: timedelta | None = None
    idempotency_using: str | None = None
    idempotency_released_statuses: Collection[int] | None = None
    idempotency_store: bool | str | Callable[..., bool] | None = None
    idempotency_check_replay: str | Callable[..., None] | None = None
    idempotency_atomic: bool | None = None
    idempotency_on_concurrent: str | None = None
    idempotency_wait_timeout: timedelta | None = None
    idempotency_lease: timedelta | None = None
    idempotency_on_abandoned: str | Callable[..., Any] | None = None

    # Set by as_view() where a handler of the view is leased.
    _idempotency_opts_out = False

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

    @classonlymethod
    def as_view(cls, *args: Any, **initkwargs: Any) -> Any:
        """Check the options among ``initkwargs``, as those of ``@action`` are.

        A view with a leased handler is opted out of ATOMIC_REQUESTS (E11); its other
        requests get their transaction from ``dispatch``.

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
        if not _has_leased_handler(cls, initkwargs):
            return super().as_view(*args, **initkwargs)  # type: ignore[misc]  # of the view class
        initkwargs["_idempotency_opts_out"] = True
        view = super().as_view(*args, **initkwargs)  # type: ignore[misc]  # of the view class
        # A copy: where the class's dispatch has such marks, the view shares its set.
        view._non_atomic_requests = {*getattr(view, "_non_atomic_requests", ())}
        for alias in connections:
            view = transaction.non_atomic_requests(using=alias)(view)
        return view

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Give a request that is not leased the transaction that Django would."""
        dispatch = super().dispatch  # type: ignore[misc]  # of the view class
        if self._idempotency_opts_out and not self._is_leased(request):
            # Django looks for the same mark on the view that as_view() returns.
            own = getattr(type(self).dispatch, "_non_atomic_requests", ())
            for alias, database in connections.settings.items():
                if database["ATOMIC_REQUESTS"] and alias not in own:
                    dispatch = transaction.atomic(using=alias)(dispatch)
        return dispatch(request, *args, **kwargs)

    def _is_leased(self, request: HttpRequest) -> bool:
        """Tell whether a request is going to be executed in leased mode."""
        handler = answering(self, getattr(self, (request.method or "").lower(), None))
        settings = get_settings()
        if (
            not settings.ENABLED
            or handler is None
            or hasattr(handler, EXEMPT_ATTRIBUTE)
        ):
            return False
        own = getattr(handler, OPTIONS_ATTRIBUTE, {})
        options = {**self.get_idempotency_options(), **own}
        if request.method not in options.get("methods", settings.METHODS):
            return False
        try:
            return not options.get("atomic", True) and bool(keys.find_key(request.META))
        except IdempotencyError:
            return False  # it will be refused

    def initialize_request(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> Request:
        """Put the protection around the handler that ``dispatch`` is going to call."""
        drf_request: Request = super().initialize_request(request, *args, **kwargs)  # type: ignore[misc]  # of the view class
        name = (request.method or "").lower()
        handler = getattr(self, name, None)
        own = answering(self, handler)
        if hasattr(own, OPTIONS_ATTRIBUTE) or hasattr(own, EXEMPT_ATTRIBUTE):
            return drf_request
        options = self.get_idempotency_options()
        settings = get_settings()
        if request.method not in options.get("methods", settings.METHODS):
            if settings.ENABLED:
                ignore_key(self, drf_request)  # type: ignore[arg-type]  # a view, too
        elif handler is not None:
            # With the handler's own marks: permissions and schemas may look for them.
            run = partial(self._execute, handler, options)
            setattr(self, name, update_wrapper(run, handler))
        return drf_request

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

    def get_idempotency_options(self) -> dict[str, Any]:
        """Return what the view itself says of the options."""
        # From the class: a function would come from the instance as a method.
        own, shared = vars(self), type(self)
        found = {
            name: own.get(PREFIX + name, getattr(shared, PREFIX + name))
            for name in OPTION_NAMES
        }
        return {name: value for name, value in found.items() if value is not None}


# The scope is a hook's to decide: get_idempotency_scope() reads its attribute.
OPTION_NAMES = tuple(name for name in RULES if name != "scope")


def _refuse_coroutines(cls: type, actions: Any = None, **initkwargs: Any) -> None:
    """Refuse what a view or a ViewSet answers with, if there is a coroutine in it."""
    for name in (actions or {}).values() or View.http_method_names:
        handler = answering(cls, getattr(cls, name, None))
        if inspect.iscoroutinefunction(handler):
            raise TypeError(
                f"IdempotencyMixin can't protect {handler.__qualname__}(): it is a "
                "coroutine, and Django has no transactions for those."
            )


def _has_leased_handler(cls: type[Hooks], initkwargs: Options) -> bool:
    if not _attributes(cls, initkwargs).get("idempotency_atomic", True):
        return True
    handlers = (getattr(cls, name, None) for name in dir(cls))
    options = (getattr(handler, OPTIONS_ATTRIBUTE, {}) for handler in handlers)
    return any(not own.get("atomic", True) for own in options)


def _validate(cls: type, initkwargs: Options, *, where: str) -> None:
    """Check the options of a class as they are with its base classes' and arguments."""
    attributes = _attributes(cls, initkwargs)
    validate_options(
        {name.removeprefix(PREFIX): value for name, value in attributes.items()},
        where=where,
    )


def _attributes(cls: type, initkwargs: Options) -> dict[str, Any]:
    """Return the options among a class's attributes, its base classes' too."""
    own = {name: getattr(cls, name) for name in dir(cls) if name.startswith(PREFIX)}
    arguments = {
        name: initkwargs[name] for name in initkwargs if name.startswith(PREFIX)
    }
    return {k: v for k, v in {**own, **arguments}.items() if v is not None}
