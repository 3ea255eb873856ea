"""The benchmarks run, and their comparison finds what became worse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import compare, publish, purge
from benchmarks.__main__ import PARTS
from benchmarks.publish import PUBLISHED
from benchmarks.studies.peers import PEERS
from tests.conftest import once
from tests.support.database_servers import NotInstalled, find_postgresql
from tests.support.processes import ROOT
from tests.test_docs import table

pytestmark = once
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
    """R6: A request's statements are counted; a planted regression is reported."""
    old = tmp_path / "old.json"
    small = ("--rounds=2", "--requests=10", "--size=1024", "--json", old)
    told = run("requests", "--database=sqlite", *small)
    assert "| replay | " in told
    figures = json.loads(old.read_text())
    costs = figures["requests"]["1024"]
    # K4: no key, no statement and no commit more than the bare view.
    bare, no_key = costs["bare"], costs["no key"]
    assert (no_key["statements"], no_key["commits"]) == (
        bare["statements"],
        bare["commits"],
    )
    assert no_key["calls"] - bare["calls"] < 60
    assert costs["replay"]["statements"] == 1
    assert costs["replay"]["calls"] - bare["calls"] < 60
    # The effect's own; in leased mode the claim's and the answer's beside it.
    kinds = ("bare", "first-time", "replay", "leased first-time")
    assert [costs[kind]["commits"] for kind in kinds] == [1, 1, 0, 3]
    # E15: the last step's commit is the answer's. Its BEGIN is a statement of SQLite's.
    last = costs["last step first-time"]
    assert last["commits"] == 2
    assert last["statements"] - costs["leased first-time"]["statements"] <= 2
    assert run("compare", old, old) == "Nothing became worse.\n"
    new = tmp_path / "new.json"
    costs["replay"]["statements"] += 1
    costs["first-time"]["to_autocommit"][0] *= 50
    new.write_text(json.dumps(figures))
    told = run("compare", old, new, status=1)
    assert "1024, replay: statements 1 -> 2" in told
    assert "1024, first-time: to_autocommit" in told
    assert len(told.splitlines()) == 2
    figures["database"] = "another"
    new.write_text(json.dumps(figures))
    assert "these are of sqlite and of another" in run("compare", old, new, status=2)


def planted(name: str, where: str, times: float, plus: float = 0) -> list[str]:
    """Return the report on a published run with one figure changed."""
    old = json.loads((PUBLISHED / f"{name}.json").read_text())
    new = json.loads((PUBLISHED / f"{name}.json").read_text())
    *names, last = where.split("/")
    inner = new
    for each in names:
        inner = inner[each]
    was = inner[last]
    if isinstance(was, list):
        inner[last] = [was[0] * times + plus, *was[1:]]
    else:
        inner[last] = was * times + plus
    return [*compare.regressions(old, new)]


def test_floor() -> None:
    """R6: The statements of the floor are the app's own, which may change."""
    try:
        find_postgresql()
    except NotInstalled as reason:
        pytest.skip(str(reason))
    told = run("floor", "--rounds=2", "--requests=5")
    for name in ("bare", "first-time", "replay"):
        assert f"| {name} | " in told


def test_growth() -> None:
    """R6: Requests are measured in a table that has been filled."""
    told = run("growth", "--database=sqlite", "--most=10000", "--rounds=2")
    assert "| 10,000 | " in told


@pytest.mark.parametrize(
    ("name", "where", "times", "plus"),
    [
        ("requests-postgresql", "requests/1024/replay/log_bytes", 0, 1000),
        ("requests-postgresql", "requests/1024/replay/p95_to_atomic_requests", 9, 0),
        ("requests-postgresql", "requests/1024/replay/calls", 1, 1),
        ("requests-postgresql", "requests/65536/replay/commits", 1, 1),
        ("prepared", "prepared/replay/to_itself", 9, 0),
        ("floor", "floor/first-time/ratio", 9, 0),
        ("bodies", "bodies/65536/beside it, lz4/kept", 2, 0),
        ("http", "http/replay/throughput", 0.1, 0),
        ("http", "http/replay/p99", 9, 0),
        ("http", "storm/duplicates of a slow request/p95", 9, 0),
        ("growth", "growth/1000000/replay", 9, 0),
        ("growth", "growth/1000000/bytes", 2, 0),
        ("start", "start/with the app/modules", 1, 1),
        ("storage", "storage/1024/80/bytes", 2, 0),
        ("purge-mariadb", "purge_p95", 9, 0),
    ],
)
def test_comparison_tells(name: str, where: str, times: float, plus: float) -> None:
    """R6: A figure that became worse is reported, in every benchmark."""
    (told,) = planted(name, where, times, plus)
    assert where.rpartition("/")[2] in told


@pytest.mark.parametrize(
    ("name", "where", "times", "plus"),
    [
        ("requests-mariadb", "requests/1024/bare/log_bytes", 9, 0),
        ("requests-postgresql", "requests/1024/replay/log_bytes", 0, 100),
        ("requests-postgresql", "requests/65536/replay/calls", 1, 1),
        ("requests-postgresql", "requests/1024/bare/p95_to_atomic_requests", 9, 0),
        ("requests-postgresql", "requests/1024/replay/to_autocommit", 0.5, 0),
        ("http", "http/replay/throughput", 9, 0),
    ],
)
def test_comparison_is_calm(name: str, where: str, times: float, plus: float) -> None:
    """R6: Noise and improvements are not reported."""
    assert planted(name, where, times, plus) == []


def test_comparison_of_what_is_not_there(tmp_path: Path) -> None:
    """R6: Missing figures are reported, and files without a common one."""
    old = PUBLISHED / "floor.json"
    figures = json.loads(old.read_text())
    del figures["floor"]["replay"]["ratio"]
    new = tmp_path / "new.json"
    new.write_text(json.dumps(figures))
    told = run("compare", old, new, status=1)
    assert told == "replay: ratio is not in the new run\n"
    other = PUBLISHED / "start.json"
    assert "of different benchmarks" in run("compare", old, other, status=2)
    none = PUBLISHED / "breakdown.json"
    assert "no figures that can be compared" in run("compare", none, none, status=2)


def test_peers() -> None:
    """The comparison is about the versions that its command installs."""
    said = {
        f"{row['package'].strip('[').partition(']')[0]}=={row['version']}"
        for row in table("package", "version", "of")
    }
    assert said == {peer["package"] for peer in PEERS.values()} - {str(ROOT)}


@pytest.mark.parametrize("name", PARTS)
def test_tables(name: str) -> None:
    """The tables are those that the figures beside them make."""
    figures = json.loads((PUBLISHED / f"{name}.json").read_text())
    printed = (PUBLISHED / f"{name}.txt").read_text()
    module = import_module(f"benchmarks.{PARTS[name][0]}")
    if module is purge:
        deletions = {
            each: purge.Deletion(**figures[each]) for each in ("purged", "deleted")
        }
        _title, _newline, printed = printed.partition("\n")
        assert printed == f"{purge.Figures(**{**figures, **deletions})}\n"
    else:
        assert printed == f"{module.report(figures)}\n"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("peers-network", "peers_network"),
        ("scale-postgresql", "scale"),
        ("scale-mariadb", "scale"),
    ],
)
def test_tables_of_studies(name: str, module: str) -> None:
    """The same holds for what is measured more rarely."""
    figures = json.loads((PUBLISHED / f"{name}.json").read_text())
    study = import_module(f"benchmarks.studies.{module}")
    assert (PUBLISHED / f"{name}.txt").read_text() == f"{study.report(figures)}\n"


def test_page() -> None:
    """The figures that documents name are those that the commands have written."""
    figures = publish.named(PUBLISHED)
    found = set()
    for place in publish.PAGES:
        page = place.read_text(encoding="utf-8")
        assert publish.rewritten(page, figures) == page, place
        found |= {name for _mark, name, _end in publish.MARKED.findall(page)}
    assert found == figures.keys()
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"benchmarks/([\w-]+)\.txt", page))
    assert shown == set(PARTS)
    for name in re.findall(r"benchmarks/[\w-]+\.\w+", page):
        assert (ROOT / "docs" / name).exists(), name


def test_figure_is_written_anew() -> None:
    """What stands between the marks of a figure is replaced, and nothing else."""
    page = "a <!-- figure log -->1.2<!-- / --> b <!-- figure x -->\n|\n<!-- / --> 1.2"
    assert publish.rewritten(page, {"log": "1.4", "x": "y"}) == (
        "a <!-- figure log -->1.4<!-- / --> b <!-- figure x -->y<!-- / --> 1.2"
    )
