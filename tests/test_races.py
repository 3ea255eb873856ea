"""Races between real processes, each judged by what it leaves in the database.

``python -m tests.race_matrix`` runs them on every database and prints a table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection

from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.race_matrix import Tally, properties
from tests.support.http_servers import Answer, Server, is_replayed, serving
from tests.support.processes import wait_until
from tests.support.rendezvous import (
    ATOMIC_VIEWS,
    LEASED_VIEWS,
    PATIENCE,
    Rendezvous,
)

VENDOR = connection.vendor
HAS_ONE_WRITER = VENDOR == "sqlite"
MANY = 50

Send = Callable[..., Answer]

VIEWS = {**ATOMIC_VIEWS, **LEASED_VIEWS}


def each(views: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test with each of some views."""
    return pytest.mark.parametrize("view", views)


@dataclass(frozen=True)
class Action:
    """What a client wants done, under a key or without one."""

    path: str = "/function/"
    user: str = "ada"
    key: str | None = field(default_factory=lambda: str(uuid4()))
    # Its effects are known by it.
    mark: str = field(default_factory=lambda: uuid4().hex)
    payload: int = 1

    @property
    def data(self) -> dict[str, Any]:
        return {"note": self.mark, "payload": self.payload}


class Crowd:
    """Requests that start together, each from a thread of its own."""

    def __init__(
        self, send: Send, actions: Sequence[Action], headers: Mapping[str, str]
    ) -> None:
        barrier = Barrier(len(actions))

        def send_with_the_others(action: Action) -> Answer:
            barrier.wait(PATIENCE)
            return send(action, **headers)

        pool = ThreadPoolExecutor(len(actions))
        self.futures = [pool.submit(send_with_the_others, a) for a in actions]
        pool.shutdown(wait=False)

    def answers(self, count: int | None = None) -> list[Answer]:
        """Return all answers, or the first of them while others are still held."""
        done = islice(as_completed(self.futures, PATIENCE), count)
        return [future.result() for future in done]


class Race:
    """Requests to one server, their answers, and what they leave."""

    def __init__(self, server: Server, effects: Callable[[], dict[int, str]]) -> None:
        self.server = server
        self.effects = effects
        self.answers: list[tuple[Action, Answer]] = []

    def send(self, action: Action, **headers: str) -> Answer:
        """POST, and read the answer."""
        headers["X-User"] = action.user
        answer = self.server.send(action.path, action.data, action.key, **headers)
        self.answers.append((action, answer))
        return answer

    def start(self, actions: Sequence[Action], **headers: str) -> Crowd:
        """POST all at once, and leave the answers for later."""
        return Crowd(self.send, actions, headers)

    def send_all(self, actions: Sequence[Action], **headers: str) -> list[Answer]:
        """POST all at once, and read the answers."""
        return self.start(actions, **headers).answers()

    def judge(self, allowed: set[int], due: Mapping[str, int]) -> Tally:
        """Retry each key once, then count what is there and what should be.

        ``due`` says how many effects a mark is to have, where it is not one.
        """
        answered = [*self.answers]
        actions = {*(action for action, _answer in answered)}
        retries = {action: self.send(action) for action in actions if action.key}
        good = {
            (a.key, a.user) for a, answer in retries.items() if answer.status == 201
        }
        effects = self.effects()
        doubled = lost = 0
        for mark in {action.mark for action in actions}:
            there = {pk for pk, note in effects.items() if mark in note}
            told = {
                json.loads(answer.body)["effect"]
                for action, answer in self.answers
                if action.mark == mark and answer.status == 201
            }
            doubled += max(0, len(there) - due.get(mark, 1))
            lost += max(due.get(mark, 1) - len(there), len(told - there), 0)
        return Tally(
            requests=len(self.answers),
            effects=len(effects),
            doubled=doubled,
            lost=lost,
            stuck=len({(action.key, action.user) for action in retries} - good),
            unexpected=sum(answer.status not in allowed for _a, answer in answered)
            + sum(answer.status not in (201, 422) for answer in retries.values()),
        )


def effects_here() -> dict[int, str]:
    return dict(Effect.objects.values_list("pk", "note"))


Finish = Callable[..., None]


@pytest.fixture
def race(server: Server) -> Race:
    """Return a race that has not begun."""
    return Race(server, effects_here)


@pytest.fixture
def finish(request: pytest.FixtureRequest, atomic_requests: bool) -> Finish:
    """Return what judges races, and notes the sum for the table."""

    def finish(
        *races: Race, allowed: set[int], due: Mapping[str, int] | None = None
    ) -> None:
        tally = Tally.sum(race.judge(allowed, due or {}) for race in races)
        name = request.function.__name__.removeprefix("test_").replace("_", " ")
        view = request.node.callspec.params.get("view")
        name = f"{name}, {view}" if view else name
        notes = properties(
            connection.display_name, name, tally, atomic_requests=atomic_requests
        )
        request.node.user_properties.extend(notes)
        answers = Counter(a.status for race in races for _action, a in race.answers)
        assert tally.faults == 0, f"{tally}, statuses {dict(answers)}"

    return finish


def statuses(answers: Sequence[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


def runs(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers of handlers, not of records."""
    return [a for a in answers if a.status == 201 and not is_replayed(a)]


def assert_refused(answers: Sequence[Answer]) -> None:
    """Check that all were told that the key is in progress."""
    for answer in answers:
        assert (answer.status, answer.headers.get("Retry-After")) == (409, "1")
        assert "in progress" in answer.code


def assert_replayed(answers: Sequence[Answer], first: Answer) -> None:
    assert statuses(answers) == {201: len(answers)}
    assert all(map(is_replayed, answers))
    assert {answer.body for answer in answers} == {first.body}


@contextmanager
def held(rendezvous: Rendezvous, count: int = 1) -> Iterator[None]:
    """Wait until handlers have come, and keep them while the block runs."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.callback(rendezvous.wait().let_go)
        yield


def expire(action: Action) -> None:
    IdempotencyRecord.objects.filter(key=action.key).update(expires_at=UTCNow())


@each(VIEWS)
def test_duplicates_at_once(race: Race, finish: Finish, view: str) -> None:
    """E1, E3: Of 50 at once one acts; the others replay or get the 409."""
    for action in (Action(VIEWS[view]), Action(VIEWS[view])):
        answers = race.send_all([action] * MANY)
        (first,) = runs(answers)
        assert {a.body for a in answers if a.status == 201} == {first.body}
        assert_refused([a for a in answers if a.status != 201])
    finish(race, allowed={201, 409})


@each(VIEWS)
def test_two_payloads(race: Race, finish: Finish, view: str) -> None:
    """F4: Two payloads under one key: one acts, the other never does."""
    action = Action(VIEWS[view])
    other = replace(action, payload=2)
    answers = race.send_all([action, other] * (MANY // 2))
    assert len(runs(answers)) == 1
    assert sorted(race.send(a).status for a in (action, other)) == [201, 422]
    finish(race, allowed={201, 409, 422})


@each(ATOMIC_VIEWS)
def test_slow_handler(
    race: Race, finish: Finish, rendezvous: Rendezvous, view: str
) -> None:
    """E3: While a request runs, its duplicates are refused and others are served."""
    url = VIEWS[view]
    action = Action(url)
    slow = race.start([action], **rendezvous.header)
    with held(rendezvous):
        if HAS_ONE_WRITER:
            duplicates = race.start([action] * 10)
        else:
            assert_refused(race.send_all([action] * MANY))
            # The record can't be seen yet.
            assert_refused(race.send_all([replace(action, payload=2)] * 2))
            others = [Action(), Action(url), Action(url, key=None)]
            assert len(runs(race.send_all(others))) == 3
    (first,) = slow.answers()
    assert first.status == 201
    if HAS_ONE_WRITER:
        assert_replayed(duplicates.answers(), first)
    finish(race, allowed={201, 409})


@each(LEASED_VIEWS)
def test_slow_leased_handler(
    race: Race, finish: Finish, rendezvous: Rendezvous, view: str
) -> None:
    """E3, E7: A leased request refuses its duplicates, and holds nobody else up.

    So it is on SQLite, too: a lease is no transaction.
    """
    url = VIEWS[view]
    action = Action(url)
    slow = race.start([action], **rendezvous.header)
    with held(rendezvous):
        assert_refused(race.send_all([action] * MANY))
        # The record can be seen.
        others = race.send_all([replace(action, payload=2)] * 2)
        assert statuses(others) == {422: 2}
        others = race.send_all([Action(), Action(url), Action(url, key=None)])
        assert len(runs(others)) == 3
    (first,) = slow.answers()
    assert first.status == 201
    assert_replayed([race.send(action)], first)
    finish(race, allowed={201, 409, 422})


def test_slow_handler_waited_for(
    race: Race, finish: Finish, rendezvous: Rendezvous
) -> None:
    """E3: With on_concurrent="wait" a duplicate gets the answer when there is one."""
    action = Action("/patient-rendezvous/")
    slow = race.start([action], **rendezvous.header)
    with held(rendezvous):
        duplicates = race.start([action] * 6)
        if not HAS_ONE_WRITER:
            assert len(runs(race.send_all([Action(), Action(key=None)]))) == 2
            assert not any(future.done() for future in duplicates.futures)
    assert_replayed(duplicates.answers(), *slow.answers())
    finish(race, allowed={201})


@each(ATOMIC_VIEWS)
def test_replays_beside_other_traffic(
    race: Race, finish: Finish, rendezvous: Rendezvous, view: str
) -> None:
    """R6: 100 replay at once; neither they nor others are refused or held up."""
    action = Action(VIEWS[view])
    first = race.send(action)
    others = [Action(key=None if n % 3 else str(uuid4())) for n in range(30)]
    everything = [action] * (2 * MANY) + others
    if HAS_ONE_WRITER:
        crowd = race.start(everything)
    else:
        slow = race.start([Action("/rendezvous/")], **rendezvous.header)
        with held(rendezvous):
            crowd = race.start(everything)
            crowd.answers()
        assert statuses(slow.answers()) == {201: 1}
    answers = [future.result() for future in crowd.futures]
    assert_replayed(answers[: 2 * MANY], first)
    assert len(runs(answers[2 * MANY :])) == len(others)
    finish(race, allowed={201})


@each(ATOMIC_VIEWS)
def test_expired_key(
    race: Race, finish: Finish, rendezvous: Rendezvous, view: str
) -> None:
    """P1: 50 claim an expired key at once: one wins, the others know at once."""
    action = Action(VIEWS[view])
    race.send(action)
    expire(action)
    # Any payload will do.
    actions = [action, replace(action, payload=2)] * (MANY // 2)
    crowd = race.start(actions, **rendezvous.header)
    with held(rendezvous):
        if not HAS_ONE_WRITER:
            assert_refused(crowd.answers(MANY - 1))
    assert len(runs(crowd.answers())) == 1
    finish(race, allowed={201, 409, 422}, due={action.mark: 2})


def test_resuming_at_once(race: Race, finish: Finish, rendezvous: Rendezvous) -> None:
    """E12: 50 find a run that was killed between two steps: one of them resumes it."""
    for action in (Action("/resuming/rendezvous/"), Action("/resuming/rendezvous/")):
        killed = race.server.start(
            action.path, action.data, action.key, **rendezvous.header
        )
        with closing(killed):
            rendezvous.wait().kill()
        left = IdempotencyRecord.objects.filter(key=action.key)
        assert left.update(lease_expires_at=UTCNow()) == 1
        answers = race.send_all([action] * MANY)
        (resumed,) = runs(answers)
        assert {a.body for a in answers if a.status == 201} == {resumed.body}
        assert_refused([a for a in answers if a.status != 201])
        assert left.get().attempt == 2
    due = {action.mark: 2 for action, _answer in race.answers}
    finish(race, allowed={201, 409}, due=due)


def purge() -> int:
    deleted: int = IdempotencyRecord.objects.purge().deleted
    return deleted


def test_purge_at_once(race: Race, finish: Finish) -> None:
    """P1, P2: Claims and a purge of one row, at once and often: one acts each time."""
    action = Action()
    race.send(action)
    rounds = 20
    for _ in range(rounds):
        expire(action)
        barrier = Barrier(5)

        def send(action: Action, barrier: Barrier = barrier) -> Answer:
            barrier.wait(PATIENCE)
            return race.send(action)

        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(send, action) for _ in range(4)]
            barrier.wait(PATIENCE)
            purge()
        answers = [future.result() for future in sent]
        # Where a row's lock tells that a key is taken, the purge may have it.
        answers.append(race.send(action))
        assert len(runs(answers)) == 1
        assert_replayed([race.send(action)], *runs(answers))
    finish(race, allowed={201, 409}, due={action.mark: 1 + rounds})


def test_purge_first(race: Race, finish: Finish) -> None:
    """P1, P2: Claims of a row that a purge is about to delete: one acts."""
    action = Action()
    race.send(action)
    expire(action)
    crowds: list[Crowd] = []

    def meet_claims(execute: Any, sql: str, *args: Any) -> Any:
        # SQLite has a DELETE for half-done records first.
        if sql.startswith("DELETE") and not crowds:
            crowds.append(race.start([action] * 4))
            if VENDOR == "postgresql":
                wait_until(is_waited_for, "a claim to wait for the purge")
                assert_refused(crowds[0].answers(3))
            elif VENDOR == "mysql":
                assert_refused(crowds[0].answers())
        return execute(sql, *args)

    with connection.execute_wrapper(meet_claims):
        assert purge() == 1
    (crowd,) = crowds
    answers = crowd.answers()
    assert len(runs(answers)) == (0 if VENDOR == "mysql" else 1)
    finish(race, allowed={201, 409}, due={action.mark: 2})


def is_waited_for() -> bool:
    """Return whether another session of PostgreSQL waits for this one."""
    return bool(
        run(
            "SELECT 1 FROM pg_locks WHERE NOT granted "
            "AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        )
    )


def test_claim_first(race: Race, finish: Finish, rendezvous: Rendezvous) -> None:
    """P2: A purge while an expired key is executed again passes it by, at once."""
    action = Action("/rendezvous/")
    race.send(action)
    expire(action)
    slow = race.start([action], **rendezvous.header)
    with ThreadPoolExecutor(1) as pool:
        with held(rendezvous):
            purging = pool.submit(purge_and_close)
            if not HAS_ONE_WRITER:
                assert purging.result(PATIENCE) == 0
        assert purging.result(PATIENCE) == 0
    first = slow.answers()
    assert len(runs(first)) == 1
    assert_replayed([race.send(action)], *first)
    finish(race, allowed={201}, due={action.mark: 2})


def purge_and_close() -> int:
    try:
        return purge()
    finally:
        connection.close()


@each(ATOMIC_VIEWS)
def test_two_scopes(
    race: Race, finish: Finish, rendezvous: Rendezvous, view: str
) -> None:
    """S1: One key of two callers is two keys, executed at the same time."""
    ada = Action(VIEWS[view])
    bob = replace(ada, user="bob", mark=uuid4().hex)
    if HAS_ONE_WRITER:
        crowd = race.start([ada, bob])
    else:
        crowd = race.start([ada, bob], **rendezvous.header)
        with held(rendezvous, 2):
            pass  # both handlers have come
    assert len(runs(crowd.answers())) == 2
    finish(race, allowed={201})


TABLES = [model._meta.db_table for model in (Effect, IdempotencyRecord)]


@pytest.fixture
def elsewhere(atomic_requests: bool) -> Iterator[Race]:
    """Return a race whose server finds the same tables in another schema."""
    own = connection.settings_dict
    here = own["NAME"]
    if VENDOR == "postgresql":
        schema, like = "elsewhere", "(LIKE public.{} INCLUDING ALL)"
        settings = {"OPTIONS": {"options": f"-c search_path={schema},public"}}
        drop = f"DROP SCHEMA IF EXISTS {schema} CASCADE"
    else:
        schema, like = f"{here}_elsewhere", f"LIKE {here}.{{}}"
        settings = {"NAME": schema}
        drop = f"DROP SCHEMA IF EXISTS {schema}"
    run(drop, f"CREATE SCHEMA {schema}")
    run(*(f"CREATE TABLE {schema}.{name} {like.format(name)}" for name in TABLES))
    before = {name: own[name] for name in settings}
    with TemporaryDirectory(prefix="idem") as directory, ExitStack() as stack:
        stack.callback(run, drop)
        own.update(settings)
        try:
            server = stack.enter_context(serving(Path(directory), workers=1))
        finally:
            own.update(before)
        yield Race(
            server, lambda: dict(run(f"SELECT id, note FROM {schema}.app_effect"))
        )


def run(*statements: str) -> Any:
    """Execute statements and return the rows of the last."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


@pytest.mark.skipif(HAS_ONE_WRITER, reason="SQLite has neither schemas nor two writers")
def test_two_schemas(
    race: Race, elsewhere: Race, finish: Finish, rendezvous: Rendezvous
) -> None:
    """E3: One key in two schemas, or databases, is two keys, executed at once."""
    action = Action("/rendezvous/")
    crowds = [place.start([action], **rendezvous.header) for place in (race, elsewhere)]
    with held(rendezvous, 2):
        for place in (race, elsewhere):
            assert_refused(place.send_all([action] * 4))
    for crowd in crowds:
        assert len(runs(crowd.answers())) == 1
    finish(race, elsewhere, allowed={201, 409})
