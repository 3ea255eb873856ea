"""The quick start, line by line, in a project that is made on the way."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.db import connection

from tests.support.readers import Reader, steps
from tests.test_docs import DOCUMENTS

pytestmark = [
    pytest.mark.skipif(
        connection.vendor != "sqlite", reason="The project brings its own database."
    ),
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed."),
]

PAGE = DOCUMENTS["docs/quickstart.md"]
# The tests' own environment has what these would install.
NOT_RUN = {
    "python3 -m venv env",
    ". env/bin/activate",
    ". ../env/bin/activate",
    "python -m pip install './django-idempotency[celery]'",
}


def test_every_line(tmp_path: Path) -> None:
    """P3, X2: A new user gets what the page says, and Beat has the purge's entry."""
    with ExitStack() as stack:
        Reader(tmp_path, stack, NOT_RUN).read(PAGE)
    log = (tmp_path / "shop" / "celery.log").read_text(errors="replace")
    assert "idempotency.tasks.purge_expired_records" in log
    assert "beat: Starting..." in log


def test_what_is_not_run_is_there() -> None:
    """The page has the lines that this test leaves out."""
    commands = {what for what, _following in steps(PAGE)}
    assert {f"$ {command}" for command in NOT_RUN} <= commands
