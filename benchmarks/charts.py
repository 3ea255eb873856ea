"""Draw the charts of docs/benchmarks.md from the figures that ``--json`` has written.

    python -m benchmarks.charts docs/benchmarks

Takes a folder with the JSON files of a run, and writes the charts beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# Text stays text, and the same figures give the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "idempotency"})

import matplotlib.pyplot as plt  # after the choice of what it draws with

USUAL = "1024"
REQUESTS = ("no key", "first-time", "replay", "409", "422", "leased first-time")
NAMES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}
OF_BARE = "of the bare view under ATOMIC_REQUESTS"
RATIO = "to_atomic_requests"


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return what one benchmark has written."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def error_bars(figures: list[list[float]]) -> list[list[float]]:
    """Return how far the middle half of rounds reaches below and above the median."""
    return [[m - low for m, low, _ in figures], [high - m for m, _, high in figures]]


def draw_requests(folder: Path) -> Any:
    """Draw what each kind of request costs on each database."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    height = 0.8 / len(NAMES)
    for number, (database, label) in enumerate(NAMES.items()):
        costs = read(folder, f"requests-{database}")["requests"][USUAL]
        # In SQLite there is no duplicate that is refused while another one runs.
        places = [at for at, name in enumerate(REQUESTS) if name in costs]
        ratios = [costs[REQUESTS[at]][RATIO] for at in places]
        axes.barh(
            [at + (number - 1) * height for at in places],
            [middle for middle, _low, _high in ratios],
            height,
            xerr=error_bars(ratios),
            label=label,
            error_kw={"linewidth": 0.8},
        )
    axes.set_yticks(range(len(REQUESTS)), REQUESTS)
    axes.invert_yaxis()
    axes.axvline(1, color="gray", linewidth=0.8)
    axes.set_xlabel(OF_BARE)
    axes.legend()
    return figure


def draw_sizes(folder: Path) -> Any:
    """Draw first-time requests and replays by size of the body."""
    sizes = read(folder, "requests-postgresql")["requests"]
    ratios = [
        {name: cost[RATIO] for name, cost in costs.items()} for costs in sizes.values()
    ]
    figure = draw_lines([*map(int, sizes)], ratios)
    axes = figure.axes[0]
    axes.set_xticks([*map(int, sizes)], ["200 B", "1 KiB", "64 KiB", "1 MiB"])
    axes.set_xlabel("size of the answer, PostgreSQL")
    return figure


def draw_growth(folder: Path) -> Any:
    """Draw first-time requests and replays by how many records there are."""
    steps = read(folder, "growth")["growth"]
    counts = [*map(int, steps)]
    figure = draw_lines(counts, [*steps.values()])
    axes = figure.axes[0]
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set_xlabel("records in the table, PostgreSQL")
    return figure


def draw_lines(places: list[int], ratios: list[dict[str, Any]]) -> Any:
    """Draw what first-time requests and replays cost at each place."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for name in ("first-time", "replay"):
        figures = [each[name] for each in ratios]
        axes.errorbar(
            places,
            [middle for middle, _low, _high in figures],
            yerr=error_bars(figures),
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(OF_BARE.replace(" under", "\nunder"))
    axes.legend()
    return figure


CHARTS = {"requests": draw_requests, "sizes": draw_sizes, "growth": draw_growth}


def main() -> int:
    """Draw every chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, draw in CHARTS.items():
        place = folder / f"{name}.svg"
        draw(folder).savefig(place, metadata={"Date": None})
        print(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
