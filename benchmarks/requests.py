"""What one request costs, in process, as ratios to a bare view of the same run.

    python -m benchmarks.requests --database postgresql

The bare view runs in autocommit and under ATOMIC_REQUESTS; every other kind of request
is compared with both, interleaved with them round by round. Statements, commits, bytes
of the database's log and Python calls are counted, not timed. A commit is a COMMIT, or
a statement that may write outside of a transaction.
"""

from __future__ import annotations

import argparse
import gc
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from benchmarks.databases import NAMES, database, log_position, settle
from benchmarks.figures import Spread, shown, spread_of_ratios, table, tell
from benchmarks.figures import spread as spread  # noqa: PLC0414  # from here, too

SIZES = (200, 1024, 65_536, 1_048_576)
USUAL = 1024
# The least that a request can cost: its statements through the bare driver.
FLOOR = "floor of"
BARE, BARE_ATOMIC = "bare", "bare, ATOMIC_REQUESTS"
# In autocommit each of these is a transaction; BEGIN and the like are not.
WRITES = re.compile(r"(SET STATEMENT \S+ FOR )?(INSERT|UPDATE|DELETE|REPLACE|WITH)\b")
Send = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of request: ``make`` returns what sends one, prepared beforehand."""

    name: str
    status: int
    make: Callable[[int], Send]
    atomic_requests: bool = False
    # What is so while requests of the kind are sent.
    meanwhile: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(slots=True, kw_only=True)
class Cost:
    """What a kind of request costs: medians of rounds, and where half of these lie."""

    milliseconds: float
    to_autocommit: Spread
    to_atomic_requests: Spread
    p95_to_atomic_requests: Spread
    statements: int
    commits: int
    log_bytes: int | None
    calls: int


def kinds(size: int, *, with_leased: bool) -> list[Kind]:
    """Return every kind of request, for bodies of that size."""
    from benchmarks.wsgi import post  # needs the settings
    from idempotency.models import IdempotencyRecord, State

    def first(place: str) -> Callable[[int], Send]:
        return lambda number: post(place, str(uuid4()))

    def known(place: str, body: bytes | None = None) -> Callable[[int], Send]:
        key = str(uuid4())
        assert post(place, key)() == 201
        other = {} if body is None else {"body": body}
        return lambda number: post(place, key, **other)

    def under_lease(place: str) -> Callable[[int], Send]:
        """Return duplicates of a request in leased mode that does not end."""
        key = str(uuid4())
        assert post(place, key)() == 201
        IdempotencyRecord.objects.filter(key=key).update(
            state=State.IN_PROGRESS,
            status_code=None,
            body=None,
            body_size=None,
            lease_expires_at="2999-01-01T00:00:00Z",
        )
        return lambda number: post(place, key)

    bare, keyed, leased, step, floor = (
        f"/{name}/{size}/" for name in ("bare", "keyed", "leased", "resuming", "floor")
    )
    found = [
        Kind(name=BARE, status=201, make=lambda number: post(bare, None)),
        Kind(
            name=BARE_ATOMIC,
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
        Kind(name="422", status=422, make=known(keyed, b'{"title": "another"}')),
    ]
    # In SQLite's one line of writers the duplicate of a running request waits.
    if connection.vendor != "sqlite":
        key = str(uuid4())
        assert post(keyed, key)() == 201
        record = IdempotencyRecord.objects.get(key=key)
        IdempotencyRecord.objects.filter(key=key).delete()
        record.state = State.IN_PROGRESS
        found.append(
            Kind(
                name="409",
                status=409,
                make=lambda number: post(keyed, key),
                meanwhile=lambda: held(record),
            )
        )
    if with_leased:
        found.append(Kind(name="leased first-time", status=201, make=first(leased)))
        found.append(Kind(name="last step first-time", status=201, make=first(step)))
        found.append(Kind(name="leased replay", status=201, make=known(leased)))
        found.append(Kind(name="409, leased", status=409, make=under_lease(leased)))
    if connection.vendor == "postgresql":
        found.append(Kind(name=f"{FLOOR} first-time", status=201, make=first(floor)))
        found.append(Kind(name=f"{FLOOR} replay", status=201, make=known(floor)))
    return found


@contextmanager
def held(record: Any) -> Iterator[None]:
    """Hold a record's key as a running request does, on a connection of its own."""
    from idempotency.claims import claims_in

    other = connection.copy()
    other.set_autocommit(False)
    try:
        claims = type(claims_in("default"))(other)
        claimed = claims.insert(record, timedelta(days=30), None)
        assert claimed is not None
        assert claimed.token == record.token
        yield
    finally:
        other.rollback()
        other.close()


def run(kind: Kind, requests: int) -> list[float]:
    """Send requests of a kind, and return their seconds."""
    with kind.meanwhile():
        return send_all(kind, requests)


def send_all(kind: Kind, requests: int) -> list[float]:
    """Send requests of a kind while what it needs is so, and return their seconds."""
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


def count(kind: Kind) -> dict[str, Any]:
    """Count what one request of a kind does."""
    with kind.meanwhile():
        send_all(kind, 3)
        statements, commits = count_statements(kind)
        return {
            "statements": statements,
            "commits": commits,
            # What the interpreter does on the side now and then is not counted.
            "calls": min(count_calls(kind) for _time in range(5)),
            "log_bytes": count_log(kind),
        }


def count_statements(kind: Kind) -> tuple[int, int]:
    """Return how many statements and commits a request of a kind makes."""
    from idempotency.claims.multi_statements import COMMIT_IF_WRITTEN

    statements = commits = 0

    def counted(execute: Any, sql: str, *arguments: Any) -> Any:
        nonlocal statements, commits
        statements += 1
        is_outside = not connection.in_atomic_block and connection.get_autocommit()
        commits += is_outside and WRITES.match(sql) is not None
        commits += sql.endswith(COMMIT_IF_WRITTEN)
        return execute(sql, *arguments)

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
            send_all(kind, 1)
    finally:
        wrapper._commit = commit
    return statements, commits


def count_log(kind: Kind, turns: int = 5, requests: int = 20) -> int | None:
    """Return the bytes of the database's log for a request, as the least of turns.

    In others the database also writes what earlier work has left it.
    """
    logged = []
    for _turn in range(turns):
        before = log_position()
        send_all(kind, requests)
        after = log_position()
        if before is None or after is None:
            return None
        logged.append((after - before) / requests)
    return round(min(logged))


def count_calls(kind: Kind) -> int:
    """Return how many Python functions one request of a kind calls."""
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


def measure(size: int, *, rounds: int, requests: int) -> dict[str, Cost]:
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
    return {
        kind.name: Cost(
            milliseconds=1000 * median(medians[kind.name]),
            to_autocommit=spread_of_ratios(medians[kind.name], medians[BARE]),
            to_atomic_requests=spread_of_ratios(
                medians[kind.name], medians[BARE_ATOMIC]
            ),
            p95_to_atomic_requests=spread_of_ratios(p95s[kind.name], p95s[BARE_ATOMIC]),
            **count(kind),
        )
        for kind in every
    }


def report(told: dict[str, Any]) -> str:
    """Return the figures as tables, one for each size of bodies."""
    head = ("request", "ms", "of bare, autocommit", "of bare, ATOMIC_REQUESTS", "p95")
    head += ("statements", "commits", "log bytes", "Python calls")
    parts = []
    for size, costs in told["requests"].items():
        rows = [
            (
                name,
                f"{cost['milliseconds']:.2f}",
                shown(cost["to_autocommit"]),
                shown(cost["to_atomic_requests"]),
                shown(cost["p95_to_atomic_requests"]),
                cost["statements"],
                cost["commits"],
                "-" if cost["log_bytes"] is None else f"{cost['log_bytes']:,}",
                cost["calls"],
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
            figures[size] = {name: asdict(cost) for name, cost in costs.items()}
    told = {"database": arguments.database, "requests": figures}
    tell(told, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
