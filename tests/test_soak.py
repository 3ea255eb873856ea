"""The long run, cut short: ``python -m tests.soak`` is the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from django.db import connection

from tests.soak.faults import OTHERS
from tests.soak.run import soak

SEED = 3
SCENARIOS = 150


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a folder whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="idem") as name:
        yield Path(name)


@pytest.mark.usefixtures("database")
def test_mixed_load_while_things_die(directory: Path) -> None:
    """E1, E3, E4, F4, K4, K5, O1, O2, O3, R2, R3, R4: The clients' ledger agrees.

    Whatever was killed or cut, an acknowledged key has one effect and one answer, any
    other at most one, none is stuck, and no answer came that the rules don't allow.
    """
    report = soak(directory, seed=SEED, scenarios=SCENARIOS, requests_between=(10, 30))
    told = "\n".join([*map(str, report.violations[:5]), str(report)])
    assert not report.violations, told
    assert report.faults["worker killed"], told
    assert report.faults["connections cut"] or connection.vendor not in OTHERS, told
    assert report.answers["201 replayed"], told
