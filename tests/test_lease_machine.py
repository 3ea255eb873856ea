"""Any order of what workers, people, the clock and purges do to one leased record.

Each statement of leased mode commits by itself, so an interleaving of workers is an
order of their statements: one connection plays them all. What is read is kept, and may
be acted upon when it is stale.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.http import HttpResponse
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from idempotency import claims
from idempotency.claims import Claims, claims_in
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, RecordChanged, State, UTCNow
from idempotency.responses import StoredResponse
from tests.test_claims import wanted

LEASE = timedelta(hours=1)
MOMENT = timedelta(seconds=1)
RECENT = st.integers(0, 2)
ANSWERS = st.sampled_from([b"one", b"two", b"three"])

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Row:
    """What the record must be."""

    token: UUID
    attempt: int
    state: str = State.IN_PROGRESS
    # None in a record without a lease.
    is_leased: bool | None = True
    is_expired: bool = False
    body: bytes | None = None

    @property
    def is_in_force(self) -> bool:
        """Whether the key is not new (P1)."""
        return bool(self.is_leased) or not self.is_expired

    @property
    def has_answer(self) -> bool:
        """Whether this is what retries get, until the retention is over."""
        return self.state == State.COMPLETED and not self.is_expired


@dataclass
class Worker:
    """A handler that has claimed, and what it has done at last."""

    record: IdempotencyRecord
    last: Callable[[], None] | None = None


def read_row() -> Row | None:
    """Return what the record is, by the database's clock."""
    found = IdempotencyRecord.objects.annotate(clock=UTCNow()).first()
    if found is None:
        return None
    ends = found.lease_expires_at
    answer = found.stored_response
    assert (answer is None) is (found.completed_at is None)
    return Row(
        token=found.token,
        attempt=found.attempt,
        state=found.state,
        is_leased=None if ends is None else ends > found.clock,
        is_expired=found.expires_at <= timezone.now(),
        body=None if answer is None else answer.body,
    )


def stored(body: bytes) -> StoredResponse:
    """Return an answer as a handler's response becomes one."""
    return StoredResponse(status_code=201, headers=[], body=body)


def looks_abandoned(seen: IdempotencyRecord) -> bool:
    """Tell whether an unexpired record would be recovered by who has read it."""
    is_done = seen.state == State.COMPLETED
    return not is_done and not seen.is_leased and seen.expires_at > timezone.now()


def recent(things: list[Thing], which: int) -> Thing:
    """Return one of the last few."""
    return things[-1 - which % len(things)]


class LeaseMachine(RuleBasedStateMachine):
    """One key, whose record every rule may change only as its model says."""

    def __init__(self) -> None:
        super().__init__()
        IdempotencyRecord.objects.all()._raw_delete("default")
        self.claims = claims_in("default")
        self.row: Row | None = None
        self.reads: list[IdempotencyRecord] = []
        self.running: list[Worker] = []
        self.ended: list[Worker] = []

    @invariant()
    def is_as_it_must_be(self) -> None:
        assert read_row() == self.row
        # Somebody has just looked, and may act upon it now or later.
        seen = self.claims.look_up(wanted().pk)
        if seen is not None:
            self.reads.append(seen)

    def teardown(self) -> None:
        """Of all who have ever claimed, at most one can still write."""
        able = [
            worker for worker in self.running + self.ended if self.can_renew(worker)
        ]
        assert len(able) <= 1

    def can_renew(self, worker: Worker) -> bool:
        try:
            self.claims.renew(worker.record, LEASE)
        except ClaimLost:
            return False
        assert self.row is not None
        assert self.row.token == worker.record.token
        return True

    def owns(self, worker: Worker) -> bool:
        """Tell whether the record is a worker's own, lease or no lease."""
        return self.row is not None and self.row.token == worker.record.token

    def is_still(self, seen: IdempotencyRecord) -> bool:
        """Tell whether the record is what somebody has read, whatever its lease."""
        row = self.row
        return row is not None and (row.token, row.state) == (seen.token, seen.state)

    def won(self, record: IdempotencyRecord) -> None:
        assert self.row is None or not self.row.is_leased, "a live claim was taken"
        self.running.append(Worker(record))
        self.row = Row(token=record.token, attempt=record.attempt)

    # Requests.

    @initialize()
    def claim_first(self) -> None:
        self.claim_after(None)

    @rule(which=st.none() | RECENT)
    def claim(self, which: int | None) -> None:
        """Claim at once, or what a look-up has seen."""
        is_seen = which is not None and self.reads
        self.claim_after(recent(self.reads, which or 0) if is_seen else None)

    def claim_after(self, seen: IdempotencyRecord | None) -> None:
        """Claim a key that is new or expired, as ``LeasedMode.run`` does (P1, E7)."""
        now, row, mine = timezone.now(), self.row, wanted(token=str(uuid4().int))
        record = self.claims.claim(mine, now, seen, lease=LEASE)
        if seen is not None and seen.is_in_force(now):
            assert record is seen
        elif record is not None and record.token == mine.token:
            assert row is None or not row.is_in_force, "a record in force was replaced"
            self.won(record)
        elif record is not None:
            assert row is not None
            assert (row.is_in_force, row.token) == (True, record.token)
        else:
            # Whoever holds the token has renewed or ended since it was read.
            assert row is not None, "a new key was refused"
            assert seen is not None
            assert seen.token == row.token
            assert row.is_leased or not self.is_still(seen)

    @precondition(lambda self: any(map(looks_abandoned, self.reads)))
    @rule(which=RECENT)
    def take_over(self, which: int) -> None:
        """Take over what looked abandoned, as ``LeasedMode.recover`` does (E9)."""
        seen = recent([*filter(looks_abandoned, self.reads)], which)
        row = self.row
        mine = wanted(token=str(uuid4().int), attempt=seen.attempt + 1)
        if self.claims.take_over(seen, mine, LEASE):
            assert row is not None
            assert row.token == seen.token
            assert not row.has_answer, "an answer was replaced"
            self.won(mine)
        else:
            assert not self.is_still(seen) or (row is not None and row.is_leased)

    # Handlers, in time or late.

    def write(self, worker: Worker, write: Callable[[], None], **after: Any) -> None:
        """Write under a worker's token; a stale one writes nothing (E7)."""
        worker.last = write
        if self.owns(worker):
            write()
            assert self.row is not None
            self.row = replace(self.row, **after)
        else:
            with pytest.raises(ClaimLost):
                write()

    @precondition(lambda self: self.running)
    @rule(which=RECENT)
    def renew(self, which: int) -> None:
        """Extend the lease, also one that is over while nobody has taken over (E8)."""
        worker = recent(self.running, which)
        self.write(
            worker, lambda: self.claims.renew(worker.record, LEASE), is_leased=True
        )

    @precondition(lambda self: self.running)
    @rule(which=RECENT, body=ANSWERS)
    def complete(self, which: int, body: bytes) -> None:
        worker, answer = self.end(which), stored(body)
        self.write(
            worker,
            lambda: self.claims.complete(worker.record, answer),
            state=State.COMPLETED,
            is_leased=None,
            body=body,
        )

    @precondition(lambda self: self.running)
    @rule(which=RECENT)
    def abandon(self, which: int) -> None:
        worker = self.end(which)
        self.write(
            worker,
            lambda: self.claims.abandon(worker.record),
            state=State.ABANDONED,
            is_leased=None,
        )

    @precondition(lambda self: self.running)
    @rule(which=RECENT)
    def release(self, which: int) -> None:
        worker = self.end(which)
        is_owner = self.owns(worker)
        self.write(worker, lambda: self.claims.release(worker.record))
        if is_owner:
            self.row = None

    def end(self, which: int) -> Worker:
        worker = recent(self.running, which)
        self.running.remove(worker)
        self.ended.append(worker)
        return worker

    @precondition(lambda self: self.ended)
    @rule(which=RECENT)
    def write_again(self, which: int) -> None:
        """Repeat a write whose reply was lost: it was done, so nothing changes (E5)."""
        worker = recent(self.ended, which)
        assert worker.last is not None
        with suppress(ClaimLost):
            worker.last()

    # The clocks.

    @precondition(lambda self: self.row is not None and self.row.is_leased)
    @rule()
    def lease_ends(self) -> None:
        assert self.row is not None
        self.row = replace(self.row, is_leased=False)
        IdempotencyRecord.objects.update(lease_expires_at=UTCNow() - MOMENT)

    @precondition(lambda self: self.row is not None and not self.row.is_expired)
    @rule()
    def retention_ends(self) -> None:
        assert self.row is not None
        self.row = replace(self.row, is_expired=True)
        IdempotencyRecord.objects.update(expires_at=timezone.now() - MOMENT)

    # People, and the purge.

    @precondition(lambda self: self.reads)
    @rule(which=RECENT, body=ANSWERS)
    def resolve(self, which: int, body: bytes) -> None:
        """Decide about an abandoned record, if it still is one (E9, A3)."""
        seen, row = recent(self.reads, which), self.row
        may = self.is_still(seen) and seen.state != State.COMPLETED
        if row is None or not may or row.is_leased:
            with pytest.raises(RecordChanged):
                seen.resolve(HttpResponse(body))
            return
        before = seen.token
        seen.resolve(HttpResponse(body))
        assert seen.token != before
        self.row = replace(
            row, token=seen.token, state=State.COMPLETED, is_leased=None, body=body
        )

    @precondition(lambda self: self.reads)
    @rule(which=RECENT)
    def give_back(self, which: int) -> None:
        """Arm the key again, unless a handler holds the record (A3)."""
        seen = recent(self.reads, which)
        if self.row is None or not self.is_still(seen) or self.row.is_leased:
            with pytest.raises(RecordChanged):
                seen.release()
            return
        seen.release()
        self.row = None

    @precondition(lambda self: self.row is not None and self.row.is_expired)
    @rule()
    def purge(self) -> None:
        """Delete the record if it is expired, unless its lease is live (P2)."""
        report = IdempotencyRecord.objects.purge()  # type: ignore[attr-defined]
        is_doomed = self.row is not None and not self.row.is_in_force
        assert report.deleted == is_doomed
        if is_doomed:
            self.row = None


@pytest.mark.parametrize("kind", ["vendor", "any database"])
def test_any_order(database: None, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """E5, E7, E8, E9, P1, P2: One live claim at most, and a stale token never writes.

    A completed answer changes only when its retention is over or a person gives the
    key back.
    """
    if kind != "vendor":
        monkeypatch.setattr(connection, claims.CACHE, Claims(connection), raising=False)
    run_state_machine_as_test(
        LeaseMachine,
        settings=settings(
            max_examples=50,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[*HealthCheck],
        ),
    )
