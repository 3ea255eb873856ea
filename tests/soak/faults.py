"""What is broken while the load runs, in an order that the seed decides."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from django.db import DatabaseError, OperationalError, connection

from tests.soak.ledger import Ledger
from tests.soak.load import Load
from tests.support.processes import wait_until

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

OFTEN = {"worker killed": 10, "connections cut": 12, "database crashed": 1}


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
        # Each returns whether there was something to break.
        self.kinds: dict[str, Callable[[], bool]] = {"worker killed": self.kill_worker}
        if connection.vendor in OTHERS:
            self.kinds["connections cut"] = self.cut_connections
        if server is not None:
            self.kinds["database crashed"] = self.crash_database
        self.happened = Counter(dict.fromkeys(self.kinds, 0))

    def run(self) -> None:
        """Break something each time that so many requests were sent."""
        due = 0
        try:
            while True:
                due += self.draw.randint(*self.requests_between)
                if not self.load.wait_for(due):
                    return
                self.break_something()
                due = max(due, self.load.sent)
        finally:
            self.load.stop()  # it is over anyway, or without faults worth nothing
            connection.close()

    def break_something(self) -> None:
        """Break what is drawn; each kind comes once before any comes again."""
        kinds = [kind for kind, count in self.happened.items() if not count]
        kinds = kinds or [*self.kinds]
        (kind,) = self.draw.choices(kinds, [OFTEN[kind] for kind in kinds])
        started = time.monotonic()
        if self.kinds[kind]():
            self.ledger.add_fault(kind, started)
            self.happened[kind] += 1

    def kill_worker(self) -> bool:
        """SIGKILL a process that serves requests."""
        alive = [path for folder in self.workers for path in folder.iterdir()]
        if not alive:
            return False
        worker = self.draw.choice(sorted(alive))
        with suppress(ProcessLookupError):
            os.kill(int(worker.name), signal.SIGKILL)
        wait_until(lambda: not worker.exists(), "a worker's end")
        return True

    def cut_connections(self) -> bool:
        """Terminate database connections, preferably amid a transaction."""
        found = others()
        busy = [number for number, in_transaction in found if in_transaction]
        victims = busy if busy and self.draw.random() < 0.8 else [n for n, _ in found]
        if not victims:
            return False
        cut = self.draw.sample(victims, min(len(victims), self.draw.randint(1, 3)))
        for number in cut:
            with suppress(DatabaseError):  # it may have gone by itself
                execute(TERMINATE[connection.vendor], [number])
        wait_until(
            lambda: not {number for number, _ in others()} & {*cut},
            "the end of terminated connections",
        )
        return True

    def crash_database(self) -> bool:
        """Crash the database server, and start it again soon or a little later."""
        assert self.server is not None
        connection.close()
        self.server.kill()
        time.sleep(self.draw.choice((0, 0.1, 0.5, 1.5)))
        self.server.start()
        return True


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
