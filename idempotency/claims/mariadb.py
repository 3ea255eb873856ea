"""Claims in MariaDB."""

from __future__ import annotations

from uuid import UUID

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.functional import cached_property

from idempotency.claims.base import ReturningClaims
from idempotency.claims.errors import causes
from idempotency.models import IdempotencyRecord


class MariaDBClaims(ReturningClaims):
    """Claims by row locks: a statement that would have to wait fails at once."""

    AT_ONCE = "SET STATEMENT innodb_lock_wait_timeout=0 FOR "
    INSERT = AT_ONCE + "INSERT IGNORE INTO {} ({}) VALUES ({})"
    LOCK_WAIT_TIMEOUT = 1205
    # Deadlock or certification failure of Galera; record changed since last read.
    TRANSIENT = (1213, 1020)

    # Fits into every sensible max_allowed_packet; the default is 16 MiB.
    SMALL = 1024 * 1024
    # At least the size of a statement without its body.
    OVERHEAD = 64 * 1024
    ESCAPED = (b"\0", b"\n", b"\r", b"\x1a", b'"', b"'", b"\\")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(connection)
        # Under SERIALIZABLE each SELECT in a transaction waits for writers.
        self.select_at_once_sql = self.AT_ONCE + self.select_sql

    def look_up(self, record_id: UUID) -> IdempotencyRecord | None:
        return self._fetch(self.select_at_once_sql, self.primary_key(record_id))

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        # A plain SELECT would read the transaction's snapshot under REPEATABLE READ.
        sql = f"{self.select_at_once_sql} LOCK IN SHARE MODE"
        return self._fetch(sql, self.primary_key(record_id))

    def can_store(self, body: bytes) -> bool:
        # The driver writes the body into the statement, with these bytes doubled.
        if 2 * len(body) < self.SMALL:
            return True
        escaped = len(body) + sum(map(body.count, self.ESCAPED))
        return escaped + self.OVERHEAD < self.largest_statement

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

    def _number(self, error: BaseException) -> int | None:
        return error.args[0] if error.args else None
