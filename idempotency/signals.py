"""Signals and log lines about the app's work.

Receivers get frozen ``details``; ``sender`` is the view's class, ``PlainView`` for a
plain function, or ``IdempotencyRecord`` for a purge. Django logs an error of a
receiver, which has no other effect. In atomic mode, receivers of ``key_claimed`` run in
the handler's transaction, and a rollback undoes their writes, too.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.dispatch import Signal

logger = logging.getLogger("idempotency")
# For the extras of a log line.
PREFIX = "idempotency_"


class LoggedSignal(Signal):
    """A signal that also writes a line to the log ``idempotency``, at its own level."""

    def __init__(self, name: str, level: int) -> None:
        super().__init__()
        self.name = name
        self.level = level

    @property
    def is_heard(self) -> bool:
        """Whether there is a receiver, or the log has the level."""
        return bool(self.receivers) or logger.isEnabledFor(self.level)

    def emit(self, sender: type, details: Any) -> None:
        """Send the details, and log them as a line with extras.

        Escape the texts first, because receivers may log them, too.
        """
        given = {field.name: getattr(details, field.name) for field in fields(details)}
        texts = {name: text for name, text in given.items() if isinstance(text, str)}
        details = replace(details, **{n: escaped(text) for n, text in texts.items()})
        self.send_robust(sender, details=details)
        if logger.isEnabledFor(self.level):
            extra = extras(self.name, **asdict(details))
            logger.log(self.level, "%s: %s", self.name, details, extra=extra)


def escaped(text: str) -> str:
    """Return text for the log, with unprintable characters escaped as in Python.

    Otherwise a client could forge log lines. Backslashes are doubled, so that no text
    looks escaped.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        char if char.isprintable() and char != "\\" else ascii(char)[1:-1]
        for char in text
    )


def in_seconds(duration: timedelta) -> timedelta:
    """Return a duration without fractions of a second, for people."""
    return duration - duration % timedelta(seconds=1)


def extras(event: str, **details: Any) -> dict[str, Any]:
    """Return the extras of a log line, under the app's prefix."""
    return {
        PREFIX + name: escaped(value) if isinstance(value, str) else value
        for name, value in {"event": event, **details}.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDetails:
    """The details in every signal of a request: never a key, a scope or a body.

    ``view`` is the dotted name of the view, ``action`` the ViewSet's action and
    ``mode`` ``"atomic"`` or ``"leased"``. ``record_id`` is None without a valid key.
    ``attempt`` counts the runs of the record, or is None if unknown.
    """

    view: str
    action: str | None
    method: str
    mode: str
    record_id: UUID | None
    attempt: int | None

    def __str__(self) -> str:
        given = asdict(self).items()
        return " ".join(f"{name}={value}" for name, value in given if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyClaimed(RequestDetails):
    """The handler is about to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseStored(RequestDetails):
    """The record has the response; ``body_size`` is None if it was not kept (R4)."""

    status_code: int
    body_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseReplayed(RequestDetails):
    """A response was replayed; ``age`` is the time since the claim."""

    status_code: int
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused(RequestDetails):
    """The app refused a request, with a code from the README's table."""

    code: str
    status_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReleased(RequestDetails):
    """A run left no record (O2, O3); an error may have no status."""

    status_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAbandoned(RequestDetails):
    """A leased run ended without a known outcome (E9)."""

    status_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsSkipped(RequestDetails):
    """A run resumed, and did not ask for these recorded steps (E16)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsPurged:
    """A purge ended; ``more`` says whether expired records are left.

    ``half_done`` of the deleted records had recorded steps, but no response (E12).
    ``skipped`` batches failed for the moment. ``overdue`` is the time since the oldest
    record that is left expired, zero if none is.
    """

    database: str
    deleted: int
    half_done: int
    batches: int
    skipped: int = 0
    seconds: float
    more: bool
    overdue: timedelta = timedelta(0)

    def __str__(self) -> str:
        skipped = (
            f"; {self.skipped} batches failed and were tried again"
            if self.skipped
            else ""
        )
        half_done = (
            f"; {self.half_done} had recorded steps, but no response"
            if self.half_done
            else ""
        )
        rest = (
            "; more are left for the next run, "
            f"the oldest expired {in_seconds(self.overdue)} ago"
            if self.more
            else ""
        )
        return (
            f"{self.deleted} expired records in {self.batches} batches "
            f"and {self.seconds:.1f} s{skipped}{half_done}{rest}"
        )


key_claimed = LoggedSignal("key_claimed", logging.DEBUG)
# Sent after the outermost commit, which may be the one of ATOMIC_REQUESTS.
response_stored = LoggedSignal("response_stored", logging.DEBUG)
response_replayed = LoggedSignal("response_replayed", logging.INFO)
request_refused = LoggedSignal("request_refused", logging.INFO)
key_released = LoggedSignal("key_released", logging.INFO)
key_abandoned = LoggedSignal("key_abandoned", logging.WARNING)
steps_skipped = LoggedSignal("steps_skipped", logging.WARNING)
records_purged = LoggedSignal("records_purged", logging.INFO)
