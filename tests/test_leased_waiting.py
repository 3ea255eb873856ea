"""Duplicates of a leased handler that wait for its answer, in real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from django.db import connection

from tests.support.charge_ledger import Ledger
from tests.support.faults import serving
from tests.support.http_servers import Server, is_replayed, read
from tests.support.polling_pauses import HEADER
from tests.support.processes import PAUSE_FOR_INNODB, wait_until
from tests.support.rendezvous import Rendezvous, WaitingHandler

DUPLICATES = 4
DATA = {"handler": "paused"}


@pytest.fixture
def threads(database: None) -> Iterator[Server]:
    """Serve the handler and its duplicates from threads of one process."""
    with serving(threads=DUPLICATES + 1) as server:
        yield server


@pytest.fixture
def waiting_room() -> Iterator[Rendezvous]:
    """Return where duplicates are met."""
    with (
        TemporaryDirectory(prefix="idem") as place,
        Rendezvous(Path(place)) as rendezvous,
    ):
        yield rendezvous


def sessions_in_transactions() -> set[int]:
    """Return the sessions of which the database says that they have a transaction."""
    by_vendor = {
        "postgresql": "SELECT pid FROM pg_stat_activity WHERE xact_start IS NOT NULL",
        "mysql": "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx",
    }
    if connection.vendor not in by_vendor:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(by_vendor[connection.vendor])
        return {number for (number,) in cursor.fetchall()}


def test_no_transaction_while_waiting(
    threads: Server, rendezvous: Rendezvous, waiting_room: Rendezvous
) -> None:
    """E3, E7: Who waits for a leased handler has no transaction open, then replays.

    Nor has the handler.
    """
    ledger = Ledger(rendezvous.address.with_name("ledger"))
    headers = {**ledger.header, HEADER: str(waiting_room.address)}
    slow = threads.start("/wait/", DATA, **rendezvous.header, **headers)
    handler = rendezvous.wait()
    duplicates = [threads.start("/wait/", DATA, **headers) for _ in range(DUPLICATES)]
    met: list[tuple[WaitingHandler, dict[str, Any]]] = [
        waiting_room.listen() for _ in range(DUPLICATES)
    ]
    assert not any(told["in_transaction"] for _, told in met)
    sessions = {
        waiting.session for waiting in (handler, *(waiting for waiting, _ in met))
    }
    if connection.vendor != "sqlite":
        assert len(sessions) == DUPLICATES + 1
    wait_until(
        lambda: not sessions & sessions_in_transactions(),
        "sessions without them",
        pause=PAUSE_FOR_INNODB,
    )
    handler.let_go()
    first = read(slow)
    for waiting, _told in met:
        waiting.let_go()
    answers = [read(duplicate) for duplicate in duplicates]
    assert first.status == 201
    assert all(map(is_replayed, answers))
    assert {answer.body for answer in answers} == {first.body}
    assert len(ledger.charges()) == 1
