"""Erase what rows say of a person, in small transactions (contract P4)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import OperationalError, connections, transaction

if TYPE_CHECKING:
    from idempotency.models import IdempotencyRecordQuerySet

# Rows of a transaction. While it lasts, retries of these rows may be refused.
BATCH_SIZE = 200
# Sleep that many times a batch's duration, for the sake of other requests.
PAUSE_RATIO = 3.0
# A batch that failed is tried again after each of these seconds: a deadlock, for
# example, has undone it.
PAUSES = (0.05, 0.2, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReport:
    """How many records were erased, and how many could not be.

    ``in_progress`` have a live lease. ``held`` were in use by other transactions, or
    are newer. Erase again later: ``left`` is 0 if nothing is left.
    """

    erased: int = 0
    in_progress: int = 0
    held: int = 0

    @property
    def left(self) -> int:
        """The number of records that could not be erased."""
        return self.in_progress + self.held


def erase_in_batches(rows: IdempotencyRecordQuerySet, values: Mapping[str, Any]) -> int:
    """Give rows new ``values``, oldest first, and return how many.

    Rows that others hold are skipped. The new values must take a row out of ``rows``.
    """
    erased = 0
    since: datetime | None = None
    while True:
        began = time.monotonic()
        found, since = _with_retries(rows, values, since)
        erased += found
        if found < BATCH_SIZE:
            return erased
        time.sleep(PAUSE_RATIO * (time.monotonic() - began))


def _with_retries(
    rows: IdempotencyRecordQuerySet,
    values: Mapping[str, Any],
    since: datetime | None,
) -> tuple[int, datetime | None]:
    for pause in PAUSES:
        try:
            return erase_batch(rows, values, BATCH_SIZE, since, durable=True)
        except OperationalError:
            connections[rows.db].close_if_unusable_or_obsolete()
            time.sleep(pause)
    return erase_batch(rows, values, BATCH_SIZE, since, durable=True)


def erase_batch(
    rows: IdempotencyRecordQuerySet,
    values: Mapping[str, Any],
    size: int,
    since: datetime | None = None,
    *,
    durable: bool = False,
) -> tuple[int, datetime | None]:
    """Give up to ``size`` of the oldest rows new values, except those that others hold.

    ``since`` is where the search begins, so that it does not read the index entries of
    earlier batches. Return how many rows, and where the next search begins.
    """
    alias = rows.db
    connection: Any = connections[alias]
    features = connection.features
    is_outermost = not connection.in_atomic_block
    every = rows.model._base_manager.using(alias)
    found = rows if since is None else rows.filter(created_at__gte=since)
    found = found.order_by("created_at")
    with transaction.atomic(using=alias, durable=durable):
        if not features.has_select_for_update:
            # On SQLite, a transaction that reads first may be unable to write.
            mine = found.values("pk")[:size]
            return every.filter(pk__in=mine).update(**values), None
        if is_outermost:
            with connection.cursor() as cursor:
                # At higher levels, PostgreSQL refuses rows that have changed, and
                # InnoDB locks gaps that block new claims.
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        skip_locked = features.has_select_for_update_skip_locked
        found = found.select_for_update(skip_locked=skip_locked)
        ids = [*found.values_list("pk", "created_at")[:size]]
        if not ids:
            return 0, since
        pks = [pk for pk, _created_at in ids]
        if getattr(connection, "mysql_is_mariadb", False):
            _update_by_primary_key(rows, connection, pks, values)
        else:
            every.filter(pk__in=pks).update(**values)
        return len(ids), ids[-1][1]


def _update_by_primary_key(
    rows: IdempotencyRecordQuerySet,
    connection: Any,
    pks: list[UUID],
    values: Mapping[str, Any],
) -> None:
    """Update rows by the primary key, as the purge deletes them on MariaDB."""
    meta = rows.model._meta
    quote = connection.ops.quote_name
    key: Any = meta.pk
    assignments, params = [], [key.get_db_prep_value(pk, connection) for pk in pks]
    for name, value in values.items():
        field: Any = meta.get_field(name)
        assignments.append(f"erased.{quote(field.column)} = %s")
        params.append(field.get_db_prep_save(value, connection))
    marks = ", ".join(["(%s)"] * len(pks))
    column, table = quote(key.column), quote(meta.db_table)
    mine = f"(SELECT NULL AS {column} UNION ALL VALUES {marks}) AS mine"
    new = f"SET {', '.join(assignments)}"
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {mine} STRAIGHT_JOIN {table} AS erased "
            f"ON erased.{column} = mine.{column} {new}",
            params,
        )
