"""How figures are summed up, shown and kept: each report is made from its JSON alone.

So whoever has the JSON of a run can make its tables again, as the tests do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

# The median of rounds, and the quartiles: half of all rounds lie between these.
Spread = tuple[float, float, float]


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles, which lie between the values."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return middle, low, high


def spread_of_ratios(ones: Sequence[float], others: Sequence[float]) -> Spread:
    """Return the spread of what some rounds took, relative to others of these."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


def shown(found: Spread) -> str:
    """Return a spread as the tables have it."""
    middle, low, high = found
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def tell(
    told: dict[str, Any], report: Callable[[dict[str, Any]], str], place: Path | None
) -> None:
    """Print the report of what was measured, and write JSON where that is wanted."""
    text = json.dumps(told, indent=2) + "\n"
    print(report(json.loads(text)), flush=True)
    if place is not None:
        place.write_text(text, encoding="utf-8")
