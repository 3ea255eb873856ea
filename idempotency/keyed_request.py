"""A request to a protected handler, with all that the app has to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.http import HttpResponseBase

from idempotency.conf.policy import Policy
from idempotency.context import RequestContext
from idempotency.hooks import Hooks, check_replay_by, hooks_of, may_store, scope_of
from idempotency.scopes import validate_scope

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

    from idempotency.models import IdempotencyRecord

Handler = Callable[[], HttpResponseBase]


# Without the request's repr, which has the query in it, and so may have the key (X1).
@dataclass(slots=True, kw_only=True, repr=False)
class KeyedRequest:
    """One request, and whose handler is protected how.

    ``context`` is its ``request.idempotency``.
    """

    view: APIView
    request: Request
    context: RequestContext
    policy: Policy = field(default_factory=Policy)

    @property
    def hooks(self) -> Hooks:
        """The view's hooks, or the default ones."""
        return hooks_of(self.view)

    @property
    def view_name(self) -> str:
        """The dotted name of the view's class."""
        cls = type(self.view)
        return f"{cls.__module__}.{cls.__name__}"

    @property
    def action(self) -> str | None:
        """The ViewSet's action that answers, if it is one."""
        return getattr(self.view, "action", None)

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method or ""

    def scope(self) -> str:
        """Return whose key it is, as the option or the hook says (S1)."""
        return validate_scope(scope_of(self.request, self.policy.scope))

    def may_store(self, response: HttpResponseBase) -> bool:
        """Return what the option ``store`` and the hook say of a response (O4)."""
        return may_store(
            response, self.policy.store
        ) and self.hooks.should_store_response(response)

    def check_replay(self, record: IdempotencyRecord) -> None:
        """Do what the option ``check_replay`` and the hook say (S2).

        Raises what they do, to refuse the replay.
        """
        option = self.policy.check_replay
        if option is not None:
            check_replay_by(option, self.view, self.request, record)
        self.hooks.check_replay(self.request, record)
