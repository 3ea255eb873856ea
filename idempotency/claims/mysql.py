"""Claims in MySQL, and what its errors mean in MariaDB, too."""

from __future__ import annotations

from idempotency.claims.base import Claims
from idempotency.claims.errors import number_of


class MySQLClaims(Claims):
    """Claims by statements that every Django database supports."""

    undoes_all = True
    LOCK_WAIT_TIMEOUT = 1205
    # Deadlock, or certification failure of Galera; record changed since last read; a
    # node of Galera that is not ready, and executes no COMMIT either. Not 1180, error
    # during COMMIT: the other nodes may have got the transaction, and commit it.
    TRANSIENT = (1213, 1020, 1047)

    def is_busy(self, error: BaseException) -> bool:
        return number_of(error) == self.LOCK_WAIT_TIMEOUT

    def is_transient(self, error: BaseException) -> bool:
        return number_of(error) in self.TRANSIENT
