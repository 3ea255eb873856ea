"""Requests in leased mode that are cut at every boundary, and retried."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection

from tests.support.fault_points import statements_in
from tests.support.http_servers import Server
from tests.support.leased_crashes import HANDLERS, POLICIES, Crashes, Tally
from tests.support.rendezvous import Rendezvous

HOWS = ["kill", "hang-up"]
if connection.vendor != "sqlite":
    HOWS += ["terminate", "lose-reply"]


@pytest.fixture
def crashes(
    crash_servers: Callable[[bool], Server],
    atomic_requests: bool,
    rendezvous: Rendezvous,
) -> Crashes:
    """Return a server whose requests can be cut."""
    return Crashes(crash_servers(atomic_requests), rendezvous)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("handler", HANDLERS)
def test_boundaries_are_all(crashes: Crashes, handler: str, policy: str) -> None:
    """E7: Every statement has its boundaries, and so has the outside call."""
    kind = HANDLERS[handler]
    visit = crashes.record(policy, kind)
    assert visit.statements == statements_in(visit.labels) > 0, visit.labels
    runs = {
        None: kind.calls > 0,
        "before": policy != "hold",
        "after": policy == "rerun",
    }[kind.failed]
    charges = ["about to charge", "charged"]
    assert [label for label in visit.labels if label in charges] == charges * runs


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", HOWS)
def test_cut_at_every_boundary(
    crashes: Crashes, how: str, policy: str, handler: str
) -> None:
    """E7, E8, E9, E10, E11: Cut anywhere, a retry gets what its policy promises.

    A live lease is respected. "hold" and a callable that finds out never call outside
    twice, "rerun" calls under one derived key, and no key has two stored answers.
    """
    tally = Tally(policy)
    crashes.run(policy, HANDLERS[handler], how, tally)
    assert tally.boundaries > 0
    assert not tally.faults, "\n".join(tally.faults)
