"""What the app tells of its work: signals with frozen details, and log lines.

Receivers get ``details``; ``sender`` is the view's class, or ``IdempotencyRecord`` for
a purge. A receiver that fails is logged by Django and changes nothing. Receivers of
``key_claimed`` run inside the transaction of a handler in atomic mode: what they write
shares its fate.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.dispatch import Signal

logger = logging.getLogger("idempotency")
# Of the extras of a log line.
PREFIX = "idempotency_"


class LoggedSignal(Signal):
    """A signal that is also a line in the log ``idempotency``, at its own level."""

    def __init__(self, name: str, level: int) -> None:
        super().__init__()
        self.name = name
        self.level = level

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens; if not, details need not be made."""
        return bool(self.receivers) or logger.isEnabledFor(self.level)

    def emit(self, sender: type, details: Any) -> None:
        """Send the details, and write them as a line and as its extras.

        No text in them has a control character: receivers write lines, too.
        """
        given = {field.name: getattr(details, field.name) for field in fields(details)}
        texts = {name: text for name, text in given.items() if isinstance(text, str)}
        details = replace(details, **{n: escaped(text) for n, text in texts.items()})
        self.send_robust(sender, details=details)
        if logger.isEnabledFor(self.level):
            extra = extras(self.name, **asdict(details))
            logger.log(self.level, "%s: %s", self.name, details, extra=extra)


def escaped(text: str) -> str:
    """Return text that stays on its line: what can't be printed as Python writes it.

    Whatever a client chose goes through this on its way into the log, or it could write
    lines of its own there. A backslash is doubled, so that nothing passes for escaped.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        char if char.isprintable() and char != "\\" else ascii(char)[1:-1]
        for char in text
    )


def extras(event: str, **details: Any) -> dict[str, Any]:
    """Return what every line of the log has beside its text, under one prefix."""
    return {
        PREFIX + name: escaped(value) if isinstance(value, str) else value
        for name, value in {"event": event, **details}.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDetails:
    """What every signal of a request says: never a key, a scope or a body.

    ``view`` is the dotted name of the view, ``action`` that of a ViewSet's action,
    ``mode`` ``"atomic"`` or ``"leased"``. ``record_id`` is None before a valid key is
    found; ``attempt`` counts the runs of a record and is None where it is not known.
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
    """An answer is in its record; ``body_size`` is None if it was not kept (R4)."""

    status_code: int
    body_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseReplayed(RequestDetails):
    """An answer was given again, so long after its key was claimed."""

    status_code: int
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused(RequestDetails):
    """The app has refused a request, with a code of the README's table."""

    code: str
    status_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReleased(RequestDetails):
    """A run has left no record (O2, O3); no status where it raised one of no status."""

    status_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAbandoned(RequestDetails):
    """A leased run ended, and nobody knows what it has done outside (E9)."""

    status_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsPurged:
    """A purge has ended; ``more`` says whether work is left."""

    database: str
    deleted: int
    batches: int
    seconds: float
    more: bool

    def __str__(self) -> str:
        rest = "; more are left for the next run" if self.more else ""
        return (
            f"{self.deleted} expired records in {self.batches} batches "
            f"and {self.seconds:.1f} s{rest}"
        )


key_claimed = LoggedSignal("key_claimed", logging.DEBUG)
# After the commit; where a transaction is open around the request, such as that of
# ATOMIC_REQUESTS, after that one's.
response_stored = LoggedSignal("response_stored", logging.DEBUG)
response_replayed = LoggedSignal("response_replayed", logging.INFO)
request_refused = LoggedSignal("request_refused", logging.INFO)
key_released = LoggedSignal("key_released", logging.INFO)
key_abandoned = LoggedSignal("key_abandoned", logging.WARNING)
records_purged = LoggedSignal("records_purged", logging.INFO)
