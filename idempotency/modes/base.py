"""What both modes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import Http404, HttpResponseBase
from rest_framework.exceptions import APIException
from rest_framework.response import Response

from idempotency.claims import claims_in
from idempotency.context import RequestContext
from idempotency.credentials import tell_of_cookies
from idempotency.finalizing import ResponseFinalizer
from idempotency.hooks import Hooks, may_store
from idempotency.models import IdempotencyRecord
from idempotency.policy import Policy
from idempotency.quotas import within_quota
from idempotency.reporting import Reporter
from idempotency.responses import StoredResponse, language_to_be_named

if TYPE_CHECKING:
    from rest_framework.request import Request

Handler = Callable[[], HttpResponseBase]
# What a run ends in: a finished answer, or the handler's own refusal, to be raised.
Outcome = HttpResponseBase | Exception

# What a handler raises to refuse. From status 500 up it is a failure instead.
REFUSALS = (APIException, Http404, PermissionDenied)


class Fate(Enum):
    """What has become of a claim."""

    STORED = auto()
    RELEASED = auto()
    ABANDONED = auto()


# The request's repr has the query in it, and so may have the key (X1).
@dataclass(kw_only=True, repr=False)
class Mode(ABC):
    """How the handler of one keyed request is executed."""

    request: Request
    handler: Handler
    policy: Policy
    context: RequestContext
    hooks: Hooks
    finalizer: ResponseFinalizer
    reporter: Reporter
    alias: str
    # Of the run that the request has won, if any; no fate where another run took the
    # key away, or where nobody knows whether the COMMIT succeeded.
    claimed: IdempotencyRecord | None = field(default=None, init=False)
    fate: Fate | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # The stubs do not know all of its attributes.
        self.connection: Any = connections[self.alias]
        self.claims = claims_in(self.alias)
        self.handler = within_quota(self.handler, self.finalizer)

    @abstractmethod
    def run(
        self, wanted: IdempotencyRecord
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Claim the key and run the handler, or find the record that is in force.

        Returns the record and the outcome. There is no outcome if the record was in
        force already, and no record either if another request has the key.
        """

    @abstractmethod
    def recover(
        self, abandoned: IdempotencyRecord, wanted: IdempotencyRecord
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Do what the policy says of a record whose outcome is unknown.

        Returns what ``run`` does. Raises ``OutcomeUnknown`` if it is to be left alone.
        """

    @property
    @abstractmethod
    def is_undone(self) -> bool:
        """Whether a failure that came out of ``run`` has left no effect (O3)."""

    def begin(self, claimed: IdempotencyRecord, fate: Fate) -> None:
        """Note that the claim is won, and its fate if nothing else is said."""
        self.claimed, self.fate = claimed, fate
        self.claims.executing[claimed.pk] = claimed.fingerprint
        self.context.attempt = claimed.attempt
        self.reporter.claimed()

    def is_released_by(self, response: HttpResponseBase) -> bool:
        """Tell whether an answer gives the key back (O2)."""
        return response.status_code in self.policy.released_statuses

    def to_store(self, response: HttpResponseBase) -> StoredResponse:
        """Return what is to be kept of an answer (O4, R4)."""
        keep = may_store(response, self.policy.store)
        keep = keep and self.hooks.should_store_response(response)
        stored = StoredResponse.from_http(
            response,
            keep=keep,
            is_plain=not isinstance(response, Response),
            language=language_to_be_named(),
        )
        if stored.body is not None:
            tell_of_cookies(self.finalizer.view, self.request, response)
        return stored


def is_failure(error: Exception) -> bool:
    """Tell whether a handler failed, instead of refusing the request (O3)."""
    return not isinstance(error, REFUSALS) or getattr(error, "status_code", 0) >= 500
