"""What the indexes of callers and of endpoints cost a first-time request.

    python -m benchmarks.studies.indexes --database postgresql

In two databases of one server, with as many records, one of them without the indexes.
Requests of a thousand callers go to one and the other in turns. Of each turn the lower
quartile counts, which what else the machine does disturbs least, and the CPU time of
this process and of the server. The latter leaves waits for disks out, so the indexes'
share of it is larger.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

from django.db import connection, connections

from benchmarks.databases import (
    TABLE,
    database,
    fetch_one,
    log_position,
    settle,
    table_size,
)
from benchmarks.figures import shown, spread_of_ratios, table
from benchmarks.records import fill
from tests.support.database_servers import DATABASE

INDEXES = ("idempotency_caller", "idempotency_endpoint")
WITH, WITHOUT = DATABASE, f"{DATABASE}_without"
KINDS = {"first-time": "keyed", "leased first-time": "leased"}
CALLERS = 1000
BODY = 1024


def use(name: str) -> None:
    """Connect to one of the databases, for as long as it takes."""
    connection.close()
    connection.settings_dict |= {"NAME": name, "CONN_MAX_AGE": None}


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


@dataclass(slots=True)
class Turns:
    """What the turns of a kind of request took in one of the databases."""

    seconds: list[float] = field(default_factory=list)
    cpu: float = 0
    log_bytes: int = 0


def server_pid() -> int:
    """Return the process that works for this connection."""
    if connection.vendor == "postgresql":
        return int(fetch_one("SELECT pg_backend_pid()"))
    return int(Path(fetch_one("SELECT @@pid_file")).read_text(encoding="ascii"))


def cpu_time(pid: int) -> float:
    """Return the CPU seconds of this process and of another one."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
    user, system = stat.split()[11:13]
    ticks: int = os.sysconf("SC_CLK_TCK")
    return time.process_time() + (int(user) + int(system)) / ticks


def take_turn(place: str, requests: int, draw: random.Random, turns: Turns) -> None:
    """Send first-time requests to the database that is in use."""
    from benchmarks.requests import Kind, send_all  # set up by now
    from benchmarks.wsgi import post

    def make(_number: int) -> Any:
        return post(place, str(uuid4()), user=f"caller-{draw.randrange(CALLERS)}")

    kind = Kind(name=place, status=201, make=make)
    pid = server_pid()
    gc.collect()
    logged, used = log_position() or 0, cpu_time(pid)
    seconds = send_all(kind, requests)
    turns.cpu += cpu_time(pid) - used
    turns.log_bytes += (log_position() or 0) - logged
    turns.seconds.append(quantiles(seconds, n=4)[0])


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("postgresql", "mariadb")
    parser.add_argument("--database", choices=names, default="postgresql")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=80)
    parser.add_argument("--requests", type=int, default=50, help="of a kind, a turn")
    parser.add_argument("--size", type=int, default=BODY, help="of the stored bodies")
    arguments = parser.parse_args()
    with database(arguments.database, urls="benchmarks.views"):
        half = arguments.records // 2
        fill(half, "live", expired=False, body_size=arguments.size)
        fill(half, "old", expired=True, body_size=arguments.size)
        make_other()
        sizes, held, found = {}, {}, {}
        for name in (WITH, WITHOUT):
            use(name)
            settle()
            sizes[name] = (table_size() or 0) / arguments.records
            held[name] = connections["default"].copy()
            connections["default"] = held[name]
            for kind, view in KINDS.items():
                found[kind, name] = Turns()
                # The new connection, and its plans.
                take_turn(f"/{view}/{BODY}/", 50, random.Random(0), Turns())
        draw = random.Random(1)
        for number in range(arguments.turns):
            # Each is first as often as the other.
            for name in (WITH, WITHOUT)[:: -1 if number % 2 else 1]:
                connections["default"] = held[name]
                for kind, view in KINDS.items():
                    turns = found[kind, name]
                    take_turn(f"/{view}/{BODY}/", arguments.requests, draw, turns)
        sent = arguments.turns * arguments.requests
        rows = []
        for kind in KINDS:
            one, other = found[kind, WITH], found[kind, WITHOUT]
            rows.append(
                (
                    kind,
                    f"{1000 * median(other.seconds):.3f}",
                    f"{1000 * median(one.seconds):.3f}",
                    shown(spread_of_ratios(one.seconds, other.seconds)),
                    f"{1000 * other.cpu / sent:.3f}",
                    f"{1000 * one.cpu / sent:.3f}",
                    f"{one.cpu / other.cpu:.3f}",
                    f"{other.log_bytes / sent:,.0f}",
                    f"{one.log_bytes / sent:,.0f}",
                )
            )
        head = ("request", "ms without", "ms with", "with, of without")
        head += ("CPU ms without", "CPU ms with", "with, of without")
        head += ("log bytes without", "log bytes with")
        print(f"{arguments.database}, {arguments.records:,} records\n")
        print(table(head, rows))
        print(
            f"\nbytes per record on disk: {sizes[WITHOUT]:,.0f} without, "
            f"{sizes[WITH]:,.0f} with"
        )
        for each in held.values():
            each.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
