"""A project that does not purge by Celery needs neither Celery nor its packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection

from tests.run_suites import NOT_INHERITED
from tests.support.minimal_project import (
    BY_CELERY,
    BY_CRON,
    Manage,
    assert_task_says_what_it_needs,
    assert_works,
    make_project,
)
from tests.support.processes import PATIENCE, ROOT

pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="The project brings its own database."
)

# Python runs it at its start.
BLOCKED = """
import sys


class Blocked:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("celery", "kombu", "django_celery_beat"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked)
"""


@pytest.fixture
def manage(tmp_path: Path) -> Manage:
    """Return the manage.py of a new project that finds no Celery."""
    (blocker := tmp_path / "blocker").mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCKED, encoding="utf-8")
    (folder := tmp_path / "project").mkdir()
    kept = {name: v for name, v in os.environ.items() if name not in NOT_INHERITED}
    kept["PYTHONPATH"] = os.pathsep.join([str(blocker), str(ROOT)])

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", *command],
            cwd=folder,
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    run("-m", "django", "startproject", "shop", ".")
    return lambda *arguments: run("manage.py", *arguments)


def test_cron_purges(manage: Manage, tmp_path: Path) -> None:
    """P3, A3, X2: Endpoint, admin, commands and checks work where Celery is not."""
    make_project(manage, tmp_path / "project", BY_CRON)
    assert_works(manage)
    assert_task_says_what_it_needs(manage)


def test_nothing_schedules_the_purge(manage: Manage, tmp_path: Path) -> None:
    """X2: Nothing reads an entry for Celery Beat where Celery is not installed."""
    make_project(manage, tmp_path / "project", BY_CELERY)
    said = manage("check")
    assert said.count("idempotency.W001") == 1
    assert "cron run manage.py purge_idempotency_records. " in said
    assert "django-idempotency[celery]" in said
