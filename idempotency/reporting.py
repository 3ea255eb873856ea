"""Tell what becomes of one request, to whoever listens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import transaction

from idempotency import signals
from idempotency.context import RequestContext
from idempotency.exceptions import IdempotencyError
from idempotency.models import IdempotencyRecord
from idempotency.policy import Policy
from idempotency.signals import LoggedSignal, RequestDetails

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView


class Reporter:
    """Makes details of the request, where a signal or a log line wants them."""

    def __init__(
        self, view: APIView, request: Request, policy: Policy, context: RequestContext
    ) -> None:
        self.view = view
        self.request = request
        self.policy = policy
        self.context = context

    def claimed(self) -> None:
        """The handler is about to run."""
        self._tell(signals.key_claimed, signals.KeyClaimed)

    def stored(self, record: IdempotencyRecord, alias: str) -> None:
        """An answer is in its record, as soon as that is committed."""
        if not signals.response_stored.is_heard:
            return
        tell = partial(
            self._tell,
            signals.response_stored,
            signals.ResponseStored,
            status_code=record.status_code,
            body_size=record.body_size,
        )
        if transaction.get_connection(alias).in_atomic_block:
            transaction.on_commit(tell, using=alias, robust=True)
        else:
            tell()

    def replayed(self, record: IdempotencyRecord) -> None:
        """An answer was given again."""
        self._tell(
            signals.response_replayed,
            signals.ResponseReplayed,
            status_code=record.status_code,
            age=record.read_at - record.created_at,
        )

    def refused(self, refusal: IdempotencyError) -> None:
        """The app has refused the request."""
        self._tell(
            signals.request_refused,
            signals.RequestRefused,
            code=refusal.default_code,
            status_code=refusal.status_code,
        )

    def released(self, status_code: int | None) -> None:
        """A run has left no record."""
        self._tell(signals.key_released, signals.KeyReleased, status_code=status_code)

    def abandoned(self, status_code: int | None) -> None:
        """A run has left its outcome unknown."""
        self._tell(signals.key_abandoned, signals.KeyAbandoned, status_code=status_code)

    def _tell(
        self, signal: LoggedSignal, details: type[RequestDetails], **more: Any
    ) -> None:
        if not signal.is_heard:
            return
        view, context = type(self.view), self.context
        told = details(
            view=f"{view.__module__}.{view.__name__}",
            action=getattr(self.view, "action", None),
            method=self.request.method or "",
            mode="atomic" if self.policy.atomic else "leased",
            record_id=context.record_id,
            attempt=context.attempt,
            **more,
        )
        signal.tell(view, told)
