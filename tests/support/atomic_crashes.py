"""Cut a first-time request at every boundary, retry it once, and judge the outcome.

The boundaries are those that an uncut request has passed, so a new statement is cut
without being named here. Needs Django to be set up; the command that prints the whole
table is ``python -m tests.crash_matrix``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.support.fault_points import Visit
from tests.support.faults import Cuts, Sending
from tests.support.http_servers import Answer, is_replayed
from tests.support.sleep_counter import waits_in

COLUMNS = (
    *("boundaries", "doubled", "lost", "stuck", "unexpected"),
    *("replayed", "ran"),
)


@dataclass(frozen=True)
class Handler:
    """A handler of ``tests.support.fault_wsgi``, and what one run of it does."""

    name: str
    # The view that it runs in.
    url: str = "/function/"
    effects: int = 1
    status: int = 201
    # Whether the key has a record already, but an expired one.
    is_expired: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether its answer is kept; else its key is released (O2)."""
        return self.status < 400


HANDLERS = {
    "plain": Handler("act"),
    "released": Handler("refuse", status=400),
    "expired": Handler("act", is_expired=True),
    "savepoint": Handler("twice", effects=2),
    # A function that takes Django's own request.
    "django-view": Handler("act", "/plain/function/"),
    "django-released": Handler("refuse", "/plain/function/", status=400),
    # A view of Django REST framework's own, in protected().
    "third-party": Handler("act", "/routed/create/"),
}


@dataclass(frozen=True)
class Outcome:
    """What a request that was cut, and its retry, have left behind."""

    handler: Handler
    # None if the client was left without an answer.
    first: Answer | None
    # The effects that the first request had.
    first_effects: set[int]
    retry: Answer
    # The effects that have come with the retry.
    retry_effects: set[int]
    # What the retry got when it was sent once more, if its answer is stored.
    again: Answer | None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield doubled, lost, stuck or unexpected, and why."""
        # Whoever is cut off gets its answer, or is told to try again.
        if self.first and self.first.status not in (self.handler.status, 500, 503):
            yield "unexpected", f"{self.first} before the retry"
        for answer in filter(None, (self.retry, self.again)):
            if why := waits_in(answer):
                yield "stuck", why
        if self.retry.status != self.handler.status:
            yield "stuck", f"the retry got {self.retry.status} {self.retry.body!r}"
            return
        if self.first and not effects_in(self.first) <= self.first_effects:
            yield "lost", f"{self.first.body!r} was acknowledged before the crash"
        if self.handler.is_stored:
            yield from self._faults_of_stored()
        else:
            yield from self._faults_of_released()

    def _faults_of_stored(self) -> Iterator[tuple[str, str]]:
        """Two requests have the effects of one, and both get its answer."""
        effects = self.first_effects | self.retry_effects
        if len(effects) > self.handler.effects:
            yield "doubled", f"{len(effects)} effects"
        if not effects_in(self.retry) <= effects:
            yield "lost", f"{self.retry.body!r} was answered to the retry"
        if self.first and effects_in(self.first) and self.first.body != self.retry.body:
            yield "lost", f"{self.first.body!r} became {self.retry.body!r}"
        if self.again and not (
            is_replayed(self.again) and self.again.body == self.retry.body
        ):
            yield "lost", f"{self.retry.body!r} became {self.again.body!r}"

    def _faults_of_released(self) -> Iterator[tuple[str, str]]:
        """Each request runs, and has the effects of a request without a key."""
        for effects in (self.first_effects, self.retry_effects):
            if len(effects) > self.handler.effects:
                yield "doubled", f"{len(effects)} effects of one request"
        if is_replayed(self.retry) or effects_in(self.retry) != self.retry_effects:
            yield "lost", f"{self.retry.body!r} was answered to the retry"


def effects_in(answer: Answer) -> set[int]:
    """Return the effects that an answer names: none unless a handler made it."""
    try:
        said = json.loads(answer.body)
    except ValueError:
        return set()
    if not isinstance(said, dict):
        return set()
    # A third party's view names its one effect in its own way.
    return {said["effect"]} if "effect" in said else {*said.get("effects", ())}


@dataclass
class Tally:
    """What became of many requests that were cut."""

    boundaries: int = 0
    doubled: int = 0
    lost: int = 0
    stuck: int = 0
    unexpected: int = 0
    replayed: int = 0
    ran: int = 0
    faults: list[str] = field(default_factory=list)

    def count(self, label: str, outcome: Outcome) -> None:
        """Count one request; a fault counts once, however it shows."""
        self.boundaries += 1
        faults = list(outcome.faults())
        kinds = {kind for kind, _why in faults}
        self.doubled += "doubled" in kinds
        self.lost += "lost" in kinds
        self.stuck += "stuck" in kinds
        self.unexpected += "unexpected" in kinds
        self.faults += [f"{label}: {kind}: {why}" for kind, why in faults]
        if outcome.retry.status == outcome.handler.status:
            self.replayed += is_replayed(outcome.retry)
            self.ran += not is_replayed(outcome.retry)

    @property
    def cells(self) -> tuple[int, ...]:
        """What stands in the table."""
        return tuple(getattr(self, name) for name in COLUMNS)

    def add(self, other: Tally) -> None:
        """Count all that another one has counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Crashes(Cuts):
    """First-time requests in atomic mode that are cut, and retried once."""

    def rows(self, how: str, handlers: Iterable[Handler]) -> Iterator[Tally]:
        """Yield what became of all handlers, as one row of the table."""
        total = Tally()
        for handler in handlers:
            total.add(self.run(handler, how))
        yield total

    def run(self, handler: Handler, how: str) -> Tally:
        """Cut one request at each boundary."""
        tally = Tally()
        labels = self.record(handler).labels
        for passed, where in self.places(how, labels):
            outcome = self.cut(handler, how, passed)
            view = f"{handler.name} in {handler.url}"
            tally.count(f"{how} of {view} at {where}", outcome)
        return tally

    def record(self, handler: Handler) -> Visit:
        """Send a request that is not cut; it tells its boundaries."""
        # After this one the server's connection is open.
        sending = request_of(handler)
        self.send(sending)
        if not handler.is_expired:
            sending = request_of(handler)
        self.expire(sending.key)
        answer, visit = self.send_uncut(sending)
        assert answer.status == handler.status, answer
        return visit

    def cut(self, handler: Handler, how: str, labels: list[str]) -> Outcome:
        """Cut a request at the last of some boundaries, and retry it."""
        sending = request_of(handler)
        if handler.is_expired:
            self.send(sending)
            self.expire(sending.key)
        before = effects_of(sending.key)
        first = self.send_and_cut(sending, how, labels)
        between = effects_of(sending.key)
        retry = self.send(sending)
        after = effects_of(sending.key)
        return Outcome(
            handler=handler,
            first=first,
            first_effects=between - before,
            retry=retry,
            retry_effects=after - between,
            again=self.send(sending) if handler.is_stored else None,
        )

    def expire(self, key: str) -> None:
        """Let a key's record, if there is one, be past its time."""
        past = UTCNow() - timedelta(seconds=1)
        IdempotencyRecord.objects.filter(key=key).update(expires_at=past)


def request_of(handler: Handler) -> Sending:
    """Return what runs a handler; its effects are those of the key."""
    key = str(uuid4())
    return Sending(handler.url, {"handler": handler.name, "note": key}, key)


def effects_of(key: str) -> set[int]:
    """Return the effects of all runs for a key."""
    return {*Effect.objects.filter(note=key).values_list("pk", flat=True)}
