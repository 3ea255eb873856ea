"""Claims by statements that any of Django's databases has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from idempotency.models import IdempotencyRecord, State
from idempotency.responses import StoredResponse

FIELDS: Sequence[Any] = IdempotencyRecord._meta.concrete_fields
ATTNAMES = [field.attname for field in FIELDS]
# Null until a claim is executed, so not in its INSERT.
LATER = ("lease_expires_at", "status_code", "headers", "body", "body_size")
INSERTED = [f for f in ATTNAMES if f not in (*LATER, "completed_at")]
COMPLETED = ["state", "status_code", "headers", "body", "body_size", "completed_at"]
CLAIM = ["id", "token"]


class ClaimLost(Exception):
    """A write with the claim's token did not hit exactly one row."""


class Claims:
    """Claims in one database, by statements that any of Django's databases has."""

    # Whether a look-up before the transaction spares replays the INSERT.
    looks_up_first = True
    # What keeps a statement from waiting for another transaction.
    AT_ONCE = ""
    # A condition that keeps a take-over from waiting for another one.
    UNLESS_HELD = ""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        quote = connection.ops.quote_name
        self.table = quote(IdempotencyRecord._meta.db_table)
        columns = {field.attname: quote(field.column) for field in FIELDS}
        self.columns = ", ".join(columns.values())
        self.inserted = ", ".join(columns[name] for name in INSERTED)
        self.marks = ", ".join(["%s"] * len(INSERTED))
        by_id = f"WHERE {columns['id']} = %s"
        by_claim = f"{by_id} AND {columns['token']} = %s"
        everything = ", ".join(f"{column} = %s" for column in columns.values())
        completed = ", ".join(f"{columns[name]} = %s" for name in COMPLETED)
        self.select_sql = f"SELECT {self.columns} FROM {self.table} {by_id}"
        self.take_over_sql = (
            f"{self.AT_ONCE}UPDATE {self.table} SET {everything} {by_claim}"
            f"{self.UNLESS_HELD.format(table=self.table)}"
        )
        self.complete_sql = f"UPDATE {self.table} SET {completed} {by_claim}"
        self.release_sql = f"DELETE FROM {self.table} {by_claim}"
        self.converters = [*self._converters()]

    def claim(
        self,
        wanted: IdempotencyRecord,
        now: datetime,
        seen: IdempotencyRecord | None = None,
    ) -> IdempotencyRecord | None:
        """Return the record that now stands for the key of ``wanted``.

        It has the token of ``wanted`` if the claim is won; another token if the record
        is in force already; and it is None while another transaction executes the key.
        ``seen`` is the record that a look-up found. Must run inside the transaction
        that is to hold the effects.

        Raises ``DatabaseError``; ``is_busy`` tells the one that means None.
        """
        # Again only after somebody purged, released or replaced what was seen.
        for _turn in range(3):
            record = seen or self.insert(wanted)
            if record is None or record.token == wanted.token:
                return record
            if not record.is_expired(now):
                return record
            if self.take_over(record, wanted):
                return wanted
            seen = self.read_again(record.pk)
            if seen is not None and seen.token == record.token:
                return None
        return None

    def look_up(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the visible record, from the database that is written to."""
        return self._fetch(self.select_sql, self._id(record_id))

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the record as it is now, whatever the transaction saw before."""
        return self.look_up(record_id)

    def insert(self, wanted: IdempotencyRecord) -> IdempotencyRecord | None:
        """Insert ``wanted``, or quietly lose, and return the record that stands."""
        manager = IdempotencyRecord.objects.using(self.connection.alias)
        manager.bulk_create([wanted], ignore_conflicts=True)
        return self.look_up(wanted.pk)

    def take_over(self, expired: IdempotencyRecord, wanted: IdempotencyRecord) -> bool:
        """Put ``wanted`` in the place of an expired record, if it is still that one."""
        values = [*self._values(wanted, ATTNAMES), *self._values(expired, CLAIM)]
        return self._execute(self.take_over_sql, values + self._lock_key(wanted)) == 1

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response in the claimed record.

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        body = stored.body
        claimed.state = State.COMPLETED
        claimed.status_code = stored.status_code
        claimed.headers = stored.headers
        claimed.body = body
        claimed.body_size = None if body is None else len(body)
        claimed.completed_at = timezone.now()
        self._write(self.complete_sql, claimed, [*COMPLETED, *CLAIM])

    def release(self, claimed: IdempotencyRecord) -> None:
        """Give the key back with nothing stored.

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        self._write(self.release_sql, claimed, CLAIM)

    def is_busy(self, error: DatabaseError) -> bool:
        """Tell whether a claim failed because another transaction holds the key."""
        return False

    def is_transient(self, error: DatabaseError) -> bool:
        """Tell whether the database undid a transaction that may do well later (E4)."""
        return False

    def is_aborted(self, error: DatabaseError) -> bool:
        """Tell whether an earlier error had ended the transaction already (O2)."""
        return False

    def _write(self, sql: str, claimed: IdempotencyRecord, names: list[str]) -> None:
        if self._execute(sql, self._values(claimed, names)) != 1:
            raise ClaimLost

    def _lock_key(self, record: IdempotencyRecord) -> list[Any]:
        return []

    def _id(self, record_id: UUID) -> list[Any]:
        return self._values(IdempotencyRecord(id=record_id), ["id"])

    def _values(self, record: IdempotencyRecord, names: list[str]) -> list[Any]:
        get_field: Any = IdempotencyRecord._meta.get_field
        return [
            get_field(name).get_db_prep_save(getattr(record, name), self.connection)
            for name in names
        ]

    def _execute(self, sql: str, values: list[Any]) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values)
            rows: int = cursor.rowcount
            return rows

    def _fetch(self, sql: str, values: list[Any]) -> IdempotencyRecord | None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values)
            row = cursor.fetchone()
        if row is None:
            return None
        found = list(row)
        for index, column, convert in self.converters:
            found[index] = convert(found[index], column, self.connection)
        return IdempotencyRecord.from_db(self.connection.alias, ATTNAMES, found)

    def _converters(self) -> Iterator[tuple[int, Any, Any]]:
        """Yield what makes of a column's value what the model's field wants."""
        for index, field in enumerate(FIELDS):
            column = field.get_col(IdempotencyRecord._meta.db_table)
            for convert in (
                *self.connection.ops.get_db_converters(column),
                *column.get_db_converters(self.connection),
            ):
                yield index, column, convert


class RowCountClaims(Claims):
    """Claims by one INSERT whose row count tells who won."""

    INSERT: str

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        self.insert_sql = self.INSERT.format(self.table, self.inserted, self.marks)

    def insert(self, wanted: IdempotencyRecord) -> IdempotencyRecord | None:
        if self._execute(self.insert_sql, self._values(wanted, INSERTED)) == 1:
            return wanted
        return self.read_again(wanted.pk)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, to the driver's own."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
