"""Clusters whose nodes fail, a short run: ``make cluster`` is the whole of it."""

from __future__ import annotations

import os

import pytest

from tests.cluster.__main__ import missing
from tests.cluster.run import run_apart
from tests.conftest import once
from tests.support.database_servers import NotInstalled

SEED = 3
SIZE = {"keys": 2, "seconds": 2, "expired": 2_000}

pytestmark = once


@pytest.mark.parametrize(
    ("cluster", "scenarios"),
    [
        ("galera", ["same-key", "stale-reads", "killed", "purges"]),
        ("postgresql", ["synchronous"]),
        ("postgresql", ["asynchronous"]),
    ],
    ids=["galera", "synchronous", "asynchronous"],
)
def test_nodes_that_fail(cluster: str, scenarios: list[str]) -> None:
    """E1, E3, E4, E7, E9, E12: Whichever node fails, each key acts as its mode says.

    What a failover loses, it loses whole: the effect and its record.
    """
    for reason in missing()[cluster]:
        if "CI" in os.environ:
            raise NotInstalled(reason)
        pytest.skip(reason)
    report = run_apart(cluster, wanted=scenarios, few=True, seed=SEED, **SIZE)
    told = "\n".join(map(str, report.faults[:5]))
    assert not report.faults, told
    keys = sum(row.tally.keys for row in report.rows)
    assert keys >= 2 * len(scenarios), told
    if scenarios == ["asynchronous"]:
        # Otherwise nothing has been shown.
        assert any(row.tally.gone for row in report.rows)
