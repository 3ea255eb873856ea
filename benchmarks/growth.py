"""Whether first-time requests and replays stay as quick while the table grows.

    python -m benchmarks.growth --database postgresql --most 5000000

As ratios to the bare view of the same round, and to the smallest table; each replay is
of a record that is drawn from all. Says what a record takes on disk, its indexes
included, right after the records were stored.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from benchmarks.databases import NAMES, database, settle, table_size
from benchmarks.figures import shown, spread_of_ratios, table, tell
from benchmarks.records import fill

STEPS = (10_000, 1_000_000, 5_000_000)
BODY = 1024


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    steps = told["growth"]
    smallest = next(iter(steps.values()))
    rows = [
        (
            f"{int(records):,}",
            *(
                f"{shown(step[name])} of bare, {step[name][0] / smallest[name][0]:.2f}"
                for name in ("first-time", "replay")
            ),
            f"{step['bytes']:,.0f}" if step["bytes"] else "-",
        )
        for records, step in steps.items()
    ]
    title = f"{told['database']}, bodies of {BODY} bytes"
    head = ("records", "first-time", "replay", "bytes per record")
    return f"{title}\n\n{table(head, rows)}"


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--most", type=int, default=STEPS[-1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[int, dict[str, Any]] = {}
    with database(arguments.database, urls="benchmarks.views"):
        from benchmarks.requests import BARE_ATOMIC, Kind, kinds, run  # set up by now
        from benchmarks.wsgi import post
        from idempotency.models import IdempotencyRecord
        from tests.app.models import Effect

        place, key = f"/keyed/{BODY}/", str(uuid4())
        assert post(place, key)() == 201
        like = IdempotencyRecord.objects.get(key=key)
        draw = random.Random(1)
        stored: dict[str, int] = {}

        def replay(_number: int) -> Any:
            (prefix,) = draw.choices([*stored], [*stored.values()])
            return post(place, f"{prefix}-{draw.randint(1, stored[prefix])}")

        named = {kind.name: kind for kind in kinds(BODY, with_leased=False)}
        every = [
            named[BARE_ATOMIC],
            named["first-time"],
            Kind(name="replay", status=201, make=replay),
        ]
        for step in STEPS:
            if step > arguments.most:
                break
            more = step - sum(stored.values())
            fill(more, f"to-{step}", expired=False, body_size=BODY, like=like)
            stored[f"to-{step}"] = more
            settle()
            size, records = table_size(), IdempotencyRecord.objects.count()
            for kind in every:
                before = Effect.objects.count()
                run(kind, 50)
                acted = Effect.objects.count() - before
                assert acted == (0 if kind.name == "replay" else 50), kind.name
            settle()
            rounds: dict[str, list[float]] = {kind.name: [] for kind in every}
            for _round in range(arguments.rounds):
                for kind in every:
                    rounds[kind.name].append(median(run(kind, arguments.requests)))
            figures[step] = {
                "bytes": size and size / records,
                **{
                    kind.name: spread_of_ratios(rounds[kind.name], rounds[BARE_ATOMIC])
                    for kind in every[1:]
                },
            }
    told = {"database": arguments.database, "growth": figures}
    tell(told, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
