"""The benchmarks that take longer run, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.database_servers import NotInstalled, find_postgresql, find_program
from tests.support.processes import ROOT
from tests.test_benchmarks import pytestmark as pytestmark  # noqa: PLC0414  # the same
from tests.test_benchmarks import run


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("admin", ["--records=2000"], "| overview |"),
        ("growth", ["--most=10000", "--rounds=2", "--requests=5"], "| 10,000 |"),
        ("http", ["--rounds=2", "--seconds=1"], "| replay |"),
    ],
)
def test_others(module: str, arguments: list[str], said: str) -> None:
    """A2, R6: They measure what they say."""
    assert said in run(module, "--database=sqlite", *arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("bodies", [], "| 1,048,576 | beside it, lz4 |"),
        ("floor", [], "| replay, prepared |"),
        ("prepared", [], "| replay |"),
    ],
)
def test_on_postgresql(module: str, arguments: list[str], said: str) -> None:
    """R6: So do the statements on a PostgreSQL of the benchmark's own."""
    small = ("--rounds=2", "--requests=5")
    assert said in run_on("postgresql", module, *small, *arguments)


def run_on(database: str, module: str, *arguments: str | Path) -> str:
    """Run a benchmark where its database is installed, and return what it prints."""
    try:
        find_postgresql() if database == "postgresql" else find_program("mariadbd")
    except NotInstalled as reason:
        pytest.skip(str(reason))
    return run(module, *arguments)


def test_storage() -> None:
    """R6: Every size of bodies is stored with every fillfactor."""
    told = run_on("postgresql", "storage", "--requests=20")
    assert "| 1,048,576 | 80 | " in told


@pytest.mark.parametrize(
    ("database", "counted"),
    [
        ("postgresql", [(1, 1), (3, 1), (1, 1), (2, 1), (3, 3)]),
        ("mariadb", [(1, 1), (4, 1), (1, 0), (2, 0), (4, 3)]),
    ],
)
def test_counts(database: str, counted: list[tuple[int, int]], tmp_path: Path) -> None:
    """R6: Statements and commits of each kind of request are those that there are."""
    place = tmp_path / "requests.json"
    small = ("--rounds=2", "--requests=5", "--size=1024", "--json", place)
    run_on(database, "requests", "--database", database, *small)
    costs = json.loads(place.read_text())["requests"]["1024"]
    kinds = ("bare", "first-time", "replay", "409", "leased first-time")
    assert [
        (costs[kind]["statements"], costs[kind]["commits"]) for kind in kinds
    ] == counted


def test_all_of_them(tmp_path: Path) -> None:
    """R6: The command for all writes down what each of them prints, and its figures."""
    command = [sys.executable, "-m", "benchmarks", str(tmp_path), "--only", "start"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = (tmp_path / "start.txt").read_text()
    assert "| with the app |" in told
    assert done.stdout == f"\n=== start\n{told}"
    assert (tmp_path / "start.json").exists()
