"""What a purge costs the requests beside it, against one single DELETE.

    python -m benchmarks.purge --database postgresql --records 1000000

Half of the records are in force. A quarter expired within the last half hour, as where
the purge keeps up. It deletes these beside requests at a steady pace, some seconds with
it and some without, turn by turn; then as many alone. It does the same with a backlog
that expired more than a day ago, and one DELETE deletes as many, alone and beside
requests. It fails where what is in force was not left as it is, a transaction took a
second, requests beside a purge that keeps up had a p95 more than a quarter longer than
without, the purge took more memory with time, or the rates are below what its contract
needs. With a server that keeps less of its tables in memory:

    python -m benchmarks.purge --database mariadb --pool 512
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import quantiles
from typing import Any

from django.db import connection

from benchmarks.databases import (
    NAMES,
    TABLE,
    database,
    log_position,
    settle,
    table_size,
)
from benchmarks.records import fill
from benchmarks.requests import spread

PER_SECOND = 40
# Seconds of each turn, in which a hundred requests come.
TURN = 2.5
BODY = 1024
# Days over which what is expired has expired, and at least how many days ago.
KEPT_UP, BEHIND = (1 / 48, 0), (29, 1)
# What must hold: seconds of a transaction, requests' p95 beside the purge of that
# without in the middle of all turns, and memory in the end of that after ten batches.
LONGEST, P95, MEMORY = 1.0, 1.25, 1.05
# First requests per second whose records Beat's runs delete, and the rows of a backlog
# that is gone in an hour.
PER_SECOND_KEPT_UP, BACKLOG = 1_000, 10_000_000
# Seconds of the system's clock that only goes forward.
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Deletion:
    """Rows that were deleted, in how many seconds and bytes of the database's log."""

    rows: int
    seconds: float
    logged: int | None

    def __str__(self) -> str:
        rate = f"{self.rows / self.seconds:,.0f} rows/s"
        if self.logged is None:
            return rate
        return f"{rate}, {self.logged / self.rows:,.0f} bytes of log per row"


class Traffic:
    """Requests that are sent while the block runs."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @contextmanager
    def running(self) -> Iterator[None]:
        """Begin with the first answer."""
        command = [sys.executable, "-m", "benchmarks.traffic", str(self.place)]
        process = subprocess.Popen([*command, str(PER_SECOND)], stdin=subprocess.PIPE)
        assert process.stdin is not None
        try:
            while not self.place.exists() or not self.place.stat().st_size:
                assert process.poll() is None, "the requests have ended"
                time.sleep(0.1)
            yield
        finally:
            process.stdin.close()
            process.wait()

    def p95(self, start: float, end: float) -> float:
        """Return the 95th percentile of seconds of the requests due in that time."""
        rows = [line.split() for line in self.place.read_text().splitlines()]
        inside = [float(took) for due, took in rows if start <= float(due) < end]
        return quantiles(inside, n=20)[-1]


@contextmanager
def measured(rows: int) -> Iterator[list[Deletion]]:
    """Measure what the block does; the list has it afterwards."""
    settle()
    found: list[Deletion] = []
    before, started = log_position(), time.monotonic()
    yield found
    after, seconds = log_position(), time.monotonic() - started
    logged = None if after is None or before is None else after - before
    found.append(Deletion(rows, seconds, logged))


def purge(seconds: float = 3600) -> dict[str, Any]:
    """Purge in another process, and return what it tells."""
    command = [sys.executable, "-m", "benchmarks.purger", str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def delete_at_once() -> int:
    """Delete what is expired in one statement, as everybody else does."""
    from idempotency.models import IdempotencyRecord  # set up by now

    manager: Any = IdempotencyRecord.objects
    deleted: int = manager.expired()._raw_delete("default")
    return deleted


def intact() -> tuple[int, int]:
    """Return how many records are in force, and how many bytes their bodies have."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT COUNT(*), SUM(LENGTH(body)) FROM {TABLE} "
            "WHERE path = '/api/v2/user/assignments'"
        )
        rows, size = cursor.fetchone()
    return int(rows), int(size or 0)


@dataclass(slots=True)
class Figures:
    """What one run has measured, and in the end says."""

    kept: tuple[int, int]
    sizes: tuple[int | None, int | None]
    alone: dict[str, Any]
    beside: dict[str, Any]
    purged: Deletion
    deleted: Deletion
    # Median and quartiles of all turns.
    purge_p95: tuple[float, float, float]
    delete_p95: float
    # Of each turn, the seconds of p95 without and with the purge.
    turns: list[tuple[float, float]] = field(default_factory=list)
    # The same of a purge that is far behind.
    backlog: dict[str, Any] | None = None
    # How much of the time Beat's runs may take.
    share: float | None = None

    def failures(self, records: int) -> list[str]:
        """Say which promises were not kept."""
        half = records // 2
        behind = self.backlog or {}
        purges = [self.alone, self.beside, behind.get("alone"), behind.get("beside")]
        longest = max(each["longest"] for each in purges if each)
        growth = self.alone["memory_late"] / self.alone["memory_early"]
        kept = {
            f"of {half:,} records in force some are missing": self.kept
            == (half, half * BODY),
            f"a transaction took {longest:.3f} s": longest < LONGEST,
            "requests beside the purge took too long": self.purge_p95[0] <= P95,
            f"memory grew to {growth:.2f} of what it was": growth <= MEMORY,
        }
        if behind:
            kept |= {
                f"a backlog took {behind['hours']:.1f} hours": behind["hours"] <= 1,
                f"only {self.kept_up:,.0f} first requests a second": self.kept_up
                >= PER_SECOND_KEPT_UP,
            }
        return [promise for promise, is_kept in kept.items() if not is_kept]

    @property
    def kept_up(self) -> float:
        """First requests per second whose records Beat's runs delete beside them."""
        return rate_of(self.beside) * (self.share or 0)

    def __str__(self) -> str:
        beside = self.beside
        first, last = self.sizes
        rate = rate_of(beside)
        early, late = self.alone["memory_early"], self.alone["memory_late"]
        p95 = "{:.2f} ({:.2f}-{:.2f})".format(*self.purge_p95)
        single = self.deleted.seconds
        lines = [
            f"in force afterwards: {self.kept[0]:,}, {self.kept[1]:,} bytes",
            f"purge: {self.purged}, {self.alone['batches']} batches",
            f"  longest transaction: {self.alone['longest']:.3f} s",
            f"  beside requests: {rate:,.0f} rows/s, longest {beside['longest']:.3f} s",
            f"  memory: {early:.1f} MiB after 10 batches, {late:.1f} MiB in the end",
            f"  p95 of requests beside it: {p95} of that without",
            f"one DELETE: {self.deleted}, one transaction of {single:.1f} s",
            f"  p95 of requests beside it: {self.delete_p95:.2f} of that without",
        ]
        if self.backlog is not None:
            behind = self.backlog
            rate, longest = rate_of(behind["beside"]), behind["beside"]["longest"]
            p95 = "{:.2f} ({:.2f}-{:.2f})".format(*behind["p95"])
            lines += [
                f"Beat's runs keep up with {self.kept_up:,.0f} first requests a second",
                f"backlog: {rate_of(behind['alone']):,.0f} rows/s",
                f"  {BACKLOG:,} rows in {behind['hours']:.2f} hours",
                f"  beside requests: {rate:,.0f} rows/s, longest {longest:.3f} s",
                f"  p95 of requests beside it: {p95} of that without",
            ]
        if first and last:
            lines.append(
                f"table and indexes in the end: {last / first:.2f} of at first"
            )
        return "\n".join(lines)


def rate_of(told: dict[str, Any]) -> float:
    """Return the rows per second of a purge."""
    rate: float = told["deleted"] / told["seconds"]
    return rate


def wait() -> Span:
    """Let requests come by themselves for a turn, and return from when to when."""
    started = time.monotonic()
    time.sleep(TURN)
    return started, time.monotonic()


def purge_in_turns() -> tuple[dict[str, Any], list[tuple[Span, Span]]]:
    """Purge a turn, leave the next one quiet, until all that is expired is gone.

    Return what the purges have told, and the turns without and with them.
    """
    turns = []
    told: list[dict[str, Any]] = []
    while not told or told[-1]["more"]:
        quiet = wait()
        told.append(purge(TURN))
        purging = (told[-1]["began"], told[-1]["ended"])
        # Few requests say nothing about the slowest of twenty.
        if purging[1] - purging[0] >= TURN / 2:
            turns.append((quiet, purging))
    beside = {
        "deleted": sum(each["deleted"] for each in told),
        "seconds": sum(each["seconds"] for each in told),
        "longest": max(each["longest"] for each in told),
    }
    return beside, turns


def measure(records: int, folder: Path) -> Figures:
    """Do everything once, on an empty database."""
    half, quarter = records // 2, records // 4

    def fill_expired(prefix: str, when: tuple[float, float] = KEPT_UP) -> None:
        days, ago = when
        fill(quarter, prefix, expired=True, days=days, ago=ago, body_size=BODY)
        settle()

    fill(half, "live", expired=False, body_size=BODY)
    fill_expired("old")
    size = table_size()
    traffic = Traffic(folder / "traffic")

    def p95s_of(turns: list[tuple[Span, Span]]) -> list[tuple[float, float]]:
        return [(traffic.p95(*first), traffic.p95(*then)) for first, then in turns]

    with traffic.running():
        beside, turns = purge_in_turns()
        fill_expired("behind", BEHIND)
        beside_backlog, backlog_turns = purge_in_turns()
        fill_expired("older")
        quiet = wait()
        started = time.monotonic()
        delete_at_once()
        deleting = (started, time.monotonic())
    fill_expired("oldest")
    with measured(quarter) as purged:
        alone = purge()
    fill_expired("far behind", BEHIND)
    backlog_alone = purge()
    fill_expired("very old")
    with measured(quarter) as deleted:
        delete_at_once()
    p95s, backlog_p95s = p95s_of(turns), p95s_of(backlog_turns)
    return Figures(
        kept=intact(),
        sizes=(size, table_size()),
        alone=alone,
        beside=beside,
        # Without the start of its process.
        purged=replace(purged[0], seconds=alone["seconds"]),
        deleted=deleted[0],
        purge_p95=spread_of(p95s),
        turns=p95s,
        delete_p95=traffic.p95(*deleting) / traffic.p95(*quiet),
        backlog={
            "alone": backlog_alone,
            "beside": beside_backlog,
            "p95": spread_of(backlog_p95s),
            "turns": backlog_p95s,
            "hours": BACKLOG / rate_of(backlog_alone) / 3600,
        },
        share=share_of_time(),
    )


def spread_of(p95s: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the spread of the turns' p95 with a purge, of that without."""
    return spread([purging / quiet for quiet, purging in p95s])


def share_of_time() -> float:
    """Return how much of the time the runs of the shipped schedule may take."""
    from idempotency.conf import get_settings  # set up by now
    from idempotency.schedules import BEAT_SCHEDULE

    (entry,) = BEAT_SCHEDULE.values()
    share: float = get_settings().PURGE_TIME_BUDGET / entry["schedule"]
    return min(share, 1.0)


def main() -> int:
    """Measure, print, and fail where a promise was not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument(
        "--pool",
        type=int,
        metavar="MIB",
        help="of tables that a server keeps in memory",
    )
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    arguments = parser.parse_args()
    if arguments.pool and arguments.database == "sqlite":
        parser.error("SQLite has no --pool")
    pool = f" in a pool of {arguments.pool} MiB" if arguments.pool else ""
    print(f"{arguments.database}, {arguments.records:,} records of {BODY} bytes{pool}")
    with database(arguments.database, pool=arguments.pool) as folder:
        figures = measure(arguments.records, folder)
    print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(figures), indent=2))
    failures = figures.failures(arguments.records)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
