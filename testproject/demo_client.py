"""The demo's client, which prints its requests, the responses and the checks."""

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

TIMEOUT = 30.0
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
    """A check of the demo failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response."""

    status: int
    reason: str
    headers: HTTPMessage
    body: bytes

    @property
    def content(self) -> Any:
        """The parsed JSON of the body."""
        return json.loads(self.body)

    def codes(self, member: str) -> list[str]:
        """Return the codes in ``$errors`` or ``$warnings``."""
        return [each["code"] for each in self.content.get(member, [])]

    @property
    def is_replay(self) -> bool:
        """Whether the response is a replay."""
        return self.headers["Idempotent-Replayed"] == "true"


class Client:
    """A user's client, with a connection for each request."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self.token = token

    def send(
        self, method: str, address: str, payload: Payload | None = None
    ) -> Response:
        """Send a request and return its response, and print both."""
        response = read(self.start(method, address, payload))
        show_response(response)
        return response

    def start(
        self, method: str, address: str, payload: Payload | None = None
    ) -> HTTPConnection:
        """Print and send a request, and don't wait for the response."""
        show_request(method, address, payload)
        return self.start_silently(method, address, payload)

    def start_silently(
        self, method: str, address: str, payload: Payload | None = None
    ) -> HTTPConnection:
        """Send a request and don't wait for the response."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        body = None
        if payload is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(payload)
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        connection.request(method, address, body, headers)
        return connection

    def send_silently(
        self, method: str, address: str, payload: Payload | None = None
    ) -> Response:
        """Send a request and return its response."""
        return read(self.start_silently(method, address, payload))

    def as_curl(self, address: str, payload: Payload) -> str:
        """Return a curl command that posts a payload."""
        return (
            f"  curl -i 'http://127.0.0.1:{self.port}{address}' \\\n"
            f"    -H 'Authorization: Bearer {self.token}' \\\n"
            f"    -H 'Content-Type: application/json' -d '{json.dumps(payload)}'"
        )


def read(connection: HTTPConnection) -> Response:
    """Return the response from a connection, and close it."""
    try:
        response = connection.getresponse()
        return Response(
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


def show_response(response: Response) -> None:
    """Print a response."""
    say(f"< {response.status} {response.reason}", "yellow")
    for name in SHOWN_HEADERS:
        if name in response.headers:
            say(f"< {name}: {response.headers[name]}", "yellow")
    say(f"< {response.body.decode()}", "yellow")


def title(number: int, text: str) -> None:
    """Print the title of a step."""
    say(f"\n{number}. {text}", "bold")


def check(holds: bool, claim: str) -> None:
    """Print the result of a check, and raise ``DemoFailed`` if it failed."""
    if not holds:
        say(f"  NO  {claim}", "red")
        raise DemoFailed(claim)
    say(f"  ok  {claim}", "green")


def say(text: str, colour: str = "") -> None:
    """Print a line, in colour on a terminal."""
    if colour and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        text = f"\033[{COLOURS[colour]}m{text}\033[0m"
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def new_key() -> str:
    """Return a random key, as every client should send."""
    return secrets.token_urlsafe(24)


def with_key(address: str, key: str) -> str:
    """Return an address with a key in its query."""
    return f"{address}?$idempotency={key}"


def wait_for(find: Callable[[], Found | None], claim: str) -> Found:
    """Return the result of ``find`` as soon as it is true."""
    give_up_at = time.monotonic() + LONGEST_WAIT
    while not (found := find()):
        if time.monotonic() > give_up_at:
            raise DemoFailed(claim)
        time.sleep(0.02)
    return found
