"""Claims in PostgreSQL."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from idempotency.claims.base import TIMES, Claims
from idempotency.claims.errors import causes
from idempotency.claims.pipelines import READ_COMMITTED, PipelinedTransaction, why_not
from idempotency.claims.rows import ATTNAMES, FIELDS, TIME
from idempotency.claims.transactions import Transaction
from idempotency.models import IdempotencyRecord
from idempotency.responses import StoredResponse


class PostgreSQLClaims(Claims):
    """PostgreSQL: a transaction-level advisory lock tells who executes the key.

    It lasts as long as the transaction and no longer, and asking for it never waits.
    Its number is made from the table's own oid and 64 bits of the record's id, so that
    equal keys in two schemas are two.
    """

    select_before_insert = False
    LOCK = (
        "pg_try_advisory_xact_lock("
        "hashint8extended(%s, '{table}'::regclass::oid::bigint))"
    )
    UNLESS_HELD = f" AND {LOCK}"

    # serialization_failure, deadlock_detected
    TRANSIENT = ("40001", "40P01")
    # libpq's PQTRANS_INERROR and PQTRANS_UNKNOWN: an error, or no connection.
    ABORTED = (3, 4)

    # The outermost atomic block in which a savepoint was not released.
    left_savepoint: Any = None
    # The driver's connection that the decision was made for.
    _driver: Any = None
    _why: str | None = None

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        times = ", ".join(map(self._selected, TIMES))
        # The SELECT finds the record that was there before, lock or no lock: replays do
        # not get in each other's way. A join, since parsing and planning is most of
        # what the statement takes, and a UNION has every column twice.
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
            "TRANSACTION_TIMESTAMP(), STATEMENT_TIMESTAMP()"
        )
        # A transaction that a handler has ended by itself had the claim's lock: in
        # another one, the token is NULL, which the server refuses (E5).
        marks = {
            "token": "CASE WHEN TRANSACTION_TIMESTAMP() = %s THEN %s::uuid END",
            "completed_at": "STATEMENT_TIMESTAMP()",
        }
        columns = ", ".join(connection.ops.quote_name(f.column) for f in FIELDS)
        values = ", ".join(marks.get(name, "%s") for name in ATTNAMES)
        self.store_sql = f"INSERT INTO {self.table} ({columns}) VALUES ({values})"

    def transaction(self) -> Transaction:
        if self.why_no_pipelines() is None:
            transaction = PipelinedTransaction(self)
            if isinstance(transaction.cursor, CursorWrapper):
                return transaction
            self.avoid_pipelines("the cursors are not Django's")
        return super().transaction()

    def why_no_pipelines(self, *, ask_server: bool = False) -> str | None:
        """Return why this connection sends each statement by itself; else None.

        Opens the connection, and decides once for each. Requests need not ask the
        server for its isolation level: their first statement does.
        """
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
        """Note at which level the connection's transactions begin."""
        if level != READ_COMMITTED:
            self.avoid_pipelines(f"the isolation level is {level}")

    def avoid_pipelines(self, why: str) -> None:
        """Send each statement by itself as long as the connection lasts."""
        self._why = why

    def insertion(
        self, claimed: IdempotencyRecord, stored: StoredResponse, began_at: datetime
    ) -> tuple[str, list[Any]]:
        """Return the statement that stores a whole record, and its values.

        The server refuses it but in the transaction that began at ``began_at``.
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
        values += [*self.lock_key(new_record), new_record.pk]
        row = self._fetch_row(sql, values)
        if row is None:
            # Held by another transaction, or committed after the snapshot.
            return self.look_up(new_record.pk)
        created_at, expires_at, *found = row
        if created_at is None:
            return self.record_of(found)
        new_record.created_at = TIME.from_db_value(created_at, None, self.connection)
        new_record.expires_at = TIME.from_db_value(expires_at, None, self.connection)
        return new_record

    def is_transient(self, error: DatabaseError) -> bool:
        return self._has_state(error, self.TRANSIENT)

    def is_aborted(self) -> bool:
        driver: Any = self.connection.connection
        return driver is None or driver.info.transaction_status in self.ABORTED

    def _selected(self, name: str) -> str:
        # As text, in binary results, too: Django reads JSON itself.
        selected = super()._selected(name)
        return f"{selected}::text AS {selected}" if name == "headers" else selected

    def _has_state(self, error: Exception, states: tuple[str, ...]) -> bool:
        return any(
            getattr(cause, "sqlstate", getattr(cause, "pgcode", None)) in states
            for cause in causes(error)
        )

    def lock_key(self, record: IdempotencyRecord) -> list[Any]:
        return [int.from_bytes(record.pk.bytes[8:], "big", signed=True)]

    def _values(self, record: IdempotencyRecord, names: list[str]) -> list[Any]:
        # The driver adapts everything but JSON by itself.
        values = [getattr(record, name) for name in names]
        if "headers" in names:
            index = names.index("headers")
            values[index : index + 1] = super()._values(record, ["headers"])
        return values
