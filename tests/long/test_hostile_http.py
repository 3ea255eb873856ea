"""Hostile bytes, some of them: ``python -m tests.hostile`` sends more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.hostile.costs import make_bill
from tests.hostile.run import attack

SEED = 3
REQUESTS = 1500


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a folder whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="idem") as name:
        yield Path(name)


@pytest.mark.usefixtures("database")
def test_bytes_that_nobody_expects(directory: Path) -> None:
    """K1, K2, K3, K4, F3, F5: Whatever is sent, no 500, and no effect without its key.

    Each record has one effect and each keyed effect its record; neither a body nor a
    full key is in what the application logs.
    """
    report = attack(directory, seed=SEED, requests=REQUESTS)
    told = "\n".join([*map(str, report.violations[:5]), str(report)])
    assert not report.violations, told
    assert report.effects, told


@pytest.mark.usefixtures("database")
def test_bodies_that_are_dear(directory: Path) -> None:
    """F3: A key makes no request cost much more, in time or in memory."""
    bill = make_bill(directory)
    assert bill.is_fair, str(bill)
