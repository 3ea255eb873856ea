"""Put the figures of a run into the documents: ``python -m benchmarks.publish FOLDER``.

Tables, JSON and charts go to docs/benchmarks. Where a document names a figure, it is
written anew between its marks, as in <!-- figure NAME -->1.38<!-- / -->; the names are
those that ``named`` returns.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.databases import NAMES
from benchmarks.figures import shown, table
from benchmarks.requests import BARE, BARE_ATOMIC, USUAL

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "docs" / "benchmarks"
PAGES = [
    ROOT / name for name in ("README.md", "docs/benchmarks.md", "docs/operations.md")
]
MARKED = re.compile(r"(<!-- figure (\S+) -->).*?(<!-- / -->)", re.DOTALL)
TITLES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}
PURGED = NETWORKS = ("postgresql", "mariadb")
# What README shows: one availability zone.
ROUND_TRIP = 0.5


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return what one benchmark has written."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def named(folder: Path) -> dict[str, str]:
    """Return each figure that the documents may name, as they have it."""
    usual = {
        name: read(folder, f"requests-{name}")["requests"][str(USUAL)] for name in NAMES
    }
    networks = {
        name: read(folder, f"network-{name}")["network"][str(USUAL)]
        for name in NETWORKS
    }
    return {
        **_requests(usual, networks),
        **_prepared(read(folder, "prepared")["prepared"]),
        **_times(read(folder, "breakdown")["breakdown"]),
        **_storms(read(folder, "http")["storm"]),
        **_purges({name: read(folder, f"purge-{name}") for name in PURGED}),
    }


def _requests(usual: dict[str, Any], networks: dict[str, Any]) -> dict[str, str]:
    def more(of: str, than: str) -> list[int]:
        return [costs[of]["calls"] - costs[than]["calls"] for costs in usual.values()]

    def ratios(name: str, of: str = "to_atomic_requests") -> list[str]:
        return [shown(costs[name][of]) for costs in usual.values()]

    def over_network(tell: Callable[[dict[str, Any]], str]) -> list[str]:
        return [tell(networks[name]) if name in networks else "-" for name in usual]

    def trips(costs: dict[str, Any]) -> str:
        kinds = (BARE_ATOMIC, "first-time", "replay")
        return ", ".join(str(costs[kind]["trips"]) for kind in kinds)

    def slowed(kind: str) -> Callable[[dict[str, Any]], str]:
        return lambda costs: shown(costs[kind]["networks"][str(ROUND_TRIP)]["ratio"])

    rows = [
        ("round trips: bare view, first request, replay", *over_network(trips)),
        (
            f"first request, {ROUND_TRIP} ms a round trip",
            *over_network(slowed("first-time")),
        ),
        (f"replay, {ROUND_TRIP} ms", *over_network(slowed("replay"))),
        ("first request, on one machine", *ratios("first-time")),
        ("replay, on one machine", *ratios("replay")),
        (
            "no key, of the bare view without a transaction",
            *ratios("no key", "to_autocommit"),
        ),
    ]
    found = usual["postgresql"]
    calls = {name: cost["calls"] for name, cost in found.items()}
    return {
        "costs": f"\n{table(('', *(TITLES[name] for name in usual)), rows)}\n\n",
        "calls-no-key": _from_to(more("no key", BARE)),
        **{
            f"calls-{name}": str(calls[name] - calls[BARE_ATOMIC])
            for name in ("first-time", "replay")
        },
    }


def _from_to(counts: Iterable[int]) -> str:
    least, *others = sorted({*counts})
    return f"{least} to {others[-1]}" if others else str(least)


def _prepared(found: dict[str, Any]) -> dict[str, str]:
    return {
        f"prepared-{name}": shown(found[kind]["to_itself"])
        for name, kind in (
            ("bare", BARE_ATOMIC),
            ("first-time", "first-time"),
            ("replay", "replay"),
        )
    }


def _times(breakdown: dict[str, Any]) -> dict[str, str]:
    bare = breakdown[BARE_ATOMIC]
    control = bare["BEGIN and COMMIT"]
    return {
        "control": f"{control:.2f}",
        "control-share": f"{100 * control / sum(bare.values()):.0f} %",
    }


def _storms(storms: dict[str, Any]) -> dict[str, str]:
    return {
        "storm-duplicates": shown(storms["duplicates of a slow request"]["p95"]),
        "storm-bare": shown(storms["bare requests"]["p95"]),
    }


def _purges(found: dict[str, Any]) -> dict[str, str]:
    def rates(what: str) -> list[float]:
        return [one[what]["rows"] / one[what]["seconds"] for one in found.values()]

    def row(what: str, tell: Callable[[Any], str]) -> tuple[str, ...]:
        return (what, *(tell(one) for one in found.values()))

    def logged(what: str) -> Callable[[Any], str]:
        return lambda one: f"{one[what]['logged'] / one[what]['rows']:,.0f} bytes"

    rows = [
        ("purge, rows per second", *(f"{rate:,.0f}" for rate in rates("purged"))),
        row("longest transaction", lambda one: f"{one['alone']['longest']:.2f} s"),
        row(
            "p95 of requests beside it, of that without",
            lambda one: shown(one["purge_p95"]),
        ),
        row("log per deleted row", logged("purged")),
        (
            "one single DELETE, rows per second",
            *(f"{rate:,.0f}" for rate in rates("deleted")),
        ),
        row("p95 of requests beside that", lambda one: f"{one['delete_p95']:.2f}"),
        row("log per deleted row", logged("deleted")),
    ]
    if all(one.get("backlog") for one in found.values()):
        behind = [one["backlog"] for one in found.values()]
        rows += [
            (
                "purge of a backlog, rows per second",
                *(
                    f"{one['alone']['deleted'] / one['alone']['seconds']:,.0f}"
                    for one in behind
                ),
            ),
            ("p95 of requests beside that", *(shown(one["p95"]) for one in behind)),
        ]
    budget = min(rates("purged")) * 540
    memory = max(one["alone"]["memory_late"] for one in found.values())
    titles = (TITLES[name] for name in found)
    return {
        "purges": f"\n{table(('', *titles), rows)}\n\n",
        "purged-in-nine-minutes": f"{budget // 50_000 * 50_000:,.0f}",
        "purge-memory": f"{memory:.0f}",
    }


def rewritten(page: str, figures: dict[str, str]) -> str:
    """Return a document with the figures that it names."""
    return MARKED.sub(lambda at: f"{at[1]}{figures[at[2]]}{at[3]}", page)


def main() -> int:
    """Copy, and rewrite."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if folder != PUBLISHED:
        for place in sorted(folder.iterdir()):
            if place.suffix in (".json", ".svg", ".txt"):
                shutil.copy(place, PUBLISHED)
    figures = named(PUBLISHED)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(rewritten(text, figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
