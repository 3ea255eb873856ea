"""Clients: what they send is drawn from the seed, one scenario after another."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Condition
from typing import Any

from tests.soak.ledger import Attempt, Ledger, Story
from tests.support.http_servers import UnixConnection

# Handlers that run in steps have a view of their own.
STEPS_URL = "/steps/"
URLS = ("/function/", "/waiting/", "/method/", "/mixin/")
# What handlers do, and how often.
HANDLERS = {
    "act": 55,
    "slow": 10,
    "refuse": 7,
    "raise": 5,
    "fail": 2,
    "flaky": 8,
    "stream": 5,
    "contend": 6,
    "book": 12,
}
# After these a patient client asks again.
WELCOME = ("idempotency_in_progress", "idempotency_claim_lost")
TRIES = 8
CLIENTS = 12
LAST_RETRY = "last retry"
# Rows that any handler may take, and after them pairs of rows for duels.
SHARED_ROWS = 4
ROWS = SHARED_ROWS + 2 * CLIENTS
# Headers that the verdict looks at; a long run can't keep them all.
JUDGED = ("Idempotency-Expires", "Location", "Retry-After")


class Load:
    """Clients that share a ledger and a seed.

    Each scenario draws from the seed and its own number alone, so it asks for the same
    in every run of that seed, whatever comes between.
    """

    def __init__(self, ledger: Ledger, addresses: Sequence[Path], seed: int) -> None:
        self.ledger = ledger
        self.addresses = addresses
        self.seed = seed
        self.next_number = 0
        self.sent = 0
        self.changed = Condition()
        self.is_over = False
        self.played: Counter[str] = Counter()
        self.scenarios: dict[Callable[[random.Random, str], object], int] = {
            self.first: 30,
            self.retries: 18,
            self.duplicates: 14,
            self.other_payload: 10,
            self.hang_up: 10,
            self.duel: 4,
            self.revisit: 8,
            self.read: 6,
            self.without_key: 4,
        }

    def run(self, *, until: float | None = None, scenarios: int | None = None) -> None:
        """Play scenarios with several clients, up to a time or a number of them."""
        assert until or scenarios

        def play() -> None:
            while True:
                with self.changed:
                    number = self.next_number
                    over = scenarios is not None and number >= scenarios
                    over = over or (until is not None and time.monotonic() > until)
                    if over or self.is_over:
                        return
                    self.next_number += 1
                self.play(number)

        with ThreadPoolExecutor(CLIENTS) as pool:
            try:
                for client in [pool.submit(play) for _ in range(CLIENTS)]:
                    client.result()
            finally:
                self.stop()

    def stop(self) -> None:
        """Play no further scenario."""
        with self.changed:
            self.is_over = True
            self.changed.notify_all()

    def wait_for(self, sent: int) -> bool:
        """Return True when so many requests were sent, or False when all is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_over or self.sent >= sent)
            return not self.is_over

    def play(self, number: int) -> None:
        """Play one scenario."""
        draw = random.Random(f"{self.seed}/{number}")
        kinds = [*self.scenarios]
        scenario = draw.choices(kinds, [*self.scenarios.values()])[0]
        with self.changed:
            self.played[scenario.__name__] += 1
        scenario(draw, f"soak-{self.seed}-{number}")

    # What clients do.

    def first(self, draw: random.Random, label: str) -> Story:
        """Ask for something new, and again until there is an answer."""
        story = self.new_story(draw, label)
        self.settle(draw, story)
        return story

    def retries(self, draw: random.Random, label: str) -> None:
        """Go on asking after the answer."""
        story = self.first(draw, label)
        for _ in range(draw.randint(1, 3)):
            self.send(draw, story)

    def duplicates(self, draw: random.Random, label: str) -> None:
        """Ask many times at once."""
        story = self.new_story(draw, label)
        self.send_at_once(draw, [(story, 0)] * draw.randint(2, 8))
        self.settle(draw, story)

    def other_payload(self, draw: random.Random, label: str) -> None:
        """Ask for another thing under the same key, at once or afterwards."""
        story = self.new_story(draw, label, payloads=2)
        if draw.random() < 0.5:
            both = [(story, 0), (story, 1)]
            self.send_at_once(draw, both * draw.randint(1, 3))
        else:
            self.settle(draw, story)
            self.send(draw, story, 1)
        self.settle(draw, story)

    def hang_up(self, draw: random.Random, label: str) -> None:
        """Ask, leave before the answer, and ask again."""
        story = self.new_story(draw, label)
        attempt = self.new_attempt(draw, story, 0)
        pause = draw.choice((0.0, 0.005, 0.02))
        connection = self.start(draw, story, attempt)
        if connection is not None:
            with closing(connection):
                time.sleep(pause)
            self.end(attempt, "hung up")
        self.settle(draw, story)

    def duel(self, draw: random.Random, label: str) -> None:
        """Ask for two things at once that deadlock, where a database has row locks."""
        row = SHARED_ROWS + 2 * draw.randrange(CLIENTS)
        left, right = (f"{label}-{side}" for side in ("left", "right"))
        stories = []
        for own, partner, rows in (
            (left, right, [row, row + 1]),
            (right, left, [row + 1, row]),
        ):
            asked = {"do": "contend", "label": own, "number": 0, "seconds": 0}
            asked |= {"rows": rows, "partner": partner}
            url = draw.choice(URLS)
            story = Story(label=own, path=url, keyed=True, payloads=[asked])
            stories.append(self.ledger.open(story))
        self.send_at_once(draw, [(story, 0) for story in stories])
        for story in stories:
            self.settle(draw, story)

    def revisit(self, draw: random.Random, label: str) -> None:
        """Ask again for something of long ago."""
        with self.ledger.lock:
            story = draw.choice(self.ledger.stories) if self.ledger.stories else None
        if story is not None and story.keyed:
            self.send(draw, story, draw.randrange(len(story.payloads)))

    def read(self, draw: random.Random, label: str) -> None:
        """GET, with a key that means nothing there or without one."""
        attempt = Attempt(number=0, how="GET", started=time.monotonic())
        keys = {"Idempotency-Key": label} if draw.random() < 0.5 else {}
        connection = self.open(draw, attempt, "GET", "/function/", None, keys)
        if connection is not None:
            self.finish(attempt, connection)
        self.ledger.add_read(attempt)

    def without_key(self, draw: random.Random, label: str) -> None:
        """Ask without a key, once."""
        payload = {"do": "act", "label": label, "number": 0, "seconds": 0}
        url = draw.choice([url for url in URLS if url != "/method/"])
        story = Story(label=label, path=url, keyed=False, payloads=[payload])
        self.send(draw, self.ledger.open(story))

    # How they do it.

    def new_story(self, draw: random.Random, label: str, payloads: int = 1) -> Story:
        what = draw.choices([*HANDLERS], [*HANDLERS.values()])[0]
        seconds = 0.0
        if what in ("slow", "fail", "flaky"):
            seconds = draw.uniform(0.0, 0.4 if what == "slow" else 0.05)
        elif what == "book":
            # A few are longer than their lease.
            seconds = draw.choice([0.0, 0.02, 0.05, 0.3, 1.2])
        asked = [
            {
                "do": what,
                "label": label,
                "number": number,
                "seconds": seconds,
                "rows": draw.sample(range(SHARED_ROWS), 2),
            }
            for number in range(payloads)
        ]
        url = STEPS_URL if what == "book" else draw.choice(URLS)
        return self.ledger.open(
            Story(label=label, path=url, keyed=True, payloads=asked)
        )

    def settle(self, draw: random.Random, story: Story) -> None:
        """Ask until the answer is one to keep, as a patient client does."""
        for turn in range(TRIES):
            attempt = self.send(draw, story)
            answered = attempt.status is not None and attempt.status < 500
            if answered and attempt.code not in WELCOME:
                return
            time.sleep(0.02 * 2 ** min(turn, 4))

    def send(
        self, draw: random.Random, story: Story, number: int = 0, how: str = "alone"
    ) -> Attempt:
        """Ask once and read the answer."""
        attempt = self.new_attempt(draw, story, number, how)
        connection = self.start(draw, story, attempt)
        if connection is not None:
            self.finish(attempt, connection)
        return attempt

    def send_at_once(
        self, draw: random.Random, asked: Sequence[tuple[Story, int]]
    ) -> None:
        """Have all requests under way before the first answer is read."""
        started = []
        for story, number in asked:
            attempt = self.new_attempt(draw, story, number, f"{len(asked)} at once")
            started.append((attempt, self.start(draw, story, attempt)))
        for attempt, connection in started:
            if connection is not None:
                self.finish(attempt, connection)

    def new_attempt(
        self, draw: random.Random, story: Story, number: int, how: str = "alone"
    ) -> Attempt:
        attempt = Attempt(number=number, how=how, started=time.monotonic())
        with self.ledger.lock:
            story.attempts.append(attempt)
        return attempt

    def start(
        self, draw: random.Random, story: Story, attempt: Attempt
    ) -> UnixConnection | None:
        headers = {}
        path = story.path
        if story.keyed and draw.random() < 0.5:
            headers["Idempotency-Key"] = story.label
        elif story.keyed:
            path += f"?$idempotency={story.label}"
        if attempt.how == LAST_RETRY:
            headers["X-Calm"] = "1"
        payload = story.payloads[attempt.number]
        return self.open(draw, attempt, "POST", path, payload, headers)

    def open(
        self,
        draw: random.Random,
        attempt: Attempt,
        method: str,
        path: str,
        payload: dict[str, Any] | None,
        headers: dict[str, str],
    ) -> UnixConnection | None:
        """Put a request on the wire; None if not even that was possible."""
        with self.changed:
            self.sent += 1
            self.changed.notify_all()
        # The same meaning in other words (F2).
        body = (
            None
            if payload is None
            else json.dumps(payload, indent=draw.choice((None, 1)))
        )
        headers = {"Content-Type": "application/json", "X-User": "ada", **headers}
        connection = UnixConnection(draw.choice(self.addresses))
        try:
            connection.request(method, path, body, headers)
        except OSError as error:
            connection.close()
            self.end(attempt, type(error).__name__)
            return None
        return connection

    def finish(self, attempt: Attempt, connection: UnixConnection) -> None:
        """Read an answer, or note that none came."""
        with closing(connection):
            try:
                response = connection.getresponse()
                attempt.body = response.read()
            except (OSError, http.client.HTTPException) as error:
                attempt.body = b""
                self.end(attempt, type(error).__name__)
                return
        attempt.status = response.status
        found = response.headers
        attempt.headers = {name: found[name] for name in JUDGED if name in found}
        attempt.replayed = found.get("Idempotent-Replayed") == "true"
        self.end(attempt)

    def end(self, attempt: Attempt, lost: str = "") -> None:
        attempt.ended = time.monotonic()
        attempt.lost = lost

    # Afterwards.

    def retry_everything(self) -> None:
        """Ask each key for the last time, each of its payloads once.

        Those that take rows in each other's way are asked one after another: now there
        is no reason left for anything but an answer to keep.
        """
        keyed = [story for story in self.ledger.stories if story.keyed]
        with ThreadPoolExecutor(CLIENTS) as pool:
            alone = [story for story in keyed if not story.contends]
            for _ in pool.map(self.retry_last, alone):
                pass
        for story in keyed:
            if story.contends:
                self.retry_last(story)

    def retry_last(self, story: Story) -> None:
        """Ask for one key's payloads, one after another."""
        draw = random.Random(f"{self.seed}/{story.label}/last")
        for number in range(len(story.payloads)):
            self.send(draw, story, number, LAST_RETRY)
