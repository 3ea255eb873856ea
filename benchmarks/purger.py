"""A purge in a process of its own, which tells of each batch: ``benchmarks.purge``."""

from __future__ import annotations

import json
import resource
import sys
import time
from datetime import timedelta
from typing import Any

import django

django.setup()

from idempotency import purging  # needs the settings
from idempotency.models import IdempotencyRecord


def main() -> None:
    """Purge, and print the longest batch, the rows, and what memory it took."""
    manager: Any = IdempotencyRecord.objects
    budget = timedelta(seconds=float(sys.argv[1]))
    batches: list[float] = []
    delete_batch = purging._delete_batch

    def timed(*arguments: Any) -> Any:
        started = time.monotonic()
        result = delete_batch(*arguments)
        batches.append(time.monotonic() - started)
        return result

    purging._delete_batch = timed
    early = None
    report = None
    began = time.monotonic()
    for report in manager.purge_in_batches(time_budget=budget):
        if early is None and report.batches >= 10:  # at its full size
            early = memory()
    assert report is not None
    told = {
        "began": began,
        "ended": time.monotonic(),
        "deleted": report.deleted,
        "batches": report.batches,
        "seconds": report.seconds,
        "more": report.more,
        "longest": max(batches),
        "memory_early": early or memory(),
        "memory_late": memory(),
    }
    print(json.dumps(told))


def memory() -> float:
    """Return the most memory that the process has taken so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
