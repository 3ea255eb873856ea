"""Where handlers of a server wait until a test lets them go on."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60


class Meeting:
    """A place where a handler waits until the test lets it go on.

    The handler calls ``meet`` with the meeting's address, which travels in a header.
    """

    def __init__(self, directory: Path) -> None:
        self.address = directory / "meeting.sock"
        self.address.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.address))
        self.listener.listen(64)
        self.listener.settimeout(PATIENCE)

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, *args: object) -> None:
        self.listener.close()

    @property
    def header(self) -> dict[str, str]:
        """The header that sends a handler here."""
        return {"X-Meet": str(self.address)}

    def wait(self) -> Guest:
        """Return the handler that came."""
        connection, _address = self.listener.accept()
        connection.settimeout(PATIENCE)
        return Guest(connection, int(connection.recv(16)))


@dataclass(frozen=True)
class Guest:
    """A handler that waits, and the process that it runs in."""

    connection: socket.socket
    pid: int

    def let_go(self) -> None:
        """Let the handler go on."""
        self.connection.sendall(b"go")
        self.connection.close()

    def kill(self) -> None:
        """End the handler's process as a power cut would."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.connection.recv(1) == b""
        self.connection.close()


def meet(address: str) -> None:
    """Say who is here, and wait to be let go. Called in the server's processes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(str(os.getpid()).encode())
        connection.recv(2)
