"""Run the tests on every database that answers: ``make test``.

SQLite needs nothing. PostgreSQL, MariaDB and the brokers are used where they answer;
what was left out, and why, stands in the closing lines. Their addresses come from
TEST_POSTGRESQL_URL, TEST_MARIADB_URL, TEST_RABBITMQ_URL and TEST_REDIS_URL; an empty
one leaves its service alone. The tests themselves find a broker's address in the
environment only if it answers.

    make test ARGS="--suite postgresql"
    make test ARGS="--coverage --require postgresql --require broker"
    make test ARGS="-- -k replay -x"
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from tests.support.available_services import (
    connect_broker,
    connect_mariadb,
    connect_postgresql,
    find,
)

ROOT = Path(__file__).resolve().parent.parent
# Two checkouts on one machine do not drop each other's test databases.
DATABASE = "idempotency_" + hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
SUITES = ("sqlite", "postgresql", "mariadb")

# These would make the demo project something else than what is tested.
NOT_INHERITED = (
    "ATOMIC_REQUESTS",
    "CELERY_BROKER_URL",
    "DATABASE_URL",
    "DJANGO_ALLOWED_HOSTS",
    "DJANGO_DEBUG",
    "DJANGO_SECRET_KEY",
    "DJANGO_SETTINGS_MODULE",
    "PYTEST_ADDOPTS",
)
BROKERS = {
    "TEST_RABBITMQ_URL": "amqp://guest:guest@127.0.0.1:5672//",
    "TEST_REDIS_URL": "redis://127.0.0.1:6379/15",
}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The tests on one database; ``url`` is None for the settings' own SQLite."""

    name: str
    url: str | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a suite ended: pytest's exit status, and how many tests ended how."""

    status: int
    counts: str


def find_suites(wanted: list[str], missing: dict[str, str]) -> list[Suite]:
    """Return the suites that can run, of those that were asked for."""
    databases = {
        "postgresql": (
            f"postgres://postgres@127.0.0.1:5432/{DATABASE}",
            connect_postgresql,
        ),
        "mariadb": (f"mysql://root@127.0.0.1:3306/{DATABASE}", connect_mariadb),
    }
    suites = [Suite(name="sqlite", url=None)] if "sqlite" in wanted else []
    for name, (default, connect) in databases.items():
        if name in wanted:
            url = find(f"TEST_{name.upper()}_URL", default, connect, missing)
            if url is not None:
                suites.append(Suite(name=name, url=url))
    return suites


def environment(suite: Suite, brokers: Mapping[str, str], work: Path) -> dict[str, str]:
    """Return what a suite's processes run in: files of their own, and dev mode."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in NOT_INHERITED and name not in BROKERS
    }
    if suite.url is not None:
        kept["DATABASE_URL"] = suite.url
    return {
        **kept,
        **brokers,
        "DEMO_VAR_DIR": str(work / suite.name),
        "COVERAGE_FILE": str(work / "coverage" / ".coverage"),
        "PYTHONDEVMODE": "1",
    }


def run(
    suite: Suite,
    command: Iterable[str],
    env: Mapping[str, str],
    work: Path,
    *,
    streams: bool,
) -> Outcome:
    """Run one suite; its output comes as it is made, or else in one piece."""
    report = work / f"{suite.name}.xml"
    command = [*command, f"--junit-xml={report}"]
    heading = f"\n=== {suite.name}: {' '.join(command)}"
    if streams:
        print(heading, flush=True)
        status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    else:
        with (work / f"{suite.name}.log").open("w+b") as log:
            status = subprocess.run(
                command, cwd=ROOT, env=env, check=False, stdout=log, stderr=log
            ).returncode
            log.seek(0)
            print(f"{heading}\n{log.read().decode(errors='replace')}", flush=True)
    return Outcome(status=status, counts=count(report))


def count(report: Path) -> str:
    """Return how many tests ended how."""
    if not report.exists():
        return "ended before any test did"
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(report).iter("testsuite"):
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    failed = totals["failures"] + totals["errors"]
    passed = totals["tests"] - failed - totals["skipped"]
    return f"{passed} passed, {failed} failed, {totals['skipped']} skipped"


def judge_coverage(work: Path, *, is_whole: bool) -> bool:
    """Combine what the suites covered; only together they reach every line."""
    coverage = [sys.executable, "-m", "coverage"]
    env = {**os.environ, "COVERAGE_FILE": str(ROOT / ".coverage")}
    combine = [*coverage, "combine", "--quiet", str(work / "coverage")]
    report = [*coverage, "report"]
    if is_whole:
        report.append("--fail-under=100")
    judged = "must be 100 %" if is_whole else "not judged: this is a part of the tests"
    print(f"\n=== coverage of idempotency/ with branches, {judged}", flush=True)
    return all(
        subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0
        for command in (combine, report)
    )


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--suite", action="append", choices=SUITES, help="run this one (repeatable)"
    )
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        choices=("postgresql", "mariadb", "broker"),
        help="fail where it does not answer (repeatable)",
    )
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="measure idempotency/; below 100 %% of all suites together is a failure",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="suites at the same time (default: 1)"
    )
    parser.add_argument(
        "--which", action="store_true", help="only say which services answer"
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    arguments.suite = arguments.suite or list(SUITES)
    return arguments


def run_all(
    suites: list[Suite], brokers: Mapping[str, str], arguments: argparse.Namespace
) -> bool:
    """Run the suites and their closing lines; tell whether all is well."""
    python = [sys.executable, "-m"]
    measured = ["coverage", "run", "-m"] if arguments.coverage else []
    command = [*python, *measured, "pytest", *arguments.pytest]
    with TemporaryDirectory(prefix="idempotency-tests-") as folder:
        work = Path(folder)
        (work / "coverage").mkdir()

        def run_suite(suite: Suite) -> Outcome:
            env = environment(suite, brokers, work)
            return run(suite, command, env, work, streams=arguments.jobs == 1)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            outcomes = list(pool.map(run_suite, suites))
        covered = not arguments.coverage or judge_coverage(
            work, is_whole=len(suites) == len(SUITES) and not arguments.pytest
        )
    print("\n=== in short")
    for suite, outcome in zip(suites, outcomes, strict=True):
        print(f"{suite.name}: {outcome.counts}")
    return covered and all(outcome.status == 0 for outcome in outcomes)


def main() -> int:
    """Run what can be run and say what became of everything."""
    arguments = parse_arguments()
    missing: dict[str, str] = {}
    suites = find_suites(arguments.suite, missing)
    found = {
        name: find(name, default, connect_broker, missing)
        for name, default in BROKERS.items()
    }
    brokers = {name: url for name, url in found.items() if url is not None}
    if arguments.which:
        print(*(suite.name for suite in suites), *("broker" for _ in brokers), sep="\n")
        return 0
    lacking = [name for name in arguments.require if name in missing]
    if "broker" in arguments.require and not brokers:
        lacking.append("broker")
    succeeded = not lacking and run_all(suites, brokers, arguments)
    for name, reason in missing.items():
        print(f"{name} was left out: {reason}")
    for name in lacking:
        print(f"{name} is required, so nothing was run")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
