"""Claims by statements that every Django database supports."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from idempotency.claims.rows import ATTNAMES, FIELDS, Rows
from idempotency.claims.transactions import Transaction
from idempotency.database import UTCNow, in_utc
from idempotency.database_errors import UNDONE_STATES, state_of
from idempotency.discretion import without_values
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, State
from idempotency.responses import StoredResponse

# A claim leaves these fields empty; the response fills them.
LATER = ("status_code", "headers", "body", "body_size", "completed_at")
# Set by the database's clock (P1).
TIMES = ["created_at", "expires_at"]
CLAIMED = [f for f in ATTNAMES if f not in (*LATER, *TIMES, "lease_expires_at")]
COMPLETED = ["state", "status_code", "headers", "body", "body_size", "steps"]
CLAIM = ["id", "token"]
# Placeholders in a statement for the ends of a lease and of a retention.
LEASE, EXPIRY = "{lease}", "{expiry}"


class Claims(Rows):
    """Claims in one database, by statements that every Django database supports.

    Claims with a ``lease`` are for leased mode, where each method commits. All times
    are the database's (E7, P1).
    """

    # How several statements travel in one round trip.
    TOGETHER_BY = ""
    # Whether a look-up before the transaction saves replays the INSERT.
    select_before_insert = True
    # Prefix of a statement that must not wait for another transaction.
    AT_ONCE = ""
    # Condition of a take-over that must not wait for another one.
    UNLESS_HELD = ""
    # Condition of a write that a take-over must not wait for.
    HOLDING = ""
    # Whether a transient error undoes the whole transaction, despite savepoints.
    undoes_all = False
    TRANSIENT: tuple[str | int, ...] = UNDONE_STATES

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        # The records whose handlers run on this connection, by id (E6).
        self.executing: dict[UUID, IdempotencyRecord] = {}
        # Endpoints have few durations, and compiling is slow.
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
        holding = self.HOLDING.format(table=self.table)
        self.steps_sql = (
            f"UPDATE {self.table} SET {columns['steps']} = %s, "
            f"{columns['token']} = %s, {lease} = {LEASE} {executing}{holding}"
        )
        self.renew_sql = f"UPDATE {self.table} SET {lease} = {LEASE} {executing}"
        self.complete_sql = (
            f"UPDATE {self.table} SET {completed}, {lease} = NULL {by_claim}"
        )
        self.end_sql = f"{self.complete_sql}{holding}"
        self.abandon_sql = (
            f"UPDATE {self.table} SET {state} = '{State.ABANDONED}', {lease} = {now} "
            f"{by_claim} AND {state} <> '{State.COMPLETED}'"
        )
        self.release_sql = f"DELETE FROM {self.table} {by_claim}"

    def transaction(self) -> Transaction:
        """Return the transaction of a run in atomic mode."""
        return Transaction(self)

    def why_one_by_one(self, *, ask_server: bool = False) -> str | None:
        """Return why atomic mode sends each statement in a round trip of its own.

        Return None if it does not, or if the database is not behind a network. Open
        the connection if necessary. Requests need not ``ask_server``, because their
        first statement does.
        """
        return None

    def claim(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        seen: IdempotencyRecord | None = None,
        *,
        lease: timedelta | None = None,
    ) -> IdempotencyRecord | None:
        """Return the record of the key of ``new_record``.

        It has the token of ``new_record`` if the claim is won, and another token if the
        key has a record in force. It is None while another transaction runs the
        handler. ``seen`` is the record that a look-up found. The record is in force for
        ``retention`` from now (P1). Without a ``lease``, call this inside the
        transaction of the effects.

        Raise ``DatabaseError``, which means None if ``is_busy()`` says so.
        """
        # Repeated only if the record was purged, released or replaced meanwhile.
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
        """Return the visible record from the write database."""
        return self._fetch(self.select_sql, self.primary_key(record_id))

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the record as it is now, even if the transaction has a snapshot."""
        return self.look_up(record_id)

    def insert(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        lease: timedelta | None,
    ) -> IdempotencyRecord | None:
        """Insert ``new_record`` if the key has no record; return the key's record."""
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
        """Replace an earlier record by ``new_record``, with its times.

        Return False if the row is another record by now, has a live lease again, or was
        completed by a late handler: a stored response is never replaced (E9).
        """
        sql, ends = self._with_lease(self.take_over_sql, lease)
        values = [*self._values(new_record, [*CLAIMED, *TIMES]), *ends]
        values += self._values(earlier, [*CLAIM, "state"])
        return self._execute(sql, values + self.lock_key(new_record.pk)) == 1

    def renew(self, claimed: IdempotencyRecord, lease: timedelta) -> None:
        """Extend the lease to ``lease`` from now (E8).

        Raise ``ClaimLost`` if the record no longer has the claim's token.
        """
        sql, ends = self._with_lease(self.renew_sql, lease)
        self.write(sql, [*ends, *self._values(claimed, CLAIM)])

    def record_steps(
        self, claimed: IdempotencyRecord, token: UUID, steps: str, lease: timedelta
    ) -> None:
        """Store the steps, with a new token and a lease of ``lease`` from now (E12).

        Raise ``ClaimLost`` if the record no longer has the claim's token.
        """
        sql, ends = self._with_lease(self.steps_sql, lease)
        renewed = IdempotencyRecord(
            id=claimed.pk, encrypted_by=claimed.encrypted_by, steps=steps, token=token
        )
        values = [*self._values(renewed, ["steps", "token"]), *ends]
        values += self._values(claimed, CLAIM)
        self.write(sql, values + self.lock_key(claimed.pk))

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response in the claimed record.

        A body that is too large for the database leaves a tombstone (R4).

        Raise ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.write(*self.completion(claimed, stored))

    def end_steps(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response as ``complete()`` does, in the last step's transaction."""
        _sql, values = self.completion(claimed, stored)
        self.write(self.end_sql, values + self.lock_key(claimed.pk))

    def completion(
        self, claimed: IdempotencyRecord, stored: StoredResponse
    ) -> tuple[str, list[Any]]:
        """Return the statement that stores the response, and its parameters."""
        self.fill(claimed, stored)
        return self.complete_sql, self._values(claimed, [*COMPLETED, *CLAIM])

    def abandon(self, claimed: IdempotencyRecord) -> None:
        """Mark the record as abandoned, its outcome unknown (E9).

        Raise ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.write(self.abandon_sql, self._values(claimed, CLAIM))

    def release(self, claimed: IdempotencyRecord) -> None:
        """Delete the record, which frees the key.

        Raise ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.write(*self.deletion(claimed))

    def deletion(self, claimed: IdempotencyRecord) -> tuple[str, list[Any]]:
        """Return the statement that deletes the record, and its parameters."""
        return self.release_sql, self._values(claimed, CLAIM)

    def fill(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Set the fields of a completed record."""
        if stored.body is not None and not self.can_store(
            stored.body, is_encrypted=claimed.encrypted_by is not None
        ):
            stored = stored.as_tombstone()
        claimed.state = State.COMPLETED
        for name, value in stored.as_fields().items():
            setattr(claimed, name, value)

    def can_store(self, body: bytes, *, is_encrypted: bool) -> bool:
        """Return whether a body fits into a statement."""
        return True

    def is_busy(self, error: BaseException) -> bool:
        """Return whether a claim failed because another transaction holds the key."""
        return False

    def is_transient(self, error: BaseException) -> bool:
        """Return whether the transaction was rolled back and may succeed later (E4)."""
        return state_of(error) in self.TRANSIENT

    def is_aborted(self) -> bool:
        """Return whether the server refuses every statement, without asking it (E2)."""
        return False

    def write(self, sql: str, values: list[Any]) -> None:
        """Execute a statement that must change one row, or raise ``ClaimLost`` (E5)."""
        if self._execute(sql, values) != 1:
            raise ClaimLost

    def _with_lease(self, sql: str, lease: timedelta | None) -> tuple[str, list[Any]]:
        """Return a statement with the end of a lease, and its parameters."""
        end, values = self.lease_end(lease)
        return sql.format(lease=end), values

    def lease_end(self, lease: timedelta | None) -> tuple[str, list[Any]]:
        """Return the end of a lease in SQL, NULL without one, and its parameters."""
        return self.end_of(lease) if lease else ("NULL", [])

    def _insertion(
        self,
        sql: str,
        new_record: IdempotencyRecord,
        retention: timedelta,
        lease: timedelta | None,
    ) -> tuple[str, list[Any]]:
        """Return a statement that inserts the record, and its parameters."""
        expiry, expiries = self.end_of(retention)
        end, ends = self.lease_end(lease)
        values = [*self._values(new_record, CLAIMED), *expiries, *ends]
        return sql.format(expiry=expiry, lease=end), values

    def _compile_end(self, duration: timedelta) -> tuple[str, list[Any]]:
        return self._compile(UTCNow() + duration)

    def lock_key(self, record_id: UUID) -> list[Any]:
        """Return the parameters of ``UNLESS_HELD``."""
        return []


class ReturningClaims(Claims):
    """Claims by an INSERT that returns its row, or none if the key has a record."""

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
