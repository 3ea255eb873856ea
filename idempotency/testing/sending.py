"""A request that a test can send repeatedly."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.cookies import SimpleCookie
from typing import Any, Literal, NoReturn
from unittest.mock import patch
from urllib.parse import urlencode
from uuid import uuid4

from django.db import connections
from django.http import HttpResponseBase
from django.http.request import HttpHeaders
from django.test import Client

from idempotency.conf import get_settings
from idempotency.modes import Mode
from idempotency.modes.stray_writes import stray_writes_reported
from idempotency.responses import EXPIRES_HEADER, StoredResponse

KeyIn = Literal["header", "query"]
ANOTHER = "another payload"
SHOWN_BYTES = 300
THROTTLED = (
    "A throttle counts all requests of the test, including replays. Remove it for the "
    "test: unittest.mock.patch.object(<the view's class>, 'throttle_classes', [])."
)


def new_key() -> str:
    """Return a new key, as a client would choose it."""
    return str(uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRequest:
    """The arguments of a test client's call, without the key."""

    client: Client
    method: str
    url: str
    data: Any
    key_in: KeyIn
    extra: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.url}"

    def send(self, key: str) -> Any:
        """Send the request with a key; files are sent from their beginning.

        Raise ``ValueError`` if the settings turn ``key_in`` off, and for
        ``follow=True``; ``AssertionError`` if a throttle refuses the request; and any
        error of the view.
        """
        if self.extra.get("follow"):
            raise ValueError(
                "Leave out follow=True: a duplicate must get the redirect itself, and "
                "the page behind it does not show that."
            )
        _rewind(self.data)
        url, extra = self._with_key(key)
        with marks_taken_back(), stray_writes_reported():
            send = getattr(self.client, self.method.lower())
            response = send(url, self.data, **extra)
        if response.status_code == 429 and EXPIRES_HEADER not in response:
            fail(f"{self} got {describe_response(response)}", mend=THROTTLED)
        return response

    def _with_key(self, key: str) -> tuple[str, dict[str, Any]]:
        settings, extra = get_settings(), dict(self.extra)
        name = settings.HEADER if self.key_in == "header" else settings.QUERY_PARAM
        if name is None:
            raise ValueError(f"The settings allow no key in the {self.key_in}.")
        if self.key_in == "header":
            return self.url, {**extra, environ_name(name): key}
        if extra.get("query_params"):
            # They replace the query of the URL.
            extra["query_params"] = {**extra["query_params"], name: key}
            return self.url, extra
        mark = "&" if "?" in self.url else "?"
        return f"{self.url}{mark}{urlencode({name: key})}", extra

    def with_data(self, data: Any) -> SentRequest:
        """Return the same request with another payload."""
        return replace(self, data=data)

    def for_thread(self) -> SentRequest:
        """Return a copy for another thread, with a client of its own.

        It gets a response instead of the view's error, because Django reports errors to
        the clients of all threads.
        """
        client = copy.copy(self.client)
        client.cookies = SimpleCookie(self.client.cookies)
        client.handler = copy.copy(self.client.handler)
        client.raise_request_exception = False
        return replace(self, client=client, data=copy.deepcopy(self.data))


@contextmanager
def marks_taken_back() -> Iterator[None]:
    """Keep a refusal from marking the transaction of a TestCase for rollback.

    Under ATOMIC_REQUESTS, REST framework marks any open transaction, even if the view
    is opted out and the transaction is the test's. Marks of database errors stay.
    """
    every: Sequence[Any] = connections.all(initialized_only=True)
    before = [
        (each, each.get_rollback(), each.rollback_exc)
        for each in every
        if each.in_atomic_block
    ]
    try:
        yield
    finally:
        for each, mark, error in before:
            if each.rollback_exc is error:
                each.set_rollback(mark)


def environ_name(header: str) -> str:
    """Return a header's name in a WSGI environment."""
    name: str = HttpHeaders.to_wsgi_name(header)
    return name


def another_payload(data: Any) -> Any:
    """Return a different payload of the same type, which may be invalid."""
    if isinstance(data, Mapping):
        return {**data, "another": ANOTHER}
    if isinstance(data, (list, tuple)):
        return [*data, ANOTHER]
    if isinstance(data, bytes):
        return data + ANOTHER.encode()
    return data + ANOTHER if isinstance(data, str) else {"another": ANOTHER}


def _rewind(data: Any) -> None:
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, (list, tuple)):
        for value in data:
            _rewind(value)
    elif hasattr(data, "seek"):
        data.seek(0)


def describe_response(response: HttpResponseBase) -> str:
    """Return the status and the beginning of the body, unless it is streamed."""
    body = getattr(response, "content", b"")
    begin = body[:SHOWN_BYTES].decode(errors="replace")
    return f"{response.status_code} {begin}{'...' * (len(body) > SHOWN_BYTES)}".strip()


def fail(what: str, *, lines: Iterable[str] = (), mend: str = "") -> NoReturn:
    """Raise ``AssertionError`` with what is wrong, details, and how to fix it."""
    details = "".join(f"\n    {line}" for line in lines)
    raise AssertionError(f"{what}{details}{mend and chr(10)}{mend}")


class HandlerFailed(Exception):
    """The error that the kit raises after a handler."""


@contextmanager
def runs_watched(act: Callable[[Mode], None]) -> Iterator[None]:
    """Call ``act`` after a handler, just before its response is stored.

    In atomic mode this is inside the transaction. Responses that release the key don't
    get there.
    """
    to_store = Mode.to_store

    def watched(mode: Mode, response: HttpResponseBase) -> StoredResponse:
        act(mode)
        return to_store(mode, response)

    with patch.object(Mode, "to_store", watched):
        yield


@contextmanager
def log_silenced(
    is_silent: Callable[[], bool], name: str = "django.request"
) -> Iterator[None]:
    """Keep a logger from logging an error that the kit raised."""
    logger = logging.getLogger(name)

    def is_shown(record: logging.LogRecord) -> bool:
        return not is_silent()

    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)
