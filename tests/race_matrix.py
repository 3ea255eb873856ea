"""Print what becomes of requests that race: ``python -m tests.race_matrix``.

On SQLite, and on PostgreSQL and MariaDB where they answer as ``make test`` looks for
them, with ATOMIC_REQUESTS on and off, real server processes get duplicates, two
payloads, slow handlers, replays, expired keys, purges, scopes and schemas at the same
time. The races are those of ``tests/test_races.py``, most of them with several kinds of
views: a function of Django REST framework, a plain Django view, and a third party's
view in ``protected()``. The command fails unless nothing was doubled, lost or stuck, no
answer has a status that its race does not allow, and no database was left out.

    python -m tests.race_matrix --database postgresql
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from xml.etree import ElementTree

from tests.run_suites import ROOT, SUITES, Suite, environment, find_suites

HEADINGS = ("database", "ATOMIC_REQUESTS", "race")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What became of the requests of a race."""

    requests: int
    # Rows that handlers have left.
    effects: int
    # Effects beyond those that are due.
    doubled: int
    # Effects that are due, or that a client was told of, and that are not there.
    lost: int
    # Keys whose last retry, when all was over, got no success.
    stuck: int
    # Answers with a status that the race does not allow.
    unexpected: int

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """Return several as one."""
        added: Counter[str] = Counter()
        for tally in tallies:
            added.update(asdict(tally))
        return cls(**added)

    @property
    def faults(self) -> int:
        """The sum of what must be 0."""
        return self.doubled + self.lost + self.stuck + self.unexpected


COLUMNS = (*HEADINGS, *Tally.__annotations__)
Row = dict[str, str]


def properties(
    database: str, race: str, tally: Tally, *, atomic_requests: bool
) -> Iterator[tuple[str, object]]:
    """Yield what a test notes of its race, for the table."""
    heads = (database, "on" if atomic_requests else "off", race)
    yield from zip(HEADINGS, heads, strict=True)
    yield from asdict(tally).items()


def rows_of(report: Path) -> list[Row]:
    """Return the rows that the tests of one database have noted."""
    if not report.exists():
        return []
    rows = [
        {str(p.get("name")): str(p.get("value")) for p in case.iter("property")}
        for case in ElementTree.parse(report).iter("testcase")
    ]
    return sorted((row for row in rows if row), key=lambda row: row["ATOMIC_REQUESTS"])


def faults_of(row: Row) -> int:
    return Tally(**{name: int(row[name]) for name in Tally.__annotations__}).faults


def print_table(rows: list[Row]) -> None:
    """Print rows below headings, numbers to the right."""
    widths = {
        name: max(len(name), *(len(row[name]) for row in rows)) for name in COLUMNS
    }
    for row in [{name: name for name in COLUMNS}, *rows]:
        cells = [
            row[name].ljust(width) if name in HEADINGS else row[name].rjust(width)
            for name, width in widths.items()
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def run_races(suite: Suite, work: Path) -> tuple[list[Row], bool]:
    """Run the races on one database; return its rows, and whether all tests passed."""
    if suite.url is not None:
        # The suite itself may be running on the other database.
        parts = urlsplit(suite.url)
        url = parts._replace(path=f"{parts.path}_races").geturl()
        suite = replace(suite, url=url)
    report = work / f"{suite.name}.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--quiet", "tests/test_races.py"),
            *("-p", "no:cacheprovider", f"--junit-xml={report}"),
        ],
        cwd=ROOT,
        env=environment(suite, {}, work),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.stdout.write(f"=== {suite.name}\n{done.stdout}{done.stderr}\n")
    return rows_of(report), done.returncode == 0


def main() -> int:
    """Run the races, print the table, and tell whether all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--database", action="append", choices=SUITES, help="this one (repeatable)"
    )
    wanted = parser.parse_args().database or list(SUITES)
    missing: dict[str, str] = {}
    with TemporaryDirectory(prefix="idem") as folder:
        done = [
            run_races(suite, Path(folder)) for suite in find_suites(wanted, missing)
        ]
    rows = [row for found, _passed in done for row in found]
    if rows:
        print_table(rows)
    for name, reason in missing.items():
        sys.stdout.write(f"{name} was left out: {reason}\n")
    faults = sum(map(faults_of, rows))
    sys.stdout.write(f"{len(rows)} races, {faults} faults\n")
    all_passed = all(found and passed for found, passed in done)
    return 0 if done and all_passed and faults == 0 and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
