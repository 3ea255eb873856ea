"""What one request costs, in process, as ratios to a bare view of the same run.

    python -m benchmarks.requests --database postgresql

The bare view runs in autocommit and under ATOMIC_REQUESTS; every other kind of request
is compared with both, interleaved with them round by round. Statements, commits, bytes
of the database's log and Python calls are counted, not timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from benchmarks.databases import NAMES, database, log_position, settle

SIZES = (200, 1024, 65_536, 1_048_576)
USUAL = 1024
# The least that a request can cost: its statements through the bare driver.
FLOOR = "floor of"
Send = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of request: ``make`` returns what sends one, prepared beforehand."""

    name: str
    status: int
    make: Callable[[int], Send]
    atomic_requests: bool = False


@dataclass(slots=True, kw_only=True)
class Cost:
    """What a kind of request costs: medians of rounds, and where half of these lie."""

    name: str
    milliseconds: float
    to_autocommit: tuple[float, float, float]
    to_atomic_requests: tuple[float, float, float]
    p95_to_atomic_requests: float
    statements: int
    commits: int
    log_bytes: int | None
    calls: int


def kinds(size: int, *, with_leased: bool) -> list[Kind]:
    """Return every kind of request, for bodies of that size."""
    from benchmarks.wsgi import post  # needs the settings

    def first(place: str) -> Callable[[int], Send]:
        return lambda number: post(place, str(uuid4()))

    def known(place: str, body: bytes | None = None) -> Callable[[int], Send]:
        key = str(uuid4())
        assert post(place, key)() == 201
        other = {} if body is None else {"body": body}
        return lambda number: post(place, key, **other)

    def busy(place: str) -> Callable[[int], Send]:
        """Return duplicates of a request that holds its key to the end."""
        from idempotency.models import IdempotencyRecord, State

        key = str(uuid4())
        assert post(place, key)() == 201
        # In progress, under a lease that outlives the run.
        IdempotencyRecord.objects.filter(key=key).update(
            state=State.IN_PROGRESS,
            status_code=None,
            body=None,
            body_size=None,
            lease_expires_at="2999-01-01T00:00:00Z",
        )
        return lambda number: post(place, key)

    bare, keyed, leased, floor = (
        f"/{name}/{size}/" for name in ("bare", "keyed", "leased", "floor")
    )
    found = [
        Kind(name="bare", status=201, make=lambda number: post(bare, None)),
        Kind(
            name="bare, ATOMIC_REQUESTS",
            status=201,
            make=lambda number: post(bare, None),
            atomic_requests=True,
        ),
        Kind(name="no key", status=201, make=lambda number: post(keyed, None)),
        Kind(name="first-time", status=201, make=first(keyed)),
        Kind(
            name="first-time, ATOMIC_REQUESTS",
            status=201,
            make=first(keyed),
            atomic_requests=True,
        ),
        Kind(name="replay", status=201, make=known(keyed)),
        Kind(name="409", status=409, make=busy(keyed)),
        Kind(name="422", status=422, make=known(keyed, b'{"title": "another"}')),
    ]
    if with_leased:
        found.append(Kind(name="leased first-time", status=201, make=first(leased)))
        found.append(Kind(name="leased replay", status=201, make=known(leased)))
    if connection.vendor == "postgresql":
        found.append(Kind(name=f"{FLOOR} first-time", status=201, make=first(floor)))
        found.append(Kind(name=f"{FLOOR} replay", status=201, make=known(floor)))
    return found


def run(kind: Kind, requests: int) -> list[float]:
    """Send requests of a kind, and return their seconds."""
    sends = [kind.make(number) for number in range(requests)]
    settings = connection.settings_dict
    settings["ATOMIC_REQUESTS"] = kind.atomic_requests
    seconds = []
    try:
        for send in sends:
            started = time.perf_counter()
            status = send()
            seconds.append(time.perf_counter() - started)
            assert status == kind.status, f"{kind.name}: {status}"
    finally:
        settings["ATOMIC_REQUESTS"] = False
    return seconds


def count(kind: Kind, requests: int) -> dict[str, Any]:
    """Count what one request of a kind does."""
    run(kind, 3)
    statements = commits = 0

    def counted(execute: Any, *arguments: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(*arguments)

    # The stubs do not know the method that sends COMMIT.
    wrapper: Any = BaseDatabaseWrapper
    commit = wrapper._commit

    def counted_commit(self: Any) -> Any:
        nonlocal commits
        commits += 1
        return commit(self)

    wrapper._commit = counted_commit
    try:
        with connection.execute_wrapper(counted):
            run(kind, 1)
    finally:
        wrapper._commit = commit

    before = log_position()
    run(kind, requests)
    after = log_position()
    logged = None
    if before is not None and after is not None:
        logged = round((after - before) / requests)
    return {
        "statements": statements,
        "commits": commits,
        # What the interpreter does on the side now and then is not counted.
        "calls": min(count_calls(kind) for _time in range(5)),
        "log_bytes": logged,
    }


def count_calls(kind: Kind) -> int:
    """Count the Python functions that one request of a kind calls."""
    calls = 0

    def on_event(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    send = kind.make(0)
    connection.settings_dict["ATOMIC_REQUESTS"] = kind.atomic_requests
    sys.setprofile(on_event)
    try:
        send()
    finally:
        sys.setprofile(None)
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    return calls


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles: half of all rounds lie between these."""
    low, middle, high = quantiles(values, n=4)
    return middle, low, high


def measure(size: int, *, rounds: int, requests: int) -> list[Cost]:
    """Measure every kind of request, interleaved."""
    every = kinds(size, with_leased=True)
    for kind in every:
        run(kind, 10)  # connections, caches, plans
    settle()
    medians: dict[str, list[float]] = {kind.name: [] for kind in every}
    p95s: dict[str, list[float]] = {kind.name: [] for kind in every}
    draw = random.Random(1)
    for _round in range(rounds):
        for kind in draw.sample(every, len(every)):
            gc.collect()
            seconds = run(kind, requests)
            medians[kind.name].append(median(seconds))
            p95s[kind.name].append(quantiles(seconds, n=20)[-1])
    plain, atomic = medians["bare"], medians["bare, ATOMIC_REQUESTS"]
    return [
        Cost(
            name=kind.name,
            milliseconds=1000 * median(medians[kind.name]),
            to_autocommit=spread(
                [a / b for a, b in zip(medians[kind.name], plain, strict=True)]
            ),
            to_atomic_requests=spread(
                [a / b for a, b in zip(medians[kind.name], atomic, strict=True)]
            ),
            p95_to_atomic_requests=median(
                a / b
                for a, b in zip(
                    p95s[kind.name], p95s["bare, ATOMIC_REQUESTS"], strict=True
                )
            ),
            **count(kind, 50),
        )
        for kind in every
    ]


def table(costs: list[Cost]) -> str:
    """Return the figures as a table."""
    heads = ("request", "ms", "of bare, autocommit", "of bare, ATOMIC_REQUESTS", "p95")
    heads += ("statements", "commits", "log bytes", "Python calls")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cost in costs:
        auto, atomic = (
            f"{middle:.2f} ({low:.2f}-{high:.2f})"
            for middle, low, high in (cost.to_autocommit, cost.to_atomic_requests)
        )
        logged = "-" if cost.log_bytes is None else f"{cost.log_bytes:,}"
        lines.append(
            f"| {cost.name} | {cost.milliseconds:.2f} | {auto} | {atomic} "
            f"| {cost.p95_to_atomic_requests:.2f} | {cost.statements} "
            f"| {cost.commits} | {logged} | {cost.calls} |"
        )
    return "\n".join(lines)


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
            costs = measure(size, rounds=arguments.rounds, requests=requests)
            print(f"\n{arguments.database}, bodies of {size:,} bytes\n")
            print(table(costs), flush=True)
            figures[size] = [asdict(cost) for cost in costs]
    if arguments.json:
        told = {"database": arguments.database, "requests": figures}
        arguments.json.write_text(json.dumps(told, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
