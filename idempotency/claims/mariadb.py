"""Claims in MariaDB."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import DatabaseError, Error, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.functional import cached_property

from idempotency.claims.base import ReturningClaims
from idempotency.claims.errors import causes
from idempotency.claims.multi_statements import (
    BEGIN,
    MultiStatementTransaction,
    why_not,
)
from idempotency.claims.transactions import Transaction
from idempotency.models import IdempotencyRecord


class MariaDBClaims(ReturningClaims):
    """Claims by row locks: a statement that would have to wait fails at once."""

    TOGETHER_BY = "multi-statements"
    AT_ONCE = "SET STATEMENT innodb_lock_wait_timeout=0 FOR "
    INSERT = AT_ONCE + "INSERT IGNORE INTO {} ({}) VALUES ({})"
    LOCK_WAIT_TIMEOUT, SYNTAX_ERROR = 1205, 1064
    # Deadlock or certification failure of Galera; record changed since last read.
    TRANSIENT = (1213, 1020)
    undoes_all = True

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
        self.select_at_once_sql = self.AT_ONCE + self.select_sql

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
        return self._fetch(self.select_at_once_sql, self.primary_key(record_id))

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        # A plain SELECT would read the transaction's snapshot under REPEATABLE READ.
        sql = f"{self.select_at_once_sql} LOCK IN SHARE MODE"
        return self._fetch(sql, self.primary_key(record_id))

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

    def is_busy(self, error: DatabaseError) -> bool:
        return self._number(error) == self.LOCK_WAIT_TIMEOUT

    def is_transient(self, error: DatabaseError) -> bool:
        return any(self._number(cause) in self.TRANSIENT for cause in causes(error))

    def is_refused(self, error: Error) -> bool:
        """Return whether the server has certainly not executed a statement."""
        number = self._number(error)
        return bool(number) and (
            number == self.NOT_SENT or number not in self.CLIENT_ERRORS
        )

    def _send(self, cursor: Any, sql: str, values: list[Any]) -> None:
        if self.begins_with_next:
            self.begins_with_next = False
            try:
                cursor.execute(f"{BEGIN}; {sql}", values)
            except ProgrammingError as error:
                if self._number(error) != self.SYNTAX_ERROR:
                    raise
                self.refuses_multi_statements = True
                cursor.execute(BEGIN)
            else:
                cursor.nextset()
                return
        super()._send(cursor, sql, values)

    def _number(self, error: BaseException) -> int | None:
        return error.args[0] if error.args else None
