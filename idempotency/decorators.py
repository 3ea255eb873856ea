"""The decorators: one handler is protected, or left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from django.core.exceptions import ImproperlyConfigured
from rest_framework.request import Request

from idempotency.conf.policy import Policy, validate_options
from idempotency.execution import execute
from idempotency.handlers import (
    Mark,
    dotted_name,
    function_of,
    is_class,
    is_coroutine_function,
    leave_mark,
    mark_of,
    parts_of,
)
from idempotency.hooks import options_of

Handler = TypeVar("Handler", bound=Callable[..., Any])
TypedOptions = ParamSpec("TypedOptions")


class Decorator(Protocol[TypedOptions]):
    """What ``@idempotent`` is to type checkers: the table of options types its own."""

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
    """Protect a function under ``@api_view``, a view's method or a ViewSet's action.

    Options, each optional, nearest wins over the view's and the settings':

    - ``required``: refuse requests without a key
    - ``methods``: the HTTP methods that keys have a meaning for
    - ``retention``: how long a record is in force, a ``timedelta``
    - ``using``: the alias of the database with the record and the effects
    - ``scope``: a callable (or its dotted path) from the request to whose key it is
    - ``released_statuses``: answers that give the key back
    - ``store``: whether to keep answers, or a callable that takes the response and says
      so; a retry of one that is not kept is refused (R4)
    - ``check_replay``: a callable that takes the request and the record and raises an
      ``APIException`` to refuse the replay; or ``"object"``, which calls the
      ``get_object()`` of a generic view again
    - ``atomic``: True, claim, effects and response are one transaction; False, leased
      mode for handlers that act outside the database, needs ``on_abandoned``
    - ``lease``: how long a claim holds in leased mode, a ``timedelta``
    - ``on_abandoned``: what retries get when nobody knows whether a leased handler has
      acted: ``"hold"``, a refusal until a person decides; ``"rerun"``, another run; or
      a callable that takes the record and the request, finds out, and returns the
      response to store, or None for another run
    - ``on_concurrent``: ``"refuse"`` or ``"wait"`` while another request has the key
    - ``wait_timeout``: how long to wait, a ``timedelta``

    Raises ``ImproperlyConfigured`` for a wrong option and ``TypeError`` in a wrong
    place or order.
    """
    if handler is not None:
        return _protect(handler, {})
    validate_options(options, where="@idempotent")
    return partial(_protect, options=options)


def _protect(handler: Any, options: dict[str, Any]) -> Any:
    _check_place(handler, "idempotent")

    @wraps(handler)
    def protected(*args: Any, **kwargs: Any) -> Any:
        request = next((arg for arg in args[:2] if isinstance(arg, Request)), None)
        view = request.parser_context.get("view") if request is not None else None
        if request is None or view is None:
            raise ImproperlyConfigured(
                f"@idempotent protects handlers of Django REST framework only. "
                f"{dotted_name(handler)} was called without its request: put "
                "@api_view above @idempotent, or decorate the method of an APIView "
                "that takes the request, such as post() or create()."
            )
        run = partial(handler, *args, **kwargs)
        return execute(view, request, run, {**options_of(view), **options})

    leave_mark(protected, Mark(options))
    return protected


def idempotency_exempt(handler: Handler) -> Handler:
    """Leave one POST action of a view with the mixin unprotected."""
    _check_place(handler, "idempotency_exempt")
    if function_of(handler) is None:
        raise TypeError(
            "@idempotency_exempt belongs above a function, not above "
            f"{dotted_name(handler)}: nobody would look for its mark there."
        )
    # One that @idempotent has made protects itself.
    if mark_of(handler) is None:
        leave_mark(handler, Mark(None))
    return handler


def _check_place(handler: Any, decorator: str) -> None:
    parts = parts_of(handler)
    if parts is not None and parts.is_drf:
        raise TypeError(
            f"@{decorator} must stand below @api_view. The right order is:\n\n"
            '    @api_view(["POST"])\n'
            f"    @{decorator}\n"
            f"    def {parts.cls.__name__}(request):\n"
            "        ..."
        )
    if is_class(handler) or not callable(handler):
        raise TypeError(
            f"@{decorator} belongs above a handler, not above {handler!r}. "
            "For a whole view there is IdempotencyMixin."
        )
    if is_coroutine_function(handler):
        raise TypeError(
            f"@{decorator} can't protect {dotted_name(handler)}: it is a coroutine, "
            "and Django has no transactions for those."
        )
