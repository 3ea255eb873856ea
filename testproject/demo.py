"""Show the app's guarantees on a real server: ``python -m testproject.demo``.

Start gunicorn and a Celery worker on SQLite and a payment provider, run the steps of
``testproject.demo_steps``, and keep serving on a terminal. All files are in a temporary
directory.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import django
from django.core.management import call_command

from testproject.demo_client import DemoFailed

ROOT = Path(__file__).resolve().parent.parent
# Enough for the requests that the demo sends at once.
WORKERS, THREADS = 4, 5
SECONDS_TO_STOP = 2.0


def main() -> int:
    """Run the demo and return its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="idempotency-demo-") as name:
            var_dir = Path(name)
            prepare(var_dir)
            with Children(var_dir) as children:
                show(children)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except DemoFailed as failure:
        sys.exit(f"\nThis check failed: {failure}")
    return 0


def interrupt(number: int, frame: object) -> None:
    """End the demo with its files and processes, wherever it is.

    Ignore a ResourceWarning for a socket that has no name yet to close it by.
    """
    warnings.simplefilter("ignore", ResourceWarning)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def prepare(var_dir: Path) -> None:
    """Set up the project, with all its files in one directory."""
    os.environ.update(
        DJANGO_SETTINGS_MODULE="testproject.demo_settings",
        DJANGO_DEBUG="1",
        DJANGO_ALLOWED_HOSTS="127.0.0.1",
        DEMO_VAR_DIR=str(var_dir),
        DATABASE_URL=f"sqlite:///{var_dir / 'db.sqlite3'}",
        ATOMIC_REQUESTS="0",
        CELERY_BROKER_URL="filesystem://",
        # Otherwise gunicorn's control socket would be in the home directory, and killed
        # processes would leave temporary files.
        XDG_RUNTIME_DIR=str(var_dir),
        TMPDIR=str(var_dir),
    )
    django.setup()
    call_command("migrate", verbosity=0)


class Children:
    """The child processes, which end with the demo, whatever happens."""

    def __init__(self, var_dir: Path) -> None:
        self.var_dir = var_dir
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str, **options: Any) -> None:
        """Start a Python module that logs into ``<name>.log``."""
        with (self.var_dir / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603  # nothing from outside
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Only the demo itself gets Ctrl-C, and then stops its children.
                start_new_session=True,
                **options,
            )

    def show_logs(self) -> None:
        """Print the end of each log."""
        for name in self.processes:
            log = (self.var_dir / f"{name}.log").read_text(errors="replace")
            tail = log.splitlines()[-30:]
            sys.stderr.write("\n".join([f"\n--- end of {name}.log", *tail, ""]))

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for process in self.processes.values():
            process.terminate()
        give_up_at = time.monotonic() + SECONDS_TO_STOP
        for process in self.processes.values():
            try:
                process.wait(max(0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def show(children: Children) -> None:
    """Start everything, run the steps, and keep serving on a terminal."""
    from testproject.demo_steps import Demo  # noqa: PLC0415  # models need django.setup()

    try:
        provider_port = start_provider(children)
        # For the server and the worker.
        os.environ["PAYMENT_PROVIDER_URL"] = f"http://127.0.0.1:{provider_port}"
        server_port = start_server(children)
        demo = Demo(server_port, provider_port, children.var_dir)
        start_worker(children)
        demo.show()
        if os.isatty(0) and os.isatty(1):
            demo.invite()
            keep_serving(children)
    except Exception:
        children.show_logs()
        raise


def start_provider(children: Children) -> int:
    """Start the payment provider on a free port and return the port."""
    with listening() as (file, port):
        ledger = children.var_dir / "ledger.sqlite3"
        arguments = (f"--fd={file}", f"--ledger={ledger}")
        module = "testproject.demo_provider"
        children.start("provider", module, *arguments, pass_fds=[file])
        return port


def start_server(children: Children) -> int:
    """Start gunicorn on a free port and return the port."""
    with listening() as (file, port):
        children.start(
            "server",
            "gunicorn",
            "testproject.demo_wsgi",
            f"--bind=fd://{file}",
            f"--workers={WORKERS}",
            f"--threads={THREADS}",
            "--preload",
            "--graceful-timeout=1",
            pass_fds=[file],
        )
        return port


@contextmanager
def listening() -> Iterator[tuple[int, int]]:
    """Open a socket for a child, and give its file descriptor and port.

    It listens already, so nothing else takes the port, and early requests wait.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.fileno(), listener.getsockname()[1]


def start_worker(children: Children) -> None:
    """Start a Celery worker."""
    celery = ("celery", "--app=testproject", "worker")
    children.start("worker", *celery, "--concurrency=1", "--loglevel=INFO")


def keep_serving(children: Children) -> None:
    """Serve until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        children.processes["server"].wait()
        raise DemoFailed("the server keeps serving")


if __name__ == "__main__":
    sys.exit(main())
