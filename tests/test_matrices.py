"""The commands that print tables: one that did not try all is no success."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests import crash_matrix, race_matrix
from tests.database_servers import NotInstalled


def test_crashes_of_a_database_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """E1: Without its server a database is named, and the command fails."""

    def run(name: str, *others: Any) -> tuple[int, list[str]]:
        if name == "mariadb":
            raise NotInstalled("no server")
        return 1, []

    monkeypatch.setattr(crash_matrix, "run_apart", run)
    monkeypatch.setattr(sys, "argv", ["crash_matrix"])
    assert crash_matrix.main() == 1
    assert capsys.readouterr().out == "mariadb was left out: no server\n"
    monkeypatch.setattr(sys, "argv", ["crash_matrix", "--database", "sqlite"])
    assert crash_matrix.main() == 0


def test_races_of_a_database_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """E1: So does the one for races where a database does not answer."""
    tally = race_matrix.Tally(
        requests=1, effects=1, doubled=0, lost=0, stuck=0, unexpected=0
    )
    noted = race_matrix.properties("sqlite", "race", tally, atomic_requests=False)
    row = {name: str(value) for name, value in noted}
    monkeypatch.setattr(race_matrix, "run_races", lambda suite, work: ([row], True))
    # An empty address leaves a service alone.
    monkeypatch.setenv("TEST_MARIADB_URL", "")
    sqlite = ["race_matrix", "--database", "sqlite"]
    monkeypatch.setattr(sys, "argv", [*sqlite, "--database", "mariadb"])
    assert race_matrix.main() == 1
    assert "mariadb was left out: " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", sqlite)
    assert race_matrix.main() == 0
