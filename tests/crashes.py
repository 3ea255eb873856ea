"""Cut a first-time request at every boundary, retry it once, and judge the outcome.

The boundaries are those that an uncut request has passed, so a new statement is cut
without being named here. Needs Django to be set up; the command that prints the whole
table is ``python -m tests.crash_matrix``.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from django.db import connection
from django.utils import timezone

from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.boundaries import Visit, wait_for_visit
from tests.database_servers import DatabaseServer
from tests.meetings import Meeting
from tests.processes import PATIENCE, running, wait_until
from tests.servers import Answer, Server, UnixConnection, is_replayed, is_up, read

DOOR = "/function/"
# A worker that waits at a meeting must not be taken for one that hangs.
WORKER_TIMEOUT = 10 * PATIENCE


@dataclass(frozen=True)
class Handler:
    """A handler of ``tests.crash_wsgi``, and what one run of it does."""

    name: str
    effects: int = 1
    status: int = 201
    # Whether the key has a record already, but an expired one.
    is_expired: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether its answer is kept; else its key is released (O2)."""
        return self.status < 400


HANDLERS = {
    "plain": Handler("act"),
    "released": Handler("refuse", status=400),
    "expired": Handler("act", is_expired=True),
    "savepoint": Handler("twice", effects=2),
}


@dataclass(frozen=True)
class Outcome:
    """What a request that was cut, and its retry, have left behind."""

    handler: Handler
    # None if the client was left without an answer.
    first: Answer | None
    # The effects that the first request had.
    first_effects: set[int]
    retry: Answer
    # The effects that have come with the retry.
    retry_effects: set[int]
    # What the retry got when it was sent once more, if its answer is stored.
    again: Answer | None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield doubled, lost or stuck, and why."""
        if self.retry.status != self.handler.status:
            yield "stuck", f"the retry got {self.retry.status} {self.retry.body!r}"
            return
        if self.first and not effects_in(self.first) <= self.first_effects:
            yield "lost", f"{self.first.body!r} was acknowledged before the crash"
        if self.handler.is_stored:
            yield from self._faults_of_stored()
        else:
            yield from self._faults_of_released()

    def _faults_of_stored(self) -> Iterator[tuple[str, str]]:
        """Two requests have the effects of one, and both get its answer."""
        effects = self.first_effects | self.retry_effects
        if len(effects) > self.handler.effects:
            yield "doubled", f"{len(effects)} effects"
        if not effects_in(self.retry) <= effects:
            yield "lost", f"{self.retry.body!r} was answered to the retry"
        if self.first and effects_in(self.first) and self.first.body != self.retry.body:
            yield "lost", f"{self.first.body!r} became {self.retry.body!r}"
        if self.again and not (
            is_replayed(self.again) and self.again.body == self.retry.body
        ):
            yield "lost", f"{self.retry.body!r} became {self.again.body!r}"

    def _faults_of_released(self) -> Iterator[tuple[str, str]]:
        """Each request runs, and has the effects of a request without a key."""
        for effects in (self.first_effects, self.retry_effects):
            if len(effects) > self.handler.effects:
                yield "doubled", f"{len(effects)} effects of one request"
        if is_replayed(self.retry) or effects_in(self.retry) != self.retry_effects:
            yield "lost", f"{self.retry.body!r} was answered to the retry"


def effects_in(answer: Answer) -> set[int]:
    """Return the effects that an answer names: none unless a handler made it."""
    try:
        said = json.loads(answer.body)
    except ValueError:
        return set()
    return {*said["effects"]} if isinstance(said, dict) and "effects" in said else set()


@dataclass
class Tally:
    """What became of many requests that were cut."""

    boundaries: int = 0
    doubled: int = 0
    lost: int = 0
    stuck: int = 0
    replayed: int = 0
    ran: int = 0
    faults: list[str] = field(default_factory=list)

    def count(self, label: str, outcome: Outcome) -> None:
        """Count one request; a fault counts once, however it shows."""
        self.boundaries += 1
        faults = list(outcome.faults())
        kinds = {kind for kind, _why in faults}
        self.doubled += "doubled" in kinds
        self.lost += "lost" in kinds
        self.stuck += "stuck" in kinds
        self.faults += [f"{label}: {kind}: {why}" for kind, why in faults]
        if outcome.retry.status == outcome.handler.status:
            self.replayed += is_replayed(outcome.retry)
            self.ran += not is_replayed(outcome.retry)

    def add(self, other: Tally) -> None:
        """Count all that another one has counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Crashes:
    """A server whose requests are cut, and what cuts them."""

    def __init__(
        self, server: Server, meeting: Meeting, database: DatabaseServer | None = None
    ) -> None:
        self.server = server
        self.meeting = meeting
        self.database = database

    def hows(self) -> list[str]:
        """Return the ways in which a request can be cut here."""
        names = ["kill", "hang-up"]
        if connection.vendor != "sqlite":
            names.append("terminate")
        if self.database is not None:
            names.append("restart")
        return names

    def run(self, handler: Handler, how: str) -> Tally:
        """Cut one request at each boundary."""
        tally = Tally()
        labels = self.record(handler).labels
        for number in range(1, len(labels) + 1):
            outcome = self.cut(handler, how, labels[:number])
            tally.count(f"{how} at {number}, {labels[number - 1]}", outcome)
        return tally

    def record(self, handler: Handler) -> Visit:
        """Send a request that is not cut; it tells its boundaries."""
        self.send(handler, key := str(uuid4()))  # now the connection is open
        if not handler.is_expired:
            key = str(uuid4())
        self.expire(key)
        with self.start(handler, key, 0) as uncut:
            answer = read(uncut)
            assert answer.status == handler.status, answer
            with closing(wait_for_visit(self.meeting)) as visit:
                return visit

    def cut(self, handler: Handler, how: str, labels: list[str]) -> Outcome:
        """Cut a request at the last of some boundaries, and retry it."""
        key = str(uuid4())
        if handler.is_expired:
            self.send(handler, key)
            self.expire(key)
        before = effects_of(key)
        with self.start(handler, key, len(labels)) as request:
            with closing(wait_for_visit(self.meeting)) as visit:
                assert visit.labels == labels
                getattr(self, f"_{how.replace('-', '_')}")(visit, request)
            first = read_if_any(request)
        # One at a time: when this is answered, the request that was cut is over.
        assert is_up(self.server)
        between = effects_of(key)
        retry = self.send(handler, key)
        after = effects_of(key)
        return Outcome(
            handler=handler,
            first=first,
            first_effects=between - before,
            retry=retry,
            retry_effects=after - between,
            again=self.send(handler, key) if handler.is_stored else None,
        )

    def send(self, handler: Handler, key: str) -> Answer:
        """Send a request that nobody cuts."""
        return self.server.send(DOOR, payload(handler, key), key)

    @contextmanager
    def start(
        self, handler: Handler, key: str, number: int
    ) -> Iterator[UnixConnection]:
        """Send a request that stops at a boundary."""
        headers = {"X-Crash-At": str(number), **self.meeting.header}
        request = self.server.start(DOOR, payload(handler, key), key, **headers)
        try:
            yield request
        finally:
            request.close()

    def expire(self, key: str) -> None:
        """Let a key's record, if there is one, be past its time."""
        past = timezone.now() - timedelta(seconds=1)
        IdempotencyRecord.objects.filter(key=key).update(expires_at=past)

    def _kill(self, visit: Visit, request: UnixConnection) -> None:
        """End the server's process, as a power cut would."""
        visit.guest.kill()

    def _hang_up(self, visit: Visit, request: UnixConnection) -> None:
        """Leave, as an impatient client would; the request goes on."""
        request.close()
        visit.close()

    def _terminate(self, visit: Visit, request: UnixConnection) -> None:
        """End the request's connection to the database; the request goes on."""
        by_vendor = {
            "postgresql": "SELECT pg_terminate_backend(%s)",
            "mysql": "KILL CONNECTION %s",
        }
        with connection.cursor() as cursor:
            cursor.execute(by_vendor[connection.vendor], [visit.guest.session])
        visit.guest.wait_until_rolled_back()
        visit.close()

    def _restart(self, visit: Visit, request: UnixConnection) -> None:
        """Let the database server crash and come back; the request goes on."""
        assert self.database is not None
        connection.close()
        self.database.restart()
        visit.close()


def payload(handler: Handler, key: str) -> dict[str, str]:
    """Return what makes the server run a handler, and its effects be those of a key."""
    return {"handler": handler.name, "note": key}


def effects_of(key: str) -> set[int]:
    """Return the effects of all runs for a key."""
    return {*Effect.objects.filter(note=key).values_list("pk", flat=True)}


def read_if_any(request: UnixConnection) -> Answer | None:
    """Return the answer to a request, or None if there will be none."""
    if request.sock is None:
        return None
    try:
        return read(request)
    except (http.client.HTTPException, ConnectionError):
        return None


@contextmanager
def serving() -> Iterator[Server]:
    """Serve requests that can be cut, one at a time, from a process of their own.

    A process that is killed has a successor at once, made from the same parent.
    """
    with TemporaryDirectory(prefix="idem") as directory:
        address, log = Path(directory, "server.sock"), Path(directory, "server.log")
        command = [
            *(sys.executable, "-m", "gunicorn", "tests.crash_wsgi", "--preload"),
            *("--bind", f"unix:{address}", "--workers", "1", "--worker-class", "sync"),
            *("--timeout", str(WORKER_TIMEOUT), "--graceful-timeout", "1"),
            "--no-control-socket",
        ]
        with running(command, log):
            server = Server(address)
            wait_until(lambda: is_up(server), "the server", {"server": log})
            yield server
