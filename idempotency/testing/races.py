"""Check that concurrent duplicates act once."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Barrier, get_ident
from typing import Any

from django.core.signals import got_request_exception
from django.db import connections
from django.db.models import Model
from django.test import Client

from idempotency.responses import EXPIRES_HEADER, REPLAYED_HEADER
from idempotency.testing.assertions import NO_EFFECT, TRY_OTHER_DATA
from idempotency.testing.effects import (
    Effects,
    Watch,
    beyond,
    compare_changes,
    usable_databases,
)
from idempotency.testing.sending import (
    KeyIn,
    SentRequest,
    describe_response,
    fail,
    new_key,
)

# Seconds; far more than the threads need to start.
PATIENCE = 60


def assert_race_safe(  # noqa: PLR0913  # options of a test, each by its name
    client: Client,
    method: str,
    url: str,
    data: Any = None,
    *,
    duplicates: int = 8,
    other_data: Any = None,
    effects: Effects = None,
    ignore: Collection[type[Model]] = (),
    key_in: KeyIn = "header",
    **extra: Any,
) -> Any:
    """Check that concurrent duplicates act once.

    Send one request alone to count its effects, with ``other_data`` if the endpoint
    does not accept the same payload twice. Then send ``duplicates`` requests at once
    with another key, from threads with their own database connections. One acts; the
    others get its response, or 409 or 503 with ``Retry-After``. So does a last one,
    sent after all others have a response (E3, E4).

    The test needs real commits: a TransactionTestCase, or pytest-django's
    ``transactional_db``. ``data`` is copied for each thread, so files must be in
    memory. The other arguments are those of ``assert_idempotent``.

    Return the response of the run that acted.

    Raise ``AssertionError`` with what doubled, and ``RuntimeError`` if no race is
    possible: inside a transaction, or on SQLite in memory.
    """
    _refuse_unreal_races()
    request = SentRequest(
        client=client, method=method, url=url, data=data, key_in=key_in, extra=extra
    )
    watch = Watch(effects, ignore)
    before = watch.count()
    alone = request if other_data is None else request.with_data(other_data)
    response = alone.send(new_key())
    once = watch.changes_since(before)
    got = f"{request} got {describe_response(response)}"
    if response.status_code >= 400 and EXPIRES_HEADER not in response:
        fail(got, mend="Use a client and data that the endpoint accepts.")
    if not once:
        fail(got, mend=NO_EFFECT)
    before = watch.count()
    key = new_key()
    outcomes = _send_at_once(request, key, duplicates)
    _refuse_strange_outcomes(request, outcomes)
    outcomes.append(Outcome(response=request.send(key), error=None))
    acted = _acted(request, outcomes)
    total = watch.changes_since(before)
    if len(acted) > 1 or beyond(once, total):
        fail(
            f"{request}: of {duplicates} duplicates at once and a last one, "
            f"{len(acted)} acted. Effects:",
            lines=compare_changes(once, "one request", total, "all of them"),
            mend="Protect the view with IdempotencyMixin, or its handler with "
            "@idempotent. Effects outside the record's transaction can happen more "
            "than once.",
        )
    if not total:
        fail(f"{request}: the duplicates had no effect.", mend=TRY_OTHER_DATA)
    return acted[0].response


def _refuse_unreal_races() -> None:
    for alias in usable_databases():
        connection: Any = connections[alias]
        if connection.in_atomic_block:
            raise RuntimeError(
                "assert_race_safe() needs real commits, but this test runs inside a "
                "transaction. Use django.test.TransactionTestCase, or "
                "@pytest.mark.django_db(transaction=True)."
            )
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            raise RuntimeError(
                "assert_race_safe() can't use SQLite in memory, where threads fail "
                "instead of waiting for each other. Set "
                f'DATABASES[{alias!r}]["TEST"]["NAME"] to the path of a file.'
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The response that one thread got, and its view's error, if any."""

    response: Any
    error: BaseException | None

    @property
    def is_replay(self) -> bool:
        """Whether it is the response of another request."""
        return bool(self.response.get(REPLAYED_HEADER) == "true")

    @property
    def is_refusal(self) -> bool:
        """Whether it is a temporary refusal, or says that no response was kept."""
        status = self.response.status_code
        if status == 409 and EXPIRES_HEADER in self.response:
            return True
        return status in (409, 503) and "Retry-After" in self.response

    @property
    def has_acted(self) -> bool:
        """Whether it is the response of a handler that has run."""
        if self.is_replay or self.is_refusal:
            return False
        return self.response.status_code < 400 or EXPIRES_HEADER in self.response

    def __str__(self) -> str:
        cause = "" if self.error is None else f" ({self.error!r})"
        return f"{describe_response(self.response)}{cause}"


def _refuse_strange_outcomes(request: SentRequest, outcomes: list[Outcome]) -> None:
    strange = [
        str(outcome)
        for outcome in outcomes
        if not (outcome.is_replay or outcome.is_refusal or outcome.has_acted)
    ]
    if strange:
        fail(
            f"{request}: concurrent duplicates got neither the first response nor 409 "
            "or 503 with Retry-After:",
            lines=strange,
        )


def _acted(request: SentRequest, outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes of runs that acted, after a comparison with the replays."""
    acted = [outcome for outcome in outcomes if outcome.has_acted]
    if not acted:
        fail(f"{request}: no duplicate acted. The last one got {outcomes[-1]}")
    for outcome in outcomes:
        if outcome.is_replay and outcome.response.content != acted[0].response.content:
            fail(
                f"{request}: a duplicate got another response:\n"
                f"    first: {acted[0]}\n    duplicate: {outcome}"
            )
    return acted


def _send_at_once(request: SentRequest, key: str, duplicates: int) -> list[Outcome]:
    barrier = Barrier(duplicates)
    aliases = usable_databases()

    def send(own: SentRequest) -> Outcome:
        try:
            connect()
            barrier.wait(PATIENCE)
            response = own.send(key)
            return Outcome(response=response, error=errors.get(get_ident()))
        finally:
            connections.close_all()

    def connect() -> None:
        try:
            for alias in aliases:
                connections[alias].ensure_connection()
        except BaseException:
            barrier.abort()  # or the others would wait for this thread
            raise

    requests = [request.for_thread() for _ in range(duplicates)]
    with _errors_by_thread() as errors, ThreadPoolExecutor(duplicates) as pool:
        return list(pool.map(send, requests))


@contextmanager
def _errors_by_thread() -> Iterator[dict[int, BaseException | None]]:
    """Collect the errors of views by thread."""
    errors: dict[int, BaseException | None] = {}

    def note(**kwargs: Any) -> None:
        errors[get_ident()] = sys.exc_info()[1]

    got_request_exception.connect(note, weak=False)
    try:
        yield errors
    finally:
        got_request_exception.disconnect(note)
