"""HTTP servers other than gunicorn: how each is started, and what it is known for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.support.http_servers import Server, is_up
from tests.support.processes import running, wait_until

WSGI, ASGI = "tests.wsgi:application", "tests.asgi:application"

# Without a limit, connections that are kept alive keep it from ending.
GRANIAN = (
    *("--respawn-failed-workers", "--respawn-interval", "0.1"),
    *("--workers-kill-timeout", "1"),
)


@dataclass(frozen=True, kw_only=True)
class HTTPServer:
    """A server that is installed with a package, with its command line."""

    name: str
    package: str
    # ``{}`` stands for the path of the socket.
    command: tuple[str, ...]
    # Whether a worker that was killed has a successor.
    has_successors: bool = True
    # Whether the header ``Idempotency_Key`` is the header ``Idempotency-Key``.
    takes_underscores: bool = False
    # Whether Django sees a body that comes in chunks, without its length.
    shows_chunked_bodies: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def is_asgi(self) -> bool:
        """Whether it speaks ASGI."""
        return ASGI in self.command

    @property
    def is_installed(self) -> bool:
        """Whether it can be started."""
        if self.package == "uwsgi":
            return self.program is not None
        return find_spec(self.package) is not None

    @property
    def program(self) -> str | None:
        """The program of a server that is none of Python's."""
        beside = Path(sys.executable).with_name(self.package)
        return str(beside) if beside.exists() else shutil.which(self.package)

    def command_line(self, address: Path) -> list[str]:
        """Return the command that serves at a socket."""
        start = (
            [str(self.program)]
            if self.package == "uwsgi"
            else [sys.executable, "-m", self.package]
        )
        return start + [part.format(address) for part in self.command]


SERVERS = [
    HTTPServer(
        name="gunicorn",
        package="gunicorn",
        command=(
            *(WSGI, "--bind", "unix:{}", "--workers", "2", "--threads", "8"),
            *("--graceful-timeout", "1", "--no-control-socket"),
        ),
        shows_chunked_bodies=False,
    ),
    HTTPServer(
        name="waitress",
        package="waitress",
        command=("--unix-socket={}", "--threads=16", WSGI),
        has_successors=False,
    ),
    HTTPServer(
        name="uWSGI",
        package="uwsgi",
        command=(
            *("--http-socket", "{}", "--wsgi", "tests.wsgi", "--master"),
            *("--processes", "2", "--threads", "8", "--need-app", "--die-on-term"),
        ),
        takes_underscores=True,
        shows_chunked_bodies=False,
    ),
    HTTPServer(
        name="granian (WSGI)",
        package="granian",
        command=(
            *("--interface", "wsgi", "--uds", "{}", "--workers", "2"),
            *("--blocking-threads", "8", *GRANIAN, WSGI),
        ),
        takes_underscores=True,
        shows_chunked_bodies=False,
    ),
    HTTPServer(
        name="granian (ASGI)",
        package="granian",
        command=(
            *("--interface", "asginl", "--uds", "{}", "--workers", "2"),
            *(*GRANIAN, ASGI),
        ),
    ),
    HTTPServer(
        name="uvicorn",
        package="uvicorn",
        command=(ASGI, "--uds", "{}", "--workers", "2"),
    ),
    HTTPServer(
        name="hypercorn",
        package="hypercorn",
        command=(ASGI, "--bind", "unix:{}", "--workers", "2"),
        has_successors=False,
    ),
    HTTPServer(
        name="daphne",
        package="daphne",
        command=("-u", "{}", ASGI),
        has_successors=False,
    ),
]


@contextmanager
def serving_by(
    server: HTTPServer, directory: Path, *, conn_max_age: int = 0
) -> Iterator[Server]:
    """Serve the tests' views by a server."""
    address, log = directory / "server.sock", directory / "server.log"
    address.unlink(missing_ok=True)
    variables = {
        "DJANGO_SETTINGS_MODULE": "tests.support.asgi_settings",
        "CONN_MAX_AGE": str(conn_max_age),
    }
    with running(server.command_line(address), log, **variables):
        found = Server(address)
        wait_until(lambda: is_up(found), f"{server}", {"server": log})
        yield found
