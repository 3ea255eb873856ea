"""What cuts a request at a boundary: its process, client, connection or database ends.

``tests.support.atomic_crashes`` judges what becomes of requests in atomic mode, and
``tests.support.leased_crashes`` in leased mode. Needs Django to be set up.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.db import connection

from tests.support.database_servers import DatabaseServer
from tests.support.fault_points import Visit, wait_for_visit
from tests.support.http_servers import Answer, Server, UnixConnection, is_up, read
from tests.support.processes import PATIENCE, running, wait_until
from tests.support.rendezvous import Rendezvous

# A worker that waits at a rendezvous must not be taken for one that hangs.
WORKER_TIMEOUT = 10 * PATIENCE


@dataclass(frozen=True)
class Sending:
    """A POST with a key."""

    url: str
    data: dict[str, Any]
    key: str
    headers: dict[str, str] = field(default_factory=dict)


class Cuts:
    """A server whose requests are cut, and what cuts them."""

    def __init__(
        self,
        server: Server,
        rendezvous: Rendezvous,
        database: DatabaseServer | None = None,
    ) -> None:
        self.server = server
        self.rendezvous = rendezvous
        self.database = database

    def hows(self) -> list[str]:
        """Return the ways in which a request can be cut here."""
        names = ["kill", "hang-up"]
        if connection.vendor != "sqlite":
            names += ["terminate", "lose-reply"]
        if self.database is not None:
            names.append("restart")
        return names

    def places(self, how: str, labels: list[str]) -> Iterator[tuple[list[str], str]]:
        """Yield the boundaries up to each where a request can be cut, and its label."""
        for number, label in enumerate(labels, 1):
            if how == "lose-reply" and not label.startswith("after "):
                continue  # no reply to lose
            yield labels[:number], f"{number}, {label}"

    def send(self, sending: Sending) -> Answer:
        """Send a request that nobody cuts."""
        return self.server.send(
            sending.url, sending.data, sending.key, **sending.headers
        )

    def send_uncut(self, sending: Sending) -> tuple[Answer, Visit]:
        """Send a request that is not cut; it tells its boundaries."""
        with self.start(sending, 0) as uncut:
            answer = read(uncut)
            with closing(wait_for_visit(self.rendezvous)) as visit:
                return answer, visit

    def send_and_cut(
        self, sending: Sending, how: str, labels: list[str]
    ) -> Answer | None:
        """Cut a request at the last of some boundaries, and see it end.

        Returns None if the client is left without an answer.
        """
        with self.start(sending, len(labels)) as request:
            with closing(wait_for_visit(self.rendezvous)) as visit:
                assert visit.labels == labels
                getattr(self, f"_{how.replace('-', '_')}")(visit, request)
            answer = read_if_any(request)
        # One at a time: when this is answered, the request that was cut is over.
        assert is_up(self.server)
        return answer

    @contextmanager
    def start(self, sending: Sending, number: int) -> Iterator[UnixConnection]:
        """Send a request that stops at a boundary."""
        headers = {
            "X-Crash-At": str(number),
            **self.rendezvous.header,
            **sending.headers,
        }
        request = self.server.start(sending.url, sending.data, sending.key, **headers)
        try:
            yield request
        finally:
            request.close()

    def _kill(self, visit: Visit, request: UnixConnection) -> None:
        """End the server's process, as a power cut would."""
        visit.waiting.kill()

    def _hang_up(self, visit: Visit, request: UnixConnection) -> None:
        """Leave, as an impatient client would; the request goes on."""
        request.close()
        visit.close()

    def _terminate(self, visit: Visit, request: UnixConnection) -> None:
        """End the request's connection to the database; the request goes on."""
        self._end_session(visit)
        visit.close()

    def _end_session(self, visit: Visit) -> None:
        by_vendor = {
            "postgresql": "SELECT pg_terminate_backend(%s)",
            "mysql": "KILL CONNECTION %s",
        }
        with connection.cursor() as cursor:
            cursor.execute(by_vendor[connection.vendor], [visit.waiting.session])
        visit.waiting.wait_until_rolled_back()

    def _lose_reply(self, visit: Visit, request: UnixConnection) -> None:
        """End the connection before the reply to what was done has come."""
        self._end_session(visit)
        visit.waiting.lose_reply()

    def _restart(self, visit: Visit, request: UnixConnection) -> None:
        """Let the database server crash and come back; the request goes on."""
        assert self.database is not None
        connection.close()
        self.database.restart()
        visit.close()


def read_if_any(request: UnixConnection) -> Answer | None:
    """Return the answer to a request, or None if there will be none."""
    if request.sock is None:
        return None
    try:
        return read(request)
    except (http.client.HTTPException, ConnectionError):
        return None


@contextmanager
def serving(*, threads: int = 1) -> Iterator[Server]:
    """Serve requests that can be cut, one at a time, from a process of their own.

    A process that is killed has a successor at once, made from the same parent. With
    more threads several requests are served at a time, and none of them can be cut.
    """
    kind = "sync" if threads == 1 else "gthread"
    with TemporaryDirectory(prefix="idem") as directory:
        address, log = Path(directory, "server.sock"), Path(directory, "server.log")
        command = [
            *(
                sys.executable,
                "-m",
                "gunicorn",
                "tests.support.fault_wsgi",
                "--preload",
            ),
            *("--bind", f"unix:{address}", "--workers", "1", "--worker-class", kind),
            *("--threads", str(threads)),
            *("--timeout", str(WORKER_TIMEOUT), "--graceful-timeout", "1"),
            "--no-control-socket",
        ]
        with running(command, log):
            server = Server(address)
            wait_until(lambda: is_up(server), "the server", {"server": log})
            yield server
