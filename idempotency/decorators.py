"""The decorators that protect one handler, or exempt it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from rest_framework.request import Request

from idempotency.conf.policy import Options, Policy, validate_options
from idempotency.execution import execute, execute_plain
from idempotency.handlers import (
    Mark,
    dotted_name,
    function_of,
    is_class,
    is_coroutine_function,
    late_check_of,
    leave_mark,
    mark_of,
    parts_of,
)
from idempotency.hooks import options_of

REQUESTS = (Request, HttpRequest)
# What Django Ninja stores on a function.
NINJA = "_ninja_operation"

Handler = TypeVar("Handler", bound=Callable[..., Any])
TypedOptions = ParamSpec("TypedOptions")


class Decorator(Protocol[TypedOptions]):
    """The type of ``@idempotent``: its arguments are the fields of ``Policy``."""

    @overload
    def __call__(self, handler: Handler, /) -> Handler: ...
    @overload
    def __call__(
        self, *args: TypedOptions.args, **options: TypedOptions.kwargs
    ) -> Callable[[Handler], Handler]: ...


def _typed_by(
    table: Callable[TypedOptions, Policy],
) -> Callable[[Callable[..., Any]], Decorator[TypedOptions]]:
    return lambda decorator: cast("Decorator[TypedOptions]", decorator)


@_typed_by(Policy)
def idempotent(handler: Any = None, /, **options: Any) -> Any:
    """Protect a view function, a view's method, or a ViewSet's action.

    It belongs below ``@api_view``, and on a plain Django view below ``@login_required``
    and other decorators that check the request.

    All options are optional and override those of the view and of the settings:

    - ``required``: refuse requests without a key
    - ``methods``: the HTTP methods that accept keys
    - ``retention``: how long a record is in force, a ``timedelta``
    - ``using``: the alias of the database with the record and the effects
    - ``scope``: a callable, or its dotted path, that takes the request and returns
      whose key it is
    - ``released_statuses``: the response statuses that free the key
    - ``store``: whether to keep responses, or a callable that takes the response and
      returns that; retries are refused if the response was not kept (R4)
    - ``check_replay``: a callable that takes the request and the record and raises an
      ``APIException`` to refuse the replay; ``"object"`` calls the ``get_object()`` of
      a generic view again
    - ``atomic``: True for one transaction of claim, effects and response; False for
      leased mode, which is for external calls and needs ``on_abandoned``
    - ``lease``: how long a claim holds in leased mode, a ``timedelta``
    - ``on_abandoned``: what a retry does if a leased handler may have acted: ``"hold"``
      refuses it until a person decides, ``"rerun"`` runs the handler again,
      ``"resume"`` also, but skips the steps that are recorded, and a callable that
      takes the record and the request returns the response to store, or None to run
      the handler again
    - ``completer``: with ``"resume"``, a callable, or its dotted path, that takes what
      a handler has as ``request.idempotency`` and finishes an abandoned request
    - ``on_concurrent``: ``"refuse"`` or ``"wait"`` while another request has the key
    - ``wait_timeout``: how long to wait, a ``timedelta``

    Raise ``ImproperlyConfigured`` for a wrong option, and ``TypeError`` for a wrong
    place or order of decorators.
    """
    if handler is not None:
        return _protect(handler, {})
    validate_options(options, where="@idempotent")
    return partial(_protect, options=options)


def _protect(handler: Any, options: dict[str, Any]) -> Any:
    _check_place(handler, "idempotent")

    @wraps(handler)
    def protected(*args: Any, **kwargs: Any) -> Any:
        request = next((arg for arg in args[:2] if isinstance(arg, REQUESTS)), None)
        run = partial(handler, *args, **kwargs)
        if isinstance(request, HttpRequest):
            return _run_plain(handler, request, run, options, args)
        view = request.parser_context.get("view") if request is not None else None
        if request is None or view is None:
            raise ImproperlyConfigured(
                "@idempotent protects views, and "
                f"{dotted_name(handler)} was called without its request. Decorate the "
                "view function below @api_view, or a method that takes the request, "
                "such as post() or create()."
            )
        return execute(view, request, run, {**options_of(view), **options})

    leave_mark(protected, Mark(options))
    return protected


def _run_plain(
    handler: Any, request: HttpRequest, run: Any, options: Options, args: Any
) -> Any:
    """Run a plain view's function, or a method of its class."""
    if getattr(handler, "__name__", "") == "dispatch":
        raise ImproperlyConfigured(
            "@idempotent can't protect dispatch(), which checks the request only after "
            "the key. Decorate post() or another handler."
        )
    # method_decorator() passes a partial of the bound method.
    bound = handler.func if type(handler) is partial else handler
    owner = args[0] if args[0] is not request else getattr(bound, "__self__", None)
    own = options_of(owner) if owner is not None else {}
    name = dotted_name(handler)
    return execute_plain(request, run, {**own, **options}, name=name, owner=owner)


def idempotency_exempt(handler: Handler) -> Handler:
    """Exclude one action from the protection of ``IdempotencyMixin``."""
    _check_place(handler, "idempotency_exempt")
    if function_of(handler) is None:
        raise TypeError(
            "@idempotency_exempt decorates functions only, and "
            f"{dotted_name(handler)} is not one."
        )
    # @idempotent wins if a handler has both.
    if mark_of(handler) is None:
        leave_mark(handler, Mark(None))
    return handler


def _check_place(handler: Any, decorator: str) -> None:
    parts = parts_of(handler)
    if parts is not None and parts.is_drf:
        raise TypeError(
            f"@{decorator} must be below @api_view. Write:\n\n"
            '    @api_view(["POST"])\n'
            f"    @{decorator}\n"
            f"    def {parts.cls.__name__}(request):\n"
            "        ..."
        )
    if parts is not None or is_class(handler) or not callable(handler):
        what = f"{dotted_name(parts.cls)}.as_view()" if parts else repr(handler)
        raise TypeError(
            f"@{decorator} decorates handlers only, and {what} is not one. "
            "For a whole view, use IdempotencyMixin."
        )
    if decorator == "idempotent":
        _check_inner(handler)
    if is_coroutine_function(handler):
        raise TypeError(
            f"@{decorator} can't protect {dotted_name(handler)}: it is a coroutine, "
            "and Django's transactions are synchronous."
        )


def _check_inner(handler: Any) -> None:
    """Raise ``TypeError`` if a decorator below checks requests after the key (S2).

    Do so for Django Ninja, too, which calls the function below its decorator.
    """
    if NINJA in getattr(function_of(handler), "__dict__", {}):
        raise TypeError(
            f"@idempotent can't protect {dotted_name(handler)}, an operation of Django "
            "Ninja. Rewrite it with Django or Django REST framework."
        )
    name = late_check_of(handler)
    if name is not None:
        raise TypeError(
            f"@idempotent must be below {name}, so that {dotted_name(handler)} is "
            "checked before its key is used."
        )
