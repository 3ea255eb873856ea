"""Any order of what workers, people, the clocks and a purge do to one leased record.

Each statement of leased mode commits by itself, so any interleaving of workers is an
order of their statements, and one connection plays them all. Between two steps
somebody looks the record up, and may act upon what was seen when it is no longer so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import pytest
from django.db import connection
from django.http import HttpResponse
from hypothesis import settings
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
from idempotency.claims import Claims
from idempotency.database import UTCNow
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, RecordChanged, State
from idempotency.responses import StoredResponse
from tests.support.lease_model import LEASE, Judge, Row, Worker, looks_abandoned

MOMENT = timedelta(seconds=1)
# How far back among the things of a kind, the newest first.
BACK = st.integers(0, 2)
BODIES = st.sampled_from([b"one", b"two"])
Thing = TypeVar("Thing")


def pick(things: list[Thing], back: int) -> Thing:
    """Return one of the newest."""
    return things[-1 - back % len(things)]


class LeaseMachine(Judge, RuleBasedStateMachine):
    """One key, whose record each step may change only as its model says.

    Few rules, as each of them is then chosen often: what they do is an argument.
    """

    @initialize(is_over=st.booleans())
    def begin(self, is_over: bool) -> None:
        """Begin with a handler, half of the time with a late one."""
        self.claim(None)
        if is_over:
            self.lease_ends()

    @invariant()
    def is_as_it_must_be(self) -> None:
        self.look()

    def teardown(self) -> None:
        """Of all who have ever claimed, one at most can still write."""
        for worker in self.running + self.ended + self.gone:
            with suppress(ClaimLost):
                self.claims.renew(worker.record, LEASE)
                assert self.owns(worker), "a stale token renewed"

    # Requests.

    @rule(back=st.sampled_from([0, 1, 2, None]))
    def request(self, back: int | None) -> None:
        """Act upon what a look-up has seen, or without one."""
        seen = pick(self.seen, back) if back is not None and self.seen else None
        if seen is not None and looks_abandoned(seen):
            self.recover(seen)
        else:
            self.claim(seen)

    @precondition(lambda self: any(map(looks_abandoned, self.seen)))
    @rule(back=BACK)
    def retry(self, back: int) -> None:
        """Act upon what looked abandoned, which is where most can go wrong."""
        self.recover(pick([*filter(looks_abandoned, self.seen)], back))

    # Handlers, in time or late.

    @precondition(lambda self: self.running)
    @rule(back=BACK)
    def renew(self, back: int) -> None:
        """Extend the lease, also one that is over while nobody took over (E7, E8)."""
        worker = pick(self.running, back)
        self.write(
            worker, lambda: self.claims.renew(worker.record, LEASE), is_leased=True
        )

    @precondition(lambda self: self.running)
    @rule(back=BACK)
    def complete(self, back: int) -> None:
        """End in an answer of the worker's own."""
        worker = self.end(back)
        body = worker.record.token.bytes
        stored = StoredResponse(status_code=201, headers=[], body=body)
        self.write(
            worker,
            lambda: self.claims.complete(worker.record, stored),
            state=State.COMPLETED,
            is_leased=None,
            body=body,
        )

    @precondition(lambda self: self.running)
    @rule(back=BACK, is_free=st.booleans())
    def give_up(self, back: int, is_free: bool) -> None:
        """End without an answer to store: the key is free, or abandoned."""
        worker = self.end(back)
        if is_free:
            self.write(worker, lambda: self.claims.release(worker.record))
            self.row = None if self.owns(worker) else self.row
        else:
            self.write(
                worker,
                lambda: self.claims.abandon(worker.record),
                state=State.ABANDONED,
                is_leased=False,
            )

    def end(self, back: int) -> Worker:
        worker = pick(self.running, back)
        self.running.remove(worker)
        self.ended.append(worker)
        return worker

    @precondition(lambda self: self.ended)
    @rule(back=BACK)
    def write_again(self, back: int) -> None:
        """Repeat a write whose reply was lost: it was done, so nothing changes (E5)."""
        worker = self.ended.pop(-1 - back % len(self.ended))
        self.gone.append(worker)
        assert worker.last is not None
        if self.owns(worker):
            worker.last()
        else:
            with pytest.raises(ClaimLost):
                worker.last()

    # The clocks, people, and the purge.

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
        IdempotencyRecord.objects.update(expires_at=UTCNow() - MOMENT)

    @precondition(lambda self: self.seen)
    @rule(back=BACK, body=st.none() | BODIES)
    def decide(self, back: int, body: bytes | None) -> None:
        """Resolve or release what a person has seen, if it still is that (E9, A3)."""
        seen, row = pick(self.seen, back), self.row
        may = self.is_still(seen) and row is not None and not row.is_leased
        if body is not None:
            # An answer of an expired key would answer nobody (P1).
            is_new = row is not None and row.is_expired
            may = may and seen.state != State.COMPLETED and not is_new
        before = seen.token
        try:
            seen.release() if body is None else seen.resolve(HttpResponse(body))
        except RecordChanged:
            assert not may, "a decision was refused"
            return
        assert may, "a decision was about something else"
        assert row is not None
        if body is None:
            self.row = None
        else:
            assert seen.token != before
            self.row = Row(
                token=seen.token,
                attempt=row.attempt,
                state=State.COMPLETED,
                is_leased=None,
                is_expired=row.is_expired,
                body=body,
            )

    @precondition(lambda self: self.row is not None and self.row.is_expired)
    @rule()
    def purge(self) -> None:
        """Delete the record, unless its lease is live (P2)."""
        report = IdempotencyRecord.objects.purge()
        assert self.row is not None
        assert report.deleted == (not self.row.is_in_force)
        if report.deleted:
            self.row = None


@pytest.mark.parametrize(("kind", "examples"), [("vendor", 200), ("any database", 60)])
def test_any_order(
    database: None, monkeypatch: pytest.MonkeyPatch, kind: str, examples: int
) -> None:
    """E5, E7, E8, E9, P1, P2: One live claim at most, and a stale token never writes.

    A completed answer changes only when its retention is over or a person gives the
    key back.
    """
    if kind != "vendor":
        monkeypatch.setattr(
            connection, claims.ATTRIBUTE, Claims(connection), raising=False
        )
    run_state_machine_as_test(
        LeaseMachine,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None),
    )
