"""The purge is killed at every boundary of its batches."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection

from idempotency.models import IdempotencyRecord
from tests.support.fault_points import wait_for_visit
from tests.support.processes import running
from tests.support.record_factories import RETENTION, left, make_record, make_records
from tests.support.rendezvous import Rendezvous

BATCH, RECORDS = 4, 7
KEPT = {"young", "29 days"}


def fill() -> None:
    """Begin with the same records each time."""
    IdempotencyRecord.objects.all().delete()
    make_records(RECORDS, RETENTION + timedelta(seconds=1))
    make_record(key="young")
    make_record(timedelta(days=29), key="29 days")


@pytest.mark.usefixtures("database")
def test_killed_at_every_boundary(rendezvous: Rendezvous, tmp_path: Path) -> None:
    """P2: Each batch is deleted whole or not at all, and the next run does the rest."""
    command = [sys.executable, "-m", "tests.support.interrupted_purge"]
    options = [str(rendezvous.address), f"--batch-size={BATCH}"]
    log = tmp_path / "log"
    fill()
    with running([*command, "0", *options], log):
        visit = wait_for_visit(rendezvous)
        visit.close()
    assert left() == KEPT
    # SQLite first deletes what is half done.
    deletions = 4 if connection.vendor == "sqlite" else 2
    labels = visit.labels
    assert sum(label.startswith("before DELETE") for label in labels) == deletions
    for number in range(1, len(visit.labels) + 1):
        fill()
        with running([*command, str(number), *options], log):
            wait_for_visit(rendezvous).waiting.kill()
        found = left()
        assert found > KEPT or found == KEPT
        assert len(found - KEPT) in (RECORDS, RECORDS - BATCH, 0), visit.labels[number]
        report = IdempotencyRecord.objects.purge()
        assert (report.deleted, report.more) == (len(found - KEPT), False)
        assert left() == KEPT
