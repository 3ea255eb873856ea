"""Claims in PostgreSQL."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from idempotency.claims.base import TIMES, Claims
from idempotency.claims.pipelines import READ_COMMITTED, PipelinedTransaction, why_not
from idempotency.claims.rows import ATTNAMES, FIELDS, TIME
from idempotency.claims.transactions import Transaction
from idempotency.database import in_utc
from idempotency.models import IdempotencyRecord
from idempotency.responses import StoredResponse


class PostgreSQLClaims(Claims):
    """Claims by advisory locks of the transaction, which are taken without waiting.

    The lock's number is made from the table's oid and 64 bits of the record's id, so
    equal keys in two schemas have different locks.
    """

    TOGETHER_BY = "pipelines"
    select_before_insert = False
    LOCK = (
        "pg_try_advisory_xact_lock("
        "hashint8extended(%s, '{table}'::regclass::oid::bigint))"
    )
    UNLESS_HELD = f" AND {LOCK}"
    # Waits at most for a take-over's statement, which commits at once.
    HOLDING = f" AND {LOCK.replace('_try_', '_')}::text = ''"

    # Lets the COMMIT of a lease wait for the disk and for synchronous standbys, even if
    # the session's transactions do not (E7).
    DURABLY = (
        "CASE WHEN SET_CONFIG('synchronous_commit', "
        "CASE CURRENT_SETTING('synchronous_commit') "
        "WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, TRUE) <> '' THEN {} END"
    )
    # libpq's PQTRANS_INERROR and PQTRANS_UNKNOWN: an error, or no connection.
    ABORTED = (3, 4)

    # The outermost atomic block in which a savepoint was not released.
    left_savepoint: Any = None
    # The driver's connection to which ``_why`` applies.
    _driver: Any = None
    _why: str | None = None

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        times = ", ".join(map(self._selected, TIMES))
        # The SELECT finds an earlier record without the lock, so replays do not block
        # each other. A join, because a UNION has every column twice, and parsing and
        # planning take most of the statement's time.
        self.insert_sql = (
            f"WITH claim AS (INSERT INTO {self.table} ({self.inserted}) "
            f"SELECT {self.marks} WHERE {self.LOCK.format(table=self.table)} "
            f"ON CONFLICT DO NOTHING RETURNING {times}) "
            f"SELECT claim.*, record.* FROM claim "
            f"FULL JOIN ({self.select_sql}) AS record ON TRUE"
        )

        self.lock_sql = (
            f"SELECT {self.LOCK.format(table=self.table)}, "
            "CURRENT_SETTING('transaction_isolation'), "
            "CURRENT_SETTING('default_transaction_isolation'), "
            "CURRENT_SETTING('transaction_read_only'), "
            f"{in_utc('TRANSACTION_TIMESTAMP()', connection)}, "
            f"{in_utc('STATEMENT_TIMESTAMP()', connection)}"
        )
        # If the handler has ended the claim's transaction, its lock is gone. Then the
        # token is NULL, which the server refuses (E5).
        marks = {
            "token": "CASE WHEN TRANSACTION_TIMESTAMP() = %s THEN %s::uuid END",
            "completed_at": "STATEMENT_TIMESTAMP()",
        }
        columns = ", ".join(connection.ops.quote_name(f.column) for f in FIELDS)
        values = ", ".join(marks.get(name, "%s") for name in ATTNAMES)
        self.store_sql = f"INSERT INTO {self.table} ({columns}) VALUES ({values})"

    def transaction(self) -> Transaction:
        if self.why_one_by_one() is None:
            transaction = PipelinedTransaction(self)
            if isinstance(transaction.cursor, CursorWrapper):
                return transaction
            self.avoid_pipelines("the cursors are not Django's")
        return super().transaction()

    def why_one_by_one(self, *, ask_server: bool = False) -> str | None:
        self.connection.ensure_connection()
        driver = self.connection.connection
        if driver is not self._driver:
            self._driver, self._why = driver, why_not(self.connection)
        if ask_server and self._why is None and driver.isolation_level is None:
            with self.connection.cursor() as cursor:
                cursor.execute("SHOW default_transaction_isolation")
                self.note_isolation(cursor.fetchone()[0])
        return self._why

    def note_isolation(self, level: str) -> None:
        """Note the isolation level at which the connection's transactions begin."""
        if level != READ_COMMITTED:
            self.avoid_pipelines(f"the isolation level is {level}")

    def avoid_pipelines(self, why: str) -> None:
        """Use no pipelines on this connection any more."""
        self._why = why

    def claim_sql(self, record_id: UUID) -> str:
        """Return the statements that take the lock, then look up the record.

        They have no parameters, because only such statements may share a message.
        """
        lock = self.lock_sql % tuple(self.lock_key(record_id))
        look_up = self.select_sql % f"'{record_id}'"
        return f"{lock}; {look_up}"

    def insertion(
        self, claimed: IdempotencyRecord, stored: StoredResponse, began_at: datetime
    ) -> tuple[str, list[Any]]:
        """Return the statement that stores a whole record, and its parameters.

        The server accepts it only in the transaction that began at ``began_at``.
        """
        self.fill(claimed, stored)
        names = [name for name in ATTNAMES if name != "completed_at"]
        values = self._values(claimed, names)
        values.insert(names.index("token"), began_at)
        return self.store_sql, values

    def insert(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        lease: timedelta | None,
    ) -> IdempotencyRecord | None:
        sql, values = self._insertion(self.insert_sql, new_record, retention, lease)
        values += [*self.lock_key(new_record.pk), new_record.pk]
        row = self._fetch_row(sql, values)
        if row is None:
            # Another transaction holds the key, or has committed after the snapshot.
            return self.look_up(new_record.pk)
        created_at, expires_at, *found = row
        if created_at is None:
            return self.record_of(found)
        new_record.created_at = TIME.from_db_value(created_at, None, self.connection)
        new_record.expires_at = TIME.from_db_value(expires_at, None, self.connection)
        return new_record

    def lease_end(self, lease: timedelta | None) -> tuple[str, list[Any]]:
        end, values = super().lease_end(lease)
        return (self.DURABLY.format(end) if lease else end), values

    def is_aborted(self) -> bool:
        driver: Any = self.connection.connection
        # psycopg 3 makes objects for ``info``; psycopg2 has no ``pgconn``.
        known = driver and (getattr(driver, "pgconn", None) or driver.info)
        return known is None or known.transaction_status in self.ABORTED

    def _selected(self, name: str) -> str:
        # As text even in binary results, because Django parses the JSON.
        selected = super()._selected(name)
        return f"{selected}::text AS {selected}" if name == "headers" else selected

    def lock_key(self, record_id: UUID) -> list[Any]:
        return [int.from_bytes(record_id.bytes[8:], "big", signed=True)]

    def _values(self, record: IdempotencyRecord, names: list[str]) -> list[Any]:
        # The driver adapts all values except JSON.
        adapt = super()._values
        return [
            adapt(record, [name])[0] if name == "headers" else record.as_stored(name)
            for name in names
        ]
