"""Leased mode: the claim commits before the handler runs (contract E7 to E11)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, Error
from django.http import HttpResponseBase

from idempotency.claims.errors import kind_of
from idempotency.claims.leases import Leases
from idempotency.exceptions import ClaimLost, OutcomeUnknown, TransactionFailed
from idempotency.models import IdempotencyRecord
from idempotency.modes.base import Fate, Mode, Outcome, is_failure
from idempotency.signals import extras

logger = logging.getLogger("idempotency")

OPEN_TRANSACTION = """\
Leased mode can't run inside a transaction: its claim must be committed before the \
handler acts outside. Under ATOMIC_REQUESTS, IdempotencyMixin takes care of that. \
Without it, opt the view out:

    @{opt_out}
    @api_view(["POST"])
    @idempotent(atomic=False, ...)
    def pay(request): ...

    @method_decorator({opt_out}, name="dispatch")
    class Pay(APIView): ..."""

LEFT_OPEN = """\
What leased mode writes about its claim must be committed at once, and the handler has \
a transaction open. End it before request.idempotency.renew(), and before the answer."""


def opt_out_of_atomic_requests(alias: str) -> str:
    """Return the decorator that keeps a view out of one database's ATOMIC_REQUESTS."""
    which = "" if alias == DEFAULT_DB_ALIAS else f'(using="{alias}")'
    return f"transaction.non_atomic_requests{which}"


class LeasedMode(Mode):
    """The claim has a lease; whatever it says later carries its token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.leases = Leases(self.claims)

    def run(
        self, wanted: IdempotencyRecord
    ) -> tuple[IdempotencyRecord | None, Outcome | None]:
        """Commit the claim, then run the handler (E7)."""
        if self._is_in_transaction():  # E11
            opt_out = opt_out_of_atomic_requests(self.alias)
            raise ImproperlyConfigured(OPEN_TRANSACTION.format(opt_out=opt_out))
        try:
            policy = self.policy
            record = self.leases.claim(wanted, policy.retention, policy.lease)
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
        wanted.expires_at = abandoned.read_at + self.policy.retention
        try:
            is_taken = self.leases.take_over(abandoned, wanted, self.policy.lease)
        except DatabaseError as error:
            return self._not_claimed(error)
        if not is_taken:
            return None, None  # another retry was faster
        return wanted, self._run_handler(wanted, abandoned)

    @property
    def is_undone(self) -> bool:
        """Whether nothing has run: what a leased handler has done, stays."""
        return self.claimed is None

    def _is_in_transaction(self) -> bool:
        """Tell where ``atomic(durable=True)`` would refuse to begin."""
        blocks = self.connection.atomic_blocks
        if blocks:
            # Django's own mark of a TestCase's transactions; there is no public one.
            return not blocks[-1]._from_testcase
        return not self.connection.get_autocommit()

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
        try:
            response = self.finalizer.finish(response)
            is_error = response.status_code >= 500 or (
                found is None and self.is_released_by(response)
            )
            is_stored = not (is_error or context.is_released)
            stored = self.to_store(response) if is_stored else None
        except BaseException:
            self._give_up(claimed)  # whatever it is, it is no refusal of the handler's
            raise
        if stored is not None:
            self._write(claimed, lambda: self.leases.complete(claimed, stored))
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
        self._write(claimed, lambda: self.leases.renew(claimed, lease))

    def _end_in_error(self, claimed: IdempotencyRecord) -> None:
        """Give the key back, unless the handler may have acted outside (O2, E9)."""
        if self.context.is_acting and not self.context.is_released:
            self._write(claimed, lambda: self.leases.abandon(claimed))
            return
        self._write(claimed, lambda: self.leases.release(claimed))
        self.fate = Fate.RELEASED

    def _give_up(self, claimed: IdempotencyRecord) -> None:
        """After a failure: the answer is the failure's own, whatever is written."""
        self.context.is_acting = True  # for all that anybody knows
        try:
            self._end_in_error(claimed)
        except ClaimLost:
            pass  # the log has it
        except (Error, RuntimeError) as error:
            # Where the record can't be written, its lease ends by itself.
            kind = kind_of(error)
            logger.warning(
                "A failed run could not be given up: record %s, attempt %d: %s",
                claimed.pk,
                claimed.attempt,
                kind,
                extra=extras(
                    "not_given_up",
                    record_id=claimed.pk,
                    attempt=claimed.attempt,
                    error=kind,
                ),
            )

    def _write(self, claimed: IdempotencyRecord, write: Callable[[], None]) -> None:
        """Write under the claim's token.

        Raises ``ClaimLost`` if another run has the record, ``RuntimeError`` inside a
        transaction, and what the database does.
        """
        if self._is_in_transaction():
            raise RuntimeError(LEFT_OPEN)
        try:
            write()
        except ClaimLost:
            self.fate = None
            self._tell_of_loss(claimed)
            raise

    def _tell_of_loss(self, claimed: IdempotencyRecord) -> None:
        current: int | str | None = "unknown"
        with suppress(Error):
            found = self.leases.look_up(claimed.pk)
            current = None if found is None else found.attempt
        logger.warning(
            "A handler had lost its claim, and its answer was not stored: "
            "record %s, attempt %d, by now attempt %s",
            claimed.pk,
            claimed.attempt,
            current,
            extra=extras(
                "claim_lost",
                record_id=claimed.pk,
                attempt=claimed.attempt,
                attempt_by_now=current,
            ),
        )
