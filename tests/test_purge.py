"""Expired records go, by the manager, by the command and by the task's own logic."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, models, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist

from idempotency.models import IdempotencyRecord, PurgeReport, State, UTCNow
from idempotency.tasks import purge_expired_records
from tests.processes import PATIENCE, ROOT, environment
from tests.records import RETENTION, left, make_record, make_records, new_record

SECOND = timedelta(seconds=1)
EXPIRED = RETENTION + SECOND

pytestmark = pytest.mark.usefixtures("database")


def purge(**options: Any) -> PurgeReport:
    return IdempotencyRecord.objects.purge(**options)  # type: ignore[attr-defined]


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
        record = make_record(key=key, created_at=now - age)
        assert record.is_in_force(now) is (age < RETENTION)
    report = purge(now=now)
    assert left() == {"new", "29 days", "a second left"}
    assert (report.deleted, report.batches, report.more) == (3, 1, False)


def test_now_is_the_default() -> None:
    """P1: What is expired is told by the application's clock."""
    make_record(EXPIRED, key="old")
    make_record(timedelta(days=29), key="young")
    assert purge().deleted == 1
    assert left() == {"young"}


def test_retention_of_the_record() -> None:
    """P1: A record that was promised longer, or shorter, is kept as promised."""
    soon = timezone.now() + timedelta(minutes=1)
    make_record(timedelta(days=365), key="longer", expires_at=soon)
    make_record(timedelta(days=1), key="shorter", expires_at=soon - timedelta(hours=1))
    assert purge().deleted == 1
    assert left() == {"longer"}


@pytest.mark.parametrize("moved", [False, True], ids=["as it is", "session elsewhere"])
def test_live_lease(moved: bool) -> None:
    """P2: Whoever holds a lease by the database's clock keeps the record."""
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
    assert IdempotencyRecord.objects.filter(scope="a").purge().deleted == 1  # type: ignore[attr-defined]
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
    ("records", "batches"), [(0, 1), (1, 1), (4, 3), (5, 3), (6, 4)]
)
def test_batches(records: int, batches: int) -> None:
    """P2: Each batch is a transaction of its own; after a full one comes another."""
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
    """P2: What expired first goes first, so a run that ends early was of use."""
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
        batches += sql.startswith("DELETE")
        result = execute(sql, *args)
        if batches == 3:
            raise ZeroDivisionError
        return result

    # MariaDB deletes row by row: there a batch of one statement is a batch of one row.
    with (
        connection.execute_wrapper(fail_in_the_third),
        pytest.raises(ZeroDivisionError),
    ):
        purge(batch_size=1)
    assert len(left()) == 4


def test_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: No batch begins after the time is up; the report says that more is left."""
    make_records(10, EXPIRED)
    seconds = iter([100.0, 104.0, 108.0, 112.0, 113.0])
    clock = SimpleNamespace(monotonic=seconds.__next__)
    with monkeypatch.context() as patch:
        patch.setattr("idempotency.models.time", clock)
        report = purge(batch_size=2, time_budget=timedelta(seconds=10))
    assert report == PurgeReport(deleted=6, batches=3, seconds=13.0, more=True)
    report = purge()
    assert (report.deleted, report.more) == (4, False)


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
    assert purge(time_budget=timedelta(hours=1)).batches == 3
    assert left() == set()


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

    signals = (models.signals.pre_delete, models.signals.post_delete)
    for signal in signals:
        signal.connect(hear, sender=IdempotencyRecord)
    try:
        with CaptureQueriesContext(connection) as queries:
            purge()
    finally:
        for signal in signals:
            signal.disconnect(hear, sender=IdempotencyRecord)
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


def test_retry_takes_the_key_over(client: Any) -> None:
    """P1: Purged or not, an expired key is new, and its new record is not purged."""
    key = {"HTTP_IDEMPOTENCY_KEY": "the-key-of-this-test"}
    first = client.post("/function/", {"a": 1}, **key)
    IdempotencyRecord.objects.update(expires_at=timezone.now() - SECOND)
    second = client.post("/function/", {"a": 2}, **key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert purge().deleted == 0
    IdempotencyRecord.objects.update(expires_at=timezone.now() - SECOND)
    assert purge().deleted == 1
    assert client.post("/function/", {"a": 3}, **key).status_code == 201


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


def test_command_out_of_time(settings: Any) -> None:
    """P2, P3: The command says that the time ended before the work did."""
    settings.IDEMPOTENCY = {"PURGE_BATCH_SIZE": 2, "PURGE_TIME_BUDGET": timedelta(0)}
    make_records(3, EXPIRED)
    assert "run again for the rest" in command()
    assert "run again for the rest" not in command()
    assert left() == set()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--batch-size", "0"], "--batch-size: must be a whole number from 1, not '0'"),
        (["--batch-size", "-1"], "argument --batch-size"),
        (["--batch-size", "1.5"], "not '1.5'"),
        (["--batch-size", "ten"], "not 'ten'"),
        (["--batch-size", "²"], "not '²'"),
        (["--batch-size", ""], "not ''"),
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

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", "purge_idempotency_records", *arguments],
            cwd=ROOT,
            env={**environment(), "DJANGO_SETTINGS_MODULE": "testproject.settings"},
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    refused = run("--batch-size", "0")
    assert refused.returncode == 2
    assert "must be a whole number from 1" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(left()) == 1
    done = run()
    assert done.returncode == 0, done.stderr
    assert "Deleted 1 expired idempotency records" in done.stdout
    assert left() == set()


@pytest.mark.parametrize("arguments", [(), ("default",)], ids=["default", "named"])
def test_task(arguments: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """P3: The task purges and leaves one line in the log."""
    make_records(2, EXPIRED)
    make_record(key="young")
    assert purge_expired_records.name == "idempotency.tasks.purge_expired_records"
    with caplog.at_level(logging.INFO, logger="idempotency"):
        purge_expired_records.apply(args=arguments).get()
    (message,) = caplog.messages
    assert message.startswith("Purged 2 expired records in 1 batches and ")
    assert message.endswith(" s")
    assert left() == {"young"}


def test_task_out_of_time(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    """P2, P3: The task's line says that more is left."""
    settings.IDEMPOTENCY = {"PURGE_BATCH_SIZE": 1, "PURGE_TIME_BUDGET": timedelta(0)}
    make_records(2, EXPIRED)
    with caplog.at_level(logging.INFO, logger="idempotency"):
        purge_expired_records.apply().get()
    assert caplog.messages[0].endswith("; more are left for the next run")
    assert new_record().key not in left()
    assert len(left()) == 1
