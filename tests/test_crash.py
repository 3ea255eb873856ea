"""Processes that die at the wrong moment."""

from __future__ import annotations

import http.client

import pytest

from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.support.http_servers import Server, is_replayed, read
from tests.support.rendezvous import ATOMIC_VIEWS, Rendezvous

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
