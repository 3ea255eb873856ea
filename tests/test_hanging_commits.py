"""Leased requests whose connection ends while the server is at their COMMIT."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from django.db import connection

from idempotency.models import State
from tests.support.database_servers import NotInstalled
from tests.support.hanging_commits import Found, try_apart

NAMES = {"postgresql": "postgresql", "mysql": "mariadb"}


@pytest.mark.skipif(connection.vendor not in NAMES, reason="SQLite has no server")
@pytest.mark.parametrize("situation", ["new", "expired", "take-over"])
def test_terminated_at_the_commit(situation: str) -> None:
    """E7: Terminated while the server commits the claim: the handler runs, once.

    On PostgreSQL the claim is there by then, and on MariaDB it is not.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            name = NAMES[connection.vendor]
            found = pool.submit(try_apart, name, situation).result()
        except NotInstalled as reason:
            if "CI" in os.environ:
                raise
            pytest.skip(str(reason))
    assert found == Found(
        statuses=[201, 201], is_replayed=True, charges=1, state=State.COMPLETED
    )
