"""The decorators: one handler is protected, or left alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import CellType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from django.core.exceptions import ImproperlyConfigured
from rest_framework.request import Request

from idempotency.execution import execute
from idempotency.hooks import hooks_of
from idempotency.policy import validate_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from idempotency.policy import TypedOptions

Handler = TypeVar("Handler", bound=Callable[..., Any])

OPTIONS_ATTRIBUTE = "idempotency_options"
EXEMPT_ATTRIBUTE = "idempotency_exempt"

# What Django REST framework's own methods hand on to: projects override these.
DELEGATES = {
    ("rest_framework.generics", "post"): "create",
    ("rest_framework.generics", "put"): "update",
    ("rest_framework.generics", "patch"): "partial_update",
    ("rest_framework.generics", "delete"): "destroy",
    ("rest_framework.mixins", "partial_update"): "update",
}

# Of a name that is not bound, any more or so far.
EMPTY_CELL = CellType()


@overload
def idempotent(handler: Handler, /) -> Handler: ...
@overload
def idempotent(**options: Unpack[TypedOptions]) -> Callable[[Handler], Handler]: ...
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
                f"{handler.__qualname__} was called without its request: put "
                "@api_view above @idempotent, or decorate the method of an APIView "
                "that takes the request, such as post() or create()."
            )
        inherited = hooks_of(view).get_idempotency_options()
        run = partial(handler, *args, **kwargs)
        return execute(view, request, run, {**inherited, **options})

    setattr(protected, OPTIONS_ATTRIBUTE, options)
    return protected


def idempotency_exempt(handler: Handler) -> Handler:
    """Leave one POST action of a view with the mixin unprotected."""
    _check_place(handler, "idempotency_exempt")
    setattr(handler, EXEMPT_ATTRIBUTE, True)
    return handler


def handlers_of(view: Any, method: str) -> Iterator[Any]:
    """Yield the handler of a view that ``as_view`` or ``@api_view`` has made.

    ``@api_view`` keeps the function that it wraps in a closure, and so does every
    decorator around a handler: what is there comes after it, outer ones first.
    """
    actions = getattr(view, "actions", None) or {}
    name = actions.get(method.lower(), method.lower())
    cls = getattr(view, "cls", None)
    handlers = [answering(cls, getattr(cls, name, None))]
    # It grows while it is walked; functions may well hold each other.
    for handler in handlers:
        yield handler
        handlers += [
            found
            for found in _enclosed_by(handler)
            if not any(found is known for known in handlers)
        ]


def answering(view: Any, handler: Any) -> Any:
    """Return the method of a view, or of its class, that a handler hands on to.

    That is the handler itself, unless it is one of Django REST framework's generic
    views.
    """
    while True:
        place = getattr(handler, "__module__", ""), getattr(handler, "__name__", "")
        if place not in DELEGATES:
            return handler
        handler = getattr(view, DELEGATES[place])


def _enclosed_by(handler: Any) -> Iterator[Any]:
    for cell in getattr(handler, "__closure__", None) or ():
        if cell != EMPTY_CELL and callable(cell.cell_contents):
            yield cell.cell_contents


def _check_place(handler: Any, decorator: str) -> None:
    if hasattr(handler, "cls"):
        raise TypeError(
            f"@{decorator} must stand below @api_view. The right order is:\n\n"
            '    @api_view(["POST"])\n'
            f"    @{decorator}\n"
            f"    def {handler.cls.__name__}(request):\n"
            "        ..."
        )
    if inspect.isclass(handler) or not callable(handler):
        raise TypeError(
            f"@{decorator} belongs above a handler, not above {handler!r}. "
            "For a whole view there is IdempotencyMixin."
        )
    if inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"@{decorator} can't protect {handler.__qualname__}: it is a coroutine, "
            "and Django has no transactions for those."
        )
