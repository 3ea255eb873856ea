"""Leased mode: the claim commits before the handler runs (contract E7 to E11)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, Error
from django.http import HttpResponseBase

from idempotency.claims.leases import Leases
from idempotency.database_errors import error_classes
from idempotency.exceptions import ClaimLost, OutcomeUnknown
from idempotency.models import IdempotencyRecord
from idempotency.modes.base import Busy, Fate, InForce, Mode, Ran
from idempotency.modes.steps import RecordedSteps
from idempotency.responses import StoredResponse
from idempotency.signals import extras
from idempotency.steps import as_text, is_in_transaction

logger = logging.getLogger("idempotency")

OPEN_TRANSACTION = """\
Leased mode can't run inside a transaction: its claim must be committed before the \
handler acts outside. Under ATOMIC_REQUESTS, IdempotencyMixin takes care of that. \
Without it, opt the view out above all other decorators:

    @{opt_out}
    @idempotent(atomic=False, ...)
    def pay(request): ...

    @method_decorator({opt_out}, name="dispatch")
    class Pay(View): ..."""

LEFT_OPEN = """\
Leased mode must commit its writes about the claim at once, but the handler has \
a transaction open. End it before request.idempotency.renew(), and before you return."""


def opt_out_of_atomic_requests(alias: str) -> str:
    """Return the decorator that keeps a view out of one database's ATOMIC_REQUESTS."""
    which = "" if alias == DEFAULT_DB_ALIAS else f'(using="{alias}")'
    return f"transaction.non_atomic_requests{which}"


def refuse_left_open(connection: Any) -> None:
    """Raise ``RuntimeError`` if a handler has left a transaction open."""
    if is_in_transaction(connection):
        raise RuntimeError(LEFT_OPEN)


def log_not_given_up(claimed: IdempotencyRecord, error: Exception) -> None:
    """Log that a failed run's record can't be written: its lease ends by itself."""
    kind = error_classes(error)
    logger.warning(
        "The record of a failed run could not be updated: record %s, attempt %d: %s",
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


class LeasedMode(Mode):
    """Commits a claim with a lease before the handler runs."""

    # If the endpoint resumes.
    steps: RecordedSteps | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.leases = Leases(self.claims)
        self.resumes = self.policy.on_abandoned == "resume"

    def run(self, new_record: IdempotencyRecord) -> Busy | InForce | Ran:
        """Commit the claim, then run the handler (E7)."""
        new_record.steps = as_text(self.context.payload) if self.resumes else None
        try:
            if is_in_transaction(self.connection):  # E11
                opt_out = opt_out_of_atomic_requests(self.alias)
                raise ImproperlyConfigured(OPEN_TRANSACTION.format(opt_out=opt_out))
            policy = self.policy
            record = self.leases.claim(new_record, policy.retention, policy.lease)
        except DatabaseError as error:
            found = self.found_despite(error, new_record.pk)
            return found or self.not_claimed(error)
        if record is None:
            return Busy()
        if record.token != new_record.token:
            return InForce(record)
        return self._run_under(record, None)

    def recover(
        self, abandoned: IdempotencyRecord, new_record: IdempotencyRecord
    ) -> Busy | Ran:
        """Take over the record, unless a person must decide (E9)."""
        if self.policy.on_abandoned == "hold":
            raise OutcomeUnknown
        # After a change of the option only a person knows what the other one has done.
        was_resuming = abandoned.steps is not None
        if was_resuming is not self.resumes or abandoned.call_in_doubt is not None:
            raise OutcomeUnknown
        new_record.steps = abandoned.steps
        new_record.attempt = abandoned.attempt + 1
        new_record.created_at = abandoned.created_at
        new_record.read_at = abandoned.read_at
        new_record.expires_at = abandoned.read_at + self.policy.retention
        try:
            is_taken = self.leases.take_over(abandoned, new_record, self.policy.lease)
        except DatabaseError as error:
            return self.not_claimed(error)
        if not is_taken:
            return Busy()  # another retry has taken over
        return self._run_under(new_record, abandoned)

    def _run_under(
        self, claimed: IdempotencyRecord, abandoned: IdempotencyRecord | None
    ) -> Ran:
        ran = Ran(claimed, Fate.ABANDONED)
        try:
            ran.outcome = self._run_handler(ran, abandoned)
        except BaseException as error:  # noqa: BLE001  # the caller raises it
            ran.outcome = error
        return ran

    def _run_handler(
        self, ran: Ran, abandoned: IdempotencyRecord | None
    ) -> HttpResponseBase | BaseException:
        """Run the handler, and decide about the record (O1 to O4, E9).

        After an abandoned run, the outcome is unknown until a response is stored.
        """
        context = self.context
        self.begin(ran)
        context.renew_claim = lambda lease: self._renew(ran, lease)
        context.has_side_effects = abandoned is not None
        if self.resumes:
            context.steps = self.steps = RecordedSteps(
                ran.record,
                leases=self.leases,
                alias=self.alias,
                lease=self.policy.lease,
                derive=context.derive,
                finish=self._finish_in_step,
            )
        try:
            response = found = self._find_out(abandoned)
            if response is None:
                response = self.handler()
        except BaseException as error:
            if self._is_refused(ran, error):
                return error
            raise
        if self.steps is not None and self.steps.response is not None:
            self._report_skipped()
            ran.fate = Fate.STORED
            return self.steps.response
        try:
            response = self.finalizer.finish(response)
            is_error = response.status_code >= 500 or (
                found is None
                and self.is_released_by(response)
                and not self._has_entries
            )
            is_released = context.is_released and not self._has_entries
            is_stored = not (is_error or is_released)
            stored = self.to_store(response) if is_stored else None
        except BaseException:
            self._give_up(ran)  # not a refusal by the handler
            raise
        if stored is not None:
            if self.steps is not None:
                self.steps.forget_results()
                self._report_skipped()
            self._write(ran, lambda: self.leases.complete(ran.record, stored))
            ran.fate = Fate.STORED
        elif response.status_code >= 500:
            self._give_up(ran)
        else:
            self._end_in_error(ran)
        return response

    def _is_refused(self, ran: Ran, error: BaseException) -> bool:
        """End a claim after an error; return whether the handler refuses by it."""
        if self._has_ended:
            ran.fate = Fate.STORED  # the last step is committed
        elif isinstance(error, ClaimLost):
            if ran.fate is not None:  # lost in a step
                ran.fate = None
                self._log_loss(ran.record)
        elif not isinstance(error, Exception) or self.keyed.is_failure(error):
            self._give_up(ran)
        else:
            self._end_in_error(ran)
            return True
        return False

    def _find_out(self, abandoned: IdempotencyRecord | None) -> HttpResponseBase | None:
        """Return what the policy's callable finds out about an abandoned run."""
        ask = self.policy.on_abandoned
        if abandoned is None or not callable(ask):
            return None
        found: HttpResponseBase | None = ask(abandoned, self.keyed.request)
        return found

    @property
    def _has_entries(self) -> bool:
        """Whether a step is recorded."""
        return self.steps is not None and bool(self.steps.entries)

    @property
    def _has_ended(self) -> bool:
        """Whether a step has stored the response (E15)."""
        return self.steps is not None and self.steps.response is not None

    def _finish_in_step(
        self, response: HttpResponseBase
    ) -> tuple[HttpResponseBase, StoredResponse | None]:
        """Finish the response of the last step; an error stores nothing (E15)."""
        response = self.finalizer.finish(response)
        if response.status_code >= 500:
            return response, None
        return response, self.to_store(response)

    def _report_skipped(self) -> None:
        if self.steps is not None and self.steps.skipped:
            self.reporter.skipped(self.steps.skipped)

    def _renew(self, ran: Ran, lease: timedelta | None) -> None:
        lease = lease or self.policy.lease
        self._write(ran, lambda: self.leases.renew(ran.record, lease))

    def _end_in_error(self, ran: Ran) -> None:
        """Free the key, unless the handler may have had effects (O2, E9, E15)."""
        context = self.context
        may_have_acted = context.has_side_effects and not context.is_released
        if may_have_acted or self._has_entries:
            self._write(ran, lambda: self.leases.abandon(ran.record))
            return
        self._write(ran, lambda: self.leases.release(ran.record))
        ran.fate = Fate.RELEASED

    def _give_up(self, ran: Ran) -> None:
        """End the claim after a failure, whose response the client gets in any case."""
        self.context.has_side_effects = True  # it may have had some
        try:
            self._end_in_error(ran)
        except ClaimLost:
            pass  # already logged
        except (Error, RuntimeError) as error:
            log_not_given_up(ran.record, error)

    def _write(self, ran: Ran, write: Callable[[], None]) -> None:
        """Write to the record of the claim.

        Raise ``ClaimLost`` if another run has the record, ``RuntimeError`` inside a
        transaction, and errors of the database.
        """
        refuse_left_open(self.connection)
        try:
            write()
        except ClaimLost:
            ran.fate = None
            self._log_loss(ran.record)
            raise

    def _log_loss(self, claimed: IdempotencyRecord) -> None:
        current: int | str | None = "unknown"
        with suppress(Error):
            found = self.leases.look_up(claimed.pk)
            current = None if found is None else found.attempt
        logger.warning(
            "A handler has lost its claim, so its response was not stored: "
            "record %s, attempt %d, current attempt %s",
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
