"""What a record takes on disk, and how HOT its update is, by fillfactor.

    python -m benchmarks.storage

On PostgreSQL: first-time requests without pipelines, whose response is an UPDATE, into
an empty table, for several values of fillfactor and sizes of bodies. They come quicker
than a vacuum, so the bytes are with the dead versions that the UPDATEs have left.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import connection

from benchmarks.databases import TABLE, database, fetch_one, log_position
from benchmarks.figures import table, tell
from benchmarks.network import by_statements

FILLFACTORS = (100, 90, 80, 70)
SIZES = (200, 1024, 16_384, 65_536, 1_048_576)
HEAD = ("body", "fillfactor", "HOT", "bytes per record", "log bytes per request")


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    rows = [
        row(int(size), fillfactor, found)
        for size, fillfactors in told["storage"].items()
        for fillfactor, found in fillfactors.items()
    ]
    return table(HEAD, rows)


def row(size: int, fillfactor: str, found: dict[str, float]) -> tuple[str, ...]:
    """Return what one way of storing gave, as cells."""
    return (
        f"{size:,}",
        fillfactor,
        f"{100 * found['hot']:.0f} %",
        f"{found['bytes']:,.0f}",
        f"{found['log_bytes']:,.0f}",
    )


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[int, dict[int, dict[str, float]]] = {}
    with database("postgresql", urls="benchmarks.views"), by_statements():
        from benchmarks.wsgi import post  # needs the settings

        for size in SIZES:
            requests = max(10, arguments.requests // (1 + size // 65_536))
            figures[size] = {}
            for fillfactor in FILLFACTORS:
                with connection.cursor() as cursor:
                    cursor.execute(f"TRUNCATE {TABLE}")
                    cursor.execute(f"ALTER TABLE {TABLE} SET (fillfactor={fillfactor})")
                    cursor.execute("SELECT pg_stat_reset()")
                    cursor.execute("CHECKPOINT")
                before = log_position()
                for _number in range(requests):
                    assert post(f"/keyed/{size}/", str(uuid4()))() == 201
                logged = (log_position() or 0) - (before or 0)
                # What this session has counted is told when it ends.
                connection.close()
                hot = fetch_one(
                    "SELECT n_tup_hot_upd::float / n_tup_upd FROM pg_stat_user_tables "
                    f"WHERE relname = '{TABLE}'"
                )
                on_disk = fetch_one(f"SELECT pg_total_relation_size('{TABLE}')")
                figures[size][fillfactor] = {
                    "hot": hot,
                    "bytes": on_disk / requests,
                    "log_bytes": logged / requests,
                }
    tell({"storage": figures}, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
