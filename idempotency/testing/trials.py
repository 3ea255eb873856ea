"""Requests of one test: what each did, and an error after the handler on demand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from idempotency.models import IdempotencyRecord
from idempotency.modes import Mode
from idempotency.testing.effects import Numbers, Watch, writes_counted
from idempotency.testing.sending import (
    HandlerFailed,
    SentRequest,
    describe_response,
    log_silenced,
    runs_watched,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of one request; it has a ``mode`` if a handler ran to its end."""

    response: Any
    mode: Mode | None
    has_failed: bool
    changes: Numbers
    writes: Counter[str]

    @property
    def record(self) -> IdempotencyRecord | None:
        """The record, as it is now."""
        if self.mode is None:
            return None
        records = IdempotencyRecord.objects.using(self.mode.alias)
        found: Any = self.mode.context.record_id
        return records.filter(pk=found).first()

    @property
    def summary(self) -> str:
        """The answer in words for people."""
        return describe_response(self.response)

    @property
    def exact_response(self) -> tuple[int, bytes, str]:
        """What a replay has in common with the first answer."""
        response = self.response
        content_type = response.get("Content-Type", "")
        return response.status_code, response.content, content_type


class Trial:
    """The requests of one test."""

    def __init__(self, request: SentRequest, other_data: Any, watch: Watch) -> None:
        self.request = request
        self.other_data = other_data
        self.watch = watch

    def send(
        self,
        key: str,
        *,
        fails_in: type[Mode] | None = None,
        request: SentRequest | None = None,
    ) -> Sent:
        """Send the request; in the mode ``fails_in`` let it fail after its handler."""
        modes: list[Mode] = []
        response = None
        before = self.watch.count()

        def end(mode: Mode) -> None:
            modes.append(mode)
            if has_failed():
                raise HandlerFailed("The error that idempotency.testing provokes.")

        def has_failed() -> bool:
            return fails_in is not None and any(isinstance(m, fails_in) for m in modes)

        with runs_watched(end), log_silenced(has_failed), writes_counted() as writes:
            try:
                response = (request or self.request).send(key)
            except Exception:
                if not has_failed():
                    raise
        return Sent(
            response=response,
            mode=modes[-1] if modes else None,
            has_failed=has_failed(),
            changes=self.watch.changes_since(before),
            writes=writes,
        )
