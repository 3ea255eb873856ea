"""Whether duplicates that come at once act once."""

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

# Seconds. Longer than the slowest machine needs, so that only a mistake gets there.
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
    """Check that duplicates that are sent at once act once.

    Sends one request alone, to see what one does, with ``other_data`` if the endpoint
    does not take the same payload twice. Then sends that many ``duplicates`` at once
    under another key, from threads with database connections of their own. One acts;
    the others get its answer, or 409 or 503 and ``Retry-After``; so does a last one,
    sent when all are answered (E3, E4).

    Needs real commits: a TransactionTestCase, or pytest-django's ``transactional_db``.
    ``data`` is copied for each thread, so files must be in memory. The other arguments
    are those of ``assert_idempotent``. Rows that are changed, not added, are no effects
    to be seen: name them in ``effects``.

    Returns the answer of the run that acted.

    Raises ``AssertionError``, which says what doubled; ``RuntimeError`` where no race
    can be had: inside a transaction, and on SQLite in memory, where threads get in each
    other's way as nowhere else.
    """
    _refuse_unreal_races()
    request = SentRequest(
        client=client, method=method, url=url, data=data, key_in=key_in, extra=extra
    )
    watch = Watch(effects, ignore)
    before = watch.count()
    alone = request if other_data is None else request.with_data(other_data)
    answer = alone.send(new_key())
    once = watch.changes_since(before)
    if answer.status_code >= 400 and EXPIRES_HEADER not in answer:
        fail(
            f"{request} was answered {describe_response(answer)}",
            mend="The client and the data must be such that the endpoint acts.",
        )
    if not once:
        fail(f"{request} was answered {describe_response(answer)}", mend=NO_EFFECT)
    before = watch.count()
    key = new_key()
    race = Race(request, _send_at_once(request, key, duplicates))
    race.check_answers()
    winner = race.check_last(request.send(key))
    total = watch.changes_since(before)
    if race.acted_twice or beyond(once, total):
        fail(
            f"{request}: of {duplicates} duplicates at once and a last one, "
            f"{len(race.acted)} acted. What they did:",
            lines=compare_changes(once, "one request", total, "all of them"),
            mend="Protect the view with IdempotencyMixin, or its handler with "
            "@idempotent. What is done outside the record's transaction can happen "
            "more than once.",
        )
    if not total:
        fail(f"{request}: the duplicates did nothing.", mend=TRY_OTHER_DATA)
    return winner


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
                "assert_race_safe() can't race on SQLite in memory, where threads "
                "share one cache of pages and fail where a file would let them wait. "
                f'Set DATABASES[{alias!r}]["TEST"]["NAME"] to the path of a file.'
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one thread got, and what its view raised, if anything."""

    response: Any
    error: BaseException | None

    @property
    def is_replay(self) -> bool:
        """Whether it is the answer of another request."""
        return bool(self.response.get(REPLAYED_HEADER) == "true")

    @property
    def is_refusal(self) -> bool:
        """Whether it sends the client away, for now or because nothing was kept."""
        status = self.response.status_code
        if status == 409 and EXPIRES_HEADER in self.response:
            return True
        return status in (409, 503) and "Retry-After" in self.response

    @property
    def has_acted(self) -> bool:
        """Whether it is the answer of a handler that has run."""
        if self.is_replay or self.is_refusal:
            return False
        return self.response.status_code < 400 or EXPIRES_HEADER in self.response

    def __str__(self) -> str:
        cause = "" if self.error is None else f" ({self.error!r})"
        return f"{describe_response(self.response)}{cause}"


class Race:
    """The answers to requests that were sent at once."""

    def __init__(self, request: SentRequest, answers: list[Answer]) -> None:
        self.request = request
        self.answers = answers
        self.acted = [answer for answer in answers if answer.has_acted]

    @property
    def acted_twice(self) -> bool:
        """Whether more than one request has acted."""
        return len(self.acted) > 1

    def check_answers(self) -> None:
        """Check that nobody got an answer that is none of a duplicate's."""
        strange = [
            answer
            for answer in self.answers
            if not (answer.is_replay or answer.is_refusal or answer.has_acted)
        ]
        if strange:
            fail(
                f"{self.request}: duplicates at once got answers that are neither the "
                "first one's nor 409 or 503 with Retry-After:",
                lines=(str(answer) for answer in strange),
            )

    def check_last(self, response: Any) -> Any:
        """Check a duplicate that came when all were answered; return the first answer.

        It acts only if all had been sent away.
        """
        last = Answer(response=response, error=None)
        if last.has_acted:
            self.acted.append(last)
        if not self.acted:
            fail(f"{self.request}: nobody acted. The last one was answered {last}")
        first = self.acted[0].response
        for answer in (*self.answers, last):
            if answer.is_replay and answer.response.content != first.content:
                fail(
                    f"{self.request}: a duplicate got another answer:\n"
                    f"    first: {self.acted[0]}\n    duplicate: {answer}"
                )
        return first


def _send_at_once(request: SentRequest, key: str, duplicates: int) -> list[Answer]:
    barrier = Barrier(duplicates)
    aliases = usable_databases()

    def send(own: SentRequest) -> Answer:
        try:
            connect()
            barrier.wait(PATIENCE)
            response = own.send(key)
            return Answer(response=response, error=errors.get(get_ident()))
        finally:
            connections.close_all()

    def connect() -> None:
        try:
            for alias in aliases:
                connections[alias].ensure_connection()
        except BaseException:
            barrier.abort()  # nobody waits for one that can't come
            raise

    requests = [request.for_thread() for _ in range(duplicates)]
    with _errors_by_thread() as errors, ThreadPoolExecutor(duplicates) as pool:
        return list(pool.map(send, requests))


@contextmanager
def _errors_by_thread() -> Iterator[dict[int, BaseException | None]]:
    """Note which thread's view raised what."""
    errors: dict[int, BaseException | None] = {}

    def note(**kwargs: Any) -> None:
        errors[get_ident()] = sys.exc_info()[1]

    got_request_exception.connect(note, weak=False)
    try:
        yield errors
    finally:
        got_request_exception.disconnect(note)
