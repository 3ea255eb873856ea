"""Handlers that are stopped past their lease, and go on when others have their key.

Real processes and real signals: a process that is stopped does nothing at all, as one
on a machine that was suspended.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.http import HttpResponse

from idempotency.completing import complete
from idempotency.database import UTCNow
from idempotency.exceptions import ClaimLost, InProgress, OutcomeUnknown
from idempotency.models import IdempotencyRecord, RecordHeld, State
from tests.app.models import Effect
from tests.support import resumed_crashes
from tests.support.admin_pages import EVERYTHING, Enter, Page, address
from tests.support.charge_ledger import Ledger
from tests.support.fault_points import wait_for_visit
from tests.support.faults import Sending, serving
from tests.support.http_servers import (
    SERVER_KEY,
    Answer,
    Server,
    is_replayed,
    read,
)
from tests.support.leased_crashes import HANDLERS, Crashes
from tests.support.processes import PATIENCE, wait_until
from tests.support.rendezvous import Rendezvous
from tests.support.sleep_counter import waits_in

Resuming, Resumed = resumed_crashes.Crashes, resumed_crashes.HANDLERS
LOST, UNKNOWN = str(ClaimLost.default_detail), str(OutcomeUnknown.default_detail)


@pytest.fixture(scope="module")
def two_servers(django_db_setup: None) -> Iterator[tuple[Server, Server]]:
    """Start two servers of one process each: one can be stopped."""
    with serving() as first, serving() as second:
        yield first, second


class Stage:
    """A handler that is stopped in one server, and what goes on in the other."""

    def __init__(self, servers: tuple[Server, Server], rendezvous: Rendezvous) -> None:
        self.first, self.second = servers
        self.rendezvous = rendezvous
        self.ledger = Ledger(rendezvous.address.with_name("ledger"))
        self.request: tuple[str, dict[str, str]]
        # None until the stalled handler has its response.
        self.late: Answer | None = None

    @contextmanager
    def stalled(self, url: str, handler: str, **more: str) -> Iterator[None]:
        """Stop a handler past its lease for as long as the block lasts."""
        self.request = (url, {"handler": handler})
        headers = {**self.rendezvous.header, **self.ledger.header, **more}
        slow = self.first.start(*self.request, **headers)
        waiting = self.rendezvous.wait()
        os.kill(waiting.pid, signal.SIGSTOP)
        try:
            # It would go on now, if it could.
            waiting.let_go()
            over = UTCNow() - timedelta(seconds=1)
            assert IdempotencyRecord.objects.update(lease_expires_at=over) == 1
            yield
        finally:
            os.kill(waiting.pid, signal.SIGCONT)
        self.late = read(slow)

    def send(self) -> Answer:
        """Send the same request to the other server."""
        return self.second.send(*self.request, **self.ledger.header)

    def log(self) -> str:
        """Return what the stalled handler's server has logged."""
        log = self.first.address.with_name("server.log")
        return log.read_text(encoding="utf-8", errors="replace")

    def assert_lost(self, before: dict[str, Any], by_now: int) -> None:
        """Check that the late answer is a refusal, changed nothing and was logged."""
        assert self.late is not None
        assert (self.late.status, self.late.code) == (409, LOST)
        assert the_row() == before
        told = (
            "A handler has lost its claim, so its response was not stored: "
            f"record {before['id']}, attempt 1, current attempt {by_now}\n"
        )
        # The process is not ours: its log may come a moment after its answer.
        wait_until(lambda: told in self.log(), "the warning")


def the_row() -> dict[str, Any]:
    """Return every column of the one record."""
    return dict(IdempotencyRecord.objects.values().get())


@pytest.fixture
def stage(
    database: None, two_servers: tuple[Server, Server], rendezvous: Rendezvous
) -> Stage:
    """Return where a handler can be stopped."""
    return Stage(two_servers, rendezvous)


class TestStalledWorkers:
    """E7: A late handler changes nothing."""

    @pytest.mark.parametrize("url", ["/rerun/", "/ask/"])
    def test_taken_over(self, stage: Stage, url: str) -> None:
        """E7, E9, E10: A retry takes over and is answered; the late answer is not kept.

        Both have acted outside, under the same derived key: a callable that finds
        nothing does not know what comes late.
        """
        with stage.stalled(url, "paused"):
            rerun = stage.send()
            assert (rerun.status, is_replayed(rerun)) == (201, False)
            before = the_row()
            assert (before["state"], before["attempt"]) == (State.COMPLETED, 2)
        stage.assert_lost(before, by_now=2)
        retry = stage.send()
        assert is_replayed(retry)
        assert retry.body == rerun.body
        taken, late = stage.ledger.charges()
        assert taken.run in rerun.body.decode()
        assert taken.key == late.key

    def test_renewing(self, stage: Stage) -> None:
        """E7, E8: A late handler that renews before it acts does not act."""
        with stage.stalled("/rerun/", "paused-and-renewing"):
            rerun = stage.send()
            assert rerun.status == 201
            before = the_row()
        stage.assert_lost(before, by_now=2)
        assert len(stage.ledger.charges()) == 1

    def test_resolved(self, stage: Stage) -> None:
        """E7, E9: What a person has resolved meanwhile stays as it was resolved."""
        with stage.stalled("/hold/", "paused"):
            held = stage.send()
            assert (held.status, held.code) == (409, UNKNOWN)
            IdempotencyRecord.objects.get().resolve(HttpResponse(b"paid", status=200))
            before = the_row()
        stage.assert_lost(before, by_now=1)
        retry = stage.send()
        assert (retry.status, retry.body) == (200, b"paid")

    def test_released(self, stage: Stage) -> None:
        """E7, E9: A key that a person gave back belongs to the run that came then."""
        with stage.stalled("/hold/", "paused"):
            IdempotencyRecord.objects.get().release()
            again = stage.send()
            assert again.status == 201
            before = the_row()
        stage.assert_lost(before, by_now=1)
        assert stage.send().body == again.body

    def test_still_alone(self, stage: Stage) -> None:
        """E7: Past its lease, but with nobody after it, its answer is stored."""
        with stage.stalled("/hold/", "paused"):
            assert stage.send().code == UNKNOWN
        assert stage.late is not None
        assert stage.late.status == 201
        retry = stage.send()
        assert is_replayed(retry)
        assert retry.body == stage.late.body
        assert len(stage.ledger.charges()) == 1


def places(*without_transaction: str, inside: tuple[str, ...]) -> Any:
    """Run a test with each place where a handler in steps can be stopped.

    SQLite has one writer: nobody does anything while a step's transaction is open.
    """
    more = () if connection.vendor == "sqlite" else inside
    return pytest.mark.parametrize("place", [*without_transaction, *more])


def assert_each_once(response: Answer, key: str = SERVER_KEY) -> None:
    """Check that there is one order and one receipt: those of the response."""
    said = json.loads(response.body)
    found = Effect.objects.filter(note__endswith=key).values_list("note", "pk")
    told = {note.split()[0]: pk for note, pk in found}
    assert len(found) == 2
    assert told == {part: said[part] for part in ("order", "receipt")}


class TestStalledSteps:
    """E12, E13: A late handler in steps undoes its step, or is still in time."""

    @places("start", "ordered", "charge", "charged", inside=("order", "receipt"))
    def test_taken_over(self, stage: Stage, place: str) -> None:
        """E12: A retry goes on from what was recorded; the late step is undone.

        A late call is made under the same key, and its result is not recorded.
        """
        with stage.stalled("/steps/rerun/", "in-steps", **{"X-Meet-At": place}):
            resumed = stage.send()
            assert (resumed.status, is_replayed(resumed)) == (201, False)
            before = the_row()
        stage.assert_lost(before, by_now=2)
        assert_each_once(resumed)
        assert stage.send().body == resumed.body
        charges = stage.ledger.charges()
        assert len({charge.key for charge in charges}) == 1
        assert len(charges) == (2 if place in ("ordered", "charge") else 1)

    @places("start", "ordered", "charge", "charged", inside=("order", "receipt"))
    def test_still_alone(self, stage: Stage, place: str) -> None:
        """E12: Past its lease, but with nobody after it, a handler goes on."""
        with stage.stalled("/steps/rerun/", "in-steps", **{"X-Meet-At": place}):
            pass
        assert stage.late is not None
        assert stage.late.status == 201
        assert_each_once(stage.late)
        retry = stage.send()
        assert (retry.body, is_replayed(retry)) == (stage.late.body, True)
        assert len(stage.ledger.charges()) == 1

    def test_not_called_late(self, stage: Stage) -> None:
        """E13: A held call is not made by a run that was taken over before."""
        with stage.stalled("/steps/hold/", "in-steps", **{"X-Meet-At": "ordered"}):
            resumed = stage.send()
            assert resumed.status == 201
            before = the_row()
        stage.assert_lost(before, by_now=2)
        assert_each_once(resumed)
        assert len(stage.ledger.charges()) == 1

    def test_call_still_in_time(self, stage: Stage) -> None:
        """E13: While a call is in doubt nobody takes over, so its run may go on."""
        with stage.stalled("/steps/hold/", "in-steps", **{"X-Meet-At": "charge"}):
            held = stage.send()
            assert (held.status, held.code) == (409, UNKNOWN)
        assert stage.late is not None
        assert stage.late.status == 201
        assert_each_once(stage.late)
        assert stage.send().body == stage.late.body
        assert len(stage.ledger.charges()) == 1

    def test_call_decided(self, stage: Stage) -> None:
        """E13: What a person has said of a call in doubt is what is recorded."""
        with stage.stalled("/steps/hold/", "in-steps", **{"X-Meet-At": "charge"}):
            IdempotencyRecord.objects.get().call_returned("charge", {"run": "seen"})
            resumed = stage.send()
            assert json.loads(resumed.body)["run"] == "seen"
            before = the_row()
        stage.assert_lost(before, by_now=2)
        assert_each_once(resumed)
        assert stage.send().body == resumed.body


@dataclass
class Frozen:
    """A handler that is frozen before a COMMIT, and what clients sent and got."""

    sending: Sending
    other: Resuming
    first: Answer | None = None

    def assert_unharmed(self) -> None:
        """Check that the handler has gone on, and that its response is replayed."""
        assert self.first is not None
        assert self.first.status == 201
        assert_each_once(self.first, self.sending.key)
        again = self.other.send(self.sending)
        assert (again.body, is_replayed(again)) == (self.first.body, True)
        assert len(self.other.ledger.charges_of(self.sending.key)) == 1


Freeze = Callable[..., AbstractContextManager[Frozen]]


@pytest.fixture
def freeze(
    database: None, two_servers: tuple[Server, Server], rendezvous: Rendezvous
) -> Freeze:
    """Return what freezes a handler amid a step's end, for as long as a block lasts.

    The step has been recorded, past the lease, and is not committed yet.
    """
    late, other = (Resuming(server, rendezvous) for server in two_servers)

    @contextmanager
    def freeze(place: str, which: int) -> Iterator[Frozen]:
        sending = late.prepare("rerun", Resumed["plain"])
        sending = replace(sending, headers={**sending.headers, "X-Overdue-At": place})
        _answer, passed = late.send_uncut(replace(sending, key=str(uuid4())))
        commits = [
            number
            for number, label in enumerate(passed.labels, 1)
            if label.lower() == "before commit"
        ]
        scene = Frozen(sending, other)
        with late.start(sending, commits[which]) as slow:
            frozen = wait_for_visit(rendezvous)
            os.kill(frozen.waiting.pid, signal.SIGSTOP)
            try:
                frozen.close()
                assert not late.look(sending.key).is_leased
                yield scene
            finally:
                os.kill(frozen.waiting.pid, signal.SIGCONT)
            scene.first = read(slow)

    return freeze


one_writer = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one writer: others wait for it."
)
ENDS_OF_STEPS = [("start", 0), ("charged", 1)]


@one_writer
@pytest.mark.parametrize(("place", "which"), ENDS_OF_STEPS)
def test_frozen_before_the_commit(freeze: Freeze, place: str, which: int) -> None:
    """E12: A retry does not wait for a handler that stopped amid a step's end."""
    with freeze(place, which) as scene:
        retry = scene.other.send(scene.sending)
    assert (retry.status, retry.code) == (409, str(InProgress.default_detail))
    assert not waits_in(retry)
    scene.assert_unharmed()


DECISIONS: dict[str, Callable[[IdempotencyRecord], object]] = {
    "resolve": lambda record: record.resolve(HttpResponse(b"paid")),
    "release": lambda record: record.release(),
    "complete": complete,
}
FORM = {"status_code": "204", "content_type": "a/b", "reason": "The worker hangs."}


@contextmanager
def without_waiting() -> Iterator[None]:
    """Let the database end statements that wait for a very long time."""

    def limit(connection: Any, **kwargs: Any) -> None:
        is_postgresql = connection.vendor == "postgresql"
        name = "statement_timeout" if is_postgresql else "innodb_lock_wait_timeout"
        with connection.cursor() as cursor:
            cursor.execute(f"SET {name} = {PATIENCE * (1000 if is_postgresql else 1)}")

    connection.close()
    connection_created.connect(limit)
    try:
        yield
    finally:
        connection_created.disconnect(limit)
        connection.close()


# A completer does not begin before a step is recorded, nor inside a transaction.
WAYS_TO_DECIDE = [
    (place, which, decision, by)
    for place, which in ENDS_OF_STEPS
    for decision in DECISIONS
    for by in ("code", "transaction", "admin")
    if decision != "complete" or (place != "start" and by != "transaction")
]


@one_writer
@pytest.mark.parametrize(("place", "which", "decision", "by"), WAYS_TO_DECIDE)
@pytest.mark.urls("tests.support.charging_views")
def test_decision_before_the_commit(
    freeze: Freeze, enter: Enter, place: str, which: int, decision: str, by: str
) -> None:
    """A3, E9, E17: A person's decision does not wait for such a handler, either.

    It changes nothing, and the person is told that the handler is just writing.
    """
    desk = enter(*EVERYTHING)
    with freeze(place, which) as scene, without_waiting():
        record = IdempotencyRecord.objects.get(key=scene.sending.key)
        if by == "admin":
            form = {**FORM, "token": str(record.token)}
            page = desk.post(address(record, decision), form, follow=True)
            said = "Nothing was done: the handler is just writing to the record."
            assert said in Page(page).text
        else:
            around = transaction.atomic() if by == "transaction" else nullcontext()
            with around:
                with pytest.raises(RecordHeld):
                    DECISIONS[decision](record)
                # The transaction is as good as before.
                assert IdempotencyRecord.objects.filter(pk=record.pk).exists()
    scene.assert_unharmed()


@pytest.mark.parametrize("slow", ["failed-before", "completer"])
@pytest.mark.parametrize("fast", ["failed-before", "completer"])
def test_two_resume_at_once(
    database: None,
    two_servers: tuple[Server, Server],
    rendezvous: Rendezvous,
    slow: str,
    fast: str,
) -> None:
    """E12, E17: Of two that have both seen a run cut off, one resumes it.

    Each of them is a client's retry or a completer.
    """
    one, other = (Resuming(server, rendezvous) for server in two_servers)
    labels = one.record("rerun", Resumed[slow]).labels
    before_taking_over = labels.index("about to charge") - 1
    sending = one.prepare("rerun", Resumed[slow])
    with one.start(one.to_cut(sending, Resumed[slow]), before_taking_over) as held:
        has_looked = wait_for_visit(rendezvous)
        second = other.send(other.to_cut(sending, Resumed[fast]))
        has_looked.close()
        first = read(held)
    assert (second.status, is_replayed(second)) == (201, False)
    assert first.status == 409 or is_replayed(first)
    assert_each_once(second, sending.key)
    again = one.send(sending)
    assert (again.body, is_replayed(again)) == (second.body, True)
    assert len(one.ledger.charges_of(sending.key)) == 1


def test_ends_while_another_takes_over(
    database: None, two_servers: tuple[Server, Server], rendezvous: Rendezvous
) -> None:
    """E7, E9: A retry does not rerun a late handler that ends before the take-over."""
    late, other = (Crashes(server, rendezvous) for server in two_servers)
    charged = late.record("rerun", HANDLERS["plain"]).labels.index("charged") + 1
    taking_over = other.record("rerun", HANDLERS["failed-before"]).labels
    before_it = taking_over.index("about to charge") - 1
    sending = late.prepare("rerun", HANDLERS["plain"])
    with late.start(sending, charged) as slow:
        acted = wait_for_visit(rendezvous)
        late.end_lease(sending.key)
        with other.start(sending, before_it) as overtaken:
            has_looked = wait_for_visit(rendezvous)
            acted.close()
            first = read(slow)
            has_looked.close()
            second = read(overtaken)
    assert first.status == 201
    assert second.status == 409 or is_replayed(second)
    retry = other.send(sending)
    assert is_replayed(retry)
    assert retry.body == first.body
    assert len(other.ledger.charges_of(sending.key)) == 1
