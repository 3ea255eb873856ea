"""What a record takes on disk, and how HOT its update is, by fillfactor.

    python -m benchmarks.storage

On PostgreSQL: first-time requests through the app into an empty table, for several
values of fillfactor and sizes of bodies.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from uuid import uuid4

from django.db import connection

from benchmarks.databases import TABLE, database, fetch_one, log_position

FILLFACTORS = (100, 90, 80, 70, 50)
SIZES = (200, 1024, 16_384)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = []
    print("| body | fillfactor | HOT | bytes per record | log bytes per request |")
    print("|---|---|---|---|---|")
    with database("postgresql", urls="benchmarks.views"):
        from benchmarks.wsgi import post  # needs the settings

        for size in SIZES:
            for fillfactor in FILLFACTORS:
                with connection.cursor() as cursor:
                    cursor.execute(f"TRUNCATE {TABLE}")
                    cursor.execute(f"ALTER TABLE {TABLE} SET (fillfactor={fillfactor})")
                    cursor.execute("SELECT pg_stat_reset()")
                    cursor.execute("CHECKPOINT")
                before = log_position()
                for _number in range(arguments.requests):
                    assert post(f"/keyed/{size}/", str(uuid4()))() == 201
                logged = (log_position() or 0) - (before or 0)
                # What this session has counted is told when it ends.
                connection.close()
                hot = fetch_one(
                    "SELECT n_tup_hot_upd::float / n_tup_upd FROM pg_stat_user_tables "
                    f"WHERE relname = '{TABLE}'"
                )
                on_disk = fetch_one(f"SELECT pg_total_relation_size('{TABLE}')")
                figures.append(
                    {
                        "body": size,
                        "fillfactor": fillfactor,
                        "hot": hot,
                        "bytes": on_disk / arguments.requests,
                        "log_bytes": logged / arguments.requests,
                    }
                )
                print(
                    f"| {size:,} | {fillfactor} | {100 * hot:.0f} % "
                    f"| {on_disk / arguments.requests:,.0f} "
                    f"| {logged / arguments.requests:,.0f} |",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps({"storage": figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
