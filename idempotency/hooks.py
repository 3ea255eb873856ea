"""The hooks with which a view decides about its protection, and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.http import HttpResponseBase
from django.utils.module_loading import import_string

from idempotency import client_warnings
from idempotency.client_warnings import ClientWarning
from idempotency.conf import get_settings
from idempotency.conf.policy import OPTIONS
from idempotency.fingerprints import Fingerprint, default_fingerprint
from idempotency.scopes import default_scope, validate_scope

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

    from idempotency.models import IdempotencyRecord


# Of the attributes of a view that set options.
PREFIX = "idempotency_"
# The attribute of a copy with the view class that ``protected()`` has copied.
ORIGINAL = "_idempotency_original"


class Hooks:
    """The hooks of ``IdempotencyMixin``, and the defaults for views without it."""

    def get_idempotency_scope(self, request: Request) -> str:
        """Return whose key it is, in at most 512 characters (S1)."""
        own = Hooks.get_idempotency_options(self).get("scope")
        return scope_of(request, get_settings().policy.scope if own is None else own)

    def get_idempotency_options(self) -> dict[str, Any]:
        """Return the options that the view sets."""
        # Read from the class: the instance would bind a function as a method.
        own, shared = vars(self), type(self)
        found = {
            name: own.get(PREFIX + name, getattr(shared, PREFIX + name))
            for name in OPTIONS
        }
        return {name: value for name, value in found.items() if value is not None}

    def get_idempotency_fingerprint(self, request: Request) -> Fingerprint | str:
        """Return the request's fingerprint, equal for equal requests (F1)."""
        custom = get_settings().FINGERPRINT
        ours = custom is None
        return default_fingerprint(request) if ours else imported(custom)(request)

    def should_store_response(self, response: HttpResponseBase) -> bool:
        """Return whether to keep a rendered response; if not, retries get 409 (O4)."""
        return True

    def check_replay(self, request: Request, record: IdempotencyRecord) -> None:
        """Raise an ``APIException`` to refuse the replay of a record (S2).

        Override this for checks that the handler does, such as object permissions.
        """

    def add_idempotency_warnings(
        self, response: HttpResponseBase, warnings: Sequence[ClientWarning]
    ) -> None:
        """Add warnings to the data of an unrendered response (K7).

        Called if the client sent its key in the query.
        """
        client_warnings.add_to_body(response, warnings)


for name in OPTIONS:
    # None leaves the option to the settings.
    setattr(Hooks, PREFIX + name, None)

DEFAULT_HOOKS = Hooks()


def options_of(view: APIView) -> dict[str, Any]:
    """Return a view's own options, with an overridden scope hook as ``scope``."""
    if not isinstance(view, Hooks):
        return {}
    options = view.get_idempotency_options()
    if type(view).get_idempotency_scope is not Hooks.get_idempotency_scope:
        options = {**options, "scope": view.get_idempotency_scope}
    return options


def scope_of(request: Request, scope: str | Callable[..., str] | None) -> str:
    """Return the scope by a ``scope`` option, or the default scope for None.

    Raise ``ImproperlyConfigured`` if it can't be stored.
    """
    return validate_scope(
        default_scope(request) if scope is None else imported(scope)(request)
    )


def imported(value: Any) -> Any:
    """Return an option's function, given as a callable or as a dotted path."""
    return value if callable(value) else import_string(value)
