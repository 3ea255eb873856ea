"""What a view can decide about its own protection, and the answers by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.http import HttpResponseBase
from django.utils.module_loading import import_string

from idempotency import client_warnings
from idempotency.client_warnings import ClientWarning
from idempotency.conf import get_settings
from idempotency.fingerprints import Fingerprint, default_fingerprint
from idempotency.scopes import default_scope

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

    from idempotency.models import IdempotencyRecord


class Hooks:
    """The hooks of ``IdempotencyMixin``; views without it get these defaults."""

    idempotency_scope: str | Callable[..., str] | None = None

    def get_idempotency_scope(self, request: Request) -> str:
        """Return whose key it is: at most 512 characters (S1)."""
        # From the class: a function would come from the instance as a method.
        own = vars(self).get("idempotency_scope", type(self).idempotency_scope)
        return scope_of(request, own or get_settings().SCOPE)

    def get_idempotency_options(self) -> dict[str, Any]:
        """Return the options that the view itself has an opinion on."""
        return {}

    def get_idempotency_fingerprint(self, request: Request) -> Fingerprint | str:
        """Return what was asked: equal for equal requests, of any length (F1)."""
        custom = _function(get_settings().FINGERPRINT)
        return custom(request) if custom else default_fingerprint(request)

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


DEFAULT_HOOKS = Hooks()


def hooks_of(view: APIView) -> Hooks:
    """Return the view if it has the mixin's hooks, else the defaults."""
    return view if isinstance(view, Hooks) else DEFAULT_HOOKS


def scope_of(request: Request, scope: str | Callable[..., str] | None) -> str:
    """Return the scope that a ``scope`` option gives, or the default one for None."""
    custom = _function(scope)
    return custom(request) if custom else default_scope(request)


def _function(value: Any) -> Callable[..., str] | None:
    found: Callable[..., str] | None = (
        import_string(value) if isinstance(value, str) else value
    )
    return found
