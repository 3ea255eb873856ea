"""Claims in MariaDB."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import DatabaseError, Error, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.functional import cached_property

from idempotency.claims.base import ReturningClaims
from idempotency.claims.multi_statements import (
    BEGIN,
    MultiStatementTransaction,
    why_not,
)
from idempotency.claims.mysql import MySQLClaims
from idempotency.claims.transactions import Transaction
from idempotency.database_errors import number_of
from idempotency.models import IdempotencyRecord


class MariaDBClaims(MySQLClaims, ReturningClaims):
    """Claims by row locks: a statement that would have to wait fails at once."""

    TOGETHER_BY = "multi-statements"
    AT_ONCE = "SET STATEMENT innodb_lock_wait_timeout=0 FOR "
    # A node of Galera first applies what other nodes have committed, so that it finds
    # their responses. Without effect on other servers, and after the transaction's
    # first statement.
    AT_ONCE_AND_SYNCED = AT_ONCE.replace("=0", "=0, wsrep_sync_wait=1")
    # A node of Galera repeats a statement outside a transaction if another node was
    # first. Of an INSERT with RETURNING the client then gets the row of the first try,
    # which is in no table: each node would win the claim.
    AT_ONCE_AND_ONCE = AT_ONCE.replace("=0", "=0, wsrep_retry_autocommit=0")
    INSERT = AT_ONCE + "INSERT IGNORE INTO {} ({}) VALUES ({})"
    SYNTAX_ERROR, UNKNOWN_VARIABLE = 1064, 1193

    # Errors of the client, after which a statement may be executed or not, and
    # the one after which it is not, because it was not sent.
    CLIENT_ERRORS, NOT_SENT = range(2000, 3000), 2006

    # Whether the transaction of atomic mode begins with the next statement.
    begins_with_next = False
    # Whether the server has refused a multi-statement.
    refuses_multi_statements = False

    # Fits into every sensible max_allowed_packet; the default is 16 MiB.
    SMALL = 1024 * 1024
    # At least the size of a statement without its body.
    OVERHEAD = 64 * 1024
    ESCAPED = (b"\0", b"\n", b"\r", b"\x1a", b'"', b"'", b"\\")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        # Under SERIALIZABLE each SELECT in a transaction waits for writers.
        self.at_once = self.AT_ONCE_AND_SYNCED

    def transaction(self) -> Transaction:
        connection: Any = self.connection
        is_nested = connection.in_atomic_block or not connection.autocommit
        if is_nested or self.why_one_by_one() is not None:
            return super().transaction()
        return MultiStatementTransaction(self)

    def why_one_by_one(self, *, ask_server: bool = False) -> str | None:
        self.connection.ensure_connection()
        if self.refuses_multi_statements:
            return "the server refuses them"
        return why_not(self.connection)

    def look_up(self, record_id: UUID) -> IdempotencyRecord | None:
        return self._select_at_once(record_id)

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        # A plain SELECT would read the transaction's snapshot under REPEATABLE READ.
        return self._select_at_once(record_id, " LOCK IN SHARE MODE")

    def can_store(self, body: bytes, *, is_encrypted: bool) -> bool:
        # The driver writes the body into the statement, with these bytes doubled.
        size = len(body)
        if 2 * size < self.SMALL:
            return True
        if is_encrypted:
            # All bytes are equally likely, so the overhead covers the difference.
            doubled = size * len(self.ESCAPED) // 256
        else:
            doubled = sum(map(body.count, self.ESCAPED))
        return size + doubled + self.OVERHEAD < self.largest_statement

    @cached_property
    def largest_statement(self) -> int:
        """The server's limit for a statement, in bytes."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            size: int = cursor.fetchone()[0]
            return size

    def is_refused(self, error: Error) -> bool:
        """Return whether the server has certainly not executed a statement."""
        number = number_of(error)
        return bool(number) and (
            number == self.NOT_SENT or number not in self.CLIENT_ERRORS
        )

    def _insertion(
        self,
        sql: str,
        new_record: IdempotencyRecord,
        retention: timedelta,
        lease: timedelta | None,
    ) -> tuple[str, list[Any]]:
        # The look-up before has found out whether the server knows Galera's variables.
        if lease is not None and self.at_once == self.AT_ONCE_AND_SYNCED:
            sql = sql.replace(self.AT_ONCE, self.AT_ONCE_AND_ONCE, 1)
        return super()._insertion(sql, new_record, retention, lease)

    def _send(self, cursor: Any, sql: str, values: list[Any]) -> None:
        if self.begins_with_next:
            self.begins_with_next = False
            try:
                cursor.execute(f"{BEGIN}; {sql}", values)
            except ProgrammingError as error:
                if number_of(error) != self.SYNTAX_ERROR:
                    raise
                self.refuses_multi_statements = True
                cursor.execute(BEGIN)
            else:
                cursor.nextset()
                return
        super()._send(cursor, sql, values)

    def _select_at_once(
        self, record_id: UUID, lock: str = ""
    ) -> IdempotencyRecord | None:
        values = self.primary_key(record_id)
        try:
            return self._fetch(f"{self.at_once}{self.select_sql}{lock}", values)
        except DatabaseError as error:
            if number_of(error) != self.UNKNOWN_VARIABLE:
                raise
        self.at_once = self.AT_ONCE  # a server that was built without Galera
        return self._select_at_once(record_id, lock)
