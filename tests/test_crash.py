"""Processes that die at the wrong moment."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.support.faults import serving
from tests.support.http_servers import Server, is_replayed, read
from tests.support.rendezvous import ATOMIC_VIEWS, Rendezvous
from tests.support.resumed_crashes import HANDLERS, POLICIES, Crashes, Tally

# Where a run in steps loses most: around each COMMIT of a step, and around its call.
WORST = ("commit", "about to charge", "charged")


@pytest.fixture(scope="module")
def one_at_a_time(django_db_setup: None) -> Iterator[Server]:
    """Start a server whose requests can be cut anywhere."""
    with serving() as server:
        yield server


each_url = pytest.mark.parametrize("url", ATOMIC_VIEWS.values(), ids=[*ATOMIC_VIEWS])


@each_url
def test_killed_before_the_commit(
    server: Server, rendezvous: Rendezvous, url: str
) -> None:
    """E1: A worker that is killed leaves neither effect nor key; the retry acts."""
    lost = server.start(url, {}, **rendezvous.header)
    rendezvous.wait().kill()
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        read(lost)
    retry = server.send(url, {})
    assert retry.status == 201
    assert not is_replayed(retry)
    assert server.send(url, {}).body == retry.body
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 1


@each_url
def test_killed_after_the_commit(
    server: Server, rendezvous: Rendezvous, url: str
) -> None:
    """E1, O5: A worker killed after its COMMIT leaves both; the retry replays."""
    lost = server.start(url, {}, **rendezvous.header, **{"X-When": "after"})
    rendezvous.wait().kill()
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        read(lost)
    retry = server.send(url, {})
    assert retry.status == 201
    assert is_replayed(retry)
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("comes_back", [True, False], ids=["client", "completer"])
def test_killed_between_steps(
    database: None,
    one_at_a_time: Server,
    rendezvous: Rendezvous,
    policy: str,
    comes_back: bool,
) -> None:
    """E12, E13, E17: A killed run is finished, and each step and its call act once."""
    crashes, tally = Crashes(one_at_a_time, rendezvous), Tally(policy)
    crashes.comes_back = comes_back
    handler = HANDLERS["plain"]
    labels = crashes.record(policy, handler).labels
    for number, label in enumerate(labels, 1):
        if label.lower().endswith(WORST):
            outcome = crashes.cut(policy, handler, "kill", labels[:number])
            tally.count(label, outcome)
    assert tally.boundaries == 6
    assert not tally.faults, "\n".join(tally.faults)
