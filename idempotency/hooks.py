"""What a view can decide about its own protection, and the answers by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.http import HttpResponseBase
from django.utils.module_loading import import_string
from rest_framework.generics import GenericAPIView

from idempotency import client_warnings
from idempotency.client_warnings import ClientWarning
from idempotency.conf import get_settings
from idempotency.conf.policy import OPTIONS
from idempotency.fingerprints import Fingerprint, default_fingerprint
from idempotency.scopes import default_scope

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

    from idempotency.models import IdempotencyRecord


# Of a view's attributes that are options.
PREFIX = "idempotency_"


class Hooks:
    """The hooks of ``IdempotencyMixin``; views without it get these defaults."""

    def get_idempotency_scope(self, request: Request) -> str:
        """Return whose key it is: at most 512 characters (S1)."""
        own = Hooks.get_idempotency_options(self).get("scope")
        return scope_of(request, get_settings().policy.scope if own is None else own)

    def get_idempotency_options(self) -> dict[str, Any]:
        """Return the options that the view itself has an opinion on."""
        # From the class: a function would come from the instance as a method.
        own, shared = vars(self), type(self)
        found = {
            name: own.get(PREFIX + name, getattr(shared, PREFIX + name))
            for name in OPTIONS
        }
        return {name: value for name, value in found.items() if value is not None}

    def get_idempotency_fingerprint(self, request: Request) -> Fingerprint | str:
        """Return what was asked: equal for equal requests, of any length (F1)."""
        custom = get_settings().FINGERPRINT
        if custom is None:
            return default_fingerprint(request)
        found: Fingerprint | str = imported(custom)(request)
        return found

    def should_store_response(self, response: HttpResponseBase) -> bool:
        """Tell whether to keep a rendered response. If not, retries get a 409 (O4)."""
        return True

    def check_replay(self, request: Request, record: IdempotencyRecord) -> None:
        """Raise an ``APIException`` to refuse the replay of a record (S2).

        The place for checks that only the handler does, such as object permissions.
        """

    def add_idempotency_warnings(
        self, response: HttpResponseBase, warnings: Sequence[ClientWarning]
    ) -> None:
        """Add warnings to the data of a response that is not rendered yet (K7).

        Called where the client wrote its key into the query.
        """
        client_warnings.add_to_body(response, warnings)


for name in OPTIONS:
    # None leaves an option to the settings.
    setattr(Hooks, PREFIX + name, None)

DEFAULT_HOOKS = Hooks()


def hooks_of(view: APIView) -> Hooks:
    """Return the view if it has the mixin's hooks, else the defaults."""
    return view if isinstance(view, Hooks) else DEFAULT_HOOKS


def options_of(view: APIView) -> dict[str, Any]:
    """Return a view's own options; an override of the hook decides on the scope."""
    if not isinstance(view, Hooks):
        return {}
    options = view.get_idempotency_options()
    if type(view).get_idempotency_scope is not Hooks.get_idempotency_scope:
        options = {**options, "scope": view.get_idempotency_scope}
    return options


def scope_of(request: Request, scope: str | Callable[..., str] | None) -> str:
    """Return the scope that a ``scope`` option gives, or the default one for None."""
    if scope is None:
        return default_scope(request)
    found: str = imported(scope)(request)
    return found


def may_store(
    response: HttpResponseBase, store: bool | str | Callable[..., bool]
) -> bool:
    """Tell what a ``store`` option says of a rendered response (O4)."""
    if store is True or store is False:
        return store
    return bool(imported(store)(response))


def check_replay_by(
    option: str | Callable[..., None],
    view: APIView,
    request: Request,
    record: IdempotencyRecord,
) -> None:
    """Do what a ``check_replay`` option says (S2).

    ``"object"`` asks ``get_object()`` again, as far as the view has one and its URL
    names an object.

    Raises what the check does: an ``APIException``, ``Http404``, ``PermissionDenied``.
    """
    if callable(option):
        option(request, record)
    elif option == "object":
        if isinstance(view, GenericAPIView) and _names_an_object(view):
            view.get_object()
    else:
        imported(option)(request, record)


def _names_an_object(view: GenericAPIView[Any]) -> bool:
    """Tell whether the URL of a view's request is that of one object.

    A router tells a ViewSet so. Else, a ``get_object()`` of the view's own may look for
    its object by anything in the URL.
    """
    is_detail: bool | None = getattr(view, "detail", None)
    if is_detail is None:
        has_own = type(view).get_object is not GenericAPIView.get_object
        lookup = view.lookup_url_kwarg or view.lookup_field
        is_detail = bool(view.kwargs) if has_own else lookup in view.kwargs
    return is_detail


def imported(value: Any) -> Any:
    """Return the function that an option names by its dotted path, or is itself."""
    # Callables are not asked whether they are strings: proxies would answer for others.
    return value if callable(value) else import_string(value)
