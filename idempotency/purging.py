"""Delete expired rows in small transactions (contract P2)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import DatabaseError, connections, transaction
from django.db.models import Case, Value, When
from django.utils import timezone

from idempotency.database import EXPIRES_AT_INDEX, UTCNow
from idempotency.database_errors import is_conflict
from idempotency.signals import RecordsPurged, records_purged
from idempotency.steps import HALF_DONE, is_in_transaction

if TYPE_CHECKING:
    from idempotency.models import IdempotencyRecordQuerySet

# A COMMIT waits for the disk and delays other COMMITs. The cost of rows varies, so
# batches start small, double while they are faster than the target, and halve when they
# are slow.
FIRST_BATCH_SIZE = 100
TARGET_BATCH_SECONDS = 0.01
SLOW_BATCH_SECONDS = 0.02
# Batches smaller than the first halve only above this: their time is mostly the disk's
# and the network's, whatever the number of rows.
MAX_BATCH_SECONDS = 0.5
# Sleep 20 times the batch's duration, so that fewer than 1 in 20 requests begin during
# a batch. (With 3 times, the 95th percentile of other requests was 1.55 times as high
# as without a purge; on MariaDB with 10 times 1.31, with 20 times 1.21.)
PAUSE_RATIO = 20.0
SMALL_BATCH_PAUSE_RATIO = 3.0
# Sleep for less when the oldest expired row could have been deleted longer ago than
# this: half as long at twice as much, and so on.
GENTLE_UNTIL = timedelta(hours=1)
NO_REST_FROM = timedelta(days=1)
# Two purges that fail because of each other must not try again at the same time. The
# maximum of the random sleep doubles with each failure in a row.
FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 2.0
# Rows of one day are counted up to this number.
MAX_COUNTED = 1_000_000
# Rows counted between two checks of the time budget.
COUNT_BATCH_SIZE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeReport:
    """The result of a purge; ``more`` is true if expired rows may be left.

    ``half_done`` of the deleted rows had recorded steps, but no response (E12).
    ``skipped`` batches failed for the moment. ``overdue`` is the time since the oldest
    of the rows that are left expired. Like ``more``, it ignores rows that others hold.
    """

    deleted: int = 0
    half_done: int = 0
    batches: int = 0
    skipped: int = 0
    seconds: float = 0.0
    more: bool = True
    overdue: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredOnDay:
    """The number of rows that expired on one day, or at least so many."""

    day: date
    rows: int
    is_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A range of expiries that has a limited number of expired rows.

    The rows that a purge spares stay in the index. A statement that looks for rows to
    delete could read all of them, so each statement is limited to one window. The last
    window has no ``end``.
    """

    begin: datetime | None
    end: datetime | None
    # How long its first row has been expired, and how long it may be deleted.
    overdue: timedelta = timedelta(0)
    late: timedelta = timedelta(0)

    @property
    def after(self) -> datetime | None:
        """Where the next window begins, if there is one."""
        return self.end and self.end + datetime.resolution

    def of(self, rows: IdempotencyRecordQuerySet) -> IdempotencyRecordQuerySet:
        """Return the rows in the window, in order of expiry."""
        if self.begin is not None:
            rows = rows.filter(expires_at__gte=self.begin)
        if self.end is not None:
            rows = rows.filter(expires_at__lte=self.end)
        return rows.order_by("expires_at")

    @classmethod
    def next(
        cls,
        expired: IdempotencyRecordQuerySet,
        size: int,
        since: datetime | None,
        now: datetime | None = None,
        older_than: timedelta | None = None,
    ) -> Window | None:
        """Return the window of ``size`` rows, and of all with the last one's expiry.

        Return None if no row is left. ``now`` replaces the database's clock. Rows that
        were claimed less than ``older_than`` ago stay.
        """
        rest = cls(begin=since, end=None).of(expired)
        first = rest.values_list("expires_at", "created_at", UTCNow()).first()
        if first is None:
            return None
        oldest, claimed_at, clock = first
        clock = now or clock
        late = overdue = clock - oldest
        if older_than is not None:
            late = min(overdue, clock - claimed_at - older_than)
        ends = rest.values_list("expires_at", flat=True)[size - 1 : size]
        return cls(begin=since, end=ends.first(), overdue=overdue, late=late)


def purge_in_batches(
    expired: IdempotencyRecordQuerySet,
    purgeable: IdempotencyRecordQuerySet,
    *,
    now: datetime | None,
    older_than: timedelta | None,
    batch_size: int,
    time_budget: timedelta,
    no_rest: bool,
    rest: Callable[[float], object] | None = None,
) -> Iterator[PurgeReport]:
    """Delete in batches, and yield the report so far after each.

    ``purgeable`` are the ``expired`` rows to delete, ``now`` is the time by which they
    are expired if it isn't the database's. Rows that were claimed less than
    ``older_than`` ago are not late. ``rest(seconds)`` replaces ``time.sleep``; the
    purge ends when it returns a true value.
    """
    purge = _Purge(expired, purgeable, now, older_than, batch_size, no_rest)
    pause, budget = rest or time.sleep, time_budget.total_seconds()
    report = PurgeReport()
    started = time.monotonic()
    try:
        if is_in_transaction(connections[purgeable.db]):
            raise RuntimeError(
                "A purge can't run in a transaction: each batch is a durable one."
            )
        while True:
            seconds = purge.try_batch()
            ended = time.monotonic()
            report = purge.report(ended - started)
            yield report
            is_late = time.monotonic() - started + seconds >= budget
            if not report.more or is_late or pause(seconds):
                return
    finally:
        details = RecordsPurged(database=purgeable.db, **asdict(report))
        records_purged.emit(purgeable.model, details)


class _Purge:
    """What a purge has done, and where it continues."""

    def __init__(
        self,
        expired: IdempotencyRecordQuerySet,
        purgeable: IdempotencyRecordQuerySet,
        now: datetime | None,
        older_than: timedelta | None,
        batch_size: int,
        no_rest: bool,
    ) -> None:
        self.expired, self.purgeable = expired, purgeable
        self.now, self.older_than = now, older_than
        self.most, self.no_rest = batch_size, no_rest
        self.size = min(batch_size, FIRST_BATCH_SIZE)
        self.since: datetime | None = None
        self.window: Window | None = None
        self.retry_seconds = FIRST_RETRY_SECONDS
        self.deleted = self.half_done = self.batches = self.skipped = 0
        self.more, self.overdue, self.late = True, timedelta(0), timedelta(0)

    def report(self, seconds: float) -> PurgeReport:
        """Return the report so far."""
        return PurgeReport(
            deleted=self.deleted,
            half_done=self.half_done,
            batches=self.batches,
            skipped=self.skipped,
            seconds=seconds,
            more=self.more,
            overdue=self.overdue,
        )

    def try_batch(self) -> float:
        """Delete a batch, and return how long to rest.

        If it fails for the moment, its rows are left for the next one.
        """
        size, began = self.size, time.monotonic()
        try:
            found = self._batch()
        except DatabaseError as error:
            if not is_conflict(error):
                raise
            self.skipped += 1
            self.size = max(1, size // 2)
            self.window = None
            seconds = random.uniform(0, self.retry_seconds)  # noqa: S311  # no secret
            self.retry_seconds = min(2 * self.retry_seconds, LAST_RETRY_SECONDS)
            return seconds
        self.retry_seconds = FIRST_RETRY_SECONDS
        ratio = PAUSE_RATIO if size > FIRST_BATCH_SIZE else SMALL_BATCH_PAUSE_RATIO
        # Rows that it does not delete are no reason to hurry.
        haste = _haste(self.late) if found else 1.0
        return 0.0 if self.no_rest else ratio / haste * (time.monotonic() - began)

    def _batch(self) -> int:
        """Delete a batch, find the next window, and return the number of rows."""
        window = self.window or self._find_window()
        if window is None:
            return 0
        size, began = self.size, time.monotonic()
        found, half_done = _delete_batch(self.purgeable, window, size)
        self.size = _next_size(size, time.monotonic() - began, self.most)
        self.deleted += found
        self.half_done += half_done
        self.batches += 1
        self.window = None
        if found < size and window.end is None:
            self.more, self.overdue = False, timedelta(0)
            return found
        # After a full batch, its window has no row before its end. The next batch must
        # not read the index entries of the deleted ones.
        self.since = (window.end or self.since) if found == size else window.after
        self._find_window()
        return found

    def _find_window(self) -> Window | None:
        window = Window.next(
            self.expired, self.size, self.since, self.now, self.older_than
        )
        self.window, self.more = window, window is not None
        self.overdue = timedelta(0) if window is None else window.overdue
        self.late = timedelta(0) if window is None else window.late
        return window


def _haste(late: timedelta) -> float:
    """Return by what the rest of a purge is divided that is so far behind."""
    if late >= NO_REST_FROM:
        return math.inf
    return max(1.0, late / GENTLE_UNTIL)


def _next_size(size: int, took: float, most: int) -> int:
    """Return the size of the batch after one of ``size`` rows."""
    few = min(FIRST_BATCH_SIZE, most)
    if took > MAX_BATCH_SECONDS:
        return max(1, size // 2)
    if size > few and took > SLOW_BATCH_SECONDS:
        return max(few, size // 2)
    if took < (TARGET_BATCH_SECONDS if size >= few else MAX_BATCH_SECONDS / 2):
        return min(most, 2 * size)
    return size


def _delete_batch(
    purgeable: IdempotencyRecordQuerySet, window: Window, size: int
) -> tuple[int, int]:
    """Delete up to ``size`` rows of a window.

    Return how many, and how many of them were half done.
    """
    alias = purgeable.db
    connection: Any = connections[alias]
    features = connection.features
    rows = window.of(purgeable)
    is_outermost = not connection.in_atomic_block  # false in a TestCase
    # _raw_delete() because delete() loads whole rows for its signals.
    with transaction.atomic(using=alias, durable=True):
        if not features.has_select_for_update:
            # On SQLite, a transaction that reads first may be unable to write.
            # So the number of half-done rows is that of a statement that deletes them.
            next_rows = rows.values("pk")[:size]
            next_of_purgeable = purgeable.filter(pk__in=next_rows)
            half_done = next_of_purgeable.filter(HALF_DONE)._raw_delete(alias)
            next_rows = rows.values("pk")[: size - half_done]
            others = purgeable.filter(pk__in=next_rows)._raw_delete(alias)
            return half_done + others, half_done
        if is_outermost:
            with connection.cursor() as cursor:
                # At higher levels, concurrent purges fail on PostgreSQL, and InnoDB
                # locks gaps that block new claims.
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        skip_locked = features.has_select_for_update_skip_locked
        rows = rows.select_for_update(skip_locked=skip_locked)
        is_mariadb = getattr(connection, "mysql_is_mariadb", False)
        with _in_order_of_expiry(connection) if is_mariadb else nullcontext():
            is_half_done = Case(When(HALF_DONE, then=Value(1)), default=Value(0))
            mine = list(rows.values_list("pk", is_half_done)[:size])
        if not mine:
            return 0, 0
        pks = [pk for pk, _is_half_done in mine]
        half_done = sum(each for _pk, each in mine)
        if is_mariadb:
            deleted = _delete_by_primary_key(purgeable, connection, pks)
        else:
            deleted = purgeable.filter(pk__in=pks)._raw_delete(alias)
        return deleted, half_done


@contextmanager
def _in_order_of_expiry(connection: Any) -> Iterator[None]:
    """Make MariaDB read rows by the index on ``expires_at``.

    Otherwise it would sort a table that looks small to it, and lock all its rows.
    """

    def force_index(execute: Any, sql: str, *args: Any) -> Any:
        forced = f" FORCE INDEX ({connection.ops.quote_name(EXPIRES_AT_INDEX)}) WHERE "
        return execute(sql.replace(" WHERE ", forced, 1), *args)

    with connection.execute_wrapper(force_index):
        yield


def _delete_by_primary_key(
    purgeable: IdempotencyRecordQuerySet, connection: Any, pks: list[UUID]
) -> int:
    """Delete rows by the primary key: a table scan would wait for locked rows.

    For an IN, MariaDB 10.11 scans small tables even with FORCE INDEX.
    """
    meta = purgeable.model._meta
    quote = connection.ops.quote_name
    column = quote(meta.pk.column)
    marks = ", ".join(["(%s)"] * len(pks))
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE purgeable FROM (SELECT NULL AS {column} UNION ALL VALUES {marks}) "
            f"AS mine STRAIGHT_JOIN {quote(meta.db_table)} AS purgeable "
            f"ON purgeable.{column} = mine.{column}",
            [meta.pk.get_db_prep_value(pk, connection) for pk in pks],
        )
        deleted: int = cursor.rowcount
        return deleted


def count_by_day(
    expired: IdempotencyRecordQuerySet,
    purgeable: IdempotencyRecordQuerySet,
    *,
    time_budget: timedelta,
) -> Iterator[ExpiredOnDay | None]:
    """Yield the days on which purgeable rows expired, oldest first.

    Each day is counted up to ``MAX_COUNTED`` rows. The last item is None if the time
    budget ended before the last day; then the day before it may have more rows.
    """
    deadline = time.monotonic() + time_budget.total_seconds()
    rest = Window(begin=None, end=None)
    while first := rest.of(expired).values_list("expires_at", flat=True).first():
        day = timezone.localtime(first).date()
        next_day = timezone.make_aware(
            datetime.combine(day + timedelta(days=1), datetime.min.time())
        )
        expired_then, purgeable_then = (
            rows.filter(expires_at__lt=next_day) for rows in (expired, purgeable)
        )
        begin: datetime | None = first
        counted = 0
        while begin and counted <= MAX_COUNTED and time.monotonic() < deadline:
            window = Window.next(expired_then, COUNT_BATCH_SIZE, begin)
            if window is not None:
                counted += window.of(purgeable_then).count()
            begin = window.after if window else None
        is_over = begin is not None and counted <= MAX_COUNTED
        if counted:
            yield ExpiredOnDay(
                day=day,
                rows=min(counted, MAX_COUNTED),
                is_exact=begin is None and counted <= MAX_COUNTED,
            )
        if is_over:
            yield None
            return
        rest = Window(begin=next_day, end=None)
