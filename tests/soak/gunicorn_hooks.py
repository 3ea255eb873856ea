"""Configuration for gunicorn: which of its workers live, as files in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

WORKERS = Path(os.environ.get("SOAK_WORKERS", "."))


def post_fork(server: Any, worker: Any) -> None:
    """Say that a worker lives."""
    (WORKERS / str(os.getpid())).touch()


def child_exit(server: Any, worker: Any) -> None:
    """Say that a worker is dead, once its process number may go to another."""
    (WORKERS / str(worker.pid)).unlink(missing_ok=True)
