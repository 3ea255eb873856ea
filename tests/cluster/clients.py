"""Clients that ask several application servers, and note every answer."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

from tests.cluster.sites import Site
from tests.soak.ledger import Attempt, Story
from tests.soak.load import JUDGED, LAST_RETRY
from tests.support.http_servers import UnixConnection

MODES = ("atomic", "hold", "rerun", "resume")
CLIENTS = 12
# A patient client: more than a failover takes, in all.
TRIES, PAUSE, LONGEST_PAUSE = 12, 0.05, 1.0
# Longer than a paused node is paused, so that no request goes on without its client.
TIMEOUT = 40
UNDECIDED = ("idempotency_in_progress", "idempotency_claim_lost")


@dataclass(slots=True, kw_only=True)
class Asking(Story):
    """One key, and the site that is asked."""

    site: Site
    mode: str
    key: str

    @property
    def note(self) -> str:
        """What the handler writes into its rows, and tells the provider."""
        return str(self.payloads[0]["note"])


@dataclass
class Clients:
    """Clients who share a list of what they asked."""

    seed: int
    asked: list[Asking] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    number: int = 0

    def new(
        self, site: Site, mode: str, *, seconds: float = 0.0, key: str | None = None
    ) -> Asking:
        """Decide to ask for something new, under a new key or one that was used."""
        with self.lock:
            self.number += 1
            note = f"cluster-{self.seed}-{self.number}"
            asking = Asking(
                label=note,
                path=f"/{mode}/",
                keyed=True,
                payloads=[{"do": mode, "note": note, "seconds": seconds}],
                site=site,
                mode=mode,
                key=key or f"{note}-of-a-client",
            )
            self.asked.append(asking)
        return asking

    def ask(self, asking: Asking, server: int, how: str = "alone") -> Attempt:
        """Ask one server, and read its answer."""
        (attempt,) = self.ask_at_once(asking, [server], how)
        return attempt

    def ask_at_once(
        self, asking: Asking, servers: Sequence[int], how: str = "at once"
    ) -> list[Attempt]:
        """Have all requests under way before the first answer is read."""
        started = []
        for server in servers:
            attempt = Attempt(
                number=0, how=f"{how}, server {server}", started=time.monotonic()
            )
            if how == LAST_RETRY:
                attempt.how = how
            with self.lock:
                asking.attempts.append(attempt)
            address = asking.site.addresses[server]
            started.append((attempt, self._start(asking, attempt, address)))
        for attempt, connection in started:
            if connection is not None:
                self._finish(attempt, connection)
        return [attempt for attempt, _connection in started]

    def settle(self, draw: random.Random, asking: Asking) -> None:
        """Ask servers at random until the answer is one to keep."""
        for turn in range(TRIES):
            attempt = self.ask(asking, draw.randrange(len(asking.site.addresses)))
            if is_settled(attempt):
                return
            time.sleep(min(PAUSE * 2**turn, LONGEST_PAUSE))

    def ask_until(self, over: Event, sites: Sequence[Site]) -> None:
        """Ask for new things, some of several servers at once, until it is over."""

        def play(client: int) -> None:
            draw = random.Random(f"{self.seed}/{self.number}/{client}")
            turns = [(site, mode) for site in sites for mode in MODES]
            turn = client
            while not over.is_set():
                # Each kind gets as many keys as any other.
                site, mode = turns[turn % len(turns)]
                turn += CLIENTS + 1
                asking = self.new(site, mode, seconds=draw.choice((0, 0, 0.02)))
                if draw.random() < 0.3:
                    servers = range(len(site.addresses))
                    self.ask_at_once(asking, draw.sample(servers, len(servers)))
                self.settle(draw, asking)

        self.in_parallel(play, range(CLIENTS))

    def retry_all(self, asked: Iterable[Asking]) -> None:
        """Ask each key for the last time, now that everything is well."""

        def retry(asking: Asking) -> None:
            draw = random.Random(f"{self.seed}/{asking.label}/last")
            self.ask(asking, draw.randrange(len(asking.site.addresses)), LAST_RETRY)

        self.in_parallel(retry, asked)

    def in_parallel(self, function: object, values: Iterable[object]) -> None:
        """Call for each value, by several clients at a time."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in pool.map(function, values):  # type: ignore[arg-type]
                pass

    def _start(
        self, asking: Asking, attempt: Attempt, address: Path
    ) -> UnixConnection | None:
        headers = {
            "Content-Type": "application/json",
            "X-User": "ada",
            "Idempotency-Key": asking.key,
        }
        if attempt.how.startswith("given up"):
            headers["X-Give-Up"] = "1"
        connection = UnixConnection(address)
        connection.timeout = TIMEOUT
        try:
            connection.request(
                "POST", asking.path, json.dumps(asking.payloads[0]), headers
            )
        except OSError as error:
            connection.close()
            end(attempt, type(error).__name__)
            return None
        return connection

    def _finish(self, attempt: Attempt, connection: UnixConnection) -> None:
        with closing(connection):
            try:
                response = connection.getresponse()
                attempt.body = response.read()
            except (OSError, http.client.HTTPException) as error:
                attempt.body = b""
                end(attempt, type(error).__name__)
                return
        attempt.status = response.status
        found = response.headers
        attempt.headers = {name: found[name] for name in JUDGED if name in found}
        attempt.replayed = found.get("Idempotent-Replayed") == "true"
        end(attempt)


def end(attempt: Attempt, lost: str = "") -> None:
    attempt.ended = time.monotonic()
    attempt.lost = lost


def is_settled(attempt: Attempt) -> bool:
    """Return whether a client would not ask again."""
    answered = attempt.status is not None and attempt.status < 500
    return answered and attempt.code not in UNDECIDED
