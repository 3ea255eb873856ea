"""Places at which a request can be cut: before and after every statement, and more.

In the server's process ``watch`` makes the driver tell of every round trip to the
database, transaction control included, and ``Boundaries`` numbers them while it
answers a request with the header X-Crash-At. At boundary number X-Crash-At the request
stops and waits at the test's rendezvous, so that the test can do what it likes to the
process or to the database. Number 0 is never reached: such a request comes there when
it is over, and tells all boundaries that it has passed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from tempfile import TemporaryFile
from typing import Any

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from tests.support.rendezvous import Rendezvous, WaitingHandler, meet

LABEL_LENGTH = 40
# Django numbers them, by thread and within a connection.
SAVEPOINT_NAME = re.compile(r"\W?s\d+_x\d+\W?")
# What asks for a connection's health, in a driver's way instead of by a statement.
PING = "ping"
# The reply to a further statement of the same message.
NEXT_REPLY = "after the next statement"


@dataclass
class Passage:
    """One request on its way through the boundaries."""

    stop_at: int
    place: str
    labels: list[str] = field(default_factory=list)
    is_over: bool = False

    def reach(self, label: str) -> None:
        """Pass a boundary, or stop there for the test."""
        if self.is_over:
            return
        self.labels.append(label)
        if len(self.labels) == self.stop_at and self.tell():
            raise connection.Database.OperationalError("the reply is lost")

    def tell(self, **more: int) -> bool:
        """Tell the test, and wait to be let go. It is told once.

        Returns whether the reply before this is to be lost.
        """
        self.is_over = True
        return meet(self.place, labels=self.labels, **more)


@dataclass(frozen=True)
class Visit:
    """A request that waits: stopped at a boundary, or over."""

    waiting: WaitingHandler
    labels: list[str]
    # How many statements the database was sent, if the request is over.
    statements: int | None

    def close(self) -> None:
        """Let the request go on."""
        self.waiting.let_go()


def wait_for_visit(rendezvous: Rendezvous) -> Visit:
    """Return the request that came. Called by the test."""
    waiting, said = rendezvous.listen()
    return Visit(waiting, said["labels"], said.get("statements"))


class Boundaries:
    """A WSGI application whose requests can be stopped at any boundary."""

    # The server's process answers one request at a time.
    passage: Passage | None = None

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if "HTTP_X_CRASH_AT" not in environ:
            return self.application(environ, start)
        passage = Passage(int(environ["HTTP_X_CRASH_AT"]), environ["HTTP_X_MEET"])
        with ExitStack() as stack:
            if not passage.stop_at:
                count = stack.enter_context(counting_statements())
                stack.callback(lambda: passage.tell(statements=count()))
            Boundaries.passage = passage
            stack.callback(setattr, Boundaries, "passage", None)
            passage.reach("the request has come")
            response = self.application(environ, start)
            passage.reach("the answer is made")
            return WatchedAnswer(response, stack.pop_all())


class WatchedAnswer:
    """An answer on its way to the client."""

    def __init__(self, response: Any, stack: ExitStack) -> None:
        self.response = response
        self.stack = stack

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.response)

    def close(self) -> None:
        """End the request. The server calls this when all is sent."""
        with self.stack:
            try:
                reach("the answer is sent")
            finally:
                self.response.close()


def reach(label: str) -> None:
    """Pass a boundary, if the request is one to be stopped."""
    if Boundaries.passage is not None:
        Boundaries.passage.reach(label)


def statements_in(labels: Iterable[str]) -> int:
    """Return how many statements have these boundaries."""
    return sum(
        label == NEXT_REPLY
        or (label.startswith("before ") and not label.endswith(PING))
        for label in labels
    )


def label_of(statement: Any) -> str:
    """Return the first words of a statement, the same each time that it is sent."""
    if isinstance(statement, bytes | bytearray):
        statement = bytes(statement).decode(errors="replace")
    statement = SAVEPOINT_NAME.sub("", str(statement))
    return " ".join(statement.split())[:LABEL_LENGTH].rstrip()


def between_boundaries(
    call: Callable[..., Any], what: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a call with a boundary before and after it; ``what`` names it."""

    @wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        label = label_of(what(*args))
        reach(f"before {label}")
        result = call(*args, **kwargs)
        reach(f"after {label}")
        return result

    return watched


def watch() -> None:
    """Make the driver of the database tell of every round trip."""
    {
        "postgresql": _watch_postgresql,
        "mysql": _watch_mariadb,
        "sqlite": _watch_sqlite,
    }[connection.vendor]()


def _watch_postgresql() -> None:
    import psycopg  # noqa: PLC0415  # of one database

    for name in ("execute", "executemany"):
        call = getattr(psycopg.Cursor, name)
        setattr(psycopg.Cursor, name, between_boundaries(call, _first_argument))
    psycopg.Pipeline.__exit__ = _within(  # type: ignore[method-assign]
        psycopg.Pipeline.__exit__, "the pipeline's replies"
    )
    # What the driver sends by itself: BEGIN before a transaction's first statement,
    # COMMIT and ROLLBACK.
    send = psycopg.Connection._exec_command

    def watched(self: Any, command: Any, *args: Any) -> Generator[Any, Any, Any]:
        label = label_of(command)
        reach(f"before {label}")
        result = yield from send(self, command, *args)
        reach(f"after {label}")
        return result

    psycopg.Connection._exec_command = watched  # type: ignore[method-assign]


def _within(call: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return a call with boundaries around it that are no statement's."""

    @wraps(call)
    def watched(*args: Any) -> Any:
        reach(f"waiting for {what}")
        result = call(*args)
        reach(f"with {what}")
        return result

    return watched


def _watch_mariadb() -> None:
    from MySQLdb.connections import Connection  # noqa: PLC0415  # of one database

    Connection.query = between_boundaries(Connection.query, _first_argument)
    for name in ("commit", "rollback", PING):
        call = getattr(Connection, name)
        setattr(Connection, name, between_boundaries(call, _constant(name)))
    read_next = Connection.next_result

    def next_result(self: Any) -> int:
        result: int = read_next(self)
        if result == 0:  # there was one
            reach(NEXT_REPLY)
        return result

    Connection.next_result = next_result
    set_autocommit = between_boundaries(
        Connection.autocommit, lambda _self, on: f"SET autocommit={on:d}"
    )

    def autocommit(self: Any, on: bool) -> None:
        if self.get_autocommit() != on:  # else nothing is sent
            set_autocommit(self, on)

    Connection.autocommit = autocommit


def _watch_sqlite() -> None:
    from django.db.backends.sqlite3.base import (  # noqa: PLC0415  # of one database
        SQLiteCursorWrapper,
    )

    for name in ("execute", "executemany"):
        call = getattr(SQLiteCursorWrapper, name)
        setattr(SQLiteCursorWrapper, name, between_boundaries(call, _first_argument))
    for name in ("_commit", "_rollback"):
        call = getattr(BaseDatabaseWrapper, name)
        watched = between_boundaries(call, _constant(name.strip("_")))
        setattr(BaseDatabaseWrapper, name, watched)


def _first_argument(_self: Any, argument: Any, *_others: Any) -> Any:
    return argument


def _constant(name: str) -> Callable[..., str]:
    return lambda *_args: name


@contextmanager
def counting_statements() -> Iterator[Callable[[], int]]:
    """Count what the database is sent, as the database's side of the driver sees it.

    This does not come from the boundaries: it is there to show that they are all.
    """
    connection.ensure_connection()
    counts: Any = {
        "postgresql": _counting_postgresql,
        "mysql": _counting_mariadb,
        "sqlite": _counting_sqlite,
    }
    with counts[connection.vendor](connection.connection) as count:
        yield count


@contextmanager
def _counting_postgresql(raw: Any) -> Iterator[Callable[[], int]]:
    with TemporaryFile("w+") as trace:
        raw.pgconn.trace(trace.fileno())

        def count() -> int:
            raw.pgconn.untrace()
            trace.seek(0)
            # Messages of the client; a pipeline has several between two Syncs.
            messages = [line.split("\t") for line in trace]
            return sum("F" in m and ("Query" in m or "Execute" in m) for m in messages)

        yield count


@contextmanager
def _counting_mariadb(raw: Any) -> Iterator[Callable[[], int]]:
    def questions() -> int:
        cursor = raw.cursor()
        cursor.execute("SHOW SESSION STATUS LIKE 'Questions'")
        return int(cursor.fetchone()[1])

    before = questions()
    yield lambda: questions() - before - 1


@contextmanager
def _counting_sqlite(raw: Any) -> Iterator[Callable[[], int]]:
    seen: list[str] = []
    raw.set_trace_callback(seen.append)
    yield lambda: len(seen)
    raw.set_trace_callback(None)
