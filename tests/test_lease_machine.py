"""Any order of what workers, people, the clocks and a purge do to one leased record.

Each statement of leased mode commits by itself, so any interleaving of workers is an
order of their statements, and one connection plays them all. Between two steps
somebody looks the record up, and may act upon what was seen when it is no longer so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

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
from idempotency.completing import resume
from idempotency.database import UTCNow
from idempotency.exceptions import ClaimLost, OutcomeUnknown
from idempotency.models import IdempotencyRecord, RecordChanged, State
from idempotency.responses import StoredResponse
from tests.support.lease_model import LEASE, Judge, Row, Worker, act, looks_abandoned

MOMENT = timedelta(seconds=1)
# How far back among the things of a kind, the newest first.
BACK = st.integers(0, 2)
# Of outside calls, one for each life of a key: the first one holds them.
POLICIES = ("ask", "hold", "rerun")
BODIES = st.sampled_from([b"one", b"two"])
Thing = TypeVar("Thing")


def pick(things: list[Thing], back: int) -> Thing:
    """Return one of the newest."""
    return things[-1 - back % len(things)]


def is_in_doubt(seen: IdempotencyRecord) -> bool:
    """Return whether a person who has read this would have to decide about a call."""
    return seen.call_in_doubt is not None


class Stopped(Exception):
    """The end of a process, or of a call, amid a call."""


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
        worker.steps.forget_results()
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
        if is_free and not worker.steps.entries:
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

    # Handlers in steps.

    @precondition(lambda self: self.running)
    @rule(back=BACK, name=st.sampled_from(["one", "two"]))
    def step(self, back: int, name: str) -> None:
        """Run a step, which an earlier run of the key may have done (E12)."""
        worker = pick(self.running, back)
        if name in worker.steps.names:
            return
        if self.run(
            worker,
            name,
            lambda: worker.steps.step(name, lambda: act(worker.life, name)),
        ):
            self.acted.add(f"{worker.life} {name}")
            self.recorded(worker, name)

    @precondition(lambda self: self.running)
    @rule(back=BACK)
    def last_step(self, back: int) -> None:
        """End in a step that returns the response (E15)."""
        worker = pick(self.running, back)
        self.running.remove(worker)
        self.gone.append(worker)

        def last() -> HttpResponse:
            return HttpResponse(act(worker.life, "last").encode())

        if self.run(worker, "last", lambda: worker.steps.step("last", last)):
            self.acted.add(f"{worker.life} last")
            self.recorded(
                worker,
                "last",
                state=State.COMPLETED,
                is_leased=None,
                body=f"{worker.life} last".encode(),
            )

    @precondition(lambda self: self.running)
    @rule(
        back=BACK,
        ends=st.sampled_from(["returns", "fails", "dies before", "dies after"]),
        meanwhile=st.sampled_from(["nobody", "a retry", "a person"]),
    )
    def call(self, back: int, ends: str, meanwhile: str) -> None:
        """Call outside, while others act upon what they see (E13).

        Each life of the key has its own policy. A held call is made once, whatever
        happens, unless a person knows that it was not made.
        """
        worker = pick(self.running, back)
        if "call" in worker.steps.names:
            return
        is_known = "call" in worker.steps.entries
        call = Call(self, worker, ends, meanwhile)
        try:
            worker.steps.call("call", call, on_abandoned=call.on_abandoned)
        except Stopped:
            if ends != "fails":
                self.running.remove(worker)
                self.gone.append(worker)
        except ClaimLost:
            assert not is_known
            assert not call.owns, "its own claim was lost"
        else:
            assert is_known or call.owns, "a stale token recorded"
            if not is_known:
                self.recorded(worker, "call")

    def come_meanwhile(self, who: str) -> None:
        """Let the lease be over, and a retry or a person act upon what is there."""
        if who == "nobody":
            return
        if self.row is not None and self.row.is_leased:
            self.lease_ends()
        self.look()
        if who == "a retry":
            self.recover(self.seen[-1])
        else:
            self.settle_seen(self.seen[-1])

    def recorded(
        self, worker: Worker, name: str, *, has_ended: bool = True, **after: object
    ) -> None:
        """Note that a worker has recorded a step or call, with a new token."""
        assert self.row is not None
        entries = dict(self.row.entries) | {name: has_ended}
        values: dict[str, Any] = {"is_leased": True, **after}
        token = worker.record.token
        self.row = replace(
            self.row, token=token, entries=tuple(entries.items()), **values
        )

    @precondition(lambda self: any(map(is_in_doubt, self.seen)))
    @rule(back=BACK)
    def settle(self, back: int) -> None:
        """Say what became of a call that a person has seen in doubt (E13)."""
        self.settle_seen(pick([*filter(is_in_doubt, self.seen)], back))

    def settle_seen(self, seen: IdempotencyRecord) -> None:
        row = self.row
        may = self.is_still(seen) and row is not None and row.is_abandoned
        was_called = self.called[self.life] > 0
        has_doubt = is_in_doubt(seen)
        try:
            if was_called:
                seen.call_returned("call", "told")
            else:
                seen.call_never_happened("call")
        except ValueError:
            assert not has_doubt, "a person could not decide"
            return
        except RecordChanged:
            assert not may, "a decision was refused"
            return
        assert has_doubt
        assert may, "a decision was about something else"
        assert row is not None
        entries = dict(row.entries)
        assert not entries.pop("call")
        if was_called:
            entries = {name: True for name, _ended in row.entries}
        self.row = replace(row, token=seen.token, entries=tuple(entries.items()))

    # Completers.

    @precondition(lambda self: any(map(looks_abandoned, self.seen)))
    @rule(back=BACK, fails=st.booleans())
    def complete_abandoned(self, back: int, fails: bool) -> None:
        """Run what looked abandoned without a client (E17)."""
        seen = pick([*filter(looks_abandoned, self.seen)], back)
        row, life = self.row, self.life
        may = row is not None and row.token == seen.token and row.is_abandoned

        def function(context: Any) -> Any:
            assert may, "a completer took what is not abandoned"
            assert row is not None
            assert dict(row.entries).get("call", True), "a call was in doubt"
            self.begin_completion(context.steps.claimed)
            if fails:
                raise Stopped
            return context.step(
                "last", lambda: HttpResponse(act(life, "last").encode())
            )

        try:
            resume(seen, function)
        except RecordChanged:
            assert not may, "a completer was refused"
        except OutcomeUnknown:
            assert may
            assert row is not None
            assert dict(row.entries)["call"] is False
        except Stopped:
            self.change(state=State.ABANDONED, is_leased=False)
        else:
            self.acted.add(f"{life} last")
            assert self.row is not None
            self.change(
                state=State.COMPLETED,
                is_leased=None,
                body=f"{life} last".encode(),
                entries=(*self.row.entries, ("last", True)),
            )

    def begin_completion(self, claimed: IdempotencyRecord) -> None:
        self.change(
            token=claimed.token,
            attempt=claimed.attempt,
            state=State.IN_PROGRESS,
            is_leased=True,
        )

    def change(self, **values: Any) -> None:
        assert self.row is not None
        self.row = replace(self.row, **values)

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
                entries=row.entries,
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


class Call:
    """An outside call of a worker: others act before its reply comes, if it comes."""

    def __init__(
        self, machine: LeaseMachine, worker: Worker, ends: str, meanwhile: str
    ) -> None:
        self.machine, self.worker = machine, worker
        self.ends, self.meanwhile = ends, meanwhile
        self.policy = POLICIES[worker.life % len(POLICIES)]
        # Whether the record is the worker's own when the result is to be recorded.
        self.owns = machine.owns(worker)

    def __call__(self, key: str) -> str:
        """Call, with a mark before it if it is to be held."""
        machine, life = self.machine, self.worker.life
        if self.policy == "hold":
            assert self.owns, "a stale token recorded"
            machine.recorded(self.worker, "call", has_ended=False)
        if self.ends == "dies before":
            raise Stopped
        machine.called[life] += 1
        assert self.policy != "hold" or machine.called[life] == 1, "called twice"
        if self.owns:
            machine.come_meanwhile(self.meanwhile)
        self.owns = machine.owns(self.worker)
        if self.ends != "returns":
            raise Stopped
        return key

    @property
    def on_abandoned(self) -> Any:
        """What the handler says of a call that was not recorded."""
        return self.find_out if self.policy == "ask" else self.policy

    def find_out(self, key: str, record: IdempotencyRecord) -> str | None:
        """Return what became of an earlier call, if there was one."""
        return key if self.machine.called[self.worker.life] else None


@pytest.mark.parametrize(("kind", "examples"), [("vendor", 200), ("any database", 60)])
def test_any_order(
    database: None, monkeypatch: pytest.MonkeyPatch, kind: str, examples: int
) -> None:
    """E5, E7, E8, E9, E12, E13, E17, P1, P2: Stale tokens never write.

    A completed answer changes only when its retention is over or a person gives the
    key back. Until then a step acts once, and a held call is made once.
    """
    if kind != "vendor":
        monkeypatch.setattr(
            connection, claims.ATTRIBUTE, Claims(connection), raising=False
        )
    run_state_machine_as_test(
        LeaseMachine,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None),
    )
