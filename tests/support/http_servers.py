"""A real server on the tests' database, clients, and handlers that wait for a test."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import PATIENCE, running, wait_until

SERVER_KEY = "7f0c1f8e-2f2c-4c0e-9f60-5f8f3d1f9b11"


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a socket in the file system: no port to collide on."""

    def __init__(self, address: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self.address))
        except OSError:
            self.close()
            raise


@dataclass(frozen=True)
class Answer:
    """What came back, in bytes."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The detail of a refusal, cut to the words that tell which it is."""
        return str(json.loads(self.body).get("detail", ""))


@dataclass(frozen=True)
class Server:
    """A gunicorn of several worker processes, each with several threads."""

    address: Path

    def send(
        self, path: str, data: Any, key: str | None = SERVER_KEY, **headers: str
    ) -> Answer:
        """POST, and read the answer."""
        return read(self.start(path, data, key, **headers))

    def start(
        self, path: str, data: Any, key: str | None = SERVER_KEY, **headers: str
    ) -> UnixConnection:
        """POST, and leave the answer on the wire."""
        connection = UnixConnection(self.address)
        own = {"Content-Type": "application/json", "X-User": "ada", **headers}
        if key is not None:
            own["Idempotency-Key"] = key
        try:
            connection.request("POST", path, json.dumps(data), own)
        except OSError:
            connection.close()
            raise
        return connection


def is_replayed(answer: Answer) -> bool:
    """Return whether an answer came from the record."""
    return answer.headers.get("Idempotent-Replayed") == "true"


def read(connection: UnixConnection) -> Answer:
    """Read the answer to a request that was started."""
    with closing(connection):
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


@contextmanager
def serving(
    directory: Path,
    application: str = "tests.wsgi",
    *,
    workers: int = 2,
    threads: int = 8,
    **variables: str,
) -> Iterator[Server]:
    """Serve the tests' views, or another application, from processes of their own."""
    address, log = directory / "server.sock", directory / "server.log"
    command = [
        *(sys.executable, "-m", "gunicorn", application, "--bind", f"unix:{address}"),
        *("--workers", str(workers), "--threads", str(threads)),
        *("--graceful-timeout", "1", "--no-control-socket"),
    ]
    with running(command, log, **variables):
        server = Server(address)
        wait_until(lambda: is_up(server), "the server", {"server": log})
        yield server


def is_up(server: Server) -> bool:
    """Return whether a server answers."""
    try:
        return server.send("/nowhere/", {}, None).status == 404
    except OSError:
        return False
