"""How long the admin's pages take with very many records, and how many statements.

python -m benchmarks.admin --database postgresql --records 1000000
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

from django.db import connection

from benchmarks.databases import NAMES, database, settle
from benchmarks.records import fill

LIST = "/admin/idempotency/idempotencyrecord/"
PAGES = {
    "list": "",
    "list, page 20": "?p=20",
    "a key": "?q=live-500",
    "scope and key": "?q=user:auth.user:500+live-500",
    "abandoned": "?state=abandoned",
    "in progress": "?state=in_progress",
    "not kept": "?state=tombstone",
    "status 4xx": "?status=4xx",
    "younger than an hour": "?age=hour",
    "a week and older": "?age=older",
    "expired": "?expiry=past",
    "expire in a week, 4xx": "?expiry=week&status=4xx",
    "overview": "overview/",
}
ROUNDS = 5
MOST_SECONDS, MOST_STATEMENTS = 2.0, 10


def main() -> int:
    """Measure every page, print, and fail where one is beyond its limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--records", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with database(arguments.database):
        from django.conf import settings  # set up by now
        from django.contrib.auth.models import User
        from django.test import Client
        from django.test.utils import CaptureQueriesContext

        from testproject import settings as demo

        settings.MIDDLEWARE = demo.MIDDLEWARE
        half = arguments.records // 2
        fill(half, "live", expired=False)
        fill(half, "old", expired=True)
        settle()
        client = Client()
        client.force_login(User.objects.create_superuser("grace"))
        print(f"{arguments.database}, {arguments.records:,} records")
        print("| page | seconds, median (worst) | statements |\n|---|---|---|")
        held = True
        for name, page in PAGES.items():
            taken = []
            for _round in range(ROUNDS):
                with CaptureQueriesContext(connection) as queries:
                    started = time.monotonic()
                    answer = client.get(LIST + page)
                    assert answer.status_code == 200, page
                    taken.append(time.monotonic() - started)
            middle, worst = median(taken), max(taken)
            print(f"| {name} | {middle:.3f} ({worst:.3f}) | {len(queries)} |")
            held = held and worst < MOST_SECONDS
            held = held and len(queries) <= MOST_STATEMENTS
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
