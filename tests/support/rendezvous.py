"""Where handlers of a server wait until a test lets them go on."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import connection

from tests.support.processes import PATIENCE, wait_until

# Views of the tests that act, and meet a test where it wants to be met.
ATOMIC_VIEWS = {
    "api_view": "/rendezvous/",
    "plain view": "/plain/rendezvous/",
    "third party's view": "/routed/rendezvous/",
}
LEASED_VIEWS = {
    "leased plain view": "/plain/leased/rendezvous/",
    "leased third party's view": "/routed/leased/rendezvous/",
}


class Rendezvous:
    """A place where a handler waits until the test lets it go on.

    The handler calls ``meet`` with the rendezvous's address, which travels in a header.
    """

    def __init__(self, directory: Path) -> None:
        self.address = directory / "rendezvous.sock"
        self.address.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.address))
        self.listener.listen(64)
        self.listener.settimeout(PATIENCE)

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(self, *args: object) -> None:
        self.listener.close()

    @property
    def header(self) -> dict[str, str]:
        """The header that sends a handler here."""
        return {"X-Meet": str(self.address)}

    def wait(self) -> WaitingHandler:
        """Return the handler that came."""
        return self.listen()[0]

    def listen(self) -> tuple[WaitingHandler, dict[str, Any]]:
        """Return the handler that came, and all that it has told."""
        line, _address = self.listener.accept()
        line.settimeout(PATIENCE)
        told = b""
        while not told.endswith(b"\n"):
            received = line.recv(65536)
            assert received, "the server's process ended while it told where it is"
            told += received
        said = json.loads(told)
        return WaitingHandler(line, said["pid"], said["session"]), said


@dataclass(frozen=True)
class WaitingHandler:
    """A handler that waits, the process that it runs in, and its database session."""

    line: socket.socket
    pid: int
    session: int | None

    def let_go(self) -> None:
        """Let the handler go on."""
        self.line.close()

    def lose_reply(self) -> None:
        """Let the handler go on, as if what it has just asked were not answered."""
        self.line.sendall(b"!")
        self.line.close()

    def kill(self) -> None:
        """End the handler's process as a power cut would."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.line.recv(1) == b""
        self.line.close()
        self.wait_until_rolled_back()

    def wait_until_rolled_back(self) -> None:
        """Wait until the database has seen that the session is over.

        Until then the claim holds, and a duplicate is refused (E3).
        """
        by_vendor = {
            "postgresql": "SELECT 1 FROM pg_stat_activity WHERE pid = %s",
            "mysql": "SELECT 1 FROM information_schema.processlist WHERE id = %s",
        }

        def is_over() -> bool:
            with connection.cursor() as cursor:
                cursor.execute(by_vendor[connection.vendor], [self.session])
                return cursor.fetchone() is None

        if self.session is not None:
            wait_until(is_over, "the database to end a session")


def meet(address: str, **more: Any) -> bool:
    """Say who is here, and wait to be let go. Called in the server's processes.

    Returns whether the reply before this is to be lost.
    """
    told = {"pid": os.getpid(), "session": session_id(), **more}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        line.sendall(json.dumps(told).encode() + b"\n")
        return bool(line.recv(1))


def session_id() -> int | None:
    """Return the database's own number of this process's connection."""
    raw: Any = connection.connection
    if raw is None or connection.vendor == "sqlite":
        return None
    number: int = (
        raw.info.backend_pid if connection.vendor == "postgresql" else raw.thread_id()
    )
    return number
