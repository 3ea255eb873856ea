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
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from benchmarks.databases import NAMES, database, settle, table_size
from benchmarks.figures import Spread, shown, spread_of_ratios, table, tell
from benchmarks.records import fill

STEPS = (10_000, 1_000_000, 5_000_000)
BODY = 1024


def stored_request(size: int) -> Any:
    """Send a request, and return its record, with whose values others are filled."""
    from benchmarks.wsgi import post  # set up by now
    from idempotency.models import IdempotencyRecord

    key = str(uuid4())
    assert post(f"/keyed/{size}/", key)() == 201
    return IdempotencyRecord.objects.get(key=key)


def kinds(size: int, like: Any, stored: Mapping[str, int]) -> list[Any]:
    """Return the bare request, a first-time one, and replays of all that is stored.

    ``stored`` says by the prefix of their keys how many records are like that one.
    """
    from benchmarks import requests  # set up by now
    from benchmarks.wsgi import post

    draw = random.Random(1)

    def replay(_number: int) -> Any:
        (prefix,) = draw.choices([*stored], [*stored.values()])
        return post(like.path, f"{prefix}-{draw.randint(1, stored[prefix])}")

    named = {kind.name: kind for kind in requests.kinds(size, with_leased=False)}
    return [
        named[requests.BARE_ATOMIC],
        named["first-time"],
        requests.Kind(name="replay", status=201, make=replay),
    ]


def measure(every: Sequence[Any], rounds: int, count: int) -> dict[str, Spread]:
    """Return the ratios of the later kinds to the first, which is the bare request."""
    from benchmarks.requests import run  # set up by now
    from tests.app.models import Effect

    for kind in every:
        before = Effect.objects.count()
        run(kind, 50)
        acted = Effect.objects.count() - before
        assert acted == (0 if kind.name == "replay" else 50), kind.name
    settle()
    taken: list[list[float]] = [[] for _kind in every]
    for _round in range(rounds):
        for kind, seconds in zip(every, taken, strict=True):
            seconds.append(median(run(kind, count)))
    bare, *others = taken
    return {
        kind.name: spread_of_ratios(seconds, bare)
        for kind, seconds in zip(every[1:], others, strict=True)
    }


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
        from idempotency.models import IdempotencyRecord  # set up by now

        like = stored_request(BODY)
        stored: dict[str, int] = {}
        every = kinds(BODY, like, stored)
        for step in STEPS:
            if step > arguments.most:
                break
            more = step - sum(stored.values())
            fill(more, f"to-{step}", expired=False, body_size=BODY, like=like)
            stored[f"to-{step}"] = more
            settle()
            size, records = table_size(), IdempotencyRecord.objects.count()
            figures[step] = {
                "bytes": size and size / records,
                **measure(every, arguments.rounds, arguments.requests),
            }
    told = {"database": arguments.database, "growth": figures}
    tell(told, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
