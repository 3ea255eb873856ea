"""What very many records cost, and what follows for more than fit on this machine.

    python -m benchmarks.studies.scale --database postgresql --most 20000000

Fills the table in steps. At each it measures first requests and replays as ratios to
the bare view, a purge that keeps up and one that is far behind, all pages of the admin,
the log of a first request with what its view inserts, and the pages of each index.
Replays draw from one record in twenty. The other tables are arithmetic: what the bytes
and pages of the last step become with more records, and with more requests a day.

MariaDB's pool is made smaller before anything is measured, so that the table at the
last step is several times as large. PostgreSQL has the operating system's cache.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict
from uuid import uuid4

from django.db import connection

from benchmarks import admin, growth, purge
from benchmarks.databases import (
    TABLE,
    database,
    fetch_one,
    log_position,
    settle,
    table_size,
)
from benchmarks.figures import shown, table, tell
from benchmarks.records import fill

STEPS = (100_000, 1_000_000, 5_000_000, 20_000_000)
SIZE = 256
# Of which the admin has records of each kind, and callers their replays.
KINDS, LIKE = 50_000, 0.05
EXPIRED = 60_000
ROUNDS, REQUESTS, PAGES = 11, 60, 3
FILL_POOL, POOL = 12_288, 2_048
MORE = (100_000_000, 1_000_000_000)
PER_SECOND, DAYS = (100, 1_000, 10_000), (30, 7, 1)
DAY = 86_400
ADMIN_URLS = "tests.urls"
PAGE = {"postgresql": 8192, "mariadb": 16_384}
# Indexes to which records are added where the last ones are.
IN_ORDER = ("_expires_at", "_endpoint", "_lease")


class Shape(TypedDict):
    """The pages of an index."""

    levels: int | None
    leaves: int
    inner: int


def shapes() -> dict[str, Shape]:
    """Return of each index its levels, the pages of its leaves, and the others.

    MariaDB does not tell levels.
    """
    if connection.vendor == "postgresql":
        names = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = "
        found = {}
        with connection.cursor() as cursor:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")
            cursor.execute(f"{names} %s::regclass", [TABLE])
            for (name,) in cursor.fetchall():
                cursor.execute(
                    "SELECT tree_level + 1, leaf_pages, internal_pages "
                    "FROM pgstatindex(%s)",
                    [name],
                )
                levels, leaves, inner = cursor.fetchone()
                found[name] = Shape(levels=levels, leaves=leaves, inner=inner)
        return found
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT index_name, "
            "SUM(IF(stat_name = 'n_leaf_pages', stat_value, 0)), "
            "SUM(IF(stat_name = 'size', stat_value, 0)) "
            "FROM mysql.innodb_index_stats WHERE table_name = %s "
            "AND database_name = DATABASE() GROUP BY index_name",
            [TABLE],
        )
        return {
            name: Shape(levels=None, leaves=int(leaves), inner=int(pages - leaves))
            for name, leaves, pages in cursor.fetchall()
        }


def primary_key(step: dict[str, Any]) -> Shape:
    """Return the shape of the index by which each request looks up its record."""
    shapes: dict[str, Shape] = step["indexes"]
    (name,) = (name for name in shapes if name == "PRIMARY" or name.endswith("_pkey"))
    return shapes[name]


def levels_with(shape: Shape, times: float) -> int:
    """Return the levels of an index with so many times as many records."""
    # The root has few entries, so it says nothing.
    fanout = shape["leaves"] / max(shape["inner"] - 1, 1)
    levels = 1 + math.ceil(math.log(shape["leaves"] * times, fanout))
    return max(shape["levels"] or 0, levels)


def cache(told: dict[str, Any], step: dict[str, Any]) -> int:
    """Return the bytes of the pages of which first requests change any."""
    return _bytes_of(told, step, lambda name: not name.endswith(IN_ORDER))


def indexes(told: dict[str, Any], step: dict[str, Any]) -> int:
    """Return the bytes of all indexes; MariaDB's primary key is the table itself."""
    return _bytes_of(told, step, lambda name: name != "PRIMARY")


def _bytes_of(
    told: dict[str, Any], step: dict[str, Any], is_meant: Callable[[str], bool]
) -> int:
    shapes: dict[str, Shape] = step["indexes"]
    pages = [shape["leaves"] for name, shape in shapes.items() if is_meant(name)]
    return PAGE[told["database"]] * sum(pages)


def logs_of_first_requests(place: str, count: int = 500) -> list[float]:
    """Return how many bytes of log each makes: at least, and after a checkpoint.

    PostgreSQL logs the whole page the first time it changes after a checkpoint.
    """
    from benchmarks.wsgi import post  # set up by now

    found = []
    for whole_pages in ("off", "on") if connection.vendor == "postgresql" else ("",):
        if whole_pages:
            with connection.cursor() as cursor:
                cursor.execute(f"ALTER SYSTEM SET full_page_writes = {whole_pages}")
                cursor.execute("SELECT pg_reload_conf()")
        settle()
        before = log_position() or 0
        for _request in range(count):
            assert post(place, str(uuid4()))() == 201
        found.append(((log_position() or 0) - before) / count)
    return found


def purge_rates(prefix: str) -> dict[str, float]:
    """Return rows a second of a purge that keeps up, and of one far behind."""
    rates = {}
    for name, (days, ago) in (("kept up", purge.KEPT_UP), ("behind", purge.BEHIND)):
        fill(
            EXPIRED,
            f"{name}-{prefix}",
            expired=True,
            days=days,
            ago=ago,
            body_size=SIZE,
        )
        settle()
        told = purge.purge()
        assert told["deleted"] == EXPIRED
        rates[name] = purge.rate_of(told)
    settle()
    return rates


def report(told: dict[str, Any]) -> str:
    """Return what was measured, and what follows for more."""
    steps: dict[str, dict[str, Any]] = told["steps"]
    first = next(iter(steps.values()))
    rows = []
    for records, step in steps.items():
        slowest, (middle, worst) = max(
            step["pages"].items(), key=lambda page: page[1][1]
        )
        rows.append(
            (
                f"{int(records):,}",
                *(
                    f"{shown(step[name])}, {step[name][0] / first[name][0]:.2f}"
                    for name in ("first-time", "replay")
                ),
                *(f"{step['purge'][name]:,.0f}" for name in ("kept up", "behind")),
                f"{middle:.2f} ({worst:.2f}), {slowest}",
                f"{step['bytes']:,.0f}",
                " to ".join(f"{each:,.0f}" for each in step["log"]),
            )
        )
    head = (
        "records",
        "first request",
        "replay",
        "purge, rows/s",
        "far behind, rows/s",
        "slowest page, s",
        "bytes per record",
        "log bytes per first request",
    )
    count, last = list(steps.items())[-1]
    sizes = []
    for more in (int(count), *MORE):
        times = more / int(count)
        sizes.append(
            (
                f"{more:,}",
                gib(last["bytes"] * more),
                gib(cache(told, last) * times),
                gib(indexes(told, last) * times),
                levels_with(primary_key(last), times),
            )
        )
    rates = [
        (
            f"{rate:,}",
            f"{rate * DAY / 1e6:,.1f} million",
            " to ".join(gib(rate * DAY * each) for each in last["log"]),
            *(gib(rate * DAY * days * last["bytes"]) for days in DAYS),
        )
        for rate in PER_SECOND
    ]
    kept = [f"{days} days kept" if days > 1 else "1 day kept" for days in DAYS]
    return "\n\n".join(
        [
            f"{told['database']}, bodies of {SIZE} bytes",
            table(head, rows),
            table(("records", "on disk", "cache", "indexes", "levels"), sizes),
            table(("first requests/s", "records/day", "log/day", *kept), rates),
        ]
    )


def gib(size: float) -> str:
    """Return bytes as the tables have them."""
    return f"{size / 2**30:,.0f} GiB"


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("postgresql", "mariadb")
    parser.add_argument("--database", choices=names, default="postgresql")
    parser.add_argument("--most", type=int, default=STEPS[-1])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    pool = FILL_POOL if arguments.database == "mariadb" else None
    steps: dict[int, dict[str, Any]] = {}
    with database(arguments.database, urls="benchmarks.views", pool=pool):
        from django.test import override_settings  # set up by now

        from idempotency.models import IdempotencyRecord

        like = growth.stored_request(SIZE)
        stored: dict[str, int] = {}
        every = growth.kinds(SIZE, like, stored)
        client = admin.sign_in()
        fill(KINDS, "live", expired=False, body_size=SIZE)
        admin.make_kinds()
        count = KINDS
        for step in STEPS:
            if step > arguments.most:
                break
            started = time.monotonic()
            alike = round((step - count) * LIKE)
            set_pool(FILL_POOL)
            fill(alike, f"to-{step}", expired=False, body_size=SIZE, like=like)
            stored[f"to-{step}"] = alike
            others = step - count - alike
            fill(others, f"others-{step}", expired=False, body_size=SIZE)
            count = step
            settle()
            set_pool(POOL)
            print(
                f"{step:,} after {time.monotonic() - started:,.0f} s",
                file=sys.stderr,
                flush=True,
            )
            size, records = table_size(), IdempotencyRecord.objects.count()
            steps[step] = {
                "bytes": (size or 0) / records,
                "indexes": shapes(),
                **growth.measure(every, ROUNDS, REQUESTS),
                "log": logs_of_first_requests(like.path),
                "purge": purge_rates(str(step)),
            }
            with override_settings(ROOT_URLCONF=ADMIN_URLS):
                steps[step]["pages"] = {
                    name: (page.median, page.worst)
                    for name, page in admin.measure(client, PAGES)
                }
    told = {"database": arguments.database, "steps": steps}
    tell(told, report, arguments.json)
    return 0


def set_pool(size: int) -> None:
    """Let MariaDB keep that many MiB of its tables in memory."""
    if connection.vendor != "mysql":
        return
    with connection.cursor() as cursor:
        cursor.execute(f"SET GLOBAL innodb_buffer_pool_size = {size} * 1024 * 1024")
    # Some versions resize after they have answered, and say for how long.
    status = "SHOW STATUS LIKE 'Innodb_buffer_pool_resize_status'"
    while fetch_one(status) and "Completed" not in fetch_one(status):
        time.sleep(0.5)
    has = int(fetch_one("SELECT @@innodb_buffer_pool_size"))
    assert has == size * 2**20, f"the pool has {has:,} bytes"


if __name__ == "__main__":
    sys.exit(main())
