"""Whether first-time requests and replays stay as quick while the table grows.

    python -m benchmarks.growth --database postgresql --most 5000000

As ratios to the bare view of the same round, and to the smallest table. Says what a
record takes on disk, its indexes included.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.databases import NAMES, database, settle, table_size
from benchmarks.records import fill

STEPS = (10_000, 1_000_000, 5_000_000)
BODY = 1024
KINDS = ("bare, ATOMIC_REQUESTS", "first-time", "replay")


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--most", type=int, default=STEPS[-1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.database}, bodies of {BODY} bytes\n")
    print("| records | first-time | replay | bytes per record |\n|---|---|---|---|")
    smallest: dict[str, float] = {}
    figures: list[dict[str, Any]] = []
    with database(arguments.database, urls="benchmarks.views"):
        from benchmarks.requests import kinds, run, spread  # set up by now

        there = 0
        for step in STEPS:
            if step > arguments.most:
                break
            fill(step - there, f"to-{step}", expired=False, body_size=BODY)
            there = step
            every = {kind.name: kind for kind in kinds(BODY, with_leased=False)}
            for name in KINDS:
                run(every[name], 50)
            settle()
            rounds: dict[str, list[float]] = {name: [] for name in KINDS}
            for _round in range(arguments.rounds):
                for name in KINDS:
                    rounds[name].append(median(run(every[name], arguments.requests)))
            cells = []
            size = table_size()
            figures.append({"records": there, "bytes": size and size / there})
            for name in KINDS[1:]:
                pairs = zip(rounds[name], rounds[KINDS[0]], strict=True)
                ratios = [one / bare for one, bare in pairs]
                ratio, low, high = spread(ratios)
                smallest.setdefault(name, ratio)
                cells.append(
                    f"{ratio:.2f} ({low:.2f}-{high:.2f}) of bare, "
                    f"{ratio / smallest[name]:.2f}"
                )
                figures[-1][name] = [ratio, low, high]
            each = f"{size / there:,.0f}" if size else "-"
            print(f"| {step:,} | {' | '.join(cells)} | {each} |", flush=True)
    if arguments.json:
        told = {"database": arguments.database, "growth": figures}
        arguments.json.write_text(json.dumps(told, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
