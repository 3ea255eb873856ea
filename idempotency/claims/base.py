"""Claims by statements that any of Django's databases has."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import DatabaseError, Error
from django.db.backends.base.base import BaseDatabaseWrapper

from idempotency.claims.rows import ATTNAMES, FIELDS, Rows
from idempotency.claims.transactions import Transaction
from idempotency.database import UTCNow, in_utc
from idempotency.discretion import without_values
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, State
from idempotency.responses import StoredResponse

# What a claim writes, beside the end of its lease; the answer comes later.
LATER = ("status_code", "headers", "body", "body_size", "completed_at")
# Of a new record, by the clock of the database that writes it (P1).
TIMES = ["created_at", "expires_at"]
CLAIMED = [f for f in ATTNAMES if f not in (*LATER, *TIMES, "lease_expires_at")]
COMPLETED = ["state", "status_code", "headers", "body", "body_size"]
CLAIM = ["id", "token"]
# Stand in a statement for the ends of a lease and of a retention.
LEASE, EXPIRY = "{lease}", "{expiry}"


class Claims(Rows):
    """Claims in one database, by statements that any of Django's databases has.

    Claims with a ``lease`` are for leased mode, where each of these methods commits by
    itself. All times are by the database's clock (E7, P1).
    """

    # Whether a look-up before the transaction spares replays the INSERT.
    select_before_insert = True
    # What keeps a statement from waiting for another transaction.
    AT_ONCE = ""
    # A condition that keeps a take-over from waiting for another one.
    UNLESS_HELD = ""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        # The fingerprints of the records whose handlers run on this connection.
        self.executing: dict[UUID, str] = {}
        # Endpoints have few durations, and compiling takes a while.
        self.end_of = lru_cache(self._compile_end)
        quote = connection.ops.quote_name
        columns = {field.attname: quote(field.column) for field in FIELDS}
        by_id = f"WHERE {columns['id']} = %s"
        by_claim = f"{by_id} AND {columns['token']} = %s"
        lease, state = columns["lease_expires_at"], columns["state"]
        executing = f"{by_claim} AND {state} = '{State.IN_PROGRESS}'"
        now = self._compile(UTCNow())[0]
        selected = ", ".join(map(self._selected, ATTNAMES))
        self.columns = (
            f"{selected}, {lease} > {now} AS is_leased, "
            f"{in_utc(now, connection)} AS read_at"
        )
        self.inserted = ", ".join(columns[name] for name in [*CLAIMED, *TIMES])
        self.inserted += f", {lease}"
        self.marks = ", ".join([*["%s"] * len(CLAIMED), now, EXPIRY, LEASE])
        claimed = ", ".join(f"{columns[name]} = %s" for name in (*CLAIMED, *TIMES))
        emptied = ", ".join(f"{columns[name]} = NULL" for name in LATER)
        completed = ", ".join(f"{columns[name]} = %s" for name in COMPLETED)
        completed += f", {columns['completed_at']} = {now}"
        self.select_sql = f"SELECT {self.columns} FROM {self.table} {by_id}"
        self.take_over_sql = (
            f"{self.AT_ONCE}UPDATE {self.table} "
            f"SET {claimed}, {lease} = {LEASE}, {emptied} {by_claim} "
            f"AND {state} = %s AND ({lease} IS NULL OR {lease} <= {now})"
            f"{self.UNLESS_HELD.format(table=self.table)}"
        )
        self.renew_sql = f"UPDATE {self.table} SET {lease} = {LEASE} {executing}"
        self.complete_sql = (
            f"UPDATE {self.table} SET {completed}, {lease} = NULL {by_claim}"
        )
        self.abandon_sql = (
            f"UPDATE {self.table} SET {state} = '{State.ABANDONED}', {lease} = {now} "
            f"{by_claim} AND {state} <> '{State.COMPLETED}'"
        )
        self.release_sql = f"DELETE FROM {self.table} {by_claim}"

    def transaction(self) -> Transaction:
        """Return the transaction of a run in atomic mode."""
        return Transaction(self)

    def claim(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        seen: IdempotencyRecord | None = None,
        *,
        lease: timedelta | None = None,
    ) -> IdempotencyRecord | None:
        """Return the record that now stands for the key of ``new_record``.

        It has the token of ``new_record`` if the claim is won and another token if a
        record is in force already. It is None while another transaction executes the
        key.
        ``seen`` is the record that a look-up found. What is claimed is in force for
        ``retention`` from now (P1). Without a ``lease`` it must run
        inside the transaction that is to hold the effects.

        Raises ``DatabaseError``; ``is_busy`` tells the one that means None.
        """
        # Again only after somebody purged, released or replaced what was seen.
        for _turn in range(3):
            record = seen or self.insert(new_record, retention, lease)
            if record is None or record.token == new_record.token:
                return record
            if record.is_in_force:
                return record
            new_record.created_at = record.read_at
            new_record.expires_at = record.read_at + retention
            if self.take_over(record, new_record, lease):
                return new_record
            seen = self.read_again(record.pk)
            if seen is not None and seen.token == record.token:
                return None
        return None

    def look_up(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the visible record, from the database that is written to."""
        return self._fetch(self.select_sql, self.primary_key(record_id))

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the record as it is now, whatever the transaction saw before."""
        return self.look_up(record_id)

    def insert(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        lease: timedelta | None,
    ) -> IdempotencyRecord | None:
        """Insert ``new_record``, or quietly lose, and return the record that stands."""
        times: dict[str, Any] = {
            "created_at": UTCNow(),
            "expires_at": UTCNow() + retention,
            "lease_expires_at": lease and UTCNow() + lease,
        }
        for name, expression in times.items():
            setattr(new_record, name, expression)
        manager = IdempotencyRecord.objects.using(self.connection.alias)
        try:
            manager.bulk_create([new_record], ignore_conflicts=True)
        except Error as error:
            failure = without_values(error)
        else:
            return self.look_up(new_record.pk)
        raise failure

    def take_over(
        self,
        earlier: IdempotencyRecord,
        new_record: IdempotencyRecord,
        lease: timedelta | None,
    ) -> bool:
        """Put ``new_record``, with its times, in the place of an earlier record.

        False if it is no longer that one, has a live lease again, or was completed by
        a late handler meanwhile: a stored answer is not replaced (E9).
        """
        sql, ends = self._with_lease(self.take_over_sql, lease)
        values = [*self._values(new_record, [*CLAIMED, *TIMES]), *ends]
        values += self._values(earlier, [*CLAIM, "state"])
        return self._execute(sql, values + self.lock_key(new_record)) == 1

    def renew(self, claimed: IdempotencyRecord, lease: timedelta) -> None:
        """Let the lease end ``lease`` from now (E8).

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        sql, ends = self._with_lease(self.renew_sql, lease)
        self._write(sql, [*ends, *self._values(claimed, CLAIM)])

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response in the claimed record.

        A body that the database can't take leaves a tombstone (R4).

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.fill(claimed, stored)
        self._write(self.complete_sql, self._values(claimed, [*COMPLETED, *CLAIM]))

    def abandon(self, claimed: IdempotencyRecord) -> None:
        """Give the claim up, its outcome unknown (E9).

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        self._write(self.abandon_sql, self._values(claimed, CLAIM))

    def release(self, claimed: IdempotencyRecord) -> None:
        """Give the key back with nothing stored.

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        self._write(self.release_sql, self._values(claimed, CLAIM))

    def fill(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Set in the record what is to be stored."""
        if stored.body is not None and not self.can_store(stored.body):
            stored = stored.as_tombstone()
        claimed.state = State.COMPLETED
        for name, value in stored.as_fields().items():
            setattr(claimed, name, value)

    def can_store(self, body: bytes) -> bool:
        """Tell whether a body fits into a statement."""
        return True

    def is_busy(self, error: DatabaseError) -> bool:
        """Tell whether a claim failed because another transaction holds the key."""
        return False

    def is_transient(self, error: DatabaseError) -> bool:
        """Tell whether the database undid a transaction that may do well later (E4)."""
        return False

    def is_aborted(self) -> bool:
        """Tell, without asking the server, whether it refuses every statement (E2)."""
        return False

    def _write(self, sql: str, values: list[Any]) -> None:
        if self._execute(sql, values) != 1:
            raise ClaimLost

    def _with_lease(self, sql: str, lease: timedelta | None) -> tuple[str, list[Any]]:
        """Return a statement with the end of a lease in it, and that end's values."""
        end, values = self.end_of(lease) if lease else ("NULL", [])
        return sql.format(lease=end), values

    def _insertion(
        self,
        sql: str,
        new_record: IdempotencyRecord,
        retention: timedelta,
        lease: timedelta | None,
    ) -> tuple[str, list[Any]]:
        """Return a statement that inserts, and the values for its marks."""
        expiry, expiries = self.end_of(retention)
        end, ends = self.end_of(lease) if lease else ("NULL", [])
        values = [*self._values(new_record, CLAIMED), *expiries, *ends]
        return sql.format(expiry=expiry, lease=end), values

    def _compile_end(self, duration: timedelta) -> tuple[str, list[Any]]:
        return self._compile(UTCNow() + duration)

    def lock_key(self, record: IdempotencyRecord) -> list[Any]:
        return []


class ReturningClaims(Claims):
    """Claims by one INSERT that returns the row if it wins."""

    INSERT: str

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        insert_sql = self.INSERT.format(self.table, self.inserted, self.marks)
        self.insert_sql = f"{insert_sql} RETURNING {self.columns}"

    def insert(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        lease: timedelta | None,
    ) -> IdempotencyRecord | None:
        if not self.connection.features.can_return_columns_from_insert:
            return super().insert(new_record, retention, lease)  # SQLite before 3.35
        sql, values = self._insertion(self.insert_sql, new_record, retention, lease)
        return self._fetch(sql, values) or self.read_again(new_record.pk)
