"""What both modes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import Http404, HttpResponseBase
from rest_framework.exceptions import APIException
from rest_framework.response import Response

from idempotency.claims import claims_in
from idempotency.finalizing import ResponseFinalizer
from idempotency.keyed_request import Handler, KeyedRequest
from idempotency.models import IdempotencyRecord
from idempotency.modes.cookies import warn_of_cookies
from idempotency.modes.quotas import within_quota
from idempotency.reporting import Reporter
from idempotency.responses import StoredResponse, language_to_be_named

# What a handler raises to refuse. From status 500 up it is a failure instead.
REFUSALS = (APIException, Http404, PermissionDenied)


class Fate(Enum):
    """What has become of a claim."""

    STORED = auto()
    RELEASED = auto()
    ABANDONED = auto()


@dataclass(frozen=True, slots=True)
class Busy:
    """Another request executes the key."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The key has a record already, which decides what the client gets."""

    record: IdempotencyRecord


# Without the outcome's repr: a response may say the key (X1).
@dataclass(slots=True, repr=False)
class Ran:
    """The handler has run under this request's claim.

    ``outcome`` is its finished response, or the error to raise. ``fate`` is None where
    another run took the claim, or where the end of a COMMIT is unknown. ``is_undone``
    says that an error has left none of the handler's effects (O3).
    """

    record: IdempotencyRecord
    fate: Fate | None
    outcome: HttpResponseBase | BaseException | None = None
    is_undone: bool = False


@dataclass(kw_only=True, repr=False)
class Mode(ABC):
    """How the handler of one keyed request is executed."""

    keyed: KeyedRequest
    handler: Handler
    finalizer: ResponseFinalizer
    reporter: Reporter
    alias: str
    executing: UUID | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        # The stubs do not know all of its attributes.
        self.connection: Any = connections[self.alias]
        self.claims = claims_in(self.alias)
        self.policy = self.keyed.policy
        self.context = self.keyed.context
        self.handler = within_quota(self.handler, self.keyed)

    @abstractmethod
    def run(self, new_record: IdempotencyRecord) -> Busy | InForce | Ran:
        """Claim the key and run the handler, or find the record that is in force."""

    @abstractmethod
    def recover(
        self, abandoned: IdempotencyRecord, new_record: IdempotencyRecord
    ) -> Busy | Ran:
        """Do what the policy says of a record whose outcome is unknown.

        Raises ``OutcomeUnknown`` if it is to be left alone.
        """

    def begin(self, ran: Ran) -> None:
        """Note that the claim is won and the handler is about to run."""
        record = ran.record
        self.context.attempt = record.attempt
        self.claims.executing[record.pk] = record.fingerprint
        self.executing = record.pk
        self.reporter.claimed()

    def leave(self) -> None:
        """Note that the handler does not run any more, however it ended."""
        if self.executing is not None:
            self.claims.executing.pop(self.executing, None)

    def report(self, ran: Ran) -> None:
        """Report what became of the claim."""
        status_code = getattr(ran.outcome, "status_code", None)
        if ran.fate is Fate.STORED:
            self.reporter.stored(ran.record, self.alias)
        elif ran.fate is Fate.RELEASED:
            self.reporter.released(status_code)
        elif ran.fate is Fate.ABANDONED:
            self.reporter.abandoned(status_code)

    def is_released_by(self, response: HttpResponseBase) -> bool:
        """Tell whether an answer gives the key back (O2)."""
        return response.status_code in self.policy.released_statuses

    def to_store(self, response: HttpResponseBase) -> StoredResponse:
        """Return what is to be kept of an answer (O4, R4)."""
        stored = StoredResponse.from_http(
            response,
            keep=self.keyed.may_store(response),
            is_plain=not isinstance(response, Response),
            language=language_to_be_named(),
        )
        if stored.body is not None:
            warn_of_cookies(self.keyed, response)
        return stored


def is_failure(error: Exception) -> bool:
    """Tell whether a handler failed, instead of refusing the request (O3)."""
    return not isinstance(error, REFUSALS) or getattr(error, "status_code", 0) >= 500
