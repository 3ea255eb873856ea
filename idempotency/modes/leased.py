"""Leased mode: the claim commits before the handler runs (contract E7 to E11)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, Error
from django.http import HttpResponseBase

from idempotency.exceptions import ClaimLost, OutcomeUnknown, TransactionFailed
from idempotency.models import IdempotencyRecord
from idempotency.modes.base import Fate, Mode, Outcome, is_failure

logger = logging.getLogger("idempotency")

OPEN_TRANSACTION = """\
Leased mode can't run inside a transaction: its claim must be committed before the \
handler acts outside. Under ATOMIC_REQUESTS, IdempotencyMixin takes care of that. \
Without it, opt the view out:

    @transaction.non_atomic_requests
    @api_view(["POST"])
    @idempotent(atomic=False, ...)
    def pay(request): ...

    @method_decorator(transaction.non_atomic_requests, name="dispatch")
    class Pay(APIView): ..."""


class LeasedMode(Mode):
    """The claim has a lease; whatever it says later carries its token."""

    def run(
        self, wanted: IdempotencyRecord, now: datetime
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Commit the claim, then run the handler (E7)."""
        self._refuse_open_transaction()
        seen = None
        try:
            if self.claims.looks_up_first:
                seen = self.claims.look_up(wanted.pk)
            record = self.claims.claim(wanted, now, seen, lease=self.policy.lease)
        except DatabaseError as error:
            return self._not_claimed(error)
        if record is None or record.token != wanted.token:
            return record, None
        return record, self._run_handler(record, None)

    def recover(
        self, abandoned: IdempotencyRecord, wanted: IdempotencyRecord
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Take over, unless a person is to decide (E9)."""
        if self.policy.on_abandoned == "hold":
            raise OutcomeUnknown
        wanted.attempt = abandoned.attempt + 1
        wanted.created_at = abandoned.created_at
        try:
            is_taken = self.claims.take_over(abandoned, wanted, self.policy.lease)
        except DatabaseError as error:
            return self._not_claimed(error)
        if not is_taken:
            return None, None  # another retry was faster
        return wanted, self._run_handler(wanted, abandoned)

    def _refuse_open_transaction(self) -> None:
        """Raise ``ImproperlyConfigured`` where ``atomic(durable=True)`` would (E11)."""
        blocks = self.connection.atomic_blocks
        is_open = (
            not blocks[-1]._from_testcase
            if blocks
            else not self.connection.get_autocommit()
        )
        if is_open:
            raise ImproperlyConfigured(OPEN_TRANSACTION)

    def _not_claimed(self, error: DatabaseError) -> tuple[None, None]:
        if self.claims.is_busy(error):
            return None, None
        if self.claims.is_transient(error):
            raise TransactionFailed from error
        raise error

    def _run_handler(
        self, claimed: IdempotencyRecord, abandoned: IdempotencyRecord | None
    ) -> Outcome:
        """Run the handler under its lease; decide what becomes of both (O1 to O4, E9).

        After an abandoned run the outcome stays unknown until an answer is stored.
        """
        context = self.context
        self.begin(claimed, Fate.ABANDONED)
        context.renew_claim = lambda lease: self._renew(claimed, lease)
        context.is_acting = abandoned is not None
        try:
            response = found = self._find_out(abandoned)
            if response is None:
                response = self.handler()
            response = self.finisher.finish(response)
            is_error = response.status_code >= 500 or (
                found is None and self.is_released_by(response)
            )
            is_stored = not (is_error or context.is_released)
            stored = self.to_store(response) if is_stored else None
        except ClaimLost:
            raise
        except Exception as error:
            if is_failure(error):
                self._give_up(claimed)
                raise
            self._end_in_error(claimed)
            return error
        except BaseException:
            self._give_up(claimed)  # the process is being ended
            raise
        if stored is not None:
            self._write(claimed, lambda: self.claims.complete(claimed, stored))
            self.fate = Fate.STORED
        elif response.status_code >= 500:
            self._give_up(claimed)
        else:
            self._end_in_error(claimed)
        return response

    def _find_out(self, abandoned: IdempotencyRecord | None) -> HttpResponseBase | None:
        """Ask the policy's callable what became of an abandoned run."""
        ask = self.policy.on_abandoned
        if abandoned is None or not callable(ask):
            return None
        found: HttpResponseBase | None = ask(abandoned, self.request)
        return found

    def _renew(self, claimed: IdempotencyRecord, lease: timedelta | None) -> None:
        lease = lease or self.policy.lease
        self._write(claimed, lambda: self.claims.renew(claimed, lease))

    def _end_in_error(self, claimed: IdempotencyRecord) -> None:
        """Give the key back, unless the handler may have acted outside (O2, E9)."""
        if self.context.is_acting and not self.context.is_released:
            self._write(claimed, lambda: self.claims.abandon(claimed))
        else:
            self._write(claimed, lambda: self.claims.release(claimed))
            self.fate = Fate.RELEASED

    def _give_up(self, claimed: IdempotencyRecord) -> None:
        """After a failure: the answer is the failure's own, whatever is written."""
        try:
            if self.context.is_released:
                self.claims.release(claimed)
                self.fate = Fate.RELEASED
            else:
                self.claims.abandon(claimed)
        except (ClaimLost, Error) as error:
            if isinstance(error, ClaimLost):
                self.fate = None
            # Where the record could not be reached, its lease ends by itself.
            logger.warning(
                "A failed run could not be given up: record %s, attempt %d",
                claimed.pk,
                claimed.attempt,
                exc_info=True,
            )

    def _write(self, claimed: IdempotencyRecord, write: Callable[[], None]) -> None:
        """Write under the claim's token, and once more if the connection was lost.

        Raises ``ClaimLost`` if another run has the record, and what the database does.
        """
        try:
            try:
                write()
            except Error:
                if self.connection.in_atomic_block:
                    raise
                with suppress(Error):
                    self.connection.close()
                write()
        except ClaimLost:
            self.fate = None
            current = self.claims.look_up(claimed.pk)
            logger.warning(
                "A handler had lost its claim, and its answer was not stored: "
                "record %s, attempt %d, by now attempt %s",
                claimed.pk,
                claimed.attempt,
                current and current.attempt,
            )
            raise
