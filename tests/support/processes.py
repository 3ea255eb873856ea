"""Other processes on the tests' own database: their environment, start and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

from django.conf import settings
from django.db import connection

ROOT = Path(__file__).resolve().parents[2]

# Longer than the slowest machine needs, so that only a mistake gets there.
PATIENCE = 60
PAUSE = 0.05
# MariaDB shows the transactions as they were at the last look, and looks again only
# if nobody has asked for more than a tenth of a second.
PAUSE_FOR_INNODB = 0.15


def environment() -> dict[str, str]:
    """Return the environment in which a process finds the tests' database."""
    own = connection.settings_dict
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": _database_url(),
        "DEMO_VAR_DIR": str(settings.VAR_DIR),
        "ATOMIC_REQUESTS": "1" if own["ATOMIC_REQUESTS"] else "0",
    }


def run_python(
    *arguments: str | Path, status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python beside the tests, and check its exit status."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**environment(), **variables},
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def _database_url() -> str:
    own = connection.settings_dict
    name = quote(str(own["NAME"]))
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"  # an absolute path makes four slashes
    user = quote(own["USER"], safe="")
    if own["PASSWORD"]:
        user += f":{quote(own['PASSWORD'], safe='')}"
    # A socket's folder stands where the host does.
    place = quote(own["HOST"], safe="[]:") + (f":{own['PORT']}" if own["PORT"] else "")
    options = urlencode(own["OPTIONS"])
    return f"{connection.vendor}://{user}@{place}/{name}{options and '?'}{options}"


@contextmanager
def running(
    command: Sequence[str], log: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside the tests, its output in ``log``, until the block ends.

    It gets SIGTERM, and SIGKILL if that was not enough, with all that it has started.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # Only the first process: a Celery worker ends its own, in order.
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(
    condition: Callable[[], object],
    what: str,
    logs: Mapping[str, Path] | None = None,
    pause: float = PAUSE,
) -> None:
    """Look until a condition holds; after a long time fail, and print the logs."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > give_up_at:
            told = "".join(
                f"\n--- {name}\n{path.read_text(errors='replace')}"
                for name, path in (logs or {}).items()
            )
            raise AssertionError(f"Waited {PATIENCE} s for {what}.{told}")
        time.sleep(pause)
