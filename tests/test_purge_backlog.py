"""A purge that is behind hurries, says so, and goes on after others were in its way."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import (
    OperationalError,
    close_old_connections,
    connection,
    transaction,
)
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import make_naive

from idempotency import purging
from idempotency.checks import check_backlog
from idempotency.models import IdempotencyRecord
from idempotency.purging import PurgeReport
from idempotency.tasks import purge_expired_records
from tests.support.failing_commits import commit_fails_with
from tests.support.processes import PATIENCE, PAUSE_FOR_INNODB, wait_until
from tests.support.record_factories import (
    RETENTION,
    left,
    make_record,
    make_records,
)
from tests.support.rendezvous import session_id
from tests.test_lost_connections import end_session
from tests.test_purge import HALF_DONE, Clock, in_thread, is_deletion

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SECOND = timedelta(seconds=1)
TABLE = IdempotencyRecord._meta.db_table

pytestmark = pytest.mark.usefixtures("database")


def purge(**options: Any) -> PurgeReport:
    return IdempotencyRecord.objects.purge(**options)


def needs_a_server() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer, and no sessions.")


# Pace.


@pytest.mark.parametrize(
    ("overdue", "rests"),
    [
        (SECOND, 0.3),
        (59 * MINUTE, 0.3),
        (2 * HOUR, 0.15),
        (6 * HOUR, 0.05),
        (23 * HOUR, 0.3 / 23),
        (DAY + MINUTE, 0),
        (90 * DAY, 0),
    ],
    ids=str,
)
def test_pace(
    overdue: timedelta, rests: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P2: The further the oldest record is behind, the less a purge rests."""
    make_records(4, RETENTION + overdue)
    clock = Clock(monkeypatch, 0.1, 0.1)
    assert purge(batch_size=2).deleted == 4
    assert clock.rests == [pytest.approx(rests, rel=0.01)]


def test_pace_of_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: After more than a few rows the rest gets shorter in the same way."""
    monkeypatch.setattr(purging, "FIRST_BATCH_SIZE", 1)
    make_records(4, RETENTION + 2 * HOUR)
    clock = Clock(monkeypatch, 0.001, 0.015, 0.015)
    assert purge(batch_size=2).deleted == 4
    assert clock.rests == pytest.approx([0.0015, 0.15], rel=0.01)


def test_gentle_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: What is left says how much a purge rests, not what it has deleted."""
    make_records(2, RETENTION + 2 * DAY)
    make_records(2, RETENTION + SECOND)
    clock = Clock(monkeypatch, 0.1, 0.1)
    reports = [*IdempotencyRecord.objects.purge_in_batches(batch_size=2)]
    assert [report.deleted for report in reports] == [2, 4]
    assert clock.rests == [pytest.approx(0.3)]


def test_spared_records_are_no_reason_to_hurry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P2: Among records that it spares, a purge reads as gently as ever."""
    make_records(4, RETENTION + 2 * DAY)
    clock = Clock(monkeypatch, 0.1, 0.1)
    assert purge(batch_size=2, older_than=90 * DAY).deleted == 0
    assert clock.rests == [pytest.approx(0.3)]


@pytest.mark.parametrize(("age", "rests"), [(HOUR / 2, 0.3), (2 * HOUR, 0.15)])
def test_pace_with_older_than(
    age: timedelta, rests: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P2: A record is overdue from when a purge with ``older_than`` may delete it."""
    older_than = RETENTION + 15 * DAY
    make_records(4, older_than + age)
    clock = Clock(monkeypatch, 0.1, 0.1)
    assert purge(batch_size=2, older_than=older_than).deleted == 4
    assert clock.rests == [pytest.approx(rests, rel=0.01)]


def test_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2, P3: On request there is no rest at all, by manager and command."""
    make_records(6, RETENTION + SECOND)
    with monkeypatch.context() as patch:
        clock = Clock(patch, 0.1, 0.1, 0.1)
        report = purge(batch_size=2, no_rest=True, time_budget=0.25 * SECOND)
    assert (report.deleted, report.more, clock.rests) == (6, False, [0, 0])
    make_records(4, RETENTION + SECOND)
    rests: list[float] = []
    monkeypatch.setattr(
        "idempotency.management.commands.purge_idempotency_records.Interruption.wait",
        lambda self, seconds: rests.append(seconds),
    )
    arguments = ["--no-rest", "--batch-size=2", "--verbosity=0"]
    call_command("purge_idempotency_records", *arguments)
    assert (left(), rests) == (set(), [0])


# How far behind.


@pytest.mark.parametrize(
    "run",
    [
        purge,
        lambda: call_command("purge_idempotency_records", verbosity=0),
        lambda: purge_expired_records.apply().get(),
    ],
    ids=["manager", "command", "task"],
)
def test_nothing_to_do(run: Callable[[], Any]) -> None:
    """P2, P3: A purge that finds nothing has looked once, by an index."""
    make_records(3)
    with CaptureQueriesContext(connection) as queries:
        run()
    (query,) = queries
    assert query["sql"].startswith("SELECT")
    assert query["sql"].endswith("LIMIT 1")
    assert len(left()) == 3


def test_report_of_nothing() -> None:
    """P2: A purge that finds nothing says so."""
    report = purge()
    assert report == PurgeReport(more=False, seconds=report.seconds)


def test_how_far_behind(caplog: pytest.LogCaptureFixture) -> None:
    """P2, P3: Report, signal and log line say how far behind a purge is."""
    for days in (5, 3, 2):
        make_record(RETENTION + days * DAY)
    assert 0 <= (IdempotencyRecord.objects.overdue() - 5 * DAY) / SECOND < PATIENCE
    with caplog.at_level(logging.INFO, logger="idempotency"):
        report = purge(batch_size=1, time_budget=timedelta(0))
        assert purge(time_budget=timedelta(0)).overdue == timedelta(0)
    assert 0 <= (report.overdue - 3 * DAY) / SECOND < PATIENCE
    some, rest = caplog.records
    assert "; more are left for the next run, the oldest expired 3 days, 0:00:" in (
        some.getMessage()
    )
    assert vars(some)["idempotency_overdue"] == report.overdue
    assert "oldest" not in rest.getMessage()
    assert IdempotencyRecord.objects.overdue() == timedelta(0)


def test_rows_that_expire_meanwhile() -> None:
    """P2: A full batch of what was the last window may leave more behind it."""
    make_records(1, RETENTION + SECOND)
    looks = 0

    def expire(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal looks
        result = execute(sql, *args)
        if sql.endswith("OFFSET 1"):
            # This was the look at the end of a window, and then comes the batch.
            looks += 1
            if looks == 1:
                with in_thread(lambda: make_records(3, RETENTION + SECOND)) as done:
                    done.result(PATIENCE)
        return result

    with connection.execute_wrapper(expire):
        report = purge(batch_size=2, time_budget=timedelta(0))
    assert (report.deleted, report.more) == (2, True)
    assert (purge().deleted, left()) == (2, set())


@pytest.mark.parametrize("use_tz", [True, False], ids=["aware", "naive"])
def test_how_far_behind_by_another_clock(settings: Any, use_tz: bool) -> None:
    """P2: It counts from the given time, in a project without time zones, too."""
    settings.USE_TZ = use_tz
    now = datetime.now(timezone.utc).replace(microsecond=0)
    for seconds in range(2):
        make_record(created_at=now - RETENTION + seconds * SECOND)
    given = now + HOUR
    if not use_tz:
        given = make_naive(given)
    report = purge(now=given, batch_size=1, time_budget=timedelta(0))
    assert report.overdue == HOUR - SECOND


def test_command_tells_how_far_behind() -> None:
    """P3: The command says it, too, when records are left."""
    for days in (5, 3):
        make_record(RETENTION + days * DAY)
    output = StringIO()
    arguments = ["--batch-size=1", "--time-budget=0s"]
    call_command("purge_idempotency_records", *arguments, stdout=output)
    _done, behind, _last = output.getvalue().splitlines()
    assert behind.startswith("The oldest record left expired 3 days, 0:00:")


def test_check() -> None:
    """P2, X2: W015, the oldest expired record is more than two days overdue."""
    make_record(RETENTION + 2 * DAY - MINUTE)
    assert check_backlog(databases=["default"]) == []
    make_record(RETENTION + 3 * DAY + MINUTE)
    assert check_backlog(databases=[]) == []
    with CaptureQueriesContext(connection) as queries:
        (message,) = check_backlog(databases=["default"])
    assert message.id == "idempotency.W015"
    assert message.msg.endswith("in the database 'default' expired 3 days ago.")
    looked = [query["sql"] for query in queries if TABLE in query["sql"]]
    assert len(looked) == 1
    assert looked[0].endswith("LIMIT 1")


def test_check_before_the_first_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """X2: Without a table there is nothing to warn about."""
    make_record(RETENTION + 3 * DAY)
    monkeypatch.setattr(connection.introspection, "table_names", list)
    assert check_backlog(databases=["default"]) == []


def test_dry_run_of_full_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: It counts right where the last rows of a day fill a window."""
    monkeypatch.setattr(purging, "COUNT_BATCH_SIZE", 2)
    noon = datetime(2026, 4, 5, 12, tzinfo=timezone.utc)
    for seconds in range(4):
        make_record(created_at=noon - RETENTION + seconds * SECOND)
    output = StringIO()
    call_command("purge_idempotency_records", "--dry-run", stdout=output)
    assert output.getvalue().splitlines() == [
        "2026-04-05  4",
        "A purge would delete 4 records.",
    ]


# Others in the way.


class Retries:
    """Batches fail for the moment, and random waits are as long as they may be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most: list[float] = []
        monkeypatch.setattr(random, "uniform", self.wait)

    def wait(self, least: float, most: float) -> float:
        assert least == 0
        self.most.append(most)
        return most


def failing(error: Exception, *numbers: int) -> Any:
    """Let the batches with these numbers, or all, fail at their deletion."""
    batches = 0

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal batches
        if is_deletion(sql):
            batches += 1
            if not numbers or batches in numbers:
                raise error
        return execute(sql, *args)

    return connection.execute_wrapper(fail)


DEADLOCK = OperationalError(1213, "Deadlock found when trying to get lock")


def test_failed_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """P2: A batch that fails for the moment is tried again with half of its rows."""
    make_records(200, RETENTION + SECOND)
    retries = Retries(monkeypatch)
    monkeypatch.setattr(purging, "MAX_BATCH_SECONDS", math.inf)
    sizes: list[int] = []
    delete_batch = purging._delete_batch

    def note(rows: Any, window: Any, size: int) -> Any:
        sizes.append(size)
        return delete_batch(rows, window, size)

    monkeypatch.setattr(purging, "_delete_batch", note)
    rests: list[float] = []
    with (
        failing(DEADLOCK, 1, 2, 4),
        caplog.at_level(logging.INFO, logger="idempotency"),
    ):
        *_others, report = IdempotencyRecord.objects.purge_in_batches(rest=rests.append)
    assert sizes == [100, 50, 25, 50, 25, 50, 100]
    assert (report.deleted, report.batches, report.more) == (200, 4, False)
    assert report.skipped == 3
    # The wait doubles with each failure in a row.
    assert retries.most == [0.05, 0.1, 0.05]
    assert [rests[place] for place in (0, 1, 3)] == retries.most
    (message,) = caplog.messages
    assert "; 3 batches failed and were tried again" in message
    assert left() == set()


def test_batches_that_always_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: It goes on within its time, and waits for at most some seconds."""
    make_records(3, RETENTION + SECOND)
    retries = Retries(monkeypatch)
    clock = Clock(monkeypatch, *[0.01] * 9)
    with failing(DEADLOCK):
        report = purge(time_budget=9 * SECOND)
    assert retries.most == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2])
    assert clock.rests == retries.most[:-1]
    assert (report.deleted, report.batches, report.skipped) == (0, 0, 9)
    assert report.more
    assert report.overdue >= SECOND
    assert len(left()) == 3


def test_command_with_failed_batches() -> None:
    """P3: The command tells how many batches failed, after what it has deleted."""
    make_records(2, RETENTION + SECOND)
    make_record(RETENTION + SECOND, **HALF_DONE)
    output = StringIO()
    with failing(DEADLOCK, 1):
        call_command("purge_idempotency_records", stdout=output)
    done, half_done, failed = output.getvalue().splitlines()
    assert done.startswith("Deleted 3 expired idempotency records in 1 batches and ")
    assert half_done == "1 of them had recorded steps, but no response."
    assert failed == "1 batches failed and were tried again."


def test_errors_that_stay() -> None:
    """P2: Another error ends the purge, as trying again would not help."""
    make_records(3, RETENTION + SECOND)
    with (
        failing(OperationalError(1114, "The table is full"), 1),
        pytest.raises(OperationalError, match="full"),
    ):
        purge()
    assert len(left()) == 3


def run_until_skipped(*done: Callable[[], object], **options: Any) -> PurgeReport:
    """Purge, and do something while it rests."""

    def rest(seconds: float) -> None:
        for each in done:
            each()

    *_others, report = IdempotencyRecord.objects.purge_in_batches(rest=rest, **options)
    return report


def is_waiting(session: int) -> bool:
    """Return whether a session waits for another one's lock."""
    sql = {
        "postgresql": "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted",
        "mysql": "SELECT 1 FROM information_schema.innodb_trx "
        "WHERE trx_mysql_thread_id = %s AND trx_state = 'LOCK WAIT'",
    }[connection.vendor]
    # Not the connection's own cursor, which would ask the wrapper again.
    with connection.connection.cursor() as cursor:
        cursor.execute(sql, [session])
        return cursor.fetchone() is not None


def test_deadlock() -> None:
    """P2: A real deadlock, in which the database ends the purge's transaction."""
    needs_a_server()
    make_records(3, RETENTION + SECOND)
    make_record(key="young")
    now = datetime.now(timezone.utc)
    is_ready, is_in_batch = threading.Event(), threading.Event()
    sessions: list[int] = []

    def hold() -> None:
        with transaction.atomic():
            sessions.append(session_id() or 0)
            if connection.vendor == "postgresql":
                # The purge is the first to find out.
                with connection.cursor() as cursor:
                    cursor.execute("SET LOCAL deadlock_timeout = '1h'")
            else:
                # InnoDB undoes the transaction that has changed less.
                make_records(50)
            locked = IdempotencyRecord.objects.select_for_update()
            locked.get(key="young")
            is_ready.set()
            assert is_in_batch.wait(PATIENCE)
            assert len(locked.filter(expires_at__lt=now)) == 3
            transaction.set_rollback(True)

    def meet(execute: Any, sql: str, params: Any, *args: Any) -> Any:
        if is_deletion(sql) and not is_in_batch.is_set():
            is_in_batch.set()
            wait_until(
                lambda: is_waiting(sessions[0]),
                "the other session to wait",
                pause=PAUSE_FOR_INNODB,
            )
            key = connection.ops.quote_name("key")
            execute(
                f"SELECT 1 FROM {TABLE} WHERE {key} = 'young' FOR UPDATE", (), *args
            )
        return execute(sql, params, *args)

    with in_thread(hold) as holder:
        assert is_ready.wait(PATIENCE)
        with connection.execute_wrapper(meet):
            report = run_until_skipped(lambda: holder.result(PATIENCE))
    assert (report.deleted, report.skipped, report.more) == (3, 1, False)
    assert left() == {"young"}


def test_serialization_failure() -> None:
    """P2: A real one, of a database that did not take the purge's own level."""
    needs_a_server()
    make_records(3, RETENTION + SECOND)
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'")
            if not cursor.fetchall():
                pytest.skip("This MariaDB has no snapshot isolation.")
            cursor.execute("SET SESSION innodb_snapshot_isolation = ON")
    conflicts = 0

    def change_rows() -> None:
        IdempotencyRecord.objects.update(attempt=2)

    def conflict(execute: Any, sql: str, params: Any, *args: Any) -> Any:
        nonlocal conflicts
        if conflicts or not sql.startswith("SET TRANSACTION"):
            return execute(sql, params, *args)
        conflicts += 1
        execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", params, *args)
        result = execute(f"SELECT COUNT(*) FROM {TABLE}", (), *args)
        with in_thread(change_rows) as done:
            done.result(PATIENCE)
        return result

    try:
        with connection.execute_wrapper(conflict):
            report = run_until_skipped()
    finally:
        connection.close()
    assert (report.deleted, report.skipped, report.more) == (3, 1, False)


def test_failed_certification() -> None:
    """P2: A cluster refuses a batch at its COMMIT, which leaves nothing."""
    make_records(3, RETENTION + SECOND)
    with ExitStack() as stack:
        stack.enter_context(commit_fails_with(DEADLOCK))
        report = run_until_skipped(stack.close)
    assert (report.deleted, report.batches, report.skipped) == (3, 1, 1)
    assert left() == set()


def test_locked_table() -> None:
    """P2: Waiting too long for a lock, as of a migration, is for the moment, too."""
    make_records(3, RETENTION + SECOND)
    locks, wait_briefly, unlock = {
        "postgresql": (
            f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE",
            "SET lock_timeout = 10",
            "ROLLBACK",
        ),
        "mysql": (
            f"LOCK TABLES {TABLE} WRITE",
            "SET lock_wait_timeout = 1",
            "UNLOCK TABLES",
        ),
        "sqlite": ("BEGIN IMMEDIATE", "PRAGMA busy_timeout = 1", "ROLLBACK"),
    }[connection.vendor]
    is_locked, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("BEGIN")
            cursor.execute(locks)
            is_locked.set()
            assert may_end.wait(PATIENCE)
            cursor.execute(unlock)

    try:
        with connection.cursor() as cursor:
            cursor.execute(wait_briefly)
        with in_thread(hold) as holder:
            assert is_locked.wait(PATIENCE)
            report = run_until_skipped(may_end.set, lambda: holder.result(PATIENCE))
    finally:
        connection.close()
    assert (report.deleted, report.skipped, report.more) == (3, 1, False)


def test_lost_connection(caplog: pytest.LogCaptureFixture) -> None:
    """P2: A lost connection undoes one batch; the next purge does the rest."""
    needs_a_server()
    make_records(6, RETENTION + SECOND)
    batches = 0

    def cut(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal batches
        batches += is_deletion(sql)
        if batches == 2:
            end_session()
        return execute(sql, *args)

    with (
        connection.execute_wrapper(cut),
        pytest.raises(OperationalError),
        caplog.at_level(logging.INFO, logger="idempotency"),
    ):
        purge(batch_size=2)
    (message,) = caplog.messages
    assert message.startswith("records_purged: 2 expired records in 1 batches and ")
    assert "; more are left for the next run, the oldest expired 0:00:" in message
    close_old_connections()  # as between two tasks
    assert len(left()) == 4
    assert purge().deleted == 4


def test_several_without_rest() -> None:
    """P2: Purges that do not rest run at the same time, and delete all once."""
    make_records(600, RETENTION + SECOND)
    make_record(key="young")
    start = threading.Barrier(3)

    def run() -> PurgeReport:
        start.wait(PATIENCE)
        try:
            return purge(batch_size=20, no_rest=True)
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        reports = [each.result() for each in [pool.submit(run) for _ in range(3)]]
    assert sum(report.deleted for report in reports) == 600
    assert left() == {"young"}
