"""What one leased record must be, whatever is done to it in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.http import HttpResponseBase

from idempotency.claims import claims_in
from idempotency.claims.leases import Leases
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, State
from idempotency.modes.steps import RecordedSteps
from idempotency.responses import StoredResponse
from idempotency.steps import as_text
from tests.app.models import Effect
from tests.test_claims import RETENTION, wanted

LEASE = timedelta(hours=1)


@dataclass(frozen=True)
class Row:
    """A record, as far as leases are about it."""

    token: UUID
    attempt: int
    state: str = State.IN_PROGRESS
    # None in a record without a lease.
    is_leased: bool | None = True
    is_expired: bool = False
    body: bytes | None = None
    # The names of its steps and calls, and whether each has ended.
    entries: tuple[tuple[str, bool], ...] = ()

    @property
    def is_in_force(self) -> bool:
        """Whether the key is not new (P1)."""
        return bool(self.is_leased) or not self.is_expired

    @property
    def is_abandoned(self) -> bool:
        """Whether somebody may still find out or go on (E9)."""
        return not (self.state == State.COMPLETED or self.is_leased or self.is_expired)

    @property
    def has_answer(self) -> bool:
        """Whether this is what retries get, until the retention is over."""
        return self.state == State.COMPLETED and not self.is_expired


# Two workers for one record are two, whatever they have done.
@dataclass(eq=False)
class Worker:
    """A handler that has claimed, and what it has written at last."""

    record: IdempotencyRecord
    steps: RecordedSteps
    # Which life of the key it runs in: an expired or released key is another one.
    life: int
    last: Callable[[], None] | None = None


def row_of(found: IdempotencyRecord) -> Row:
    """Return what a record was when it was looked up."""
    answer = found.stored_response
    assert (answer is None) is (found.completed_at is None)
    has_lease = found.lease_expires_at is not None
    return Row(
        token=found.token,
        attempt=found.attempt,
        state=found.state,
        is_leased=found.is_leased if has_lease else None,
        is_expired=found.expires_at <= found.read_at,
        body=None if answer is None else answer.body,
        entries=entries_of(found),
    )


def entries_of(record: IdempotencyRecord) -> tuple[tuple[str, bool], ...]:
    """Return the names of the recorded steps and calls, and whether each has ended."""
    return tuple((entry["name"], "ended" in entry) for entry in record.entries)


def finish(
    response: HttpResponseBase,
) -> tuple[HttpResponseBase, StoredResponse]:
    """Return a response of the last step, and what is stored of it."""
    return response, StoredResponse.from_http(response, keep=True)


def act(life: int, name: str) -> str:
    """Have the effect of a step."""
    note = f"{life} {name}"
    Effect.objects.create(note=note)
    return note


def looks_abandoned(seen: IdempotencyRecord) -> bool:
    """Return whether a request that has read this would be for recovering it (E9)."""
    return seen.is_in_force and not (seen.state == State.COMPLETED or seen.is_leased)


class Judge:
    """What each step may do to one record, whoever takes it, and how it is now."""

    def __init__(self) -> None:
        super().__init__()
        for model in (Effect, IdempotencyRecord):
            model._default_manager.all()._raw_delete("default")
        self.claims = claims_in("default")
        self.row: Row | None = None
        self.last_seen: Row | None = None
        self.seen: list[IdempotencyRecord] = []
        self.running: list[Worker] = []
        self.ended: list[Worker] = []
        self.gone: list[Worker] = []
        self.life = 0
        # The steps that have acted, and how often each outside call was made.
        self.acted: set[str] = set()
        self.called: Counter[int] = Counter()

    def look(self) -> None:
        """Look the record up, as somebody does who may act upon it later."""
        seen = self.claims.look_up(wanted().pk)
        row = None if seen is None else row_of(seen)
        assert row == self.row
        acted = Effect.objects.values_list("note", flat=True)
        assert sorted(acted) == sorted(self.acted), "a step acted twice, or late"
        if seen is not None and row != self.last_seen:
            self.seen.append(seen)
        self.last_seen = row

    def owns(self, worker: Worker) -> bool:
        """Return whether the record is a worker's own, with or without a lease."""
        return self.row is not None and self.row.token == worker.record.token

    def is_still(self, seen: IdempotencyRecord) -> bool:
        """Return whether the record is what somebody has seen, its lease aside."""
        row = self.row
        return row is not None and (row.token, row.state) == (seen.token, seen.state)

    def claim(self, seen: IdempotencyRecord | None) -> None:
        """Claim a key that is new or expired, as ``LeasedMode.run`` does (P1, E7)."""
        row, mine = self.row, wanted(token=str(uuid4().int), steps=as_text("payload"))
        record = self.claims.claim(mine, RETENTION, seen, lease=LEASE)
        if seen is not None and seen.is_in_force:
            assert record is seen
        elif record is not None and record.token == mine.token:
            assert row is None or not row.is_in_force, "a record in force was replaced"
            self.life += 1
            self.win(mine)
        elif record is not None:
            assert row is not None
            assert (row.is_in_force, row.token) == (True, record.token)
        else:
            # Who has the token has renewed or ended since.
            assert row is not None, "a new key was refused"
            assert seen is not None
            assert seen.token == row.token
            assert row.is_leased or not self.is_still(seen), "nobody had it"

    def recover(self, seen: IdempotencyRecord) -> None:
        """Take over what looked abandoned, as ``LeasedMode.recover`` does (E9)."""
        if seen.call_in_doubt is not None:
            return  # a person must decide (E13)
        row = self.row
        mine = wanted(
            token=str(uuid4().int), attempt=seen.attempt + 1, steps=seen.steps
        )
        if self.claims.take_over(seen, mine, LEASE):
            assert row is not None
            assert row.token == seen.token
            assert not row.has_answer, "an answer was replaced"
            self.win(mine)
        else:
            may = self.is_still(seen) and row is not None and not row.is_leased
            assert not may, "nobody had it"

    def win(self, mine: IdempotencyRecord) -> None:
        assert self.row is None or not self.row.is_leased, "a live claim was taken"
        steps = RecordedSteps(
            mine,
            leases=Leases(self.claims),
            alias="default",
            lease=LEASE,
            derive=str,
            finish=finish,
        )
        self.running.append(Worker(mine, steps, self.life))
        self.row = Row(token=mine.token, attempt=mine.attempt, entries=entries_of(mine))

    def run(self, worker: Worker, name: str, run: Callable[[], Any]) -> bool:
        """Ask a worker for a step or call; return whether its record has changed.

        What was recorded is returned, and not done again; who lost the claim does
        nothing (E12).
        """
        if name in worker.steps.entries:
            run()
            return False
        if self.owns(worker):
            run()
            return True
        with pytest.raises(ClaimLost):
            run()
        return False

    def write(self, worker: Worker, write: Callable[[], None], **after: Any) -> None:
        """Write under a worker's token: a stale one writes nothing (E7)."""
        worker.last = write
        if self.owns(worker):
            write()
            assert self.row is not None
            self.row = replace(self.row, **after)
        else:
            with pytest.raises(ClaimLost):
                write()
