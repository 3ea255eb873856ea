"""What the clients know: every request and answer, kept outside the database."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

STARTED = time.monotonic()

# What a database connection that was cut raises, whatever the driver made of it.
LOST = {"OperationalError", "InterfaceError"}
# What PostgreSQL and MariaDB say when they undo a transaction that may do well later.
UNDONE = re.compile(r"deadlock|could not serialize|\b(1213|1020)\b", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One request, and what came back; without ``status`` nothing did."""

    number: int
    how: str
    started: float
    ended: float = 0.0
    status: int | None = None
    body: bytes = b""
    replayed: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    lost: str = ""

    @property
    def code(self) -> str:
        """What an error calls itself."""
        told = self.told
        if told is None:
            return ""
        code = told.get("code") or told.get("error") or "?"
        return code[0] if isinstance(code, list) else str(code)

    @property
    def told(self) -> dict[str, Any] | None:
        """What an error says; None if the answer is none."""
        if self.status is None or self.status < 400:
            return None
        try:
            told: dict[str, Any] = json.loads(self.body)
        except ValueError:
            return {}
        return told

    @property
    def is_undone(self) -> bool:
        """Whether the cause is that the database has undone the transaction (E4)."""
        return bool(self.told and UNDONE.search(f"{self.told}"))

    @property
    def is_acknowledged(self) -> bool:
        """Whether the client knows that its effect has happened."""
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        if self.status is None:
            outcome = f"no answer ({self.lost})"
        else:
            words = (str(self.status), self.code, "replayed" * self.replayed)
            outcome = " ".join(filter(None, words))
        return (
            f"{self.started - STARTED:9.3f} to {self.ended - STARTED:9.3f}  "
            f"payload {self.number}, {self.how}: {outcome} {self.body[:160]!r}"
        )


@dataclass(slots=True, kw_only=True)
class Story:
    """One key and everything that was asked under it; without ``keyed``, no key."""

    label: str
    path: str
    keyed: bool
    payloads: list[dict[str, Any]]
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def what(self) -> str:
        """What the handler does."""
        return str(self.payloads[0]["do"])

    @property
    def refuses(self) -> bool:
        """Whether the handler never acts."""
        return self.what in ("refuse", "raise")

    @property
    def contends(self) -> bool:
        """Whether the handler takes rows that others want, too."""
        return self.what == "contend"

    @property
    def is_in_steps(self) -> bool:
        """Whether the handler runs in steps, in leased mode."""
        return self.what == "book"

    @property
    def acknowledged(self) -> list[Attempt]:
        """The attempts that were answered with a success."""
        return [attempt for attempt in self.attempts if attempt.is_acknowledged]

    def history(self) -> str:
        """Return everything that happened to this key, for people."""
        lines = [f"  {self.label} at {self.path}, a handler that does: {self.what}"]
        lines += map(str, sorted(self.attempts, key=lambda attempt: attempt.started))
        return "\n    ".join(lines)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was broken on purpose, from before to surely after it."""

    kind: str
    started: float
    ended: float

    def met(self, attempt: Attempt) -> bool:
        """Return whether a request was under way meanwhile."""
        return attempt.started <= self.ended and self.started <= attempt.ended

    def __str__(self) -> str:
        return (
            f"{self.started - STARTED:9.3f} to {self.ended - STARTED:9.3f}  {self.kind}"
        )


class Ledger:
    """All stories and faults."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.stories: list[Story] = []
        self.reads: list[Attempt] = []
        self.faults: list[Fault] = []

    def open(self, story: Story) -> Story:
        """Enter a new story."""
        with self.lock:
            self.stories.append(story)
        return story

    def add_read(self, attempt: Attempt) -> None:
        """Enter a GET, which has no story."""
        with self.lock:
            self.reads.append(attempt)

    def add_fault(self, kind: str, started: float) -> None:
        """Enter a fault that is over now."""
        with self.lock:
            self.faults.append(Fault(kind, started, time.monotonic()))

    def attempts(self) -> Iterator[tuple[Story | None, Attempt]]:
        """Yield every request."""
        for story in self.stories:
            for attempt in story.attempts:
                yield story, attempt
        for attempt in self.reads:
            yield None, attempt

    def faults_met(self, attempt: Attempt) -> set[str]:
        """Return what was broken while a request was under way."""
        return {fault.kind for fault in self.faults if fault.met(attempt)}

    def counts(self) -> Counter[str]:
        """Return how often each answer came, by the handler's kind where it matters."""
        counts: Counter[str] = Counter()
        for _story, attempt in self.attempts():
            if attempt.status is None:
                counts[f"no answer: {attempt.lost}"] += 1
            elif attempt.replayed:
                counts[f"{attempt.status} replayed"] += 1
            else:
                counts[" ".join(filter(None, (str(attempt.status), attempt.code)))] += 1
        return counts
