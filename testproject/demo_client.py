"""The demo's client: it shows what it sends, what it gets and whether that is right."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from typing import Any, TypeVar

SECONDS_TO_ANSWER = 30.0
LONGEST_WAIT = 30.0
COLOURS = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
SHOWN_HEADERS = (
    "Location",
    "Retry-After",
    "Idempotency-Error",
    "Idempotent-Replayed",
    "Idempotency-Expires",
    "Idempotency-Warning",
)

Payload = dict[str, str]
Found = TypeVar("Found")


class DemoFailed(Exception):
    """Something that the demo shows did not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    reason: str
    headers: HTTPMessage
    body: bytes

    @property
    def content(self) -> Any:
        """What the JSON of the body says."""
        return json.loads(self.body)

    @property
    def is_replay(self) -> bool:
        """Whether the answer says that it comes from a record."""
        return self.headers["Idempotent-Replayed"] == "true"


class Client:
    """A user's client; each request has a connection of its own."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self.token = token

    def send(self, method: str, address: str, payload: Payload | None = None) -> Answer:
        """Send a request and return its answer, showing both."""
        answer = read(self.start(method, address, payload))
        show_answer(answer)
        return answer

    def start(
        self, method: str, address: str, payload: Payload | None = None
    ) -> HTTPConnection:
        """Send a request, showing it, and don't wait for the answer."""
        show_request(method, address, payload)
        return self.start_silently(method, address, payload)

    def start_silently(
        self, method: str, address: str, payload: Payload | None = None
    ) -> HTTPConnection:
        """Send a request and don't wait for the answer."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        body = None
        if payload is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(payload)
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS_TO_ANSWER)
        connection.request(method, address, body, headers)
        return connection

    def get_silently(self, address: str) -> Answer:
        """Send a GET and return its answer."""
        return read(self.start_silently("GET", address))

    def post_silently(self, address: str, payload: Payload) -> Answer:
        """Send a POST and return its answer."""
        return read(self.start_silently("POST", address, payload))

    def as_curl(self, address: str, payload: Payload) -> str:
        """Return a command that sends a payload."""
        return (
            f"  curl -i 'http://127.0.0.1:{self.port}{address}' \\\n"
            f"    -H 'Authorization: Bearer {self.token}' \\\n"
            f"    -H 'Content-Type: application/json' -d '{json.dumps(payload)}'"
        )


def read(connection: HTTPConnection) -> Answer:
    """Wait for the answer to the request of a connection, and close it."""
    try:
        response = connection.getresponse()
        return Answer(
            status=response.status,
            reason=response.reason,
            headers=response.headers,
            body=response.read(),
        )
    finally:
        connection.close()


def show_request(
    method: str, address: str, payload: Payload | None, note: str = ""
) -> None:
    """Print a request."""
    say(f"> {method} {address}{note}", "cyan")
    if payload is not None:
        say(f"> {json.dumps(payload)}", "cyan")


def show_answer(answer: Answer) -> None:
    """Print an answer."""
    say(f"< {answer.status} {answer.reason}", "yellow")
    for name in SHOWN_HEADERS:
        if name in answer.headers:
            say(f"< {name}: {answer.headers[name]}", "yellow")
    say(f"< {answer.body.decode()}", "yellow")


def title(number: int, text: str) -> None:
    """Print the title of a step."""
    say(f"\n{number}. {text}", "bold")


def check(holds: bool, claim: str) -> None:
    """Print that something holds, or raise ``DemoFailed``."""
    if not holds:
        say(f"  NO  {claim}", "red")
        raise DemoFailed(claim)
    say(f"  ok  {claim}", "green")


def say(text: str, colour: str = "") -> None:
    """Print a line, in colour only on a terminal."""
    if colour and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        text = f"\033[{COLOURS[colour]}m{text}\033[0m"
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def new_key() -> str:
    """Return a key as any client should make it: random."""
    return secrets.token_urlsafe(24)


def with_key(address: str, key: str) -> str:
    """Return an address with a key in its query."""
    return f"{address}?$idempotency={key}"


def wait_for(find: Callable[[], Found | None], claim: str) -> Found:
    """Return what is looked for, as soon as it is there."""
    give_up_at = time.monotonic() + LONGEST_WAIT
    while not (found := find()):
        if time.monotonic() > give_up_at:
            raise DemoFailed(claim)
        time.sleep(0.02)
    return found
