"""What it gives to let PostgreSQL prepare a project's statements.

    python -m benchmarks.prepared

Requests in process, by Django's settings as they are and with the OPTIONS that let
psycopg prepare statements, turn by turn. Each kind is compared with the bare view under
ATOMIC_REQUESTS by the same settings, and with itself by Django's.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from pathlib import Path
from statistics import median
from typing import Any

from django.db import connection

from benchmarks.databases import database, settle
from benchmarks.figures import shown, spread_of_ratios, table, tell
from benchmarks.floor import PREPARED_AFTER, prepared
from benchmarks.requests import BARE_ATOMIC, USUAL, Kind, kinds, run

KINDS = (BARE_ATOMIC, "first-time", "replay")
WAYS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "prepared": {"server_side_binding": True, "prepare_threshold": PREPARED_AFTER},
}
# More than it takes until a statement is prepared.
WARM_UP = 3 * PREPARED_AFTER


def turn(way: str, every: list[Kind], requests: int) -> dict[str, float]:
    """Send each kind of request over a new connection; return medians of seconds."""
    connection.close()
    usual = connection.settings_dict["OPTIONS"]
    connection.settings_dict["OPTIONS"] = {**usual, **WAYS[way]}
    found = {}
    try:
        for kind in every:
            run(kind, WARM_UP)
            gc.collect()
            found[kind.name] = median(run(kind, requests))
        assert bool(prepared()) is bool(WAYS[way])
    finally:
        connection.settings_dict["OPTIONS"] = usual
        connection.close()
    return found


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    rows = [
        (
            name,
            f"{found['milliseconds']:.2f}",
            shown(found["to_atomic_requests"]),
            shown(found["to_itself"]),
        )
        for name, found in told["prepared"].items()
    ]
    of_itself = "of itself, not prepared"
    head = ("request, prepared", "ms", "of bare, ATOMIC_REQUESTS, prepared", of_itself)
    return table(head, rows)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=100, help="of a kind, a round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds: dict[str, dict[str, list[float]]] = {
        way: {name: [] for name in KINDS} for way in WAYS
    }
    draw = random.Random(1)
    with database("postgresql", urls="benchmarks.views"):
        named = {kind.name: kind for kind in kinds(USUAL, with_leased=False)}
        every = [named[name] for name in KINDS]
        settle()
        for _round in range(arguments.rounds):
            for way in draw.sample([*WAYS], len(WAYS)):
                order = draw.sample(every, len(every))
                for name, took in turn(way, order, arguments.requests).items():
                    rounds[way][name].append(took)
    as_they_are, better = rounds.values()
    figures = {
        name: {
            "milliseconds": 1000 * median(took),
            "to_atomic_requests": spread_of_ratios(took, better[BARE_ATOMIC]),
            "to_itself": spread_of_ratios(took, as_they_are[name]),
        }
        for name, took in better.items()
    }
    tell({"prepared": figures}, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
