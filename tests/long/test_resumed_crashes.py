"""Requests in steps that are cut at every boundary, and finished by their retries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection

from tests.support.fault_points import statements_in
from tests.support.http_servers import Server
from tests.support.rendezvous import Rendezvous
from tests.support.resumed_crashes import HANDLERS, POLICIES, Crashes, Tally

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
    """E12: Every statement has its boundaries, and so has the outside call."""
    visit = crashes.record(policy, HANDLERS[handler])
    assert visit.statements == statements_in(visit.labels) > 0, visit.labels


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("comes_back", [True, False], ids=["client", "completer"])
def test_cut_at_every_boundary(
    crashes: Crashes, comes_back: bool, how: str, policy: str, handler: str
) -> None:
    """E12, E13, E15, E17: Cut anywhere, a run is finished by a retry or a completer.

    Each step has acted once, the provider has charged under one key, and only a held
    call waits for a person.
    """
    crashes.comes_back = comes_back
    tally = Tally(policy)
    crashes.run(policy, HANDLERS[handler], how, tally)
    assert tally.boundaries > 0
    assert not tally.faults, "\n".join(tally.faults)
