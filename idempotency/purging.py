"""Delete expired rows in small transactions (contract P2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connections, transaction
from django.db.models import Case, Value, When
from django.utils import timezone

from idempotency.database import EXPIRES_AT_INDEX, UTCNow
from idempotency.signals import RecordsPurged, records_purged
from idempotency.steps import HALF_DONE

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
# Sleep 10 times the batch's duration, so that fewer than 1 in 20 requests overlap a
# batch. (With 3 times, the 95th percentile of other requests was 1.55 times as high as
# without a purge; with 10 times, 1.19.)
PAUSE_RATIO = 10.0
SMALL_BATCH_PAUSE_RATIO = 3.0
# Rows of one day are counted up to this number.
MAX_COUNTED = 1_000_000
# Rows counted between two checks of the time budget.
COUNT_BATCH_SIZE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeReport:
    """The result of a purge; ``more`` is true if expired rows may be left.

    ``half_done`` of the deleted rows had recorded steps, but no response (E12).
    ``overdue`` is the time since the oldest of the rows that are left expired. Like
    ``more``, it ignores rows that others hold.
    """

    deleted: int = 0
    half_done: int = 0
    batches: int = 0
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
        cls, expired: IdempotencyRecordQuerySet, size: int, begin: datetime | None
    ) -> Window:
        """Return the window of ``size`` rows, and of all with the last one's expiry."""
        rest = cls(begin=begin, end=None).of(expired)
        ends = rest.values_list("expires_at", flat=True)[size - 1 : size]
        return cls(begin=begin, end=ends.first())


def purge_in_batches(
    expired: IdempotencyRecordQuerySet,
    purgeable: IdempotencyRecordQuerySet,
    *,
    batch_size: int,
    time_budget: timedelta,
    rest: Callable[[float], object] | None = None,
) -> Iterator[PurgeReport]:
    """Delete in batches, and yield the report so far after each.

    ``purgeable`` are the ``expired`` rows to delete. ``rest(seconds)`` replaces
    ``time.sleep``; the purge ends when it returns a true value.
    """
    report = PurgeReport()
    pause, budget = rest or time.sleep, time_budget.total_seconds()
    try:
        for report in _batches(expired, purgeable, batch_size, budget, pause):
            yield report
    finally:
        details = RecordsPurged(database=purgeable.db, **asdict(report))
        records_purged.emit(purgeable.model, details)


def _batches(
    expired: IdempotencyRecordQuerySet,
    purgeable: IdempotencyRecordQuerySet,
    batch_size: int,
    budget: float,
    rest: Callable[[float], object],
) -> Iterator[PurgeReport]:
    began = started = time.monotonic()
    deleted = half_done = batches = 0
    size = min(batch_size, FIRST_BATCH_SIZE)
    since: datetime | None = None
    while True:
        window = Window.next(expired, size, since)
        found, half_done_found, last = _delete_batch(purgeable, window, size)
        ended = time.monotonic()
        deleted += found
        half_done += half_done_found
        batches += 1
        if found == size:
            # The window may have more. Start at the last deleted row, so that the next
            # batch does not read the index entries of the deleted ones.
            more, since = True, last or since
        else:
            more = window.end is not None
            since = window.after
        yield PurgeReport(
            deleted=deleted,
            half_done=half_done,
            batches=batches,
            seconds=ended - started,
            more=more,
            overdue=_overdue(expired, since) if more else timedelta(0),
        )
        took = ended - began
        pause = (
            PAUSE_RATIO if size > FIRST_BATCH_SIZE else SMALL_BATCH_PAUSE_RATIO
        ) * took
        if not more or time.monotonic() - started + pause >= budget or rest(pause):
            return
        size = _next_size(size, took, batch_size)
        began = time.monotonic()


def _overdue(expired: IdempotencyRecordQuerySet, since: datetime | None) -> timedelta:
    """Return the time since the oldest row from ``since`` on expired.

    Look no further back: the index still has the entries of deleted rows.
    """
    rest = Window(begin=since, end=None).of(expired)
    found = rest.values_list(UTCNow(), "expires_at").first()
    if found is None:
        return timedelta(0)  # another purge has deleted the rest
    now, expired_at = found
    overdue: timedelta = now - expired_at
    return max(overdue, timedelta(0))


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
) -> tuple[int, int, datetime | None]:
    """Delete up to ``size`` rows of a window.

    Return how many, how many of them were half done, and when the last one expired, or
    None without row locks.
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
            return half_done + others, half_done, None
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
            mine = list(rows.values_list("pk", "expires_at", is_half_done)[:size])
        if not mine:
            return 0, 0, None
        pks = [pk for pk, *_rest in mine]
        half_done = sum(each for *_rest, each in mine)
        if is_mariadb:
            deleted = _delete_by_primary_key(purgeable, connection, pks)
        else:
            deleted = purgeable.filter(pk__in=pks)._raw_delete(alias)
        return deleted, half_done, mine[-1][1]


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
            counted += window.of(purgeable_then).count()
            begin = window.after
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
