"""Deleting any number of expired rows in small transactions (contract P2)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connections, transaction
from django.utils import timezone

from idempotency.indexes import EXPIRES_AT_INDEX
from idempotency.signals import RecordsPurged, records_purged

if TYPE_CHECKING:
    from idempotency.models import IdempotencyRecordQuerySet

# A COMMIT waits until the log of its batch is on disk, and so do those of all others
# meanwhile. Rows differ a lot in what they take, so time decides (in seconds): a batch
# begins small, doubles while it is quick and halves when it was slow.
FIRST_BATCH = 100
QUICK, SLOW = 0.01, 0.02
# After each batch others have the disk for so many times as long as it took. InnoDB's
# own threads remove the rows for good meanwhile, so as long alone was too short there:
# the slowest of twenty requests took 2.4 times as long as without a purge.
REST = 3.0
# So many rows of one day are counted at most: an exact number of more is worth little.
MOST_COUNTED = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeReport:
    """What one purge did: ``more`` is true if it ended before the work did."""

    deleted: int = 0
    batches: int = 0
    seconds: float = 0.0
    more: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredOnDay:
    """How many rows expired on one day; ``is_exact`` is false if there are more."""

    day: date
    rows: int
    is_exact: bool


def purge_in_batches(
    doomed: IdempotencyRecordQuerySet,
    *,
    alias: str,
    batch_size: int,
    time_budget: timedelta,
) -> Iterator[PurgeReport]:
    """Delete batch by batch, and yield after each what was done so far."""
    report = PurgeReport()
    try:
        for report in _batches(doomed, alias, batch_size, time_budget):
            yield report
    finally:
        told = RecordsPurged(database=alias, **asdict(report))
        records_purged.tell(doomed.model, told)


def _batches(
    doomed: IdempotencyRecordQuerySet,
    alias: str,
    batch_size: int,
    time_budget: timedelta,
) -> Iterator[PurgeReport]:
    began = started = time.monotonic()
    deleted = batches = 0
    size = min(batch_size, FIRST_BATCH)
    since: datetime | None = None
    more = True
    while more and (not batches or began - started < time_budget.total_seconds()):
        found, since = _delete_batch(doomed, alias, size, since)
        ended = time.monotonic()
        deleted += found
        batches += 1
        more = found == size
        if ended - began > SLOW:
            size = max(1, size // 2)
        elif ended - began < QUICK:
            size = min(batch_size, 2 * size)
        yield PurgeReport(
            deleted=deleted, batches=batches, seconds=ended - started, more=more
        )
        if more:
            time.sleep(REST * (ended - began))
        began = time.monotonic()


def _delete_batch(
    doomed: IdempotencyRecordQuerySet, alias: str, size: int, since: datetime | None
) -> tuple[int, datetime | None]:
    """Delete the next rows; return how many, and when the last of them expired.

    Not before ``since``, or each batch would read past what the earlier ones left
    behind in the index.
    """
    connection: Any = connections[alias]
    features = connection.features
    rows = doomed.order_by("expires_at")
    if connection.vendor == "mysql" and not connection.in_atomic_block:
        with connection.cursor() as cursor:
            # For the next transaction alone: REPEATABLE READ locks the gaps, too, in
            # which others want to insert their claims.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    # Deleted by _raw_delete(): delete() loads whole rows for its signals.
    with transaction.atomic(using=alias, durable=True):
        if not features.has_select_for_update:
            # SQLite: a transaction that reads first may find that it can't write.
            next_rows = rows.values("pk")[:size]
            return doomed.filter(pk__in=next_rows)._raw_delete(alias), None
        if since is not None:
            rows = rows.filter(expires_at__gte=since)
        skip_locked = features.has_select_for_update_skip_locked
        rows = rows.select_for_update(skip_locked=skip_locked)
        is_mariadb = getattr(connection, "mysql_is_mariadb", False)
        with _in_order_of_expiry(connection) if is_mariadb else nullcontext():
            mine = list(rows.values_list("pk", "expires_at")[:size])
        if not mine:
            return 0, since
        pks = [pk for pk, _expires_at in mine]
        if is_mariadb:
            deleted = _delete_by_primary_key(doomed, connection, pks)
        else:
            deleted = doomed.filter(pk__in=pks)._raw_delete(alias)
        return deleted, mine[-1][1]


@contextmanager
def _in_order_of_expiry(connection: Any) -> Iterator[None]:
    """Make MariaDB read the rows by the index on ``expires_at``.

    It would sort a table that its statistics call small, and lock all of it for that.
    """

    def force_index(execute: Any, sql: str, *args: Any) -> Any:
        forced = f" FORCE INDEX ({connection.ops.quote_name(EXPIRES_AT_INDEX)}) WHERE "
        return execute(sql.replace(" WHERE ", forced, 1), *args)

    with connection.execute_wrapper(force_index):
        yield


def _delete_by_primary_key(
    doomed: IdempotencyRecordQuerySet, connection: Any, pks: list[UUID]
) -> int:
    """Delete rows by that index: a scan would wait for rows that others hold.

    For an IN, MariaDB 10.11 scans small tables even when told to use the index.
    """
    meta = doomed.model._meta
    quote = connection.ops.quote_name
    column = quote(meta.pk.column)
    marks = ", ".join(["(%s)"] * len(pks))
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE doomed FROM (SELECT NULL AS {column} UNION ALL VALUES {marks}) "
            f"AS mine STRAIGHT_JOIN {quote(meta.db_table)} AS doomed "
            f"ON doomed.{column} = mine.{column}",
            [meta.pk.get_db_prep_value(pk, connection) for pk in pks],
        )
        deleted: int = cursor.rowcount
        return deleted


def count_by_day(
    doomed: IdempotencyRecordQuerySet, *, time_budget: timedelta
) -> Iterator[ExpiredOnDay | None]:
    """Yield the days on which rows expired, oldest first, by the current time zone.

    No day is counted beyond ``MOST_COUNTED`` rows. None comes last if the time ended
    before the days did.
    """
    started = time.monotonic()
    rest = doomed.order_by("expires_at").values_list("expires_at", flat=True)
    while (first := rest.first()) is not None:
        if time.monotonic() - started >= time_budget.total_seconds():
            yield None
            return
        day = timezone.localtime(first).date()
        next_day = timezone.make_aware(
            datetime.combine(day + timedelta(days=1), datetime.min.time())
        )
        on_day = rest.filter(expires_at__lt=next_day)
        counted = on_day[: MOST_COUNTED + 1].count()
        yield ExpiredOnDay(
            day=day,
            rows=min(counted, MOST_COUNTED),
            is_exact=counted <= MOST_COUNTED,
        )
        rest = rest.filter(expires_at__gte=next_day)
