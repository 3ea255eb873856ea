"""Atomic mode: claim, effects and response are one transaction (contract E1 to E5)."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import NoReturn

from django.db import DatabaseError, Error, transaction
from django.http import HttpResponseBase

from idempotency.claims.errors import kind_of
from idempotency.exceptions import ClaimLost, OutcomeUnknown, TransactionFailed
from idempotency.models import IdempotencyRecord
from idempotency.modes.base import Fate, Mode, Outcome, is_failure
from idempotency.signals import extras

logger = logging.getLogger("idempotency")


class AtomicMode(Mode):
    """The handler's effects and its stored answer are committed together, or not."""

    def run(
        self, wanted: IdempotencyRecord, now: datetime
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Do all in one transaction (E1)."""
        record = seen = None
        outcome: Outcome | None = None
        # ATOMIC_REQUESTS has opened the transaction: a savepoint would add nothing.
        joins = (
            self.connection.in_atomic_block
            and self.connection.settings_dict["ATOMIC_REQUESTS"]
        )
        try:
            if self.claims.looks_up_first:
                seen = self.claims.look_up(wanted.pk)
            if seen is not None and seen.is_in_force(now):
                return seen, None
            with transaction.atomic(using=self.alias, savepoint=not joins):
                record = self.claims.claim(wanted, now, seen)
                if record is not None and record.token == wanted.token:
                    outcome = self._run_handler(record)
        except DatabaseError as error:
            if record is None and self.claims.is_busy(error):
                if joins:
                    # That statement alone was undone: the transaction is as it was.
                    transaction.set_rollback(False, using=self.alias)
                return None, None
            if not self.claims.is_transient(error):
                self.fate = None if self.fate is Fate.STORED else self.fate
            elif not self._is_committed(wanted):
                self.fate = self.fate and Fate.RELEASED
                raise TransactionFailed from error
            raise
        return record, outcome

    def recover(
        self, abandoned: IdempotencyRecord, wanted: IdempotencyRecord
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Refuse: the run committed behind the app's back (E5)."""
        raise OutcomeUnknown

    def _is_committed(self, wanted: IdempotencyRecord) -> bool:
        """Tell whether an error came from an on_commit hook, after the COMMIT (O5)."""
        if self.connection.in_atomic_block:
            return False
        found = self.claims.look_up(wanted.pk)
        return found is not None and found.token == wanted.token

    def _run_handler(self, claimed: IdempotencyRecord) -> Outcome | None:
        """Run the handler under its claim; decide what becomes of both (O1 to O4)."""
        self.begin(claimed, Fate.RELEASED)
        earlier_error = self.connection.rollback_exc
        try:
            response = self.handler()
        except Exception as error:
            if is_failure(error):
                raise
            self._release(claimed)
            return error
        response = self.finisher.finish(response)
        if response.status_code >= 500:
            transaction.set_rollback(True, using=self.alias)
        elif self.connection.needs_rollback:
            # The handler wants it (E2), or its effects were lost, and a success would
            # be a lie.
            if response.status_code < 400 and (
                loss := self._find_loss(claimed, earlier_error)
            ):
                self._undo_because_of(loss, claimed)
        elif self.is_released_by(response):
            self._release(claimed)
        else:
            self._complete(claimed, response)
        return response

    def _find_loss(
        self, claimed: IdempotencyRecord, earlier_error: Exception | None
    ) -> Exception | None:
        """Return what took the handler's effects, or None: it wanted them undone."""
        last_error: Exception | None = self.connection.rollback_exc
        if last_error is not earlier_error:
            return last_error  # caught without a savepoint
        # A savepoint can be lost too, with its connection or, on MariaDB, in a
        # deadlock. Where the claim still is, there the effects are.
        transaction.set_rollback(False, using=self.alias)
        try:
            found = self.claims.look_up(claimed.pk)
        except Error as error:
            return error
        finally:
            transaction.set_rollback(True, using=self.alias)
        is_there = found is not None and found.token == claimed.token
        return None if is_there else ClaimLost()

    def _complete(self, claimed: IdempotencyRecord, response: HttpResponseBase) -> None:
        stored = self.to_store(response)
        try:
            self.claims.complete(claimed, stored)
        except (ClaimLost, Error) as error:
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
