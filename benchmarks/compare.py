"""Compare two runs of the benchmarks: ``python -m benchmarks.compare OLD NEW``.

Both are files that ``--json`` has written. Ratios may differ by their spread; what is
counted may not differ at all. Each worse figure is told, and the status is 1.
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
COUNTED = ("statements", "commits", "calls")
RATIOS = ("to_autocommit", "to_atomic_requests")
# Of the database's log: full pages come and go.
LOG_TOLERANCE = 0.25


def regressions(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield each figure of the requests that became worse."""
    for size, before in old["requests"].items():
        after = {cost["name"]: cost for cost in new["requests"].get(size, [])}
        for cost in before:
            where = f"{cost['name']}, {size} bytes"
            now = after.get(cost["name"])
            if now is None:
                yield f"{where}: is not in the new run"
            else:
                yield from _worse(where, cost, now)


def _worse(where: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in COUNTED:
        if now[name] > before[name]:
            yield f"{where}: {name} {before[name]} -> {now[name]}"
    if not before["name"].startswith("bare"):
        for name in RATIOS:
            middle, _low, high = before[name]
            if now[name][0] > max(high, middle * (1 + TOLERANCE)):
                yield f"{where}: {name} {middle:.2f} -> {now[name][0]:.2f}"
    logged = before["log_bytes"]
    if logged and now["log_bytes"] > logged * (1 + LOG_TOLERANCE):
        yield f"{where}: log_bytes {logged} -> {now['log_bytes']}"


def main() -> int:
    """Tell what became worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (arguments.old, arguments.new))
    if old["database"] != new["database"]:
        parser.error(f"these are of {old['database']} and of {new['database']}")
    worse = [*regressions(old, new)]
    print("\n".join(worse) if worse else "Nothing became worse.")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
