"""Handlers that are stopped past their lease, and go on when others have their key.

Real processes and real signals: a process that is stopped does nothing at all, as one
on a machine that was suspended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpResponse

from idempotency.database import UTCNow
from idempotency.exceptions import ClaimLost, OutcomeUnknown
from idempotency.models import IdempotencyRecord, State
from tests.support.charge_ledger import Ledger
from tests.support.fault_points import wait_for_visit
from tests.support.faults import serving
from tests.support.http_servers import Answer, Server, is_replayed, read
from tests.support.leased_crashes import HANDLERS, Crashes
from tests.support.processes import wait_until
from tests.support.rendezvous import Rendezvous

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
    def stalled(self, url: str, handler: str) -> Iterator[None]:
        """Stop a handler past its lease for as long as the block lasts."""
        self.request = (url, {"handler": handler})
        headers = {**self.rendezvous.header, **self.ledger.header}
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
