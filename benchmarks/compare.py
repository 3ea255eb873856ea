"""Compare two runs of one benchmark: ``python -m benchmarks.compare OLD NEW``.

Both are files that ``--json`` has written. Each figure that became worse is told, and
then the status is 1:

- a ratio that is above the old run's own spread and a tenth above its median, or a
  quarter for p95 and p99; for throughput, below it by as much. Not those of the bare
  view, which has nothing of the app.
- round trips, statements, commits and modules that are more by one; so are Python
  calls, but not with large bodies, where the driver waits for its socket more often
  or less.
- bytes of the log that are a quarter and 100 bytes above the old ones, not of the bare
  view; bytes on disk, and memory, that are a tenth above.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Beyond the old run's own spread, so much more is a regression.
TOLERANCE = 0.10
# Of the slowest of many, which differ more.
TAIL_TOLERANCE = 0.25
TAILS = ("p95", "p99")
MORE_IS_BETTER = ("throughput",)
COUNTED = ("trips", "statements", "commits", "calls", "modules")
# Above it, calls of the driver depend on how much its socket takes at once.
CALLS_UP_TO = 1024
WEIGHED = ("bytes", "kept", "memory")
# Of the database's log: full pages come and go.
LOG_TOLERANCE, LOG_SLACK = 0.25, 100
Figures = dict[tuple[str, ...], Any]


def flat(told: Any, where: tuple[str, ...] = ()) -> Figures:
    """Return each figure by the names that lead to it."""
    if not isinstance(told, dict):
        return {where: told}
    found: Figures = {}
    for name, inner in told.items():
        found |= flat(inner, (*where, name))
    return found


def is_spread(figure: Any) -> bool:
    """Tell whether a figure is a median with its quartiles."""
    return (
        isinstance(figure, list)
        and len(figure) == 3
        and all(isinstance(number, float | int) for number in figure)
    )


def can_compare(where: tuple[str, ...], figure: Any) -> bool:
    """Tell whether it can be said of a figure that it became worse."""
    name = where[-1]
    if not is_spread(figure) and not isinstance(figure, float | int):
        return False
    if is_spread(figure) or name == "log_bytes":
        return not any(at.startswith("bare") for at in where)
    if name == "calls":
        _requests, size, *_kind = where
        return int(size) <= CALLS_UP_TO
    return name in (*COUNTED, *WEIGHED)


def is_worse(name: str, old: Any, new: Any) -> bool:
    """Compare one figure."""
    if is_spread(old):
        middle, low, high = old
        share = TAIL_TOLERANCE if any(tail in name for tail in TAILS) else TOLERANCE
        if name in MORE_IS_BETTER:
            return bool(new[0] < min(low, middle * (1 - share)))
        return bool(new[0] > max(high, middle * (1 + share)))
    if name == "log_bytes":
        return bool(new > old * (1 + LOG_TOLERANCE) + LOG_SLACK)
    return bool(new > (old if name in COUNTED else old * (1 + TOLERANCE)))


def regressions(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield each figure that became worse, or is no longer there.

    Raises ``ValueError`` where nothing can be compared.
    """
    before = {
        where: figure
        for where, figure in flat(old).items()
        if can_compare(where, figure)
    }
    if not before:
        raise ValueError("no figures that can be compared: no ratios, nothing counted")
    after = flat(new)
    for where, figure in before.items():
        now = after.get(where)
        if now is None:
            yield f"{_place(where)} is not in the new run"
        elif is_worse(where[-1], figure, now):
            yield f"{_place(where)} {_shown(figure)} -> {_shown(now)}"


def _place(where: tuple[str, ...]) -> str:
    # The first name is that of the benchmark.
    *outer, name = where[1:] or where
    return f"{', '.join(outer)}: {name}" if outer else name


def _shown(figure: Any) -> str:
    if is_spread(figure):
        return f"{figure[0]:.2f}"
    return f"{figure:,.1f}" if isinstance(figure, float) else f"{figure:,}"


def main() -> int:
    """Tell what became worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (arguments.old, arguments.new))
    if old.get("database") != new.get("database"):
        parser.error(f"these are of {old.get('database')} and of {new.get('database')}")
    if old.keys() != new.keys():
        parser.error("these are of different benchmarks")
    try:
        worse = [*regressions(old, new)]
    except ValueError as reason:
        parser.error(str(reason))
    print("\n".join(worse) if worse else "Nothing became worse.")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
