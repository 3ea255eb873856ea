"""How long the admin's pages take with very many records, and how many statements.

python -m benchmarks.admin --database postgresql --records 1000000
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Any

from django.db import connection

from benchmarks.databases import NAMES, database, settle
from benchmarks.records import fill

LIST = "/admin/idempotency/idempotencyrecord/"
# The last digits of the keys of each kind of record: one in a hundred of all.
# A tenth of all are of one caller.
BUSY, TENTH = "authorization:busy", "9"
ROUTE, RARE_ROUTE = "/api/v2/user/assignments", "/api/v2/user/refunds"
USERS = 10_000
COMPLETED, ABANDONED, RUNNING, LEFT, NOT_KEPT, REFUSED, PUT = (
    "00",
    "01",
    "02",
    "03",
    "04",
    "05",
    "06",
)
LISTS = {
    "list": "",
    "list, page 20": "?p=20",
    "a key": f"?q=live-5{COMPLETED}",
    "scope and key": "?q=user:auth.user:500+live-500",
    "abandoned": "?state=abandoned",
    "abandoned, of a caller": "?state=abandoned&caller=user:auth.user:1",
    "a caller": "?caller=user:auth.user:500",
    "a busy caller": f"?caller={BUSY}",
    "a busy caller, 4xx": f"?caller={BUSY}&status=4xx",
    "a busy caller, a week and older": f"?caller={BUSY}&age=older",
    "a busy caller, an endpoint": f"?caller={BUSY}&endpoint=POST+{ROUTE}",
    "an endpoint": f"?endpoint=POST+{ROUTE}",
    "an endpoint, page 20": f"?endpoint=POST+{ROUTE}&p=20",
    "an endpoint, 4xx": f"?endpoint=POST+{ROUTE}&status=4xx",
    "an endpoint, younger than a day": f"?endpoint=POST+{ROUTE}&age=day",
    "an endpoint, abandoned": f"?endpoint=POST+{ROUTE}&state=abandoned",
    "a rare endpoint": f"?endpoint=POST+{RARE_ROUTE}",
    "search for a name": "?q=grace",
    "search for many names": "?q=user-1",
    "search for a primary key": "?q=500",
    "search for a scope": f"?q={BUSY}",
    "search for a path": f"?q={ROUTE}",
    "search for a view": "?q=view",
    "search in vain": "?q=nobody",
    "in progress": "?state=in_progress",
    "completed": "?state=completed",
    "not kept": "?state=tombstone",
    "status 2xx": "?status=2xx",
    "status 3xx": "?status=3xx",
    "status 4xx": "?status=4xx",
    "method PUT": "?method=put",
    "method DELETE": "?method=delete",
    "younger than an hour": "?age=hour",
    "younger than a day": "?age=day",
    "younger than a week": "?age=week",
    "a week and older": "?age=older",
    "expired": "?expiry=past",
    "expire within a day": "?expiry=day",
    "expire within a week": "?expiry=week",
    "expire later": "?expiry=later",
    "expire in a week, 4xx": "?expiry=week&status=4xx",
    "a week and older, abandoned": "?age=older&state=abandoned",
    "overview": "overview/",
}
# The pages of one record, by the kind that has them.
RECORDS = {
    "a record": (COMPLETED, "change"),
    "its answer": (COMPLETED, "body"),
    "its history": (COMPLETED, "history"),
    "release": (COMPLETED, "release"),
    "an abandoned record": (ABANDONED, "change"),
    "resolve": (ABANDONED, "resolve"),
    "settle the call": (ABANDONED, "call"),
    "a record in progress": (RUNNING, "change"),
    "a record left behind": (LEFT, "change"),
    "a record without its answer": (NOT_KEPT, "change"),
}
ROUNDS = 5
MOST_SECONDS, MOST_STATEMENTS = 2.0, 10


def make_kinds() -> None:
    """Give some of the records each state that there is, another status or method."""
    from django.utils import timezone  # set up by now

    from idempotency.models import IdempotencyRecord, State
    from idempotency.steps import as_text, held_entry

    now = timezone.now()
    no_body: dict[str, Any] = {"body": None, "body_size": None}
    no_answer = {**no_body, "status_code": None, "headers": None, "completed_at": None}
    hour = timedelta(hours=1)
    kinds: dict[str, dict[str, Any]] = {
        ABANDONED: {
            **no_answer,
            "state": State.ABANDONED,
            "lease_expires_at": now - hour,
            "steps": as_text("", [held_entry("charge", now - hour)]),
        },
        RUNNING: {
            **no_answer,
            "state": State.IN_PROGRESS,
            "lease_expires_at": now + hour,
        },
        LEFT: {**no_answer, "state": State.IN_PROGRESS},
        NOT_KEPT: no_body,
        REFUSED: {"status_code": 402, "route": RARE_ROUTE},
        PUT: {"method": "PUT"},
    }
    for digits, values in {TENTH: {"scope": BUSY}, **kinds}.items():
        IdempotencyRecord.objects.filter(key__endswith=digits).update(**values)


def pages() -> dict[str, str]:
    """Return the address of each page, by what it is called."""
    from idempotency.models import IdempotencyRecord  # set up by now

    found = {name: LIST + query for name, query in LISTS.items()}
    for name, (digits, page) in RECORDS.items():
        record = IdempotencyRecord.objects.only("pk").get(key=f"live-5{digits}")
        found[name] = f"{LIST}{record.pk}/{page}/"
    return found


@dataclass(frozen=True, slots=True)
class Page:
    """What one page of the admin took: seconds, and statements."""

    median: float
    worst: float
    statements: int

    @property
    def holds(self) -> bool:
        """Return whether it is within the limits (A2)."""
        return self.worst < MOST_SECONDS and self.statements <= MOST_STATEMENTS

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.worst:.3f}) | {self.statements}"


def sign_in() -> Any:
    """Return the client of a superuser, where there are many other users."""
    from django.conf import settings  # set up by now
    from django.contrib.auth.models import User
    from django.test import Client

    from testproject import settings as demo

    settings.MIDDLEWARE = demo.MIDDLEWARE
    User.objects.bulk_create(User(username=f"user-{n}") for n in range(USERS))
    client = Client()
    client.force_login(User.objects.create_superuser("grace"))
    return client


def measure(client: Any, rounds: int) -> Iterator[tuple[str, Page]]:
    """Fetch each page some times, and say what it took."""
    from django.test.utils import CaptureQueriesContext  # set up by now

    for name, page in pages().items():
        taken = []
        for _round in range(rounds):
            with CaptureQueriesContext(connection) as queries:
                started = time.monotonic()
                answer = client.get(page)
                # A search for what one caller or endpoint has leads there.
                assert answer.status_code in (200, 302), page
                taken.append(time.monotonic() - started)
        yield name, Page(median(taken), max(taken), len(queries))


def main() -> int:
    """Measure every page, print, and fail where one is beyond its limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--records", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with database(arguments.database):
        half = arguments.records // 2
        fill(half, "live", expired=False)
        fill(half, "old", expired=True)
        make_kinds()
        settle()
        client = sign_in()
        print(f"{arguments.database}, {arguments.records:,} records")
        print("| page | seconds, median (worst) | statements |\n|---|---|---|")
        held = True
        for name, page in measure(client, ROUNDS):
            print(f"| {name} | {page} |", flush=True)
            held = held and page.holds
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
