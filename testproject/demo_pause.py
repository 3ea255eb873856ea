"""Stop a request in the middle, for the demo.

The next request that calls ``pause()`` renames the file ``pause`` in DEMO_VAR_DIR to
``paused.<process>``, and waits until that file is deleted.
"""

from __future__ import annotations

import os
import signal
import time
from http.client import HTTPConnection
from pathlib import Path

from testproject.demo_client import LONGEST_WAIT, DemoFailed, read, say, wait_for


def pause(var_dir: Path) -> None:
    """Wait here if ``pause_next()`` was called."""
    paused = var_dir / f"paused.{os.getpid()}"
    try:
        # Atomic, so only one of several requests stops.
        (var_dir / "pause").rename(paused)
    except FileNotFoundError:
        return
    give_up_at = time.monotonic() + LONGEST_WAIT
    while paused.exists() and time.monotonic() < give_up_at:
        time.sleep(0.01)


def pause_next(var_dir: Path) -> None:
    """Make the next request stop."""
    (var_dir / "pause").touch()


def wait_for_pause(var_dir: Path) -> Path:
    """Return the file of a stopped request; deleting it lets the request go on."""
    return wait_for(lambda: next(var_dir.glob("paused.*"), None), "a request stops")


def kill_paused(paused: Path, connection: HTTPConnection, until: str) -> None:
    """Kill the process of a stopped request, and print how far it got."""
    pid = int(paused.suffix[1:])
    say(f"  ... {until}, and process {pid} gets a SIGKILL.")
    os.kill(pid, signal.SIGKILL)
    try:
        read(connection)
    except ConnectionError as error:
        say(f"< no response: {error}", "yellow")
    else:
        raise DemoFailed("a killed process sends no response")
    paused.unlink()
