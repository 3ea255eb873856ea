"""Keys that another transaction holds, and duplicates that wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection, transaction

from idempotency.claims import claims_in
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.support.record_factories import RETENTION
from tests.support.rendezvous import PATIENCE

HAS_ONE_WRITER = "sqlite"


class Holder:
    """Another connection, in another thread, that executes a key."""

    def __init__(self) -> None:
        self.holds, self.may_end = Event(), Event()
        self.pool = ThreadPoolExecutor(1)

    def hold(self, client: Any, path: str, *, expired: bool = False) -> None:
        """Claim the key of a request, new or expired, in an open transaction."""
        client.post(path, {}, **key())
        record = IdempotencyRecord.objects.get()
        records = IdempotencyRecord.objects.filter(pk=record.pk)
        if expired:
            records.update(expires_at=UTCNow())
        else:
            records.delete()
        self.work = self.pool.submit(self._hold, record)
        while not self.holds.wait(0.1):
            assert not self.work.done(), self.work.result()

    def _hold(self, record: IdempotencyRecord) -> None:
        record.token = uuid4()
        with closing(connection), transaction.atomic():
            here = claims_in("default")
            claimed = here.claim(record, RETENTION, here.look_up(record.pk))
            assert claimed is not None
            assert claimed.token == record.token
            self.holds.set()
            assert self.may_end.wait(PATIENCE)
            transaction.set_rollback(True)

    def end(self) -> None:
        """Roll back, which gives the key back."""
        self.may_end.set()
        self.work.result(PATIENCE)


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Return a holder, which ends with the test."""
    holder = Holder()
    yield holder
    holder.may_end.set()
    holder.pool.shutdown()


def set_patience() -> None:
    """Let SQLite give up at once, and MariaDB only after the holder has."""
    statement = {
        "sqlite": "PRAGMA busy_timeout = 0",
        "mysql": f"SET SESSION innodb_lock_wait_timeout = {10 * PATIENCE}",
    }.get(connection.vendor)
    if statement:
        with connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.mark.parametrize("expired", [False, True], ids=["new", "expired"])
def test_held_elsewhere(
    client: Any, holder: Holder, atomic_requests: bool, expired: bool
) -> None:
    """E3, P1: A key that another transaction executes is 409 at once, never 500."""
    holder.hold(client, "/function/", expired=expired)
    set_patience()
    answer = client.post("/function/", {}, **key())
    if connection.vendor == HAS_ONE_WRITER and atomic_requests:
        # The project's own BEGIN IMMEDIATE failed, before any view was called.
        assert answer.status_code == 500
    else:
        assert answer.status_code == 409
        assert code_of(answer) == "idempotency_in_progress"
        assert answer["Retry-After"] == "1"
    holder.end()
    assert client.post("/function/", {}, **key()).status_code == 201
    assert Effect.objects.count() == 2


def test_waiting_for_a_key_that_is_given_back(
    client: Any, holder: Holder, atomic_requests: bool, monkeypatch: Any
) -> None:
    """E3: A waiting duplicate runs after the first request rolled back."""
    if connection.vendor == HAS_ONE_WRITER and atomic_requests:
        pytest.skip("There the project's own BEGIN waits.")
    holder.hold(client, "/waiting/")
    set_patience()
    monkeypatch.setattr(
        "idempotency.execution.time",
        SimpleNamespace(monotonic=time.monotonic, sleep=lambda _pause: holder.end()),
    )
    answer = client.post("/waiting/", {}, **key())
    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer
    assert Effect.objects.count() == 2


@pytest.mark.usefixtures("atomic_requests", "by_statements")
class TestWaitingInOneProcess:
    """E3: the waiting itself, step by step."""

    @pytest.fixture(autouse=True)
    def _busy_then_free(self, monkeypatch: Any) -> None:
        self.pauses: list[float] = []
        monkeypatch.setattr("idempotency.execution.time", self)
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def test_until_it_is_over(self, client: Any, monkeypatch: Any) -> None:
        """E3: A duplicate that waited for wait_timeout in vain gets the 409."""
        module = sys.modules["idempotency.claims"]
        for name in ("PostgreSQLClaims", "MariaDBClaims", "SQLiteClaims"):
            monkeypatch.setattr(
                getattr(module, name), "claim", lambda *args, **kwargs: None
            )
        answer = client.post("/waiting/", {}, HTTP_IDEMPOTENCY_KEY="a-key-of-mine")
        assert answer.status_code == 409
        assert answer["Retry-After"] == "1"
        assert sum(self.pauses) == pytest.approx(5)
        assert self.pauses[:3] == [0.01, 0.02, 0.04]
        assert max(self.pauses) == 0.2

    def test_busy_look_up(self, client: Any, monkeypatch: Any) -> None:
        """E3: A database that is too busy to be read is no error, either."""
        for name in ("PostgreSQLClaims", "MariaDBClaims", "SQLiteClaims"):
            vendor = getattr(sys.modules["idempotency.claims"], name)
            monkeypatch.setattr(vendor, "select_before_insert", True)
            monkeypatch.setattr(vendor, "look_up", self.busy_twice(vendor.look_up))
            monkeypatch.setattr(vendor, "is_busy", lambda self, error: True)
        answer = client.post("/waiting/", {}, HTTP_IDEMPOTENCY_KEY="a-key-of-mine")
        assert answer.status_code == 201
        assert self.pauses == [0.01, 0.02]

    def busy_twice(self, claim: Any) -> Any:
        def busy_claim(claims: Any, *args: Any) -> Any:
            if len(self.pauses) < 2:
                raise OperationalError(1205, "Lock wait timeout exceeded")
            return claim(claims, *args)

        return busy_claim
