"""Transactions on PostgreSQL that need no extra round trips (E1, R6).

BEGIN and the claim travel in one message, the record and COMMIT in a pipeline. The
claim is a lock, which is taken before the look-up. Under READ COMMITTED the look-up has
its own snapshot, also within one message, and PostgreSQL makes a commit visible before
it releases its locks. So a transaction with the lock and no record in sight is the only
one to run, until it commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from datetime import datetime, timedelta
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.db import Error

from idempotency.claims.transactions import Transaction
from idempotency.database import UTC
from idempotency.discretion import without_values

# Django also works with psycopg2.
psycopg: Any = import_module("psycopg") if find_spec("psycopg") else None

if TYPE_CHECKING:
    from idempotency.claims.postgresql import PostgreSQLClaims
    from idempotency.models import IdempotencyRecord
    from idempotency.responses import StoredResponse

READ_COMMITTED = "read committed"
# Projects may choose other rows, such as dictionaries.
TUPLES = None if psycopg is None else psycopg.rows.tuple_row


def why_not(connection: Any) -> str | None:
    """Return why an open connection can't use pipelines, or None if it can.

    This does not query the server.
    """
    return next(_obstacles(connection), None)


def _obstacles(connection: Any) -> Iterator[str]:
    driver = connection.connection
    if psycopg is None or not isinstance(driver, psycopg.Connection):
        yield "the driver is not psycopg 3"
    elif not psycopg.Pipeline.is_supported():
        yield "libpq is older than version 14"
    elif not hasattr(driver, "_autocommit"):
        yield "this release of psycopg is not supported yet"
    elif hasattr(connection, "_start_transaction_under_autocommit"):
        yield "the database backend begins transactions by itself"
    elif driver.isolation_level not in (None, psycopg.IsolationLevel.READ_COMMITTED):
        level = driver.isolation_level.name.lower().replace("_", " ")
        yield f"the isolation level is {level}"
    elif (driver.read_only, driver.deferrable) != (None, None):
        yield "the project sets options for its transactions"
    elif not issubclass(driver.cursor_factory, psycopg.Cursor):
        yield "the cursors are not psycopg's"


@lru_cache
def _message_cursor(factory: Any) -> Any:
    """Return a subclass of the project's cursors for several statements at once."""

    class MessageCursor(factory):  # type: ignore[misc]  # known at run time
        """A cursor that reads the first row of each statement's result.

        It reads them at once, because wrappers such as django-pghistory's put another
        statement in front, or move on to the last result.
        """

        def execute(self, *args: Any, **kwargs: Any) -> Any:
            driver = self.connection
            usual = driver.prepare_threshold
            # PostgreSQL prepares single statements only.
            driver.prepare_threshold = None
            try:
                super().execute(*args, **kwargs)
            finally:
                driver.prepare_threshold = usual
            self.first_rows = []
            while True:
                if self.rownumber is not None:
                    self.first_rows.append(self.fetchone())
                if not self.nextset():
                    return self

    return MessageCursor


@lru_cache
def _bound(factory: Any) -> Any:
    """Return a subclass of the project's cursors that binds parameters on the server.

    Cursors that bind on the client write each byte of a body as two characters. The
    waiting part is below the project's class in the MRO, so tracing that subclasses
    psycopg's cursors measures the wait, too.
    """
    by_server = {
        name: getattr(psycopg.Cursor, name)
        for base in psycopg.ClientCursor.__mro__
        if not issubclass(psycopg.Cursor, base)
        for name in vars(base)
        if hasattr(psycopg.Cursor, name) and not name.startswith("__")
    }
    own = {"__module__": __name__, **by_server}
    return type("BoundCursor", (factory, _waiting_cursor()), own)


@lru_cache
def _waiting_cursor() -> Any:
    class WaitingCursor(psycopg.Cursor):  # type: ignore[misc]  # may not be there
        """A cursor that can end the pipeline, and wait for it, after its statement."""

        pipeline: ExitStack
        is_last = False
        # Sent after the statement; Django logs it elsewhere.
        command: str | None = None

        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            with self.pipeline if self.is_last else nullcontext():
                if ";" in query:
                    # A wrapper has put a statement in front, as django-pghistory does.
                    self.pipeline.close()
                    cursor = self.connection.cursor()
                    cursor.execute(query, *args, **kwargs)
                    self.pgresult = cursor.pgresult
                else:
                    super().execute(query, *args, **kwargs)
                if self.command:
                    psycopg.Cursor(self.connection).execute(self.command)
            return self

    return WaitingCursor


class PipelinedTransaction(Transaction):
    """A transaction with one round trip for BEGIN and claim, one for record and COMMIT.

    For expired records, and if the transaction has another isolation level, the
    statements of ``PostgreSQLClaims`` follow.
    """

    claims: PostgreSQLClaims
    # The transaction's start, while the claim is a lock without a record.
    began_at: datetime | None = None
    # Begins the transaction or sets its savepoint, together with the claim.
    opening = ""
    is_nested = False

    def __init__(self, claims: PostgreSQLClaims) -> None:
        super().__init__(claims)
        # Some backends send statements for each new cursor.
        self.cursor = self.connection.cursor()

    def __enter__(self) -> Transaction:
        connection = self.connection
        self.is_nested = connection.in_atomic_block or not connection.autocommit
        name, hook = (
            ("_savepoint", self._note_savepoint)
            if self.is_nested
            else ("_start_transaction_under_autocommit", self._note_begin)
        )
        setattr(connection, name, hook)
        try:
            self.atomic.__enter__()
        finally:
            vars(connection).pop(name, None)
        return self

    def claim(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        seen: IdempotencyRecord | None,
    ) -> IdempotencyRecord | None:
        """Take the lock, then look up the record."""
        claims, driver = self.claims, self.connection.connection
        cursor = _message_cursor(driver.cursor_factory)(driver, row_factory=TUPLES)
        failure: Error | None = None
        try:
            self._send(cursor, f"{self.opening}; {claims.claim_sql(new_record.pk)}")
        except Error as error:
            failure = without_values(error)
        finally:
            if not self.is_nested:
                # As usual in Django's transactions; the public setter refuses by now.
                driver._autocommit = False
        if failure is not None:
            raise failure
        *_others, lock, row = cursor.first_rows
        is_locked, level, usual_level, read_only, began_at, now = lock
        if level != READ_COMMITTED:
            claims.note_isolation(usual_level)
            return super().claim(new_record, retention, seen)
        record = None if row is None else claims.record_of(row)
        if record is not None and not record.is_in_force:
            return super().claim(new_record, retention, record)
        if record is None and read_only == "on":
            # Let the server refuse the claim before the handler runs (E4).
            return super().claim(new_record, retention, None)
        if record is not None or not is_locked or new_record.pk in claims.executing:
            self._leave_savepoint()
            return record
        new_record.created_at = now.replace(tzinfo=UTC)
        new_record.expires_at = new_record.created_at + retention
        self.began_at = began_at.replace(tzinfo=UTC)
        return new_record

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response, and end the transaction in the same round trip."""
        if self.began_at is None:
            super().complete(claimed, stored)
            return
        connection = self.connection
        sql, values = self.claims.insertion(claimed, stored, self.began_at)
        self.cursor = connection.cursor()
        savepoint = connection.savepoint_ids[-1] if self.is_nested else None
        self.is_ending = not self.is_nested
        pipeline = ExitStack()
        insert = self._bound_cursor(pipeline, is_last=savepoint is None)
        insert.command = None if self.is_nested else "COMMIT"
        try:
            with pipeline:
                self._open(pipeline)
                self._send(insert, sql, values)
                if savepoint is not None:
                    last = self._bound_cursor(pipeline, is_last=True)
                    self._send(last, connection.ops.savepoint_commit_sql(savepoint))
                    connection.savepoint_ids[-1] = None  # Django must not repeat it
        except Error as error:
            failure: BaseException | None = self._interruption_of(error, insert)
            if failure is None:
                if insert.pgresult is None and not insert.connection.closed:
                    self.is_ending = False  # the server has skipped the rest
                failure = without_values(error)
        else:
            return
        raise failure

    def release(self, claimed: IdempotencyRecord) -> None:
        """Free the key, for which nothing was written."""
        if self.began_at is None:
            super().release(claimed)

    def _interruption_of(self, error: Error, cursor: Any) -> BaseException | None:
        """Return what interrupted the wait for the replies, such as a timeout, or None.

        Then psycopg can't leave the pipeline, and raises an error about that instead.
        Close the connection, because nothing can be sent while replies are missing.
        """
        status = cursor.connection.pgconn.transaction_status
        if status != psycopg.pq.TransactionStatus.ACTIVE:
            return None
        interruption = (error.__cause__ or error).__context__
        self.connection.close()
        return interruption

    def _leave_savepoint(self) -> None:
        """Leave the release of the savepoint to the end of the transaction.

        Only once per transaction, so a batch of replays does not nest savepoints.
        """
        outermost = self.connection.atomic_blocks[0]
        if self.is_nested and self.claims.left_savepoint is not outermost:
            self.claims.left_savepoint = outermost
            self.connection.savepoint_ids[-1] = None

    def _note_begin(self) -> None:
        level = self.connection.connection.isolation_level
        self.opening = (
            "BEGIN" if level is None else "BEGIN ISOLATION LEVEL READ COMMITTED"
        )

    def _note_savepoint(self, savepoint: str) -> None:
        self.opening = self.connection.ops.savepoint_create_sql(savepoint)

    def _open(self, pipeline: ExitStack) -> None:
        """Open a pipeline, unless the connection refuses it."""
        try:
            pipeline.enter_context(self.connection.connection.pipeline())
        except psycopg.Error:
            self.claims.avoid_pipelines("the connection refuses pipelines")

    def _bound_cursor(self, pipeline: ExitStack, *, is_last: bool) -> Any:
        driver = self.connection.connection
        cursor = _bound(driver.cursor_factory)(driver, row_factory=TUPLES)
        cursor.format = psycopg.pq.Format.BINARY
        cursor.pipeline, cursor.is_last = pipeline, is_last
        return cursor

    def _send(self, cursor: Any, sql: str, values: Any = None) -> None:
        """Execute a statement through Django's cursor, with its wrappers and log."""
        self.cursor.cursor = cursor
        self.cursor.execute(sql, values)
