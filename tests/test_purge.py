"""Expired records go, by the manager, by the command and by the task's own logic."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.management import CommandError, call_command
from django.db import InterfaceError, OperationalError, connection, models, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist

from idempotency import purging
from idempotency.database import UTCNow
from idempotency.management.commands.purge_idempotency_records import Interruption
from idempotency.models import IdempotencyRecord, State
from idempotency.purging import PurgeReport
from idempotency.steps import as_text, new_entry
from idempotency.tasks import purge_expired_records
from tests.support.fault_points import wait_for_visit
from tests.support.processes import PATIENCE, run_python, running
from tests.support.record_factories import (
    RETENTION,
    left,
    make_record,
    make_records,
    new_record,
)
from tests.support.rendezvous import Rendezvous

SECOND = timedelta(seconds=1)
EXPIRED = RETENTION + SECOND

QUICK, SLOW = purging.TARGET_BATCH_SECONDS, purging.SLOW_BATCH_SECONDS

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def no_slow_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the number of batches not depend on how busy the machine is."""
    monkeypatch.setattr(purging, "TARGET_BATCH_SECONDS", math.inf)
    monkeypatch.setattr(purging, "SLOW_BATCH_SECONDS", math.inf)


def purge(**options: Any) -> PurgeReport:
    return IdempotencyRecord.objects.purge(**options)


@contextmanager
def in_thread(function: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run a function beside the block, with a database connection of its own."""

    def run() -> Any:
        try:
            return function()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(run)


def is_deletion(sql: str) -> bool:
    """Return whether a statement deletes a batch; one before it, what is half done."""
    return sql.startswith("DELETE") and "steps" not in sql


def needs_row_locks() -> None:
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("This database locks no single rows.")


# What goes.


def test_expired_only() -> None:
    """P1, P2: 30 days and a second is too old; 29 days, or a second less, is not."""
    now = timezone.now()
    for key, age in {
        "new": timedelta(0),
        "29 days": timedelta(days=29),
        "a second left": RETENTION - SECOND,
        "on the dot": RETENTION,
        "a second over": RETENTION + SECOND,
        "a year": timedelta(days=365),
    }.items():
        make_record(key=key, created_at=now - age)
    report = purge(now=now)
    assert left() == {"new", "29 days", "a second left"}
    assert (report.deleted, report.batches, report.more) == (3, 1, False)


def test_retention_of_the_record() -> None:
    """P1: A record that was promised longer, or shorter, is kept as promised."""
    soon = timezone.now() + timedelta(minutes=1)
    make_record(timedelta(days=365), key="longer", expires_at=soon)
    make_record(timedelta(days=1), key="shorter", expires_at=soon - timedelta(hours=1))
    assert purge().deleted == 1
    assert left() == {"longer"}


@pytest.mark.parametrize("moved", [False, True], ids=["as it is", "session elsewhere"])
def test_live_lease(moved: bool) -> None:
    """P2: A lease in force by the database's clock keeps the record."""
    zones = {
        "postgresql": "SET TIME ZONE 'Asia/Tokyo'",
        "mysql": "SET time_zone = '+09:00'",
    }
    now = timezone.now()
    for key, lease in {
        "live": now + timedelta(hours=1),
        "run out": now - timedelta(hours=1),
        "atomic": None,
    }.items():
        make_record(
            EXPIRED, key=key, state=State.IN_PROGRESS, lease_expires_at=lease, body=None
        )
    if moved and connection.vendor in zones:
        with connection.cursor() as cursor:
            cursor.execute(zones[connection.vendor])
    # The application's clock has no say in leases.
    assert purge(now=now + timedelta(days=3650)).deleted == 2
    assert left() == {"live"}


HALF_DONE = {
    "state": State.IN_PROGRESS,
    "status_code": None,
    "body": None,
    "steps": as_text("", [new_entry("step", "ride", timezone.now())]),
}


def test_half_done() -> None:
    """P2: The report counts the records that lose recorded steps without a response."""
    lease = timezone.now() + timedelta(hours=1)
    for number in range(3):
        make_record(EXPIRED, key=f"half done {number}", **HALF_DONE)
        make_record(
            EXPIRED, key=f"begun {number}", **{**HALF_DONE, "steps": as_text("")}
        )
        make_record(EXPIRED, key=f"another {number}", **{**HALF_DONE, "steps": None})
        make_record(EXPIRED, key=f"done {number}", steps=HALF_DONE["steps"])
    make_record(EXPIRED, key="running", lease_expires_at=lease, **HALF_DONE)
    make_record(key="in force", **HALF_DONE)
    reports = [*IdempotencyRecord.objects.purge_in_batches(batch_size=5)]
    assert [report.deleted for report in reports] == [5, 10, 12]
    assert [report.half_done for report in reports] == [2, 3, 3]
    assert left() == {"running", "in force"}


def test_half_done_rows_of_one_moment() -> None:
    """P2: A batch has no more rows for those that are half done."""
    at = timezone.now() - EXPIRED
    for number in range(6):
        fields = HALF_DONE if number % 2 else {}
        make_record(created_at=at, expires_at=at + RETENTION, **fields)
    reports = [*IdempotencyRecord.objects.purge_in_batches(batch_size=2)]
    assert [report.deleted for report in reports] == [2, 4, 6]
    assert reports[-1].half_done == 3


def test_database_clock() -> None:
    """P2: The database's clock counts in UTC and below the second."""
    before = timezone.now()
    make_record()
    record = IdempotencyRecord.objects.annotate(at=UTCNow()).get()
    # Virtual machines' clocks differ by less than this; time zones differ by more.
    assert abs(record.at - before) < timedelta(minutes=5)  # type: ignore[attr-defined]


def test_part_of_the_records() -> None:
    """P3: A filtered query purges its own records alone."""
    for scope in ("a", "b"):
        make_record(EXPIRED, key=scope, scope=scope)
    assert IdempotencyRecord.objects.filter(scope="a").purge().deleted == 1
    assert left() == {"b"}


def test_database_of_the_settings(settings: Any) -> None:
    """P3: Where the settings name a database for records, that one is purged."""
    settings.IDEMPOTENCY = {"USING": "elsewhere"}
    with pytest.raises(ConnectionDoesNotExist, match="elsewhere"):
        purge()
    make_record(EXPIRED)
    here = IdempotencyRecord.objects.using("default")
    assert here.purge().deleted == 1  # type: ignore[attr-defined]


# How it goes.


@pytest.mark.parametrize(
    ("records", "batches"), [(0, 0), (1, 1), (4, 2), (5, 3), (6, 3)]
)
def test_batches(records: int, batches: int) -> None:
    """P2: Each batch is a transaction of its own; none begins for nothing."""
    make_records(records, EXPIRED)
    make_records(3)
    with CaptureQueriesContext(connection) as queries:
        report = purge(batch_size=2)
    assert (report.deleted, report.batches, report.more) == (records, batches, False)
    assert report.seconds >= 0
    said = [query["sql"] for query in queries]
    assert said.count("COMMIT") == batches
    assert len(left()) == 3


def test_oldest_first() -> None:
    """P2: The oldest records go first."""
    for days in (40, 50, 31, 60):
        make_record(timedelta(days=days), key=str(days))
    purge(batch_size=2, time_budget=timedelta(0))
    assert left() == {"40", "31"}


def test_done_batches_stay_done() -> None:
    """P2: A failure undoes one batch, and not those before it."""
    make_records(6, EXPIRED)
    batches = 0

    def fail_in_the_third(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal batches
        batches += is_deletion(sql)
        result = execute(sql, *args)
        if batches == 3:
            raise ZeroDivisionError
        return result

    with (
        connection.execute_wrapper(fail_in_the_third),
        pytest.raises(ZeroDivisionError),
    ):
        purge(batch_size=1)
    assert len(left()) == 4


class Clock:
    """A clock by which each batch takes as long as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *batches: float) -> None:
        self.now = 100.0
        self.rests: list[float] = []
        durations = iter(batches)
        delete_batch = purging._delete_batch

        def take_time(*arguments: Any) -> Any:
            self.now += next(durations)
            return delete_batch(*arguments)

        monkeypatch.setattr(purging, "_delete_batch", take_time)
        monkeypatch.setattr(purging, "time", self)
        monkeypatch.setattr(purging, "TARGET_BATCH_SECONDS", QUICK)
        monkeypatch.setattr(purging, "SLOW_BATCH_SECONDS", SLOW)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


def test_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: No batch begins after the time is up; the report says that more is left."""
    make_records(10, EXPIRED)
    with monkeypatch.context() as patch:
        Clock(patch, 1, 1, 3)
        report = purge(batch_size=2, time_budget=timedelta(seconds=10))
    # Each of these is slow, so a batch has 2 rows, then 1 and 1.
    assert report == PurgeReport(
        deleted=4, batches=3, seconds=11.0, more=True, overdue=report.overdue
    )
    report = purge()
    assert (report.deleted, report.more) == (6, False)


def is_about(found: timedelta, expected: timedelta) -> bool:
    """Return whether a duration is one that has grown for a moment."""
    return expected <= found < expected + timedelta(seconds=PATIENCE)


def test_how_far_behind() -> None:
    """P2: Each report says for how long the next record has been expired."""
    for hours in (3, 2, 1, -1):
        make_record(RETENTION + timedelta(hours=hours))
    reports = [*IdempotencyRecord.objects.purge_in_batches(batch_size=1)]
    assert is_about(reports[0].overdue, timedelta(hours=2))
    assert is_about(reports[1].overdue, timedelta(hours=1))
    assert {report.overdue for report in reports[2:]} == {timedelta(0)}


def test_spared_records_are_not_behind() -> None:
    """P2: Records that a purge must not delete do not count."""
    make_record(
        RETENTION + timedelta(hours=3),
        state=State.IN_PROGRESS,
        lease_expires_at=timezone.now() + timedelta(hours=1),
    )
    make_record(RETENTION + timedelta(hours=2))
    report = purge(batch_size=1, time_budget=timedelta(0))
    assert (report.deleted, report.more) == (0, True)
    assert is_about(report.overdue, timedelta(hours=2))
    report = purge()
    assert (report.deleted, report.overdue) == (1, timedelta(0))


def test_purged_by_another_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: What another purge has deleted is not behind."""
    make_records(2, EXPIRED)
    delete_batch = purging._delete_batch

    def delete_all(*arguments: Any) -> Any:
        found = delete_batch(*arguments)
        IdempotencyRecord.objects.all().delete()
        return found

    monkeypatch.setattr(purging, "_delete_batch", delete_all)
    report = purge(batch_size=1, time_budget=timedelta(0))
    assert report.overdue == timedelta(0)


def test_steady_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: After a few rows others have three times as long, but not in the end."""
    make_records(7, EXPIRED)
    clock = Clock(monkeypatch, 0.011, 0.015, 0.012, 0.011)
    assert purge(batch_size=2).deleted == 7
    assert clock.rests == pytest.approx([0.033, 0.045, 0.036])


def test_pace_of_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: After more than a few rows others have twenty times as long."""
    make_records(6, EXPIRED)
    monkeypatch.setattr(purging, "FIRST_BATCH_SIZE", 1)
    clock = Clock(monkeypatch, 0.001, 0.015, 0.012, 0.011)
    assert purge(batch_size=2).deleted == 6
    assert clock.rests == pytest.approx([0.003, 0.3, 0.24])


def test_rest_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: It rests only where another batch follows, so never beyond its time."""
    make_records(4, EXPIRED)
    clock = Clock(monkeypatch, 1, 1, 1)
    report = purge(batch_size=1, time_budget=timedelta(seconds=7))
    assert (report.deleted, report.seconds, report.more) == (2, 5.0, True)
    assert (clock.rests, clock.now) == ([3.0], 105.0)


def test_slow_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: A batch doubles while it is quick, and halves when its rows were slow.

    A few rows, which may only have waited for the disk, are still fewer only where they
    held a transaction open for more than half a second.
    """
    make_records(2500, EXPIRED)
    monkeypatch.setattr(purging, "FIRST_BATCH_SIZE", 4)
    took = [0, 0, 0.015, 0.03, 0.03, 0.03, 0.3, 0.6, 0.6, 0.6, 0.3, 0.2, 0.2, 0.2]
    Clock(monkeypatch, *took, *[0] * 10)
    reports = [*IdempotencyRecord.objects.purge_in_batches(batch_size=1000)]
    sums = [0, *(report.deleted for report in reports)]
    sizes = [after - before for before, after in pairwise(sums)]
    expected = [4, 8, 16, 16, 8, 4, 4, 4, 2, 1, 1, 1, 2, 4]
    quick = [4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert sizes[:-1] == [*expected, *quick]
    assert sum(sizes) == 2500


def test_slow_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: Where each COMMIT takes 25 ms, so few rows at once still go on together."""
    make_records(1000, EXPIRED)
    Clock(monkeypatch, *[0.025] * 10)
    assert purge() == PurgeReport(
        deleted=1000, batches=10, seconds=pytest.approx(0.925), more=False
    )


def test_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: Half of a batch is not less than a few rows, nor all that is allowed."""
    make_records(400, EXPIRED)
    Clock(monkeypatch, 0, 0.03, 0.03, 0.03)
    reports = [*IdempotencyRecord.objects.purge_in_batches(batch_size=150)]
    assert [report.deleted for report in reports] == [100, 250, 350, 400]


def test_no_time_at_all() -> None:
    """P2: Even the smallest budget gets one batch done, or nothing would ever go."""
    make_records(3, EXPIRED)
    report = purge(batch_size=2, time_budget=timedelta(0))
    assert (report.deleted, report.batches, report.more) == (2, 1, True)


def test_settings(settings: Any) -> None:
    """P2: PURGE_BATCH_SIZE and PURGE_TIME_BUDGET hold where nothing else is said."""
    settings.IDEMPOTENCY = {"PURGE_BATCH_SIZE": 2, "PURGE_TIME_BUDGET": timedelta(0)}
    make_records(7, EXPIRED)
    assert purge().deleted == 2
    assert purge(batch_size=1).deleted == 1
    assert purge(time_budget=timedelta(hours=1)).batches == 2
    assert left() == set()


def test_older_than() -> None:
    """P2: Expired records that are younger than that stay, whenever they expired."""
    make_record(timedelta(days=44), key="44 days")
    make_record(timedelta(days=46), key="46 days")
    for days, expired_days in ((50, 1), (3, 2)):
        record = make_record(timedelta(days=days), key=f"short, {days} days")
        record.expires_at = timezone.now() - timedelta(days=expired_days)
        record.save()
    assert purge(older_than=timedelta(days=45)).deleted == 2
    assert left() == {"44 days", "short, 3 days"}
    assert purge(older_than=timedelta(0)).deleted == 2


SPARED = {"older_than": timedelta(days=90)}


def test_spared_rows() -> None:
    """P2: Of what it spares, too, a batch reads no more than it may delete."""
    make_records(20, EXPIRED)
    report = purge(batch_size=5, time_budget=timedelta(0), **SPARED)
    assert (report.deleted, report.batches, report.more) == (0, 1, True)
    report = purge(batch_size=5, **SPARED)
    assert (report.deleted, report.batches, report.more) == (0, 4, False)
    make_record(EXPIRED - SECOND / 2, key="last", scope="b")
    filtered = IdempotencyRecord.objects.filter(scope="b")
    report = filtered.purge(batch_size=5, time_budget=timedelta(0))
    assert (report.deleted, report.batches, report.more) == (0, 1, True)
    assert filtered.purge(batch_size=5).deleted == 1
    assert len(left()) == 20


def test_rows_of_one_moment() -> None:
    """P2: More rows than a batch that expired at once stop it neither way."""
    at = timezone.now() - EXPIRED
    for scope in "ab":
        for _number in range(7):
            make_record(created_at=at, scope=scope)
    make_record(created_at=at + SECOND / 2, scope="b", key="later")
    filtered = IdempotencyRecord.objects.filter(scope="b")
    assert filtered.purge(batch_size=2).deleted == 8
    assert purge(batch_size=2, **SPARED).deleted == 0
    assert purge(batch_size=2).deleted == 7


def test_older_than_the_future() -> None:
    """P2: An age below 0 is refused: it would spare nothing, and is a mistake."""
    make_record(EXPIRED)
    with pytest.raises(ValueError, match="older_than must not be negative"):
        purge(older_than=-SECOND)
    assert len(left()) == 1


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size(batch_size: int) -> None:
    """P2: A batch of no rows is refused; it would never end."""
    make_record(EXPIRED)
    with pytest.raises(ValueError, match=f"at least 1, not {batch_size}"):
        purge(batch_size=batch_size)
    assert len(left()) == 1


def test_open_transaction() -> None:
    """P2: In a transaction, which would make all batches one, purging is refused."""
    make_record(EXPIRED)
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        purge()
    assert len(left()) == 1


@pytest.mark.django_db
def test_inside_a_test_case() -> None:
    """P2: Django's TestCase, itself a transaction, may purge."""
    make_record(EXPIRED)
    assert purge().deleted == 1


def test_statements() -> None:
    """P2, A2: No body is loaded, nothing is counted, no signal is sent."""
    make_records(3, EXPIRED)
    heard: list[Any] = []

    def hear(**sent: Any) -> None:
        heard.append(sent)

    sent = (models.signals.pre_delete, models.signals.post_delete)
    for each in sent:
        each.connect(hear, sender=IdempotencyRecord)
    try:
        with CaptureQueriesContext(connection) as queries:
            purge()
    finally:
        for each in sent:
            each.disconnect(hear, sender=IdempotencyRecord)
    assert not heard
    assert left() == set()
    said = " ".join(query["sql"] for query in queries).lower()
    for word in ("body", "headers", "fingerprint", "count("):
        assert word not in said


# Who else is there.


@pytest.mark.parametrize("records", [2, 50, 300])
def test_held_rows(records: int) -> None:
    """P2: A row that another transaction holds is skipped, not waited for."""
    needs_row_locks()
    make_records(records - 1, EXPIRED)
    make_record(EXPIRED, key="held")
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            IdempotencyRecord.objects.select_for_update().get(key="held")
            is_held.set()
            may_end.wait(PATIENCE)

    with in_thread(hold) as holder:
        assert is_held.wait(PATIENCE)
        try:
            report = purge()
        finally:
            may_end.set()
        holder.result()
    assert (report.deleted, report.more) == (records - 1, False)
    assert left() == {"held"}
    assert purge().deleted == 1


def test_rows_that_another_purge_holds() -> None:
    """P2: A purge in the middle of its batch leaves the others theirs."""
    needs_row_locks()
    make_records(50, EXPIRED)
    is_in_batch, may_go_on = threading.Event(), threading.Event()

    def pause(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("DELETE") and not is_in_batch.is_set():
            is_in_batch.set()
            may_go_on.wait(PATIENCE)
        return execute(sql, *args)

    def purge_slowly() -> PurgeReport:
        with connection.execute_wrapper(pause):
            return purge(batch_size=10)

    with in_thread(purge_slowly) as slow:
        assert is_in_batch.wait(PATIENCE)
        try:
            report = purge(batch_size=10)
        finally:
            may_go_on.set()
        assert (report.deleted, slow.result().deleted) == (40, 10)
    assert left() == set()


def test_many_at_once() -> None:
    """P2: Purges run at the same time; together they delete everything once."""
    make_records(200, EXPIRED)
    make_record(key="young")
    start = threading.Barrier(4)

    def run() -> PurgeReport:
        start.wait(PATIENCE)
        try:
            return purge(batch_size=10)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        reports = [future.result() for future in [pool.submit(run) for _ in range(4)]]
    # What one finds held, another one deletes.
    assert sum(report.deleted for report in reports) == 200
    assert left() == {"young"}


# The other ways in.


def command(*arguments: str) -> str:
    output = StringIO()
    call_command("purge_idempotency_records", *arguments, stdout=output)
    return output.getvalue()


def test_command() -> None:
    """P3: The command purges and says what it did."""
    make_records(3, EXPIRED)
    make_record(key="young")
    said = command("--batch-size", "2", "--database", "default")
    assert said.startswith("Deleted 3 expired idempotency records in 2 batches and ")
    assert said.count("\n") == 1
    assert left() == {"young"}


def test_command_tells_of_what_was_half_done() -> None:
    """P3: The command says how many records lose recorded steps."""
    make_records(2, EXPIRED)
    make_record(EXPIRED, **HALF_DONE)
    first, second = command().splitlines()
    assert first.startswith("Deleted 3 expired idempotency records in 1 batches and ")
    assert second == "1 of them had recorded steps, but no response."


def test_command_out_of_time(settings: Any) -> None:
    """P2, P3: The command says that the time ended before the work did."""
    settings.IDEMPOTENCY = {"PURGE_BATCH_SIZE": 2, "PURGE_TIME_BUDGET": timedelta(0)}
    make_records(3, EXPIRED)
    assert "run again for the rest" in command()
    assert "run again for the rest" not in command()
    assert left() == set()


def test_command_options() -> None:
    """P3: How long and how old can be said on the command line."""
    make_records(3, EXPIRED)
    make_records(3, timedelta(days=46))
    said = command("--batch-size=2", "--time-budget=0s", "--older-than=45d")
    assert said.startswith("Deleted 2 expired")
    assert "run again for the rest" in said
    assert command("--older-than=45d").startswith("Deleted 1 expired")
    assert command("--older-than=1080h").startswith("Deleted 0 expired")
    assert command("--older-than=720h").startswith("Deleted 3 expired")


def test_command_tells_of_each_batch() -> None:
    """P3: With more words there is a line to a batch, and with less there is none."""
    make_records(3, EXPIRED)
    first, second, last = command("--batch-size=2", "--verbosity=2").splitlines()
    assert first.startswith("2 deleted, 1 batches, ")
    assert second.startswith("3 deleted, 2 batches, ")
    assert last.startswith("Deleted 3 expired")
    make_records(3, EXPIRED)
    assert command("--verbosity=0") == ""
    assert left() == set()


def test_command_on_a_terminal() -> None:
    """P3: There the progress is one line that gives way to the sum."""
    make_records(3, EXPIRED)
    terminal = Terminal()
    call_command("purge_idempotency_records", "--batch-size=2", stdout=terminal)
    first, second, *end = terminal.getvalue().split("\r")[1:]
    assert first.startswith("2 deleted, 1 batches, ")
    assert second.startswith("3 deleted, 2 batches, ")
    (end_line,) = end
    assert end_line.startswith("\x1b[KDeleted 3 expired")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_command_that_the_database_stops() -> None:
    """P3: The command says how much it deleted, then the database error."""
    make_records(5, EXPIRED)
    deletions = 0

    def fail_in_the_second(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal deletions
        deletions += is_deletion(sql)
        if deletions == 2:
            raise OperationalError("the disk is full")
        return execute(sql, *args)

    output = StringIO()
    with (
        connection.execute_wrapper(fail_in_the_second),
        pytest.raises(CommandError, match="Database error: the disk is full"),
    ):
        call_command("purge_idempotency_records", "--batch-size=2", stdout=output)
    assert output.getvalue().startswith("Deleted 2 expired")
    assert len(left()) == 3


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)], ids=["purge", "dry run"])
def test_command_without_a_database(arguments: tuple[str, ...]) -> None:
    """P3: A database error is a sentence, in a dry run, too."""
    make_record(EXPIRED)

    def fail(*_statement: Any) -> Any:
        raise InterfaceError("connection already closed")

    with (
        connection.execute_wrapper(fail),
        pytest.raises(CommandError, match="Database error: connection already"),
    ):
        command(*arguments)
    assert len(left()) == 1


def test_dry_run(settings: Any) -> None:
    """P3: It says how many go on which day, and deletes nothing."""
    settings.TIME_ZONE = "Pacific/Auckland"
    zone = ZoneInfo("Pacific/Auckland")
    for day, hour in ((5, 0), (5, 23), (7, 12)):
        expired_at = datetime(2026, 4, day, hour, 30, tzinfo=zone)
        make_record(created_at=expired_at - RETENTION)
    make_record(timedelta(days=29))
    assert command("--dry-run").splitlines() == [
        "2026-04-05  2",
        "2026-04-07  1",
        "A purge would delete 3 records.",
    ]
    assert len(left()) == 4
    assert command("--dry-run", "--older-than=9999d") == (
        "A purge would delete 0 records.\n"
    )


def test_dry_run_of_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: A dry run stops counting at a limit."""
    make_records(5, EXPIRED)
    make_records(1, RETENTION + timedelta(days=2))
    with monkeypatch.context() as patch:
        patch.setattr("idempotency.purging.MAX_COUNTED", 3)
        *_first, busy, conclusion = command("--dry-run").splitlines()
    assert busy.endswith("  at least 3")
    assert conclusion == "A purge would delete at least 4 records."
    assert command("--dry-run", "--time-budget=0s").splitlines() == [
        "The time budget is used up: more days may follow.",
        "A purge would delete at least 0 records.",
    ]
    assert len(left()) == 6


class Ticking:
    """A clock that is a second later each time it is looked at."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def test_dry_run_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: Within a day, too, and among rows that are spared, it looks at the clock."""
    monkeypatch.setattr(purging, "COUNT_BATCH_SIZE", 2)
    monkeypatch.setattr(purging, "time", Ticking())
    now = timezone.now()
    noon = now.replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=9)
    for number in range(5):
        make_record(created_at=noon - RETENTION + number * SECOND)
    make_record(created_at=noon - RETENTION + timedelta(days=2))
    days = [f"{noon:%Y-%m-%d}", f"{noon + timedelta(days=2):%Y-%m-%d}"]
    assert command("--dry-run").splitlines() == [
        f"{days[0]}  5",
        f"{days[1]}  1",
        "A purge would delete 6 records.",
    ]
    ended = "The time budget is used up: more days may follow."
    assert command("--dry-run", "--time-budget=3s").splitlines() == [
        f"{days[0]}  at least 4",
        ended,
        "A purge would delete at least 4 records.",
    ]
    spared = ("--dry-run", "--older-than=90d")
    assert command(*spared, "--time-budget=3s").splitlines() == [
        ended,
        "A purge would delete at least 0 records.",
    ]
    assert command(*spared) == "A purge would delete 0 records.\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--batch-size", "0"], "--batch-size: must be a positive integer, not '0'"),
        (["--batch-size", "-1"], "argument --batch-size"),
        (["--batch-size", "1.5"], "not '1.5'"),
        (["--batch-size", "ten"], "not 'ten'"),
        (["--batch-size", "²"], "not '²'"),
        (["--batch-size", ""], "not ''"),
        (["--older-than", "45"], "must be a number followed by s, m, h or d"),
        (["--older-than", "-45d"], "argument --older-than"),
        (["--older-than", "999999d"], "must be at most 36500d, not '999999d'"),
        (["--time-budget", "soon"], "such as 45d, not 'soon'"),
        (["--database", "nowhere"], "'nowhere' is not an alias in DATABASES"),
        (["everything"], "unrecognized arguments: everything"),
    ],
)
def test_command_with_bad_input(arguments: list[str], complaint: str) -> None:
    """P3: What the command can't do it refuses in words, and deletes nothing."""
    make_record(EXPIRED)
    with pytest.raises(CommandError) as refused:
        command(*arguments)
    assert complaint in str(refused.value)
    assert len(left()) == 1


def test_command_line() -> None:
    """P3: From the shell: a sentence and status 0, or a complaint and another one."""
    make_record(EXPIRED)

    command = ("manage.py", "purge_idempotency_records")
    own = {"DJANGO_SETTINGS_MODULE": "testproject.settings"}
    refused = run_python(*command, "--batch-size", "0", status=2, **own)
    assert "must be a positive integer" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(left()) == 1
    done = run_python(*command, **own)
    assert "Deleted 1 expired idempotency records" in done.stdout
    assert left() == set()


@contextmanager
def stopping(
    boundary: int, rendezvous: Rendezvous, log: Path
) -> Iterator[tuple[Any, Any]]:
    """Purge four records in two batches by the command, stopped at a boundary."""
    make_records(4, EXPIRED)
    command = [sys.executable, "-m", "tests.support.interrupted_purge", str(boundary)]
    options = [str(rendezvous.address), "--batch-size=2"]
    with running([*command, *options], log) as process:
        yield process, wait_for_visit(rendezvous)


@pytest.fixture(scope="module")
def in_a_batch(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: Any
) -> int:
    """Return the boundary before the end of the first batch."""
    log = tmp_path_factory.mktemp("purge") / "log"
    with (
        django_db_blocker.unblock(),
        TemporaryDirectory(prefix="idem") as place,
        Rendezvous(Path(place)) as rendezvous,
        stopping(0, rendezvous, log) as (process, visit),
    ):
        visit.close()
        assert process.wait(PATIENCE) == 0
        connection.close()
    # SQLite first deletes what is half done.
    *_others, found = [
        number
        for number, label in enumerate(visit.labels, 1)
        if label.startswith("after DELETE") and number < len(visit.labels) / 2
    ]
    return found


def test_command_interrupted(
    in_a_batch: int, rendezvous: Rendezvous, tmp_path: Path
) -> None:
    """P3: Ctrl-C and SIGTERM end it between two batches, with the sum so far."""
    for number in (signal.SIGINT, signal.SIGTERM):
        log = tmp_path / "log"
        with stopping(in_a_batch, rendezvous, log) as (process, visit):
            os.kill(process.pid, number)
            visit.close()
            assert process.wait(PATIENCE) == 128 + number
        told = log.read_text()
        assert "Deleted 2 expired idempotency records in 1 batches" in told
        assert "Interrupted: run again for the rest." in told
        assert len(left()) == 2
        assert purge().deleted == 2


def test_command_interrupted_while_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: Ctrl-C ends the rest between two batches, and no other one begins."""
    make_records(4, EXPIRED)
    wait = Interruption.wait

    def interrupt_and_wait(self: Interruption, seconds: float) -> bool:
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
        # Nobody waits so long: the signal ends it.
        return wait(self, seconds + 10 * PATIENCE)

    monkeypatch.setattr(Interruption, "wait", interrupt_and_wait)
    output = StringIO()
    # A shell's background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            call_command("purge_idempotency_records", "--batch-size=2", stdout=output)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 128 + signal.SIGINT
    told, _overdue, last = output.getvalue().splitlines()
    assert told.startswith("Deleted 2 expired idempotency records in 1 batches")
    assert last == "Interrupted: run again for the rest."
    assert len(left()) == 2


def test_command_killed(
    in_a_batch: int, rendezvous: Rendezvous, tmp_path: Path
) -> None:
    """P2: A batch that was not committed is not deleted."""
    with stopping(in_a_batch, rendezvous, tmp_path / "log") as (_process, visit):
        visit.waiting.kill()
    assert len(left()) == 4
    assert purge().deleted == 4


def test_command_that_is_not_to_be_interrupted() -> None:
    """P3: A signal that is ignored, as under nohup, stays ignored."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        make_records(2, EXPIRED)
        with connection.execute_wrapper(
            lambda execute, *arguments: (
                signal.raise_signal(signal.SIGTERM),
                execute(*arguments),
            )[1]
        ):
            assert command().startswith("Deleted 2 expired")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_command_in_a_thread() -> None:
    """P3: In a thread, which can't handle signals, it purges, too."""
    make_records(2, EXPIRED)
    with in_thread(command) as said:
        assert said.result().startswith("Deleted 2 expired")


@pytest.mark.parametrize("arguments", [(), ("default",)], ids=["default", "named"])
def test_task(arguments: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """P3: The task purges and leaves one line in the log."""
    make_records(2, EXPIRED)
    make_record(key="young")
    assert purge_expired_records.name == "idempotency.tasks.purge_expired_records"
    with caplog.at_level(logging.INFO, logger="idempotency"):
        purge_expired_records.apply(args=arguments).get()
    (message,) = caplog.messages
    assert message.startswith("records_purged: 2 expired records in 1 batches and ")
    assert message.endswith(" s")
    assert left() == {"young"}


def test_task_tells_of_what_was_half_done(caplog: pytest.LogCaptureFixture) -> None:
    """P3: The task's line in the log says how many records lose recorded steps."""
    make_records(2, EXPIRED)
    make_record(EXPIRED, **HALF_DONE)
    with caplog.at_level(logging.INFO, logger="idempotency"):
        purge_expired_records.apply().get()
    (message,) = caplog.messages
    assert message.startswith("records_purged: 3 expired records in 1 batches and ")
    assert message.endswith(" s; 1 had recorded steps, but no response")
    (line,) = caplog.records
    assert vars(line)["idempotency_half_done"] == 1


def test_task_out_of_time(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    """P2, P3: The task's line says that more is left."""
    settings.IDEMPOTENCY = {"PURGE_BATCH_SIZE": 1, "PURGE_TIME_BUDGET": timedelta(0)}
    make_records(2, EXPIRED)
    with caplog.at_level(logging.INFO, logger="idempotency"):
        purge_expired_records.apply().get()
    assert re.search(
        r"; more are left for the next run, the oldest expired 0:00:\d\d ago$",
        caplog.messages[0],
    )
    assert new_record().key not in left()
    assert len(left()) == 1


def test_task_out_of_patience(caplog: pytest.LogCaptureFixture) -> None:
    """P2, P3: A soft time limit ends a batch, and the line says what is left."""
    make_records(5, EXPIRED)
    deletions = 0

    def take_too_long(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal deletions
        deletions += is_deletion(sql)
        result = execute(sql, *args)
        if deletions == 2:
            raise SoftTimeLimitExceeded
        return result

    with (
        caplog.at_level(logging.INFO, logger="idempotency"),
        connection.execute_wrapper(take_too_long),
        override_settings(IDEMPOTENCY={"PURGE_BATCH_SIZE": 2}),
    ):
        purge_expired_records.apply().get()
    purged, warned = caplog.messages
    assert purged.startswith("records_purged: 2 expired records in 1 batches and ")
    assert "; more are left for the next run, the oldest expired 0:00:" in purged
    assert warned == "The time limit stopped a purge: a batch took too long"
    assert len(left()) == 3


# A level, how a session is told, and how one asks the transaction and the session.
LEVELS = {
    "postgresql": [
        "SERIALIZABLE",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW transaction_isolation",
        "SHOW default_transaction_isolation",
    ],
    "mysql": [
        "REPEATABLE READ",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        # Asked once: it is as it was for a tenth of a second.
        """SELECT trx_isolation_level FROM information_schema.innodb_trx
        WHERE trx_mysql_thread_id = CONNECTION_ID()""",
        "SELECT @@SESSION.tx_isolation",
    ],
}


def test_isolation() -> None:
    """P2: A batch neither locks gaps nor fails beside another, whatever the sessions'.

    Above READ COMMITTED, MariaDB locks gaps, and PostgreSQL ends a transaction that
    meets what another one has deleted meanwhile.
    """
    if connection.vendor not in LEVELS:
        pytest.skip("SQLite has one level.")
    level, set_level, ask_transaction, ask_session = LEVELS[connection.vendor]
    make_records(2, EXPIRED)
    levels = []

    def fetch(sql: str) -> str:
        # Not the connection's own cursor, which would ask the wrapper again.
        with connection.connection.cursor() as cursor:
            cursor.execute(sql)
            return str(cursor.fetchone()[0]).upper().replace("-", " ")

    def ask(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("DELETE"):
            levels.append(fetch(ask_transaction))
        return execute(sql, *args)

    with connection.cursor() as cursor:
        cursor.execute(set_level)
    try:
        with connection.execute_wrapper(ask):
            assert purge().deleted == 2
        assert levels == ["READ COMMITTED"]
        assert fetch(ask_session) == level
    finally:
        connection.close()
