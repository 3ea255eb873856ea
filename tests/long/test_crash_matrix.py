"""Requests that are cut at every boundary, and retried once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from django.db import connection

from tests.support.atomic_crashes import HANDLERS, Crashes
from tests.support.database_servers import NotInstalled, find_postgresql, find_program
from tests.support.fault_points import statements_in
from tests.support.http_servers import Server
from tests.support.processes import ROOT
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


@pytest.mark.parametrize("handler", HANDLERS)
def test_boundaries_are_all(crashes: Crashes, handler: str) -> None:
    """E1: Whatever the database is sent, BEGIN and COMMIT too, has its boundaries."""
    visit = crashes.record(HANDLERS[handler])
    assert visit.statements == statements_in(visit.labels) > 0, visit.labels


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("how", HOWS)
def test_cut_at_every_boundary(crashes: Crashes, how: str, handler: str) -> None:
    """E1, E4, E5, R4: Cut anywhere, a request acts once, and its retry is answered."""
    tally = crashes.run(HANDLERS[handler], how)
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.replayed + tally.ran == tally.boundaries


def test_database_server_crashes() -> None:
    """E1, E4: The database server, too, may crash at any boundary, says the command."""
    name, how = {
        "postgresql": ("postgresql", "restart"),
        "mysql": ("mariadb", "restart"),
        "sqlite": ("sqlite", "kill"),  # there is no server
    }[connection.vendor]
    try:
        if name == "postgresql":
            find_postgresql()
        elif name == "mariadb":
            find_program("mariadbd")
            find_program("mariadb-install-db")
    except NotInstalled as reason:
        pytest.skip(str(reason))
    command = [
        *(sys.executable, "-m", "tests.crash_matrix", "--database", name),
        *("--how", how, "--handler", "plain"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, *rows = done.stdout.splitlines()
    bad = ["doubled", "lost", "stuck", "unexpected"]
    assert header.split()[3:8] == ["boundaries", *bad]
    assert [row.split()[1:3] for row in rows] == [["off", how], ["on", how]]
    for row in rows:
        assert int(row.split()[3]) > 0
        assert row.split()[4:8] == ["0"] * len(bad)
