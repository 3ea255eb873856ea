"""Claims in MySQL, and what its errors mean in MariaDB, too."""

from __future__ import annotations

from idempotency.claims.base import Claims
from idempotency.database_errors import (
    LOCKED_NUMBER,
    NOT_READY,
    UNDONE_NUMBERS,
    number_of,
)


class MySQLClaims(Claims):
    """Claims by statements that every Django database supports."""

    undoes_all = True
    # A node that is not ready executes no COMMIT either. Not 1180, error during COMMIT:
    # the other nodes may have got the transaction, and commit it.
    TRANSIENT = (*UNDONE_NUMBERS, NOT_READY)

    def is_busy(self, error: BaseException) -> bool:
        return number_of(error) == LOCKED_NUMBER

    def is_transient(self, error: BaseException) -> bool:
        return number_of(error) in self.TRANSIENT
