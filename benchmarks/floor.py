"""The floor of a request: its statements alone, through the bare driver.

    python -m benchmarks.floor

On PostgreSQL, turn by turn: the transaction of the bare view, the same with the app's
two statements in it, and the one statement of a replay; each as they are sent and as
prepared by the server. Also the bytes of log, without whole pages, against one INSERT
of the finished record.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

from django.db import connection
from django.utils import timezone

from benchmarks.answers import BYTES
from benchmarks.databases import database, fetch_one, log_position, settle
from benchmarks.figures import shown, spread_of_ratios, table, tell

BODY = BYTES[:1024]
# After how many times psycopg lets the server prepare a statement, as outside Django.
PREPARED_AFTER = 5
EFFECT = "INSERT INTO app_effect (note) VALUES (%s) RETURNING id"
Statement = tuple[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Statements:
    """What the app sends about one record."""

    claim: Statement
    complete: Statement
    # Not the app's: the least that storing the finished record takes.
    insert_at_once: Statement


def statements(record_id: UUID, body: bytes = BODY) -> Statements:
    """Return the statements about a record with that body."""
    from idempotency.claims import claims_in  # needs the settings
    from idempotency.claims.base import CLAIM, CLAIMED, COMPLETED
    from idempotency.claims.rows import ATTNAMES
    from idempotency.models import IdempotencyRecord, State

    claims: Any = claims_in("default")
    now = timezone.now()
    record = IdempotencyRecord(
        id=record_id,
        scope="user:auth.user:1",
        key=str(record_id),
        method="POST",
        path=f"/keyed/{len(body)}/",
        fingerprint="f" * 64,
        fingerprint_version=1,
        state=State.IN_PROGRESS,
        token=uuid4(),
        created_at=now,
        expires_at=now + timedelta(days=30),
    )
    claimed = claims._values(record, CLAIMED)
    claimed += [*claims._lock_key(record), record.pk]
    record.state = State.COMPLETED
    record.status_code, record.headers = 201, [["Content-Type", "application/json"]]
    record.body, record.body_size, record.completed_at = body, len(body), now
    names = ", ".join(connection.ops.quote_name(name) for name in ATTNAMES)
    marks = ", ".join(["%s"] * len(ATTNAMES))
    at_once = f"INSERT INTO {claims.table} ({names}) VALUES ({marks})"
    return Statements(
        (claims.insert_sql.format(lease="NULL"), claimed),
        (claims.complete_sql, claims._values(record, [*COMPLETED, *CLAIM])),
        (at_once, claims._values(record, ATTNAMES)),
    )


def bare(**options: Any) -> float:
    """Do what the bare view does in its transaction."""
    return transact([effect()], **options)


def first_time(**options: Any) -> float:
    """Do what a first-time request does in its transaction."""
    sent = statements(uuid4())
    return transact([sent.claim, effect(), sent.complete], **options)


def replay(**options: Any) -> float:
    """Do what a replay does in its transaction."""
    return transact([statements(STORED).claim], **options)


def insert_at_once() -> float:
    """Insert the finished record beside the effect."""
    return transact([effect(), statements(uuid4()).insert_at_once])


def effect() -> Statement:
    """Return what the view does."""
    return EFFECT, ["benchmark"]


def transact(
    sent: list[Statement], *, bind_on_server: bool = False, prepare: bool = False
) -> float:
    """Send statements in one transaction, and return the seconds that they took."""
    import psycopg  # where there is PostgreSQL

    raw: Any = connection.connection
    # The driver's own cursor: Django's default one puts values into the text.
    kind = psycopg.Cursor if bind_on_server or prepare else type(raw.cursor())
    # Django sets None, and then nothing is prepared, whatever is asked for.
    raw.prepare_threshold = PREPARED_AFTER if prepare else None
    # What making the values takes is not measured.
    started = time.perf_counter()
    with kind(raw) as cursor:
        cursor.execute("BEGIN", prepare=False)
        for sql, values in sent:
            cursor.execute(sql, values, prepare=prepare)
            if cursor.description is not None:
                cursor.fetchone()
        cursor.execute("COMMIT", prepare=False)
    return time.perf_counter() - started


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
    "replay, prepared": lambda: replay(prepare=True),
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
        transact([stored.claim, stored.complete])
        for kind in KINDS.values():
            timed(kind, 50)
        # The claim, the effect and the answer.
        assert prepared() == 3
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
