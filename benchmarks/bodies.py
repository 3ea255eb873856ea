"""Large answers on PostgreSQL: ways to send the same bytes, and to keep them.

    python -m benchmarks.bodies

The transaction of a first-time request by its statements alone, through the bare
driver, as a ratio to how they are sent and kept by default, turn by turn: the body
beside the statement, or in its text as where there are no pipelines, compressed by the
database (pglz or lz4) or beforehand by zlib. Also how many bytes each way keeps.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from django.db import connection

from benchmarks.answers import BYTES
from benchmarks.databases import TABLE, database, fetch_one, settle
from benchmarks.figures import shown, spread_of_ratios, table, tell
from benchmarks.floor import first_time

SIZES = (1024, 16_384, 65_536, 1_048_576)
# The fastest: 9 takes several times as long for a tenth less.
LEVEL = 1


@dataclass(frozen=True, slots=True)
class Way:
    """How the body of an answer gets into the table."""

    compression: str = "pglz"
    is_beside: bool = False
    is_zipped: bool = False


WAYS = {
    "beside the statement, pglz (the defaults)": Way(is_beside=True),
    "beside it, lz4": Way("lz4", is_beside=True),
    "in the statement, pglz": Way(),
    "in the statement, lz4": Way("lz4"),
    "in the statement, zlib": Way(is_zipped=True),
    "beside it, zlib": Way(is_beside=True, is_zipped=True),
}


def turn(way: Way, size: int, requests: int) -> float:
    """Send first-time requests one way, and return the median of seconds."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"ALTER TABLE {TABLE} ALTER COLUMN body SET COMPRESSION {way.compression}"
        )
    body = BYTES[:size]
    seconds = []
    for _request in range(requests):
        started = time.perf_counter()
        stored = zlib.compress(body, LEVEL) if way.is_zipped else body
        zipping = time.perf_counter() - started
        took = first_time(stored, in_text=not way.is_beside)
        seconds.append(zipping + took)
    return median(seconds)


def kept() -> int:
    """Return how many bytes the last body takes in the table."""
    return int(
        fetch_one(
            f"SELECT pg_column_size(body) FROM {TABLE} ORDER BY created_at DESC LIMIT 1"
        )
    )


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    rows = [
        (f"{int(size):,}", name, shown(found["ratio"]), f"{found['kept']:,}")
        for size, ways in told["bodies"].items()
        for name, found in ways.items()
    ]
    return table(("body", "sent and kept", "of the defaults", "kept bytes"), rows)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=100, help="of a way, a round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    usual = next(iter(WAYS))
    with database("postgresql", urls="benchmarks.views"):
        connection.ensure_connection()
        for size in SIZES:
            requests = max(5, arguments.requests // (1 + size // 65_536))
            sizes = {}
            for name, way in WAYS.items():
                turn(way, size, 5)
                sizes[name] = kept()
            settle()
            rounds: dict[str, list[float]] = {name: [] for name in WAYS}
            for _round in range(arguments.rounds):
                for name, way in WAYS.items():
                    rounds[name].append(turn(way, size, requests))
            figures[size] = {
                name: {
                    "ratio": spread_of_ratios(rounds[name], rounds[usual]),
                    "kept": sizes[name],
                }
                for name in WAYS
            }
    tell({"bodies": figures}, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
