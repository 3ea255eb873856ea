"""Show what the app promises, on a real server: ``python -m testproject.demo``.

Starts gunicorn and a Celery worker on SQLite and a payment provider, goes through
``testproject.demo_steps``, and on a terminal keeps serving. Whatever is written goes to
a temporary directory.
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
# As many requests at once as the demo sends.
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
        sys.exit(f"\nThis did not hold: {failure}")
    return 0


def interrupt(number: int, frame: object) -> None:
    """End the demo, wherever it is: its files and processes go, and so do sockets.

    Between the making of a socket and its name nobody could close it.
    """
    warnings.simplefilter("ignore", ResourceWarning)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def prepare(var_dir: Path) -> None:
    """Set up the project with everything that it writes in one directory."""
    os.environ.update(
        DJANGO_SETTINGS_MODULE="testproject.demo_settings",
        DJANGO_DEBUG="1",
        DJANGO_ALLOWED_HOSTS="127.0.0.1",
        DEMO_VAR_DIR=str(var_dir),
        DATABASE_URL=f"sqlite:///{var_dir / 'db.sqlite3'}",
        ATOMIC_REQUESTS="0",
        CELERY_BROKER_URL="filesystem://",
        # Else gunicorn's control socket goes into the home directory, and a process
        # that is killed leaves its temporary files.
        XDG_RUNTIME_DIR=str(var_dir),
        TMPDIR=str(var_dir),
    )
    django.setup()
    call_command("migrate", verbosity=0)


class Children:
    """The processes that the demo starts, and stops whatever happens."""

    def __init__(self, var_dir: Path) -> None:
        self.var_dir = var_dir
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str, **options: Any) -> None:
        """Start a Python module that logs into a file of this name."""
        with (self.var_dir / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603  # nothing from outside
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo alone, which then stops them in order.
                start_new_session=True,
                **options,
            )

    def show_logs(self) -> None:
        """Print how each log ends."""
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
    """Start everything, go through the steps, and on a terminal keep serving."""
    from testproject.demo_steps import Demo  # noqa: PLC0415  # models need django.setup()

    try:
        provider_port = start_provider(children)
        server_port = start_server(children, provider_port)
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


def start_server(children: Children, provider_port: int) -> int:
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
            env={
                **os.environ,
                "PAYMENT_PROVIDER_URL": f"http://127.0.0.1:{provider_port}",
            },
        )
        return port


@contextmanager
def listening() -> Iterator[tuple[int, int]]:
    """Open a socket; gives its file descriptor and its port.

    It is open before a child has it: nobody takes the port, no request comes too early.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.fileno(), listener.getsockname()[1]


def start_worker(children: Children) -> None:
    """Start a Celery worker, which takes the tasks that are sent meanwhile."""
    celery = ("celery", "--app=testproject", "worker")
    children.start("worker", *celery, "--concurrency=1", "--loglevel=INFO")


def keep_serving(children: Children) -> None:
    """Serve until Ctrl-C, which is not an error here."""
    with suppress(KeyboardInterrupt):
        children.processes["server"].wait()
        raise DemoFailed("the server keeps serving")


if __name__ == "__main__":
    sys.exit(main())
