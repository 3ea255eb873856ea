"""How the demo stops a request in the middle, and learns in which process.

If there is a file ``pause`` in DEMO_VAR_DIR, the next request that gets to a place to
stop takes it away, and waits for as long as there is a file ``paused.<its process>``.
"""

from __future__ import annotations

import os
import signal
import time
from http.client import HTTPConnection
from pathlib import Path

from testproject.demo_client import LONGEST_WAIT, DemoFailed, read, say, wait_for


def pause(var_dir: Path) -> None:
    """Stop here if the demo wants it."""
    paused = var_dir / f"paused.{os.getpid()}"
    try:
        # One step, so of many requests at once only one stops.
        (var_dir / "pause").rename(paused)
    except FileNotFoundError:
        return
    give_up_at = time.monotonic() + LONGEST_WAIT
    while paused.exists() and time.monotonic() < give_up_at:
        time.sleep(0.01)


def pause_next(var_dir: Path) -> None:
    """Let the next request stop."""
    (var_dir / "pause").touch()


def wait_for_pause(var_dir: Path) -> Path:
    """Return the file for whose removal a stopped request waits."""
    return wait_for(lambda: next(var_dir.glob("paused.*"), None), "a request stops")


def kill_paused(paused: Path, connection: HTTPConnection, until: str) -> None:
    """Kill the process of a stopped request, saying how far it got."""
    pid = int(paused.suffix[1:])
    say(f"  ... {until}, and process {pid} gets a SIGKILL.")
    os.kill(pid, signal.SIGKILL)
    try:
        read(connection)
    except ConnectionError as error:
        say(f"< no answer: {error}", "yellow")
    else:
        raise DemoFailed("a killed process gives no answer")
    paused.unlink()
