"""The long run, cut short: ``python -m tests.soak`` is the whole of it."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from django.db import connection

from tests.soak.databases import soak_alone
from tests.soak.run import Report, soak
from tests.support.database_servers import NotInstalled

SEED = 3
SCENARIOS = 150
REQUESTS_BETWEEN = (10, 30)


@pytest.fixture
def report(database: None) -> Report:
    """Run on a database server that may be crashed, if one is installed here."""
    run = {"seed": SEED, "scenarios": SCENARIOS, "requests_between": REQUESTS_BETWEEN}
    name = {"postgresql": "postgresql", "mysql": "mariadb"}.get(connection.vendor)
    if name is not None:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                return pool.submit(soak_alone, name, **run).result()
            except NotInstalled:
                if "CI" in os.environ:
                    raise
    # A folder whose path is short enough for sockets.
    with TemporaryDirectory(prefix="idem") as folder:
        return soak(Path(folder), **run)


def test_mixed_load_while_things_die(report: Report) -> None:
    """E1, E3, E4, F4, K4, K5, O1, O2, O3, R2, R3, R4: The clients' ledger agrees.

    Whatever was killed or cut, an acknowledged key has one effect and one answer, any
    other at most one, none is stuck, and no answer came that the rules don't allow.
    """
    told = "\n".join([*map(str, report.violations[:5]), str(report)])
    assert not report.violations, told
    # Every kind that there is here: also "database crashed", on a server of its own.
    assert all(report.faults.values()), told
    # Handlers that met to lock each other's rows: E4 was tried.
    assert report.undone or not connection.features.has_select_for_update, told
    assert report.answers["201 replayed"], told
