"""What a request costs with a network between application and database.

    python -m benchmarks.network --database postgresql

Requests in process, through a relay that delays, turn by turn with the bare view in a
transaction (ATOMIC_REQUESTS). Round trips are counted by the relay. The app's
statements are also sent one by one, as without pipelines and multi-statements.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from django.db import connection

from benchmarks.databases import database, settle
from benchmarks.figures import shown, spread_of_ratios, table, tell
from benchmarks.relay import Relay, relay
from benchmarks.requests import BARE_ATOMIC, SIZES, USUAL, Kind, kinds, run

NAMES = ("postgresql", "mariadb")
# Milliseconds there and back: one machine, one availability zone, two.
ROUND_TRIPS = (0.0, 0.5, 2.0)
KINDS = (
    *(BARE_ATOMIC, "no key", "first-time", "first-time, ATOMIC_REQUESTS"),
    *("replay", "422", "409", "refusal that frees the key"),
    *("leased first-time", "leased replay"),
)
BY_STATEMENTS = "first-time, statement by statement"


def wanted(size: int) -> list[Kind]:
    """Return the kinds of requests that are measured."""
    from benchmarks.wsgi import post  # needs the settings

    every = {kind.name: kind for kind in kinds(size, with_leased=True)}
    every["refusal that frees the key"] = Kind(
        name="refusal that frees the key",
        status=400,
        make=lambda number: post(f"/refusing/{size}/", f"refused-{size}-{number}"),
    )
    found = [every[name] for name in KINDS]
    first = every["first-time"]
    found.append(
        Kind(name=BY_STATEMENTS, status=201, make=first.make, meanwhile=by_statements)
    )
    return found


@contextmanager
def by_statements() -> Iterator[None]:
    """Let the app send each statement by itself."""
    from idempotency.claims import claims_in

    claims = type(claims_in("default"))
    with patch.object(claims, "why_one_by_one", lambda self: "the benchmark says so"):
        yield


def socket_path() -> str:
    """Return where the benchmark's own server listens."""
    host = str(connection.settings_dict["HOST"])
    return f"{host}/.s.PGSQL.5432" if connection.vendor == "postgresql" else host


def through(line: Relay) -> None:
    """Let the project's connection go through the relay."""
    connection.close()
    connection.settings_dict.update(
        HOST="127.0.0.1",
        PORT=str(line.port),
        # A trip of every request's, with a key and without.
        CONN_HEALTH_CHECKS=False,
    )


def count_trips(line: Relay, kind: Kind) -> int:
    """Return how often a request of a kind waits for the database."""
    run(kind, 2)
    send = kind.make(0)
    connection.settings_dict["ATOMIC_REQUESTS"] = kind.atomic_requests
    try:
        with kind.meanwhile():
            before = line.trips
            assert send() == kind.status
            return line.trips - before
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


def measure(line: Relay, size: int, *, rounds: int, requests: int) -> dict[str, Any]:
    """Measure every kind of request with each network, interleaved."""
    every = wanted(size)
    line.set_round_trip(0)
    for kind in every:
        run(kind, 10)
    settle()
    found: dict[str, Any] = {
        kind.name: {"trips": count_trips(line, kind), "networks": {}} for kind in every
    }
    draw = random.Random(1)
    for milliseconds in ROUND_TRIPS:
        line.set_round_trip(milliseconds)
        medians: dict[str, list[float]] = {kind.name: [] for kind in every}
        for _round in range(rounds):
            for kind in draw.sample(every, len(every)):
                gc.collect()
                medians[kind.name].append(median(run(kind, requests)))
        for name, seconds in medians.items():
            found[name]["networks"][str(milliseconds)] = {
                "milliseconds": 1000 * median(seconds),
                "ratio": spread_of_ratios(seconds, medians[BARE_ATOMIC]),
            }
    return found


def report(told: dict[str, Any]) -> str:
    """Return the figures as tables, one for each size of bodies."""
    networks = [f"{milliseconds:g} ms" for milliseconds in ROUND_TRIPS]
    head = ("request", "round trips", *networks)
    parts = []
    for size, costs in told["network"].items():
        rows = [
            (
                name,
                cost["trips"],
                *(shown(found["ratio"]) for found in cost["networks"].values()),
            )
            for name, cost in costs.items()
        ]
        parts.append(f"{told['database']}, bodies of {int(size):,} bytes")
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def main() -> int:
    """Measure, print, and write JSON where that is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=30, help="of a kind, a round")
    parser.add_argument("--size", type=int, action="append", choices=SIZES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    with (
        database(arguments.database, urls="benchmarks.views"),
        relay(socket_path()) as line,
    ):
        through(line)
        for size in arguments.size or (USUAL,):
            requests = max(5, arguments.requests // (1 + size // 65_536))
            figures[size] = measure(
                line, size, rounds=arguments.rounds, requests=requests
            )
        connection.close()
    told = {"database": arguments.database, "network": figures}
    tell(told, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
