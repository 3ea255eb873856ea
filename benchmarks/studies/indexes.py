"""What the indexes of callers and of endpoints cost a first-time request.

    python -m benchmarks.studies.indexes --database postgresql

In two databases of one server, with as many records, one of them without the indexes.
Requests of a thousand callers go to one and the other in turns, round by round.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from statistics import median
from typing import Any
from uuid import uuid4

from django.db import connection

from benchmarks.databases import TABLE, database, log_position, settle, table_size
from benchmarks.figures import shown, spread_of_ratios, table
from benchmarks.records import fill
from tests.support.database_servers import DATABASE

INDEXES = ("idempotency_caller", "idempotency_endpoint")
WITH, WITHOUT = DATABASE, f"{DATABASE}_without"
KINDS = {"first-time": "keyed", "leased first-time": "leased"}
CALLERS = 1000
BODY = 1024


def use(name: str) -> None:
    """Connect to one of the databases."""
    connection.close()
    connection.settings_dict["NAME"] = name


def execute(*statements: str) -> None:
    """Execute statements, each on its own."""
    for statement in statements:
        with connection.cursor() as cursor:
            cursor.execute(statement)


def make_other() -> None:
    """Copy the database, without the indexes."""
    if connection.vendor == "postgresql":
        use("postgres")
        execute(f"CREATE DATABASE {WITHOUT} TEMPLATE {WITH}")
        use(WITHOUT)
        execute(*(f"DROP INDEX {name}" for name in INDEXES))
    else:
        tables = connection.introspection.table_names()
        execute(f"CREATE DATABASE {WITHOUT}")
        use(WITHOUT)
        for name in tables:
            execute(f"CREATE TABLE {name} LIKE {WITH}.{name}")
            if name == TABLE:
                execute(*(f"DROP INDEX {index} ON {TABLE}" for index in INDEXES))
            execute(f"INSERT INTO {name} SELECT * FROM {WITH}.{name}")


def run(place: str, requests: int, draw: random.Random) -> tuple[float, float | None]:
    """Send first-time requests; return the median of seconds, and bytes of log each."""
    from benchmarks.requests import Kind, send_all  # set up by now
    from benchmarks.wsgi import post

    def make(_number: int) -> Any:
        return post(place, str(uuid4()), user=f"caller-{draw.randrange(CALLERS)}")

    kind = Kind(name=place, status=201, make=make)
    send_all(kind, 20)  # the new connection and its plans
    gc.collect()
    before = log_position()
    seconds = send_all(kind, requests)
    after = log_position()
    logged = None if before is None or after is None else (after - before) / requests
    return median(seconds), logged


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("postgresql", "mariadb")
    parser.add_argument("--database", choices=names, default="postgresql")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--requests", type=int, default=200, help="of a kind, a round")
    parser.add_argument("--size", type=int, default=BODY, help="of the stored bodies")
    arguments = parser.parse_args()
    with database(arguments.database, urls="benchmarks.views"):
        half = arguments.records // 2
        fill(half, "live", expired=False, body_size=arguments.size)
        fill(half, "old", expired=True, body_size=arguments.size)
        make_other()
        sizes = {}
        for name in (WITH, WITHOUT):
            use(name)
            settle()
            sizes[name] = table_size() or 0
        draw = random.Random(1)
        seconds: dict[tuple[str, str], list[float]] = {}
        logged: dict[tuple[str, str], list[float]] = {}
        for number in range(arguments.rounds):
            # Each is first as often as the other.
            for name in (WITH, WITHOUT)[:: -1 if number % 2 else 1]:
                use(name)
                for kind, view in KINDS.items():
                    place = f"/{view}/{BODY}/"
                    took, log = run(place, arguments.requests, draw)
                    seconds.setdefault((kind, name), []).append(took)
                    logged.setdefault((kind, name), []).append(log or 0)
        rows = [
            (
                kind,
                f"{1000 * median(seconds[kind, WITHOUT]):.3f}",
                f"{1000 * median(seconds[kind, WITH]):.3f}",
                shown(spread_of_ratios(seconds[kind, WITH], seconds[kind, WITHOUT])),
                f"{median(logged[kind, WITHOUT]):,.0f}",
                f"{median(logged[kind, WITH]):,.0f}",
            )
            for kind in KINDS
        ]
        head = ("request", "ms without", "ms with", "with, of without")
        head += ("log bytes without", "log bytes with")
        print(f"{arguments.database}, {arguments.records:,} records\n")
        print(table(head, rows))
        print(
            f"\nbytes per record on disk: {sizes[WITHOUT] / arguments.records:,.0f} "
            f"without, {sizes[WITH] / arguments.records:,.0f} with"
        )
        use(WITH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
