"""Where the time of a request goes: in the database, and in Python.

    python -m benchmarks.breakdown --database postgresql

Medians of milliseconds, in process: the app's statements, the view's own, BEGIN and
COMMIT, and all the rest, which is Django, REST framework, the view and the app.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from django.db import connection

from benchmarks.databases import NAMES, TABLE, database, settle
from benchmarks.figures import table, tell
from benchmarks.requests import BARE_ATOMIC, Kind, kinds, run

BODY = 1024
KINDS = (BARE_ATOMIC, "first-time", "replay")
PARTS = ("the app's statements", "the view's", "BEGIN and COMMIT", "Python")
Parts = dict[str, float]


@contextmanager
def clocked() -> Iterator[Parts]:
    """Add up what the database takes."""
    spent = dict.fromkeys(PARTS[:-1], 0.0)

    def statement(execute: Any, sql: str, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return execute(sql, *arguments)
        finally:
            part = PARTS[0] if TABLE in sql else PARTS[1]
            spent[part] += time.perf_counter() - started

    def control(method: Any) -> Any:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **keywords)
            finally:
                spent[PARTS[2]] += time.perf_counter() - started

        return timed

    with ExitStack() as stack:
        stack.enter_context(connection.execute_wrapper(statement))
        for name in ("_commit", "_set_autocommit"):
            method = control(getattr(connection, name))
            stack.enter_context(patch.object(connection, name, method))
        yield spent


def parts_of(kind: Kind, requests: int) -> Parts:
    """Return the medians of each part."""
    found: list[Parts] = []
    for _request in range(requests):
        with clocked() as spent:
            (took,) = run(kind, 1)
        found.append({**spent, PARTS[3]: took - sum(spent.values())})
    return {part: 1000 * median(each[part] for each in found) for part in PARTS}


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    rows = [
        (name, *(f"{value:.2f}" for value in found.values()))
        for name, found in told["breakdown"].items()
    ]
    title = f"{told['database']}, milliseconds, bodies of {BODY} bytes"
    return f"{title}\n\n{table(('request', *PARTS), rows)}"


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    with database(arguments.database, urls="benchmarks.views"):
        every = {kind.name: kind for kind in kinds(BODY, with_leased=False)}
        for name in KINDS:
            run(every[name], 100)
        settle()
        for name in KINDS:
            figures[name] = parts_of(every[name], arguments.requests)
    told = {"database": arguments.database, "breakdown": figures}
    tell(told, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
