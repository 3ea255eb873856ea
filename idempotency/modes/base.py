"""The common base of both modes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any
from uuid import UUID

from django.db import DatabaseError, Error, connections
from django.http import HttpResponseBase
from rest_framework.response import Response

from idempotency.claims import claims_in
from idempotency.database_errors import is_read_only, is_unavailable
from idempotency.exceptions import DatabaseUnavailable, TransactionFailed
from idempotency.finalizing import ResponseFinalizer
from idempotency.keyed_request import Handler, KeyedRequest
from idempotency.models import IdempotencyRecord
from idempotency.modes.cookies import warn_of_cookies
from idempotency.modes.quotas import within_quota
from idempotency.modes.reporting import Reporter
from idempotency.responses import StoredResponse, language_to_be_named


class Fate(Enum):
    """What became of a claim."""

    STORED = auto()
    RELEASED = auto()
    ABANDONED = auto()


@dataclass(frozen=True, slots=True)
class Busy:
    """Another request runs the handler for the key."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The key has a record, which decides the response."""

    record: IdempotencyRecord


# No repr: the repr of a response may contain the key (X1).
@dataclass(slots=True, repr=False)
class Ran:
    """The handler has run under this request's claim.

    ``outcome`` is the finished response, or the error to raise. ``fate`` is None if
    another run has taken over the claim, or if the outcome of COMMIT is unknown.
    ``is_undone`` means that the handler's effects were rolled back (O3).
    """

    record: IdempotencyRecord
    fate: Fate | None
    outcome: HttpResponseBase | BaseException | None = None
    is_undone: bool = False


@dataclass(kw_only=True, repr=False)
class Mode(ABC):
    """Runs the handler of one keyed request."""

    keyed: KeyedRequest
    handler: Handler
    finalizer: ResponseFinalizer
    reporter: Reporter
    alias: str
    executing: UUID | None = field(default=None, init=False)

    # Whether the handler runs within somebody else's transaction.
    is_nested = False
    # Whether the transaction that the handler ran in has been committed.
    is_committed = False

    def __post_init__(self) -> None:
        # The stubs do not know all of its attributes.
        self.connection: Any = connections[self.alias]
        try:
            self.claims = claims_in(self.alias)
        except DatabaseError as error:  # the server says what it is
            self.finalizer.refuse_success()
            self.refuse_unavailable(error)
            raise
        self.policy = self.keyed.policy
        self.context = self.keyed.context
        self.handler = within_quota(self.handler, self.keyed)

    @abstractmethod
    def run(self, new_record: IdempotencyRecord) -> Busy | InForce | Ran:
        """Claim the key and run the handler, or return the record in force."""

    @abstractmethod
    def recover(
        self, abandoned: IdempotencyRecord, new_record: IdempotencyRecord
    ) -> Busy | Ran:
        """Handle a record with an unknown outcome as the policy says.

        Raise ``OutcomeUnknown`` if it must stay as it is.
        """

    def look_up_again(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the key's record after an error, if it is visible and in force."""
        found = None
        with suppress(Error):
            found = self.claims.look_up(record_id)
        return found if found is not None and found.is_in_force else None

    def found_despite(self, error: DatabaseError, record_id: UUID) -> InForce | None:
        """Return the key's record if only writes are refused: reads may be enough."""
        found = self.look_up_again(record_id) if is_read_only(error) else None
        return None if found is None else InForce(found)

    def not_claimed(self, error: DatabaseError) -> Busy:
        """Return what a failed claim means. Nothing has run.

        Raise a refusal if the client may retry, otherwise the error.
        """
        self.refuse_unavailable(error)
        claims, is_lost = self.claims, self.connection.needs_rollback
        if claims.is_busy(error) and not is_lost:
            return Busy()
        # Busy if the connection and its savepoint were lost meanwhile.
        if claims.is_transient(error) or claims.is_busy(error):
            raise self.reporter.blamed(TransactionFailed(), error)
        raise error

    def refuse_unavailable(self, error: Exception) -> None:
        """Raise a refusal if the database can't be reached or written to (E4)."""
        if not isinstance(error, DatabaseError) or not is_unavailable(error):
            return
        connection = self.connection
        if not connection.in_atomic_block and connection.autocommit:
            # So that the retry gets another one, perhaps to another server.
            with suppress(Error):
                connection.close()
        raise self.reporter.blamed(DatabaseUnavailable(), error)

    def begin(self, ran: Ran) -> None:
        """Note that this request has won the claim and runs the handler next."""
        record = ran.record
        self.context.attempt = record.attempt
        self.claims.executing[record.pk] = record
        self.executing = record.pk
        self.reporter.claimed()

    def leave(self) -> None:
        """Note that the handler has ended."""
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
        """Return whether a response frees the key (O2)."""
        return response.status_code in self.policy.released_statuses

    def to_store(self, response: HttpResponseBase) -> StoredResponse:
        """Return what to store of a response (O4, R4)."""
        stored = StoredResponse.from_http(
            response,
            keep=self.keyed.may_store(response),
            is_plain=not isinstance(response, Response),
            language=language_to_be_named(),
        )
        if stored.body is not None:
            warn_of_cookies(self.keyed, response)
        return stored
