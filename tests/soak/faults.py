"""What is broken while the load runs, in an order that the seed decides."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from django.db import DatabaseError, OperationalError, connection

from tests.processes import wait_until
from tests.soak.ledger import Ledger
from tests.soak.load import Load

# Connections of this database other than one's own, and whether they are in a
# transaction: those that are make the better victims.
OTHERS = {
    "postgresql": (
        "SELECT pid, xact_start IS NOT NULL FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    "mysql": (
        "SELECT p.id, t.trx_mysql_thread_id IS NOT NULL "
        "FROM information_schema.processlist p "
        "LEFT JOIN information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id "
        "WHERE p.db = DATABASE() AND p.id <> CONNECTION_ID()"
    ),
}
TERMINATE = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL %s"}


class DatabaseServer(Protocol):
    """A database server that nobody else uses."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


class Faults:
    """Kills workers, cuts database connections, crashes the database server."""

    def __init__(
        self,
        load: Load,
        ledger: Ledger,
        workers: Sequence[Path],
        server: DatabaseServer | None,
        *,
        requests_between: tuple[int, int],
    ) -> None:
        self.load = load
        self.ledger = ledger
        self.workers = workers
        self.server = server
        self.requests_between = requests_between
        self.draw = random.Random(f"{load.seed}/faults")
        self.kinds: dict[Callable[[], object], int] = {self.kill_worker: 10}
        if connection.vendor in OTHERS:
            self.kinds[self.cut_connections] = 12
        if server is not None:
            self.kinds[self.crash_database] = 1

    def run(self) -> None:
        """Break something each time that so many requests were sent."""
        due = 0
        try:
            while True:
                due += self.draw.randint(*self.requests_between)
                if not self.load.wait_for(due):
                    return
                self.draw.choices([*self.kinds], [*self.kinds.values()])[0]()
                due = max(due, self.load.sent)
        finally:
            self.load.stop()  # it is over anyway, or without faults worth nothing
            connection.close()

    def kill_worker(self) -> None:
        """SIGKILL a process that serves requests."""
        started = time.monotonic()
        alive = [path for folder in self.workers for path in folder.iterdir()]
        if not alive:
            return
        worker = self.draw.choice(sorted(alive))
        with suppress(ProcessLookupError):
            os.kill(int(worker.name), signal.SIGKILL)
        wait_until(lambda: not worker.exists(), "a worker's end")
        self.ledger.add_fault("worker killed", started)

    def cut_connections(self) -> None:
        """Terminate database connections, preferably amid a transaction."""
        started = time.monotonic()
        found = others()
        busy = [number for number, in_transaction in found if in_transaction]
        victims = busy if busy and self.draw.random() < 0.8 else [n for n, _ in found]
        if not victims:
            return
        cut = self.draw.sample(victims, min(len(victims), self.draw.randint(1, 3)))
        for number in cut:
            with suppress(DatabaseError):  # it may have gone by itself
                execute(TERMINATE[connection.vendor], [number])
        wait_until(
            lambda: not {number for number, _ in others()} & {*cut},
            "the end of terminated connections",
        )
        self.ledger.add_fault("connections cut", started)

    def crash_database(self) -> None:
        """Crash the database server, and start it again soon or a little later."""
        assert self.server is not None
        started = time.monotonic()
        connection.close()
        self.server.kill()
        time.sleep(self.draw.choice((0, 0.1, 0.5, 1.5)))
        self.server.start()
        self.ledger.add_fault("database crashed", started)


def others() -> list[tuple[int, bool]]:
    """Return the other connections of this database, and which are at work."""
    return [(row[0], bool(row[1])) for row in execute(OTHERS[connection.vendor])]


def wait_until_idle() -> None:
    """Wait until the database has undone what killed workers left open."""
    if connection.vendor in OTHERS:
        wait_until(
            lambda: not any(at_work for _, at_work in others()),
            "the end of all transactions",
        )


def execute(sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run a statement on this process's own connection, or on its successor."""
    try:
        return _execute(sql, values)
    except OperationalError:  # the server was crashed since the connection was made
        connection.close()
        return _execute(sql, values)


def _execute(sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall()) if cursor.description else []
