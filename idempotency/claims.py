"""Claim, complete, release: the one module with SQL of its own, per database vendor.

Every write carries the claim's token and must hit exactly one row (contract E5), so
whoever lost a claim writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from django.db import DatabaseError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from idempotency.models import IdempotencyRecord, State
from idempotency.responses import StoredResponse

# Columns that an executed claim has and a new one has not: null in the INSERT.
LATER = ("lease_expires_at", "status_code", "headers", "body", "body_size")
FIELDS = IdempotencyRecord._meta.concrete_fields
INSERTED = [f for f in FIELDS if f.name not in (*LATER, "completed_at")]


class ClaimLost(Exception):
    """A write with the claim's token did not hit exactly one row."""


class Claims:
    """Claims in one database, by statements that any of Django's databases has."""

    # Whether a look-up before the transaction spares replays the INSERT.
    looks_up_first = True
    # What keeps a statement from waiting for another transaction.
    AT_ONCE = ""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.connection: BaseDatabaseWrapper = connections[alias]
        self.table = self.connection.ops.quote_name(IdempotencyRecord._meta.db_table)

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
        return IdempotencyRecord.objects.using(self.alias).filter(pk=record_id).first()

    def insert(self, wanted: IdempotencyRecord) -> IdempotencyRecord | None:
        """Insert ``wanted``, or quietly lose, and return the record that stands."""
        manager = IdempotencyRecord.objects.using(self.alias)
        manager.bulk_create([wanted], ignore_conflicts=True)
        return self.look_up(wanted.pk)

    def take_over(self, expired: IdempotencyRecord, wanted: IdempotencyRecord) -> bool:
        """Put ``wanted`` in the place of an expired record, if it is still that one."""
        columns = ", ".join(f"{self._name(f)} = %s" for f in FIELDS)
        return (
            self._execute(
                f"{self.AT_ONCE}UPDATE {self.table} SET {columns} "
                f"WHERE {self._name('id')} = %s AND {self._name('token')} = %s"
                f"{self._unless_held()}",
                [
                    *self._values(wanted, FIELDS),
                    *self._values(expired, ["id", "token"]),
                    *self._lock_key(wanted),
                ],
            )
            == 1
        )

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the record as it is now, whatever the transaction saw before."""
        return self.look_up(record_id)

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response in the claimed record.

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        body = stored.body
        hits = self._held_by(claimed).update(
            state=State.COMPLETED,
            status_code=stored.status_code,
            headers=stored.headers,
            body=body,
            body_size=None if body is None else len(body),
            completed_at=timezone.now(),
        )
        if hits != 1:
            raise ClaimLost
        claimed.state = State.COMPLETED

    def release(self, claimed: IdempotencyRecord) -> None:
        """Give the key back with nothing stored.

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        if self._held_by(claimed)._raw_delete(self.alias) != 1:
            raise ClaimLost

    def is_busy(self, error: DatabaseError) -> bool:
        """Tell whether a claim failed because another transaction holds the key."""
        return False

    def is_transient(self, error: DatabaseError) -> bool:
        """Tell whether the database undid a transaction that may do well later (E4)."""
        return False

    def _held_by(self, claimed: IdempotencyRecord) -> Any:
        manager = IdempotencyRecord.objects.using(self.alias)
        return manager.filter(pk=claimed.pk, token=claimed.token)

    def _unless_held(self) -> str:
        return ""

    def _lock_key(self, record: IdempotencyRecord) -> list[Any]:
        return []

    def _name(self, field: Any) -> str:
        column = field if isinstance(field, str) else field.column
        return self.connection.ops.quote_name(column)

    def _names(self, fields: Any) -> str:
        return ", ".join(map(self._name, fields))

    def _values(self, record: IdempotencyRecord, fields: Any) -> list[Any]:
        get = IdempotencyRecord._meta.get_field
        found: list[Any] = [get(f) if isinstance(f, str) else f for f in fields]
        return [
            f.get_db_prep_save(getattr(record, f.attname), self.connection)
            for f in found
        ]

    def _execute(self, sql: str, params: list[Any]) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, params)
            return cast(int, cursor.rowcount)


class SQLiteClaims(Claims):
    """SQLite: one writer at a time, so whoever waited finds the winner's record."""

    INSERT = "INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"

    def insert(self, wanted: IdempotencyRecord) -> IdempotencyRecord | None:
        sql = self.INSERT.format(
            table=self.table,
            names=self._names(INSERTED),
            marks=", ".join(["%s"] * len(INSERTED)),
        )
        if self._execute(sql, self._values(wanted, INSERTED)) == 1:
            return wanted
        return self.read_again(wanted.pk)

    def is_busy(self, error: DatabaseError) -> bool:
        return isinstance(error, OperationalError) and "locked" in str(error)

    is_transient = is_busy


class MariaDBClaims(SQLiteClaims):
    """MariaDB: the row's own lock tells at once whether somebody executes the key."""

    AT_ONCE = "SET STATEMENT innodb_lock_wait_timeout=0 FOR "
    INSERT = AT_ONCE + "INSERT IGNORE INTO {table} ({names}) VALUES ({marks})"
    LOCK_WAIT_TIMEOUT = 1205
    # Deadlock, also a certification failure of Galera; changed since last read.
    TRANSIENT = (1213, 1020)

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        # A plain SELECT would read the transaction's snapshot under REPEATABLE READ.
        sql = (
            f"{self.AT_ONCE}SELECT {self._names(FIELDS)} FROM {self.table} "
            f"WHERE {self._name('id')} = %s LOCK IN SHARE MODE"
        )
        params = self._values(IdempotencyRecord(id=record_id), ["id"])
        found = IdempotencyRecord.objects.using(self.alias).raw(sql, params)
        return next(iter(found), None)

    def is_busy(self, error: DatabaseError) -> bool:
        return self._number(error) == self.LOCK_WAIT_TIMEOUT

    def is_transient(self, error: DatabaseError) -> bool:
        return any(self._number(cause) in self.TRANSIENT for cause in causes(error))

    def _number(self, error: BaseException) -> int | None:
        return error.args[0] if error.args else None


class PostgreSQLClaims(Claims):
    """PostgreSQL: a transaction-level advisory lock tells who executes the key.

    It lasts as long as the transaction and no longer, and asking for it never waits.
    Its number is made from the table's own oid and 64 bits of the record's id, so that
    equal keys in two schemas are two.
    """

    looks_up_first = False

    # serialization_failure, deadlock_detected
    TRANSIENT = ("40001", "40P01")

    def insert(self, wanted: IdempotencyRecord) -> IdempotencyRecord | None:
        columns = self._names(FIELDS)
        # The second SELECT finds the record that was there before, lock or no lock:
        # replays do not get in each other's way.
        sql = (
            f"WITH claim AS (INSERT INTO {self.table} ({self._names(INSERTED)}) "
            f"SELECT {', '.join(['%s'] * len(INSERTED))} WHERE {self._lock()} "
            f"ON CONFLICT ({self._name('id')}) DO NOTHING RETURNING {columns}) "
            f"SELECT {columns} FROM claim UNION ALL "
            f"SELECT {columns} FROM {self.table} WHERE {self._name('id')} = %s LIMIT 1"
        )
        params = [
            *self._values(wanted, INSERTED),
            *self._lock_key(wanted),
            *self._values(wanted, ["id"]),
        ]
        found = IdempotencyRecord.objects.using(self.alias).raw(sql, params)
        for record in found:
            return wanted if record.token == wanted.token else record
        # Held by another transaction, or committed after this statement's snapshot.
        return self.look_up(wanted.pk)

    def is_transient(self, error: DatabaseError) -> bool:
        return any(
            getattr(cause, "sqlstate", getattr(cause, "pgcode", None)) in self.TRANSIENT
            for cause in causes(error)
        )

    def _lock(self) -> str:
        return (
            "pg_try_advisory_xact_lock("
            f"hashint8extended(%s, '{self.table}'::regclass::oid::bigint))"
        )

    def _lock_key(self, record: IdempotencyRecord) -> list[Any]:
        return [int.from_bytes(record.pk.bytes[8:], "big", signed=True)]

    def _unless_held(self) -> str:
        return f" AND {self._lock()}"


def claims_in(alias: str) -> Claims:
    """Return the claims of a database, in the statements that it is best at."""
    connection = connections[alias]
    if connection.vendor == "postgresql":
        return PostgreSQLClaims(alias)
    if connection.vendor == "sqlite":
        return SQLiteClaims(alias)
    if connection.vendor == "mysql" and connection.mysql_is_mariadb:  # type: ignore[attr-defined]  # of this backend
        return MariaDBClaims(alias)
    return Claims(alias)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, to the driver's own."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
