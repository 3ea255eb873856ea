"""Atomic mode: one transaction for claim, effects and response (contract E1 to E5)."""

from __future__ import annotations

import logging
from typing import NoReturn

from django.db import DatabaseError, Error, OperationalError, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpResponseBase

from idempotency.database_errors import error_classes, is_unavailable
from idempotency.exceptions import ClaimLost, OutcomeUnknown, TransactionFailed
from idempotency.models import IdempotencyRecord
from idempotency.modes.base import Busy, Fate, InForce, Mode, Ran
from idempotency.modes.rollbacks import RollbackWish
from idempotency.signals import escaped, extras

logger = logging.getLogger("idempotency")


class AtomicMode(Mode):
    """Commits the handler's effects and the stored response together, or neither."""

    # What has undone the transaction, even if the way out of it raises another error.
    failure: TransactionFailed | None = None

    def run(self, new_record: IdempotencyRecord) -> Busy | InForce | Ran:
        """Claim and run in a transaction, or in a savepoint of an open one (E1, E2)."""
        seen = ran = None
        if self.connection.in_atomic_block and not self.is_nested:
            self.is_nested = True
            # Not in the savepoint, whose rollback would undo that.
            self._await_commit()
        try:
            if self.claims.select_before_insert:
                seen = self.claims.look_up(new_record.pk)
            if seen is not None and seen.is_in_force:
                return InForce(seen)
            self.transaction = self.claims.transaction()
            with self.transaction:
                record = self.transaction.claim(new_record, self.policy.retention, seen)
                if record is None:
                    return Busy()
                if record.token != new_record.token:
                    return InForce(record)
                ran = Ran(record, Fate.RELEASED)
                try:
                    ran.outcome = self._run_handler(ran)
                except TransactionFailed as failure:
                    self.failure = failure
                    raise
        except DatabaseError as error:
            if ran is not None:
                ran.outcome = self._end_of(ran, error)
            else:
                found = self.found_despite(error, new_record.pk)
                return found or self.not_claimed(error)
        except BaseException as error:
            if ran is None:
                raise
            ran.outcome = error
        ran.is_undone = not self.is_committed
        return ran

    def recover(
        self, abandoned: IdempotencyRecord, new_record: IdempotencyRecord
    ) -> Busy | Ran:
        """Raise ``OutcomeUnknown``: the handler has committed by itself (E5)."""
        raise OutcomeUnknown

    def _end_of(
        self, ran: Ran, error: DatabaseError
    ) -> HttpResponseBase | BaseException:
        """Return the outcome of a run that ended in a database error."""
        if self.is_committed:
            return error  # of an on_commit function (O5)
        if self.failure is not None:
            return self.failure
        if ran.outcome is not None and self._outlived_savepoint(ran):
            return ran.outcome
        if self.claims.is_transient(error):
            ran.fate = ran.fate and Fate.RELEASED
            return self.reporter.blamed(TransactionFailed(), error)
        if ran.fate is Fate.STORED:
            ran.fate = None  # the outcome of COMMIT is unknown
            if isinstance(error, OperationalError):
                self.reporter.in_doubt(error)
        return error

    def _run_handler(self, ran: Ran) -> HttpResponseBase | Exception:
        """Run the handler, and decide about its effects and the record (O1 to O4)."""
        self.begin(ran)
        claimed = ran.record
        if not self.is_nested:
            self._await_commit()
        with RollbackWish(self.connection) as wish:
            try:
                response = self.handler()
            except Exception as error:
                if self.keyed.is_failure(error):
                    raise
                if self._can_only_roll_back():
                    self._undo(is_wanted=wish.is_wanted)
                else:
                    self._release(claimed)
                return error
            # If the effects are undone, the response is finalized and rendered after
            # the transaction, which may refuse every query (R1).
            if self._is_lost(response):
                return self._undone(response, wish, claimed)
            response = self.finalizer.finalize(response)
            if self._is_lost(response):
                return self._undone(response, wish, claimed)
            response = self.finalizer.render(response)
            if self._is_lost(response):
                return self._undone(response, wish, claimed)
        if self.is_released_by(response):
            self._release(claimed)
        else:
            self._complete(ran, response)
        return response

    def _await_commit(self) -> None:
        """Let the COMMIT be noted, before any on_commit function can raise."""
        connection = self.connection
        # Django's private mark of a TestCase's transaction, which has no COMMIT, and
        # whose on_commit functions tests count.
        if not connection.atomic_blocks[0]._from_testcase:
            transaction.on_commit(self._note_commit, using=self.alias)
            functions = connection.run_on_commit
            functions.insert(0, functions.pop())

    def _note_commit(self) -> None:
        self.is_committed = True

    def _is_lost(self, response: HttpResponseBase) -> bool:
        """Return whether a response's effects are undone, or must be (O3)."""
        return response.status_code >= 500 or self._can_only_roll_back()

    def _can_only_roll_back(self) -> bool:
        """Return whether the transaction can only be rolled back."""
        return self.connection.needs_rollback or self.claims.is_aborted()

    def _undo(self, *, is_wanted: bool) -> None:
        """Mark the savepoint or transaction for rollback at its end (E2)."""
        transaction.set_rollback(True, using=self.alias)
        if not is_wanted:
            self.finalizer.refuse_success()

    def _undone(
        self, response: HttpResponseBase, wish: RollbackWish, claimed: IdempotencyRecord
    ) -> HttpResponseBase:
        """Return a response whose effects are undone, unless it reports a success."""
        if response.status_code < 400 and not wish.is_wanted:
            lost = self.connection.rollback_exc or TransactionManagementError()
            self._undo_because_of(lost, claimed)
        self._undo(is_wanted=wish.is_wanted)
        return response

    def _complete(self, ran: Ran, response: HttpResponseBase) -> None:
        stored = self.to_store(response)
        try:
            self.transaction.complete(ran.record, stored)
        except (ClaimLost, Error) as error:
            if not self.transaction.is_ending:
                self._undo_because_of(error, ran.record)
            ran.fate = Fate.STORED
            raise
        except BaseException:
            if self.transaction.is_ending:
                ran.fate = None  # the outcome of COMMIT is unknown
            raise
        ran.fate = Fate.STORED

    def _undo_because_of(
        self, error: Exception, claimed: IdempotencyRecord
    ) -> NoReturn:
        if is_unavailable(error) or self.claims.is_transient(error):
            raise self.reporter.blamed(TransactionFailed(), error)
        kind = error_classes(error)
        logger.error(
            "The response could not be stored, so its effects were rolled back: %s. "
            "A handler that catches database errors needs a savepoint. "
            "Record %s, %s %s",
            kind,
            claimed.pk,
            self.keyed.method,
            escaped(self.keyed.request.path),
            extra=extras(
                "effects_undone",
                record_id=claimed.pk,
                attempt=claimed.attempt,
                error=kind,
            ),
        )
        raise TransactionFailed from error  # E4, E5

    def _release(self, claimed: IdempotencyRecord) -> None:
        try:
            self.transaction.release(claimed)
        except ClaimLost as error:
            raise TransactionFailed from error  # E5

    def _outlived_savepoint(self, ran: Ran) -> bool:
        """Return whether the savepoint is gone, but not the writes after it.

        A handler that commits by itself, as by DDL on MariaDB, ends all savepoints
        (E5). Later writes then belong to the outer transaction.
        """
        if not self.is_nested:
            return False
        record = ran.record
        transaction.set_rollback(False, using=self.alias)
        try:
            found = self.claims.look_up(record.pk)
        except Error:
            is_there = False
        else:
            token = record.token if ran.fate is Fate.STORED else None
            is_there = (found and found.token) == token
        transaction.set_rollback(not is_there, using=self.alias)
        return is_there
