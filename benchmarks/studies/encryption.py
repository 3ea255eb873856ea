"""What encryption costs a request, in process, with and without in the same run.

    python -m benchmarks.studies.encryption --database postgresql

The kinds of requests are interleaved round by round, as in ``benchmarks.requests``.
On a busy machine only the ratios of one run count.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from benchmarks.databases import NAMES, database, settle
from benchmarks.figures import shown, spread_of_ratios, table, tell
from benchmarks.requests import BARE_ATOMIC, SIZES, Kind, count_log, run

PLAIN, ENCRYPTED = "", ", encrypted"
KINDS = ("first-time", "replay", "leased first-time")


def kinds(size: int) -> list[Kind]:
    """Return the kinds of requests, each with and without encryption."""
    from django.test import override_settings  # needs the settings

    from benchmarks.wsgi import post
    from idempotency.encryption import new_entry

    keys = {"ENCRYPTION_KEYS": [new_entry()]}
    keyed, leased = f"/keyed/{size}/", f"/leased/{size}/"
    found = [
        Kind(
            name=BARE_ATOMIC,
            status=201,
            make=lambda number: post(f"/bare/{size}/", None),
            atomic_requests=True,
        )
    ]
    for way, project in ((PLAIN, {}), (ENCRYPTED, keys)):

        def meanwhile(project: Any = project) -> AbstractContextManager[None]:
            return override_settings(IDEMPOTENCY=project) if project else nullcontext()

        key = str(uuid4())
        with meanwhile():
            assert post(keyed, key)() == 201
        found += [
            Kind(
                name=f"first-time{way}",
                status=201,
                make=lambda number: post(keyed, str(uuid4())),
                meanwhile=meanwhile,
            ),
            Kind(
                name=f"replay{way}",
                status=201,
                make=lambda number, key=key: post(keyed, key),  # type: ignore[misc]  # bound now
                meanwhile=meanwhile,
            ),
            Kind(
                name=f"leased first-time{way}",
                status=201,
                make=lambda number: post(leased, str(uuid4())),
                meanwhile=meanwhile,
            ),
        ]
    return found


def measure(size: int, *, rounds: int, requests: int) -> dict[str, Any]:
    """Measure every kind of request, interleaved."""
    every = kinds(size)
    for kind in every:
        run(kind, 10)  # connections, caches, plans
    settle()
    medians: dict[str, list[float]] = {kind.name: [] for kind in every}
    draw = random.Random(1)
    for _round in range(rounds):
        for kind in draw.sample(every, len(every)):
            gc.collect()
            medians[kind.name].append(median(run(kind, requests)))
    logs = {}
    for kind in every:
        with kind.meanwhile():
            logs[kind.name] = count_log(kind)
    return {
        name: {
            "plain_to_bare": spread_of_ratios(medians[name], medians[BARE_ATOMIC]),
            "encrypted_to_bare": spread_of_ratios(
                medians[f"{name}{ENCRYPTED}"], medians[BARE_ATOMIC]
            ),
            "encrypted_to_plain": spread_of_ratios(
                medians[f"{name}{ENCRYPTED}"], medians[name]
            ),
            "log_bytes": [logs[name], logs[f"{name}{ENCRYPTED}"]],
        }
        for name in KINDS
    }


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    head = ("bytes", "request", "of bare, plain", "of bare, encrypted")
    head += ("encrypted, of plain", "log bytes, plain", "encrypted")
    rows = [
        (
            f"{int(size):,}",
            name,
            shown(found["plain_to_bare"]),
            shown(found["encrypted_to_bare"]),
            shown(found["encrypted_to_plain"]),
            *("-" if each is None else f"{each:,}" for each in found["log_bytes"]),
        )
        for size, costs in told["requests"].items()
        for name, found in costs.items()
    ]
    return f"{told['database']}\n\n{table(head, rows)}"


def main() -> int:
    """Measure, print, and write JSON where that is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=100, help="of a kind, a round")
    parser.add_argument("--size", type=int, action="append", choices=SIZES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    with database(arguments.database, urls="benchmarks.views"):
        for size in arguments.size or SIZES:
            requests = max(10, arguments.requests // (1 + size // 65_536))
            figures[size] = measure(size, rounds=arguments.rounds, requests=requests)
    told = {"database": arguments.database, "requests": figures}
    tell(told, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
