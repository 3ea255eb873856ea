"""Print what becomes of requests that are cut: ``python -m tests.crash_matrix``.

On SQLite, and on a PostgreSQL and a MariaDB of its own, a request is cut at each of
its boundaries: its process is killed, its client hangs up, its connection to the
database is terminated, a statement is done and its reply lost, the database server
crashes and comes back. Then it is retried once. The command fails unless nothing was
doubled, lost or stuck (which a retry is, too, if it has to wait), no answer was
unexpected, and no database was left out.

In leased mode it is retried while the lease is live, and twice after that, under each
policy: what clients were told, how many outside calls there were, and under how many
derived keys at most. The command fails unless all is as the policies promise, on every
database, and unless a handler runs whose process goes on.

In both modes two handlers are plain Django views, and one is a third party's view in
``protected()``: ``CreateAPIView`` of Django REST framework.

In mode resume the handlers run in steps: a row, an outside call, a row and the
response. They are retried while the lease is live and after it, or completed as if no
client came back. Where a call is held, a person decides in between.

    python -m tests.crash_matrix --database postgresql --how restart --handler plain
    python -m tests.crash_matrix --mode leased
    python -m tests.crash_matrix --mode resume
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.database_servers import (
    DatabaseServer,
    NotInstalled,
    mariadb,
    postgresql,
)

DATABASES = ("sqlite", "postgresql", "mariadb")
HOWS = ("kill", "hang-up", "terminate", "lose-reply", "restart")
HANDLERS = {
    "atomic": (
        *("plain", "released", "expired", "savepoint"),
        *("django-view", "django-released", "third-party"),
    ),
    "leased": (
        *("plain", "renewing", "refused", "released"),
        *("failed-before", "failed-after"),
        *("django-view", "django-refused", "third-party"),
    ),
    "resume": (
        *("plain", "apart", "declined"),
        *("failed-before", "failed-after", "completer", "django-view"),
    ),
}


@contextmanager
def database_server(name: str) -> Iterator[DatabaseServer | None]:
    """Run the server of a database; SQLite has none."""
    if name == "sqlite":
        yield None
    else:
        with {"postgresql": postgresql, "mariadb": mariadb}[name]() as server:
            yield server


def run_apart(*arguments: Any) -> tuple[int, list[str]]:
    """Run a database in a process of its own: Django knows one at a time.

    Raises ``NotInstalled``.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run_database, *arguments).result()


def run_database(
    name: str, mode: str, hows: list[str], handlers: list[str]
) -> tuple[int, list[str]]:
    """Print the rows of one database; return how many requests were cut, and faults."""
    with TemporaryDirectory(prefix="idem") as folder, database_server(name) as database:
        os.environ.update(
            DJANGO_SETTINGS_MODULE="tests.settings",
            DEMO_VAR_DIR=folder,
            ATOMIC_REQUESTS="0",
            DATABASE_URL=database.url if database else f"sqlite:///{folder}/db.sqlite3",
        )
        return _run_matrix(name, database, mode, hows, handlers)


def _run_matrix(
    name: str,
    database: DatabaseServer | None,
    mode: str,
    hows: list[str],
    handlers: list[str],
) -> tuple[int, list[str]]:
    import django  # noqa: PLC0415  # the environment says now which database

    django.setup()

    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connections  # noqa: PLC0415

    from tests.support import (  # noqa: PLC0415
        atomic_crashes,
        leased_crashes,
        resumed_crashes,
    )
    from tests.support.faults import serving  # noqa: PLC0415
    from tests.support.rendezvous import Rendezvous  # noqa: PLC0415

    modes: dict[str, Any] = {
        "atomic": atomic_crashes,
        "leased": leased_crashes,
        "resume": resumed_crashes,
    }
    tried = modes[mode]
    chosen = [tried.HANDLERS[handler] for handler in handlers]
    call_command("migrate", run_syncdb=True, verbosity=0)
    say(tried.COLUMNS, "database", "ATOMIC_REQUESTS", "how", *tried.COLUMNS)
    boundaries, faults = 0, []
    for atomic_requests in (False, True):
        connections.settings["default"]["ATOMIC_REQUESTS"] = atomic_requests
        switch = "on" if atomic_requests else "off"
        with (
            TemporaryDirectory(prefix="idem") as folder,
            Rendezvous(Path(folder)) as rendezvous,
            serving() as server,
        ):
            cuts = tried.Crashes(server, rendezvous, database)
            for how in (how for how in cuts.hows() if how in hows):
                for tally in cuts.rows(how, chosen):
                    boundaries += tally.boundaries
                    say(tried.COLUMNS, name, switch, how, *tally.cells)
                    faults += [f"{name}, {switch}, {fault}" for fault in tally.faults]
    connections.close_all()
    return boundaries, faults


def say(columns: Sequence[str], *cells: object) -> None:
    """Print one row of the table."""
    widths = (11, 16, 12, *(len(column) + 2 for column in columns))
    row = (f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True))
    print("".join(row).rstrip(), flush=True)  # noqa: T201  # for people


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for; by default all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", choices=[*HANDLERS], default="atomic")
    for name, choices in (
        ("database", DATABASES),
        ("how", HOWS),
        ("handler", sorted({*chain.from_iterable(HANDLERS.values())})),
    ):
        parser.add_argument(
            f"--{name}", action="append", choices=choices, help="(repeatable)"
        )
    arguments = parser.parse_args()
    arguments.handler = arguments.handler or [*HANDLERS[arguments.mode]]
    for handler in arguments.handler:
        if handler not in HANDLERS[arguments.mode]:
            parser.error(f"{arguments.mode} mode has no handler {handler}")
    return arguments


def main() -> int:
    """Run what was asked for, database by database."""
    arguments = parse_arguments()
    chosen = (arguments.mode, arguments.how or [*HOWS], arguments.handler)
    boundaries = 0
    faults: list[str] = []
    missing: dict[str, str] = {}
    for name in arguments.database or DATABASES:
        try:
            done = run_apart(name, *chosen)
        except NotInstalled as reason:
            missing[name] = str(reason)
        else:
            boundaries += done[0]
            faults += done[1]
    for fault in faults:
        print(fault)  # noqa: T201
    for name, reason in missing.items():
        print(f"{name} was left out: {reason}")  # noqa: T201
    # To have cut nothing is no success.
    return 1 if faults or missing or not boundaries else 0


if __name__ == "__main__":
    sys.exit(main())
