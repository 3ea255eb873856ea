"""Transactions in MariaDB's multi-statements, which need no extra round trips (E1, R6).

BEGIN is sent with the claim, and COMMIT with the response. The server executes a
message's statements in turn, and skips the rest after an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from django.db import Error

from idempotency.claims.transactions import Transaction
from idempotency.discretion import without_values
from idempotency.exceptions import ClaimLost

if TYPE_CHECKING:
    from idempotency.claims.mariadb import MariaDBClaims
    from idempotency.models import IdempotencyRecord
    from idempotency.responses import StoredResponse

# The client's capability CLIENT_MULTI_STATEMENTS.
MULTI_STATEMENTS = 1 << 16
# As Django begins a transaction. It survives a COMMIT by the handler.
BEGIN = "SET autocommit = 0"
# Commits if the statement before has changed one row; otherwise the transaction stays
# open (E5).
COMMIT_IF_WRITTEN = "SET autocommit = (ROW_COUNT() = 1)"


def why_not(connection: Any) -> str | None:
    """Return why an open connection can't use multi-statements, or None if it can.

    This does not query the server.
    """
    if hasattr(connection, "_start_transaction_under_autocommit"):
        return "the database backend begins transactions by itself"
    if not getattr(connection.connection, "client_flag", 0) & MULTI_STATEMENTS:
        return "the driver does not allow them"
    return None


class MultiStatementTransaction(Transaction):
    """A transaction that takes one round trip to begin, and one to end.

    The first has the claim with it, and the last the response. Django's own BEGIN and
    COMMIT are left out.
    """

    claims: MariaDBClaims
    is_committed = False

    def __enter__(self) -> Transaction:
        self.connection._start_transaction_under_autocommit = self._begin_with_claim
        try:
            self.atomic.__enter__()
        except BaseException:
            self.claims.begins_with_next = False
            raise
        finally:
            vars(self.connection).pop("_start_transaction_under_autocommit", None)
        return self

    def __exit__(self, *error: Any) -> None:
        self.claims.begins_with_next = False
        with self._no_second_commit() if self.is_committed else nullcontext():
            super().__exit__(*error)

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response, and commit in the same round trip."""
        self._write_and_commit(*self.claims.completion(claimed, stored))

    def release(self, claimed: IdempotencyRecord) -> None:
        """Free the key, and commit in the same round trip."""
        self._write_and_commit(*self.claims.deletion(claimed))

    def _write_and_commit(self, sql: str, values: list[Any]) -> None:
        if self.claims.refuses_multi_statements:
            self.claims.write(sql, values)  # and Django commits
            return
        self.is_ending = True
        try:
            with self.connection.cursor() as cursor:
                try:
                    cursor.execute(f"{sql}; {COMMIT_IF_WRITTEN}", values)
                except Error as error:
                    # If this statement failed, the server has skipped the COMMIT.
                    self.is_ending = not self.claims.is_refused(error)
                    raise
                self.is_ending = cursor.rowcount == 1
                cursor.nextset()
        except Error as error:
            failure = without_values(error)
        else:
            if not self.is_ending:
                raise ClaimLost
            self.is_committed = True
            return
        raise failure

    def _begin_with_claim(self) -> None:
        self.claims.begins_with_next = True

    @contextmanager
    def _no_second_commit(self) -> Iterator[None]:
        methods = vars(self.connection)
        replaced = methods.pop("_commit", None)
        methods["_commit"] = lambda: None
        try:
            yield
        finally:
            del methods["_commit"]
            if replaced is not None:
                methods["_commit"] = replaced
