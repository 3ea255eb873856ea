"""The benchmarks run, and their comparison finds what became worse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection

from benchmarks import requests
from benchmarks.databases import NAMES
from benchmarks.peers import PEERS
from tests.processes import ROOT
from tests.test_docs import table

pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="One database will do."
)
# They start and fill databases.
LONGER = 300


def run(module: str, *arguments: str | Path, status: int = 0) -> str:
    """Run a benchmark, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGER,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_requests_and_their_comparison(tmp_path: Path) -> None:
    """R6: What a request costs is counted; a planted regression is told."""
    old = tmp_path / "old.json"
    small = ("--rounds=2", "--requests=10", "--size=1024", "--json", old)
    told = run("requests", "--database=sqlite", *small)
    assert "| replay | " in told
    figures = json.loads(old.read_text())
    costs = {cost["name"]: cost for cost in figures["requests"]["1024"]}
    # K4: no key, no statement and no commit more than the bare view.
    bare, no_key = costs["bare"], costs["no key"]
    assert (no_key["statements"], no_key["commits"]) == (
        bare["statements"],
        bare["commits"],
    )
    assert no_key["calls"] - bare["calls"] < 60
    assert costs["replay"]["statements"] == 1
    assert run("compare", old, old) == "Nothing became worse.\n"
    new = tmp_path / "new.json"
    costs["replay"]["statements"] += 1
    costs["first-time"]["to_autocommit"][0] *= 5
    new.write_text(json.dumps(figures))
    told = run("compare", old, new, status=1)
    assert "replay, 1024 bytes: statements 1 -> 2" in told
    assert "first-time, 1024 bytes: to_autocommit" in told
    assert len(told.splitlines()) == 2
    figures["database"] = "another"
    new.write_text(json.dumps(figures))
    assert "these are of sqlite and of another" in run("compare", old, new, status=2)


def test_peers() -> None:
    """The comparison is about the versions that its command installs."""
    said = {
        f"{row['package'].strip('[').partition(']')[0]}=={row['version']}"
        for row in table("package", "version", "of")
    }
    assert said == {peer["package"] for peer in PEERS.values()} - {str(ROOT)}


def test_page() -> None:
    """The figures of README and page are those that the commands have written."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    costs_of_readme = readme.partition("<!-- costs -->")[2].partition("<!-- /costs")[0]
    published = ROOT / "docs" / "benchmarks"
    rows: dict[str, list[str]] = {"no key": [], "first-time": [], "replay": []}
    for database in NAMES:
        figures = json.loads((published / f"requests-{database}.json").read_text())
        assert figures["database"] == database
        costs = {cost["name"]: cost for cost in figures["requests"]["1024"]}
        for name, cells in rows.items():
            of = "to_autocommit" if name == "no key" else "to_atomic_requests"
            middle, low, high = costs[name][of]
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        assert costs["no key"]["statements"] == costs["bare"]["statements"]
        more = costs["no key"]["calls"] - costs["bare"]["calls"]
        assert f"a request makes {more} Python calls more" in page
        if database == "postgresql":
            floors = [
                "{:.2f} ({:.2f}-{:.2f})".format(
                    *costs[f"{requests.FLOOR} {name}"]["to_atomic_requests"]
                )
                for name in ("first-time", "replay")
            ]
            assert " and ".join(floors) in costs_of_readme
        printed = (published / f"requests-{database}.txt").read_text()
        listed = [requests.Cost(**cost) for cost in figures["requests"]["1024"]]
        assert requests.table(listed) in printed
    for name, cells in rows.items():
        (line,) = re.findall(rf"^\| {name}\b.*", costs_of_readme, re.MULTILINE)
        assert line.endswith(f"| {' | '.join(cells)} |")
    for name in re.findall(r"benchmarks/[\w-]+\.\w+", page):
        assert (ROOT / "docs" / name).exists(), name
