"""Send the signals of one request."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, TypeVar

from django.db import transaction

from idempotency import signals
from idempotency.database_errors import error_classes
from idempotency.discretion import said_by
from idempotency.exceptions import IdempotencyError
from idempotency.keyed_request import KeyedRequest
from idempotency.models import IdempotencyRecord
from idempotency.signals import LoggedSignal, RequestDetails, escaped, extras

logger = logging.getLogger("idempotency")

Refusal = TypeVar("Refusal", bound=IdempotencyError)


class Reporter:
    """Sends each signal with the request's details, if anything listens."""

    def __init__(self, keyed: KeyedRequest) -> None:
        self.keyed = keyed

    def claimed(self) -> None:
        """Report that the handler is about to run."""
        self._emit(signals.key_claimed, signals.KeyClaimed)

    def stored(self, record: IdempotencyRecord, alias: str) -> None:
        """Report a stored response, once it is committed."""
        if not signals.response_stored.is_heard:
            return
        emit = partial(
            self._emit,
            signals.response_stored,
            signals.ResponseStored,
            status_code=record.status_code,
            body_size=record.body_size,
        )
        if transaction.get_connection(alias).in_atomic_block:
            transaction.on_commit(emit, using=alias, robust=True)
        else:
            emit()

    def replayed(self, record: IdempotencyRecord) -> None:
        """Report a replay."""
        self._emit(
            signals.response_replayed,
            signals.ResponseReplayed,
            status_code=record.status_code,
            age=record.read_at - record.created_at,
        )

    def refused(self, refusal: IdempotencyError) -> None:
        """Report a refusal of the app."""
        self._emit(
            signals.request_refused,
            signals.RequestRefused,
            code=refusal.default_code,
            status_code=refusal.status_code,
        )

    def blamed(self, refusal: Refusal, error: Exception) -> Refusal:
        """Log the database's error, and return a refusal that has it as its cause."""
        context, kind = self.keyed.context, error_classes(error)
        logger.warning(
            "The database failed, and the client may retry (%s). "
            "Record %s, %s %s. %s: %s",
            refusal.default_code,
            context.record_id,
            self.keyed.method,
            escaped(self.keyed.request.path),
            kind,
            escaped(said_by(error)),
            extra=extras(
                "database_failed",
                record_id=context.record_id,
                attempt=context.attempt,
                code=refusal.default_code,
                error=kind,
            ),
        )
        refusal.__cause__ = error
        return refusal

    def in_doubt(self, error: Exception) -> None:
        """Log that nobody knows whether a response is stored: the COMMIT failed."""
        context, kind = self.keyed.context, error_classes(error)
        logger.warning(
            "The COMMIT failed, and its outcome is unknown. The client may retry: "
            "that replays the response if it is stored, and runs the handler if not. "
            "Record %s, %s %s. %s: %s",
            context.record_id,
            self.keyed.method,
            escaped(self.keyed.request.path),
            kind,
            escaped(said_by(error)),
            extra=extras(
                "commit_in_doubt",
                record_id=context.record_id,
                attempt=context.attempt,
                error=kind,
            ),
        )

    def released(self, status_code: int | None) -> None:
        """Report a run that left no record."""
        self._emit(signals.key_released, signals.KeyReleased, status_code=status_code)

    def abandoned(self, status_code: int | None) -> None:
        """Report a run that left its outcome unknown."""
        self._emit(signals.key_abandoned, signals.KeyAbandoned, status_code=status_code)

    def skipped(self, names: list[str]) -> None:
        """Report recorded steps that a resumed run has not asked for (E16)."""
        self._emit(signals.steps_skipped, signals.StepsSkipped, names=tuple(names))

    def _emit(
        self, signal: LoggedSignal, kind: type[RequestDetails], **more: Any
    ) -> None:
        if not signal.is_heard:
            return
        keyed, context = self.keyed, self.keyed.context
        details = kind(
            view=keyed.view_name,
            action=keyed.action,
            method=keyed.method,
            mode="atomic" if keyed.policy.atomic else "leased",
            record_id=context.record_id,
            attempt=context.attempt,
            **more,
        )
        signal.emit(keyed.sender, details)


def log_unreadable(record: IdempotencyRecord, why: str) -> None:
    """Log that a record can't be decrypted, so that nothing runs for its key (P5)."""
    logger.error(
        "A record can't be read: %s. Retries are refused. Record %s, attempt %d",
        escaped(why),
        record.pk,
        record.attempt,
        extra=extras(
            "record_unreadable",
            record_id=record.pk,
            attempt=record.attempt,
            encrypted_by=record.encrypted_by,
        ),
    )
