"""Atomic mode: claim, effects and response are one transaction (contract E1 to E5)."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import NoReturn

from django.db import DatabaseError, Error, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpResponseBase

from idempotency.claims.errors import kind_of
from idempotency.exceptions import ClaimLost, OutcomeUnknown, TransactionFailed
from idempotency.models import IdempotencyRecord
from idempotency.modes.base import Fate, Mode, Outcome, is_failure
from idempotency.modes.rollbacks import RollbackWish
from idempotency.signals import extras

logger = logging.getLogger("idempotency")


class AtomicMode(Mode):
    """The handler's effects and its stored answer are committed together, or not."""

    # Whether a transaction was open before, and whether it is that of ATOMIC_REQUESTS.
    is_nested = joins = False
    # Whether the transaction of the request's own was committed.
    is_committed = False

    def run(
        self, wanted: IdempotencyRecord, now: datetime
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Do all in one transaction (E1)."""
        record = seen = None
        outcome: Outcome | None = None
        self.is_nested = self.connection.in_atomic_block
        # ATOMIC_REQUESTS has opened the transaction: a savepoint would add nothing.
        self.joins = self.is_nested and self.connection.settings_dict["ATOMIC_REQUESTS"]
        try:
            if self.claims.looks_up_first:
                seen = self.claims.look_up(wanted.pk)
            if seen is not None and seen.is_in_force(now):
                return seen, None
            with transaction.atomic(using=self.alias, savepoint=not self.joins):
                record = self.claims.claim(wanted, now, seen)
                if record is not None and record.token == wanted.token:
                    outcome = self._run_handler(record)
        except DatabaseError as error:
            if record is None and self.claims.is_busy(error):
                if self.joins:
                    # That statement alone was undone: the transaction is as it was.
                    transaction.set_rollback(False, using=self.alias)
                return None, None
            if self.is_committed:
                raise  # by an on_commit hook (O5)
            if self.claims.is_transient(error):
                self.fate = self.fate and Fate.RELEASED
                raise TransactionFailed from error
            if self.fate is Fate.STORED:
                self.fate = None  # nobody knows how the COMMIT ended
            raise
        return record, outcome

    def recover(
        self, abandoned: IdempotencyRecord, wanted: IdempotencyRecord
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Refuse: the run committed behind the app's back (E5)."""
        raise OutcomeUnknown

    def _run_handler(self, claimed: IdempotencyRecord) -> Outcome | None:
        """Run the handler under its claim; decide what becomes of both (O1 to O4)."""
        self.begin(claimed, Fate.RELEASED)
        if not self.is_nested:
            # Before all hooks of the handler's.
            transaction.on_commit(self._note_commit, using=self.alias)
        with RollbackWish(self.connection) as wish:
            try:
                response = self.handler()
            except Exception as error:
                if is_failure(error):
                    self._let_be_answered()
                    raise
                self._release(claimed)
                return error
            response = self.finisher.finish(response)
        if response.status_code >= 500:
            transaction.set_rollback(True, using=self.alias)
        elif self.connection.needs_rollback:
            if response.status_code < 400 and not wish.is_wanted:
                # The effects are lost, and a success would be a lie.
                lost = self.connection.rollback_exc or TransactionManagementError()
                self._undo_because_of(lost, claimed)
        elif self.is_released_by(response):
            self._release(claimed)
        else:
            self._complete(claimed, response)
        return response

    def _note_commit(self) -> None:
        self.is_committed = True

    def _let_be_answered(self) -> None:
        """Let an EXCEPTION_HANDLER ask the database, as it can without a key (O4).

        Where no savepoint ends the handler's part, its failure marks the transaction
        of ATOMIC_REQUESTS, and Django refuses every query from then on.
        """
        if self.joins and not self.connection.needs_rollback:
            self.finisher.unmark_while_answering(self.alias)

    def _complete(self, claimed: IdempotencyRecord, response: HttpResponseBase) -> None:
        stored = self.to_store(response)
        try:
            self.claims.complete(claimed, stored)
        except (ClaimLost, Error) as error:
            if response.status_code >= 400 and self.claims.is_aborted(error):
                # The handler answered a database error: nothing can be kept.
                transaction.set_rollback(True, using=self.alias)
                return
            self._undo_because_of(error, claimed)
        self.fate = Fate.STORED

    def _undo_because_of(
        self, error: Exception, claimed: IdempotencyRecord
    ) -> NoReturn:
        kind = kind_of(error)
        logger.error(
            "An answer could not be stored with its effects, and all was undone: %s. "
            "Handlers that catch database errors need a savepoint. Record %s, %s %s",
            kind,
            claimed.pk,
            self.request.method,
            self.request.path,
            extra=extras(
                "effects_undone",
                record_id=claimed.pk,
                attempt=claimed.attempt,
                error=kind,
            ),
        )
        raise TransactionFailed from error  # E4, E5

    def _release(self, claimed: IdempotencyRecord) -> None:
        if self.connection.needs_rollback:
            return  # the claim goes with everything else
        try:
            self.claims.release(claimed)
        except ClaimLost as error:
            raise TransactionFailed from error  # E5
        except DatabaseError as error:
            if not self.claims.is_aborted(error):
                raise
            # The handler made a refusal of a database error: nothing can be kept.
            transaction.set_rollback(True, using=self.alias)
