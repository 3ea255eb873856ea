"""The floor of a first-time request: its statements alone, through the bare driver.

    python -m benchmarks.floor

On PostgreSQL: the transaction of the bare view, then the same with the app's two
statements in it, then with these prepared by the server, turn by turn. Also the bytes
of log, without whole pages, against one INSERT of the finished record.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from django.db import connection
from django.utils import timezone

from benchmarks.databases import database, log_position, settle
from benchmarks.requests import spread

BODY = 1024
EFFECT = "INSERT INTO app_effect (note) VALUES (%s) RETURNING id"
Statement = tuple[str, list[Any]]


def statements() -> tuple[list[Statement], list[Statement]]:
    """Return what claims and completes a new record, and what inserts it at once."""
    from idempotency.claims import claims_in  # needs the settings
    from idempotency.claims.base import ATTNAMES, CLAIM, CLAIMED, COMPLETED
    from idempotency.models import IdempotencyRecord, State

    claims: Any = claims_in("default")
    now = timezone.now()
    record = IdempotencyRecord(
        id=uuid4(),
        scope="user:auth.user:1",
        key=str(uuid4()),
        method="POST",
        path="/keyed/1024/",
        fingerprint="f" * 64,
        fingerprint_version=1,
        state=State.IN_PROGRESS,
        token=uuid4(),
        created_at=now,
        expires_at=now + timedelta(days=30),
    )
    claim = claims.insert_sql.format(lease="NULL")
    claimed = claims._values(record, CLAIMED)
    claimed += [*claims._lock_key(record), record.pk]
    record.state = State.COMPLETED
    record.status_code, record.headers = 201, [["Content-Type", "application/json"]]
    record.body, record.body_size, record.completed_at = b"x" * BODY, BODY, now
    completed = claims._values(record, [*COMPLETED, *CLAIM])
    names = ", ".join(connection.ops.quote_name(name) for name in ATTNAMES)
    marks = ", ".join(["%s"] * len(ATTNAMES))
    at_once = f"INSERT INTO {claims.table} ({names}) VALUES ({marks})"
    return (
        [(claim, claimed), (claims.complete_sql, completed)],
        [(at_once, claims._values(record, ATTNAMES))],
    )


def bare() -> None:
    """Do what the bare view does in its transaction."""
    transact([], [])


def first_time(*, prepare: bool = False) -> None:
    """Do what a first-time request does in its transaction."""
    (claim, complete), _at_once = statements()
    transact([claim], [complete], prepare=prepare)


def insert_at_once() -> None:
    """Insert the finished record beside the effect: the least that storing it takes."""
    _two, at_once = statements()
    transact([], at_once)


def transact(
    before: list[Statement], after: list[Statement], *, prepare: bool = False
) -> None:
    """Send the statements around the effect's, in one transaction."""
    import psycopg  # where there is PostgreSQL

    raw: Any = connection.connection
    # The driver's own cursor: Django's default one puts values into the text.
    kind = psycopg.Cursor if prepare else type(raw.cursor())
    global seconds  # noqa: PLW0603  # what making the values takes is not measured
    started = time.perf_counter()
    with kind(raw) as cursor:
        cursor.execute("BEGIN")
        for sql, values in [*before, (EFFECT, ["benchmark"]), *after]:
            cursor.execute(sql, values, **({"prepare": True} if prepare else {}))
        cursor.execute("COMMIT")
    seconds = time.perf_counter() - started


seconds = 0.0
KINDS: dict[str, Callable[[], None]] = {
    "bare": bare,
    "first-time": first_time,
    "first-time, prepared": lambda: first_time(prepare=True),
    "one INSERT at the end": insert_at_once,
}


def timed(kind: Callable[[], None], times: int) -> float:
    """Return the median of seconds."""
    found = []
    for _time in range(times):
        kind()
        found.append(seconds)
    return median(found)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    with database("postgresql", urls="benchmarks.views"):
        connection.ensure_connection()
        for kind in KINDS.values():
            timed(kind, 50)
        settle()
        rounds: dict[str, list[float]] = {name: [] for name in KINDS}
        for _round in range(arguments.rounds):
            for name, kind in KINDS.items():
                rounds[name].append(timed(kind, arguments.requests))
        # Whole pages after a checkpoint depend on where rows happen to find room.
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET full_page_writes = off")
            cursor.execute("SELECT pg_reload_conf()")
        print("| statements | ms | of bare | log bytes |\n|---|---|---|---|")
        for name, kind in KINDS.items():
            settle()
            timed(kind, arguments.requests)
            before = log_position()
            timed(kind, arguments.requests)
            logged = ((log_position() or 0) - (before or 0)) / arguments.requests
            pairs = zip(rounds[name], rounds["bare"], strict=True)
            middle, low, high = spread([one / other for one, other in pairs])
            took = 1000 * median(rounds[name])
            print(
                f"| {name} | {took:.2f} | {middle:.2f} ({low:.2f}-{high:.2f}) "
                f"| {logged:,.0f} |"
            )
            figures[name] = {"ratio": [middle, low, high], "log_bytes": round(logged)}
    if arguments.json:
        arguments.json.write_text(json.dumps({"floor": figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
