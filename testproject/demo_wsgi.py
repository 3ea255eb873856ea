"""What ``make demo`` serves: the demo project, with a way to stop in mid-request.

If there is a file ``pause`` in DEMO_VAR_DIR, the next request that saves an assignment
takes it away and stops between its INSERT and its COMMIT, for as long as there is the
file ``paused.<pid of the worker>``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models.signals import post_save
from django.dispatch import receiver

from testproject.wsgi import application

__all__ = ["application"]

LONGEST_PAUSE = 30.0


@receiver(post_save, sender="school.Assignment")
def pause(**kwargs: Any) -> None:
    """Stop if the demo wants it, and let it see in which process."""
    var_dir: Path = settings.VAR_DIR
    paused = var_dir / f"paused.{os.getpid()}"
    try:
        # One step, so of many requests at once only one stops.
        (var_dir / "pause").rename(paused)
    except FileNotFoundError:
        return
    give_up_at = time.monotonic() + LONGEST_PAUSE
    while paused.exists() and time.monotonic() < give_up_at:
        time.sleep(0.01)
