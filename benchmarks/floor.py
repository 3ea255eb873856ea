"""The floor of a request: its statements alone, through the bare driver.

    python -m benchmarks.floor

On PostgreSQL, turn by turn: the transaction of the bare view, the same with the app's
three statements in it, and the two statements of a replay, in as many round trips; the
first two also with INSERTs that the server has prepared. Also the bytes of log, without
whole pages, against one INSERT of the finished record.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from django.db import connection
from django.utils import timezone

from benchmarks.answers import BYTES
from benchmarks.databases import database, fetch_one, log_position, settle
from benchmarks.figures import shown, spread_of_ratios, table, tell
from idempotency.database import UTC

BODY = BYTES[:1024]
# After how many times psycopg lets the server prepare a statement, as outside Django.
PREPARED_AFTER = 5
EFFECT = "INSERT INTO app_effect (note) VALUES (%s) RETURNING id"
Statement = tuple[str, list[Any]]


BEGIN: Statement = ("BEGIN", [])
COMMIT: Statement = ("COMMIT", [])


@dataclass(frozen=True, slots=True)
class Statements:
    """What the app sends about one record, and in which transaction."""

    # Lock and look-up.
    claim: str
    # Takes the time at which the transaction began, which the lock returns.
    store: Callable[[datetime], Statement]


def statements(record_id: UUID, body: bytes = BODY) -> Statements:
    """Return the statements about a record with that body."""
    from idempotency.claims import claims_in  # needs the settings
    from idempotency.models import IdempotencyRecord
    from idempotency.responses import StoredResponse

    claims: Any = claims_in("default")
    now = timezone.now()
    record = IdempotencyRecord(
        id=record_id,
        scope="user:auth.user:1",
        key=str(record_id),
        method="POST",
        path=f"/keyed/{len(body)}/",
        route="/keyed/<int:size>/",
        fingerprint="f" * 64,
        fingerprint_version=1,
        token=uuid4(),
        created_at=now,
        expires_at=now + timedelta(days=30),
    )
    headers = [["Content-Type", "application/json"]]
    stored = StoredResponse(status_code=201, headers=headers, body=body)
    return Statements(
        claims.claim_sql(record_id),
        lambda began_at: claims.insertion(record, stored, began_at),
    )


def claim(sql: str) -> tuple[datetime, Any]:
    """Begin a transaction with a claim; return when it began, and the record's row."""
    cursor = connection.connection.cursor()
    cursor.execute(f"BEGIN; {sql}")
    cursor.nextset()
    *_others, began_at, _now = cursor.fetchone()
    cursor.nextset()
    return began_at.replace(tzinfo=UTC), cursor.fetchone()


def bare(*, prepare: bool = False) -> float:
    """Do what the bare view does in its transaction, and return the seconds."""
    started = time.perf_counter()
    for each in (BEGIN, effect(), COMMIT):
        send(each, prepare=prepare)
    return time.perf_counter() - started


def first_time(
    body: bytes = BODY, *, prepare: bool = False, in_text: bool = False
) -> float:
    """Do what a first-time request does in its transaction."""
    sent = statements(uuid4(), body)
    started = time.perf_counter()
    began_at, _record = claim(sent.claim)
    send(effect(), prepare=prepare)
    store = sent.store(began_at)
    send(store, COMMIT, prepare=prepare, in_text=in_text)
    return time.perf_counter() - started


def replay() -> float:
    """Do what a replay does in its transaction."""
    sent = statements(STORED)
    started = time.perf_counter()
    claim(sent.claim)
    send(COMMIT)
    return time.perf_counter() - started


def insert_at_once() -> float:
    """Insert the finished record beside the effect, and ask nothing before."""
    sent = statements(uuid4())
    started = time.perf_counter()
    send(BEGIN)
    (now,) = send(("SELECT TRANSACTION_TIMESTAMP()", []))
    send(effect())
    send(sent.store(now[0]))
    send(COMMIT)
    return time.perf_counter() - started


def effect() -> Statement:
    """Return what the view does."""
    return EFFECT, ["benchmark"]


def send(*trip: Statement, prepare: bool = False, in_text: bool = False) -> list[Any]:
    """Send statements in one round trip, and return the first row of each."""
    import psycopg  # where there is PostgreSQL

    raw: Any = connection.connection
    # Django sets None, and then nothing is prepared, whatever is asked for.
    raw.prepare_threshold = PREPARED_AFTER if prepare else None
    kind = psycopg.ClientCursor if in_text else psycopg.Cursor
    cursors = []
    with raw.pipeline() if len(trip) > 1 else nullcontext():
        for sql, values in trip:
            cursors.append(kind(raw))
            is_control = sql in (BEGIN[0], COMMIT[0])
            cursors[-1].execute(sql, values, prepare=prepare and not is_control)
    return [
        None if cursor.description is None else cursor.fetchone() for cursor in cursors
    ]


def prepared() -> int:
    """Return how many statements the server has prepared for this connection."""
    return int(fetch_one("SELECT count(*) FROM pg_prepared_statements"))


STORED = uuid4()
KINDS: dict[str, Callable[[], float]] = {
    "bare": bare,
    "bare, prepared": lambda: bare(prepare=True),
    "first-time": first_time,
    "first-time, prepared": lambda: first_time(prepare=True),
    "replay": replay,
    "one INSERT at the end": insert_at_once,
}


def timed(kind: Callable[[], float], times: int) -> float:
    """Return the median of seconds."""
    return median(kind() for _time in range(times))


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    rows = [
        (
            name,
            f"{found['milliseconds']:.2f}",
            shown(found["ratio"]),
            f"{found['log_bytes']:,}",
        )
        for name, found in told["floor"].items()
    ]
    return table(("statements", "ms", "of bare", "log bytes"), rows)


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
        stored = statements(STORED)
        began_at, _record = claim(stored.claim)
        send(stored.store(began_at), COMMIT)
        for kind in KINDS.values():
            timed(kind, 50)
        # The effect and the record.
        assert prepared() == 2
        settle()
        rounds: dict[str, list[float]] = {name: [] for name in KINDS}
        for _round in range(arguments.rounds):
            for name, kind in KINDS.items():
                rounds[name].append(timed(kind, arguments.requests))
        # Whole pages after a checkpoint depend on where rows happen to find room.
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET full_page_writes = off")
            cursor.execute("SELECT pg_reload_conf()")
        for name, kind in KINDS.items():
            settle()
            timed(kind, arguments.requests)
            before = log_position()
            timed(kind, arguments.requests)
            logged = ((log_position() or 0) - (before or 0)) / arguments.requests
            figures[name] = {
                "milliseconds": 1000 * median(rounds[name]),
                "ratio": spread_of_ratios(rounds[name], rounds["bare"]),
                "log_bytes": round(logged),
            }
    tell({"floor": figures}, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
