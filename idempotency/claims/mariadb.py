"""Claims in MariaDB."""

from __future__ import annotations

from uuid import UUID

from django.db import DatabaseError

from idempotency.claims.base import RowCountClaims, causes
from idempotency.models import IdempotencyRecord


class MariaDBClaims(RowCountClaims):
    """MariaDB: the row's own lock tells at once whether somebody executes the key."""

    AT_ONCE = "SET STATEMENT innodb_lock_wait_timeout=0 FOR "
    INSERT = AT_ONCE + "INSERT IGNORE INTO {} ({}) VALUES ({})"
    LOCK_WAIT_TIMEOUT = 1205
    # Deadlock, also a certification failure of Galera; changed since last read.
    TRANSIENT = (1213, 1020)

    def read_again(self, record_id: UUID) -> IdempotencyRecord | None:
        # A plain SELECT would read the transaction's snapshot under REPEATABLE READ.
        sql = f"{self.AT_ONCE}{self.select_sql} LOCK IN SHARE MODE"
        return self._fetch(sql, self._id(record_id))

    def is_busy(self, error: DatabaseError) -> bool:
        return self._number(error) == self.LOCK_WAIT_TIMEOUT

    def is_transient(self, error: DatabaseError) -> bool:
        return any(self._number(cause) in self.TRANSIENT for cause in causes(error))

    def _number(self, error: BaseException) -> int | None:
        return error.args[0] if error.args else None
