"""Connections that are lost under what leased mode writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.http import HttpResponse
from django.test import TestCase
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency import claims
from idempotency.claims import Claims, claims_in
from idempotency.claims.leases import PAUSES
from idempotency.context import context_of
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, RecordChanged, State
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import code_of, key
from tests.support.processes import wait_until
from tests.support.rendezvous import session_id
from tests.test_docs import run_case
from tests.test_leased import (
    Settled,
    end_lease,
    is_abandoned,
    lease_left,
    refuse,
    the_record,
)

pytestmark = [
    pytest.mark.usefixtures("atomic_requests"),
    pytest.mark.urls("tests.test_leased"),
]

TABLE = IdempotencyRecord._meta.db_table
Handler = Callable[[Request], Any]
Handle = Callable[[Handler], None]


class Cut:
    """Loses the connection before or after one of the app's statements.

    The statement is a number, or the first one that has a word in it.
    """

    def __init__(self, at: int | str, when: str, then: Callable[..., Any]) -> None:
        self.at, self.when, self.then = at, when, then
        self.count = 0
        self.lost: Any = None

    def __call__(self, execute: Any, sql: str, params: Any, *more: Any) -> Any:
        if self.lost or TABLE not in sql:
            return execute(sql, params, *more)
        self.count += 1
        if self.at != self.count and not (isinstance(self.at, str) and self.at in sql):
            return execute(sql, params, *more)
        self.lost = connection.connection
        if self.when == "after":
            execute(sql, params, *more)
        self.then(sql, params)
        end_session()
        if self.when == "before" and connection.vendor != "sqlite":
            return execute(sql, params, *more)  # the driver finds out
        raise OperationalError("the connection is lost")


def end_session() -> None:
    """Let the server end the connection. SQLite has none, and can't lose any."""
    if connection.vendor == "sqlite":
        return
    end, look = {
        "postgresql": (
            "SELECT pg_terminate_backend(%s)",
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s",
        ),
        "mysql": (
            "KILL CONNECTION %s",
            "SELECT 1 FROM information_schema.processlist WHERE id = %s",
        ),
    }[connection.vendor]
    number = session_id()
    with closing(connection.copy()) as other, other.cursor() as cursor:

        def is_over() -> bool:
            cursor.execute(look, [number])
            return cursor.fetchone() is None

        cursor.execute(end, [number])
        wait_until(is_over, "the database to end a session")


@contextmanager
def cut(
    at: int | str, when: str, then: Callable[..., Any] = lambda *statement: None
) -> Iterator[Cut]:
    """Cut a request's connection at one of the app's statements."""
    cutting = Cut(at, when, then)
    try:
        with connection.execute_wrapper(cutting):
            yield cutting
    finally:
        if connection.connection is cutting.lost:
            connection.close()  # as Django does after a request that had errors
    assert cutting.lost or isinstance(at, int)


def post(client: Any, url: str = "/rerun/") -> Any:
    return client.post(url, {"a": 1}, **key())


class Situation:
    """What a request finds and does, and what must come of it, cut or not."""

    def __init__(
        self,
        handler: Handler,
        status: int = 201,
        state: str | None = State.COMPLETED,
        before: Callable[[Any, Handle], None] = lambda client, handle: None,
    ) -> None:
        self.handler, self.status, self.state = handler, status, state
        self.before = before


def run_and_expire(client: Any, handle: Handle) -> None:
    handle(create_effect)
    assert post(client).status_code == 201
    IdempotencyRecord.objects.update(expires_at=UTCNow())


def run_and_fail(client: Any, handle: Handle) -> None:
    handle(act_and_fail)
    assert post(client).status_code == 500


def act_and_fail(request: Request) -> Any:
    create_effect(request)
    raise Settled


def act_and_refuse(request: Request) -> Any:
    create_effect(request)
    return refuse("Http404")


def derive_and_refuse(request: Request) -> Any:
    request.idempotency.derive("charge")  # type: ignore[attr-defined]
    return act_and_refuse(request)


def renew_and_act(request: Request) -> Any:
    request.idempotency.renew()  # type: ignore[attr-defined]
    return create_effect(request)


def act_and_release(request: Request) -> Any:
    request.idempotency.release()  # type: ignore[attr-defined]
    return create_effect(request)


SITUATIONS = {
    "new": Situation(create_effect),
    "expired": Situation(create_effect, before=run_and_expire),
    "abandoned": Situation(create_effect, before=run_and_fail),
    "renewing": Situation(renew_and_act),
    "refused": Situation(act_and_refuse, 404, None),
    "refused, unknown": Situation(derive_and_refuse, 404, State.ABANDONED),
    "failed": Situation(act_and_fail, 500, State.ABANDONED),
    "released": Situation(act_and_release, 201, None),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", SITUATIONS)
def test_cut_at_every_statement(
    client: Any, handle: Handle, name: str, when: str
) -> None:
    """E7: Whatever statement of the app's is cut, all is as if it were not.

    The handler runs once, and its answer and its record are what they would be.
    """
    situation = SITUATIONS[name]
    number = 0
    while True:
        number += 1
        situation.before(client, handle)
        before = Effect.objects.count()
        handle(situation.handler)
        with cut(number, when) as cutting:
            answer = post(client)
        states = [*IdempotencyRecord.objects.values_list("state", flat=True)]
        assert answer.status_code == situation.status, number
        assert Effect.objects.count() == before + 1, number
        assert states == ([situation.state] if situation.state else []), number
        if situation.state == State.COMPLETED:
            retry = post(client)
            assert (retry.content, retry["Idempotent-Replayed"]) == (
                answer.content,
                "true",
            )
        if not cutting.lost:
            break
        IdempotencyRecord.objects.all()._raw_delete("default")
    # The claim and one more write, each of which has been cut.
    assert number > 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["new", "expired", "abandoned"])
def test_any_database(
    client: Any, handle: Handle, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    """E7: The same holds for the statements of Claims, for any database."""
    plain = Claims(connection)
    monkeypatch.setattr(connection, claims.ATTRIBUTE, plain, raising=False)
    test_cut_at_every_statement(client, handle, name, when)


class TestClaims:
    """E7: what a repeated claim finds."""

    def test_lease_over(self, client: Any, handle: Handle) -> None:
        """E7: A claim that is found late, its lease over, gets a new one."""

        def handler(request: Request) -> Any:
            assert lease_left() > 0
            return create_effect(request)

        handle(handler)
        with cut("INSERT", "after", lambda *statement: end_lease()):
            assert post(client).status_code == 201
        assert the_record().attempt == 1
        assert Effect.objects.count() == 1

    def test_taken_over(self, client: Any) -> None:
        """E7, E9: If another run took it over meanwhile, its response is replayed."""
        others = []

        def take_over(*statement: Any) -> None:
            end_lease()
            others.append(post(client))

        with cut("INSERT", "after", take_over):
            answer = post(client)
        assert answer["Idempotent-Replayed"] == "true"
        assert answer.content == others[0].content
        assert the_record().attempt == 2
        assert Effect.objects.count() == 1

    def test_being_taken_over(
        self, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """E7: A run that is about to take it over is waited for, but not long."""
        here, slept = claims_in("default"), sleeps(monkeypatch)
        monkeypatch.setattr(here, "take_over", lambda *arguments: False)
        with cut("INSERT", "after", lambda *statement: end_lease()):
            assert code_of(post(client)) == "idempotency_in_progress"
        assert slept == [*PAUSES]
        assert Effect.objects.count() == 0

    @pytest.mark.parametrize("how", ["new", "taken over"])
    @pytest.mark.skipif(
        connection.vendor == "sqlite", reason="SQLite has no server that goes on"
    )
    def test_still_at_work(
        self, client: Any, handle: Handle, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """E7: What the server does after the connection was lost counts, too."""
        if how == "taken over":
            run_and_fail(client, handle)
            handle(create_effect)
        before = Effect.objects.count()
        with closing(connection.copy()) as other:
            other.set_autocommit(False)

            def go_on(sql: str, params: Any) -> None:
                with other.cursor() as cursor:
                    cursor.execute(sql, params)

            slept = sleeps(monkeypatch, other.commit)
            with cut("INSERT" if how == "new" else "UPDATE", "before", go_on):
                assert post(client).status_code == 201
        assert slept == [0, PAUSES[1]]
        assert (the_record().state, Effect.objects.count()) == (
            State.COMPLETED,
            before + 1,
        )

    def test_not_of_this_request(self, client: Any) -> None:
        """E3, E7: A request that finds another one's claim gets the usual 409."""

        def claim(*statement: Any) -> None:
            other = IdempotencyRecord.objects.get()
            IdempotencyRecord.objects.update(token=other.pk)

        with cut("INSERT", "after", claim):
            assert code_of(post(client)) == "idempotency_in_progress"
        assert Effect.objects.count() == 0


def sleeps(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[], Any] = bool
) -> list[float]:
    """Let time pass only where somebody sleeps, and return how long they sleep."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds:
            then()

    monkeypatch.setattr("idempotency.claims.leases.time", SimpleNamespace(sleep=sleep))
    return slept


def in_steps(request: Request) -> Any:
    """Write an order, call outside, and write the receipt with the response."""
    steps = context_of(request)
    ordered = steps.step("order", lambda: write("order"))
    called = steps.call("charge", call_outside, on_abandoned="hold")
    return steps.step(
        "receipt",
        lambda: Response({**write("receipt"), **ordered, **called}, status=201),
    )


def write(what: str) -> dict[str, int]:
    return {what: Effect.objects.create(note=what).pk}


def call_outside(key: str) -> dict[str, str]:
    Outside.calls.append(key)
    return {"charge": key}


class Outside:
    """A provider, and the keys that it was called with."""

    calls: ClassVar[list[str]] = []


@contextmanager
def cut_commit(number: int, when: str, then: Callable[[], Any] = bool) -> Iterator[Any]:
    """Lose the connection before or after one of a request's COMMITs."""
    raw = connection._commit  # type: ignore[attr-defined]  # Django's own
    counted: list[str] = []

    def commit() -> None:
        counted.append(when)
        if len(counted) != number:
            raw()
            return
        if when == "after":
            raw()
        end_session()
        then()
        if when == "before" and connection.vendor != "sqlite":
            raw()  # the driver finds out
        raise OperationalError("the connection is lost")

    with patch.object(connection, "_commit", commit):
        yield counted


class TestSteps:
    """E12, E13: A lost connection takes one step at most, and no step acts twice."""

    @pytest.fixture(autouse=True)
    def in_steps(self, handle: Handle) -> None:
        """Let the handler order, charge and confirm."""
        Outside.calls.clear()
        handle(in_steps)

    @staticmethod
    def finish(client: Any, answer: Any) -> Any:
        """Retry, and check that all was done once; return the retry."""
        retry = post(client, "/resuming/")
        assert retry.status_code == 201
        if answer.status_code == 201:
            assert (retry.content, retry["Idempotent-Replayed"]) == (
                answer.content,
                "true",
            )
        assert [*Effect.objects.order_by("pk").values_list("note", flat=True)] == [
            "order",
            "receipt",
        ]
        assert len(Outside.calls) == 1
        return retry

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_statements(self, client: Any, when: str) -> None:
        """E7, E12, E13: Cut at any statement, the retry finishes what was not done.

        Claims and what is recorded of calls are written again on a new connection.
        """
        number, failed = 0, []
        while True:
            number += 1
            with cut(number, when) as cutting:
                answer = post(client, "/resuming/")
            if answer.status_code != 201:
                assert answer.status_code == 500
                failed.append(number)
            self.finish(client, answer)
            if not cutting.lost:
                break
            IdempotencyRecord.objects.all()._raw_delete("default")
            Effect.objects.all()._raw_delete("default")
            Outside.calls.clear()
        # In the transactions of the two steps, which only the retry can do again.
        assert len(failed) == 2
        assert number > 2 + len(failed)

    @pytest.mark.parametrize("which", [1, 2])
    def test_before_commit(self, client: Any, which: int) -> None:
        """E12: A step whose COMMIT was not done is done by the retry."""
        with cut_commit(which, "before"):
            answer = post(client, "/resuming/")
        assert answer.status_code == 500
        assert Effect.objects.count() == which - 1
        self.finish(client, answer)

    @pytest.mark.parametrize("which", [1, 2])
    def test_after_commit(self, client: Any, which: int) -> None:
        """E12: A step of which only the reply was lost is done, and the run goes on."""
        with cut_commit(which, "after") as commits:
            answer = post(client, "/resuming/")
        assert answer.status_code == 201
        assert len(commits) == 2
        self.finish(client, answer)

    @pytest.mark.parametrize("which", [1, 2])
    def test_taken_over_meanwhile(self, client: Any, which: int) -> None:
        """E12: What another run has done since is not taken for one's own."""
        others = []

        def take_over() -> None:
            if which == 1:
                end_lease()
            others.append(post(client, "/resuming/"))
            connections.close_all()  # those of this thread

        def meanwhile() -> None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(take_over).result()

        with cut_commit(which, "after", meanwhile):
            answer = post(client, "/resuming/")
        assert others[0].status_code == 201
        if which == 1:
            assert answer.status_code == 500
        else:
            assert others[0].content == answer.content
        assert self.finish(client, answer).content == others[0].content


class TestErrors:
    """E7: what is repeated, and what is not."""

    @staticmethod
    def fail(monkeypatch: Any, *errors: Exception) -> list[Exception]:
        """Let claims fail, one after another; return what has not come yet."""
        left = [*errors]

        def claim(*arguments: Any, **options: Any) -> Any:
            raise left.pop(0)

        connection.ensure_connection()
        monkeypatch.setattr(claims_in("default"), "claim", claim)
        return left

    @pytest.mark.parametrize("kind", [DataError, IntegrityError])
    def test_refused(self, client: Any, monkeypatch: Any, kind: Any) -> None:
        """E7: What the database has refused is not sent again."""
        second = OperationalError()
        left = self.fail(monkeypatch, kind(), second)
        assert post(client).status_code == 500
        assert left == [second]

    @pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
    def test_lost_twice(self, client: Any, monkeypatch: Any, kind: Any) -> None:
        """E7: There is no third try."""
        third = OperationalError()
        left = self.fail(monkeypatch, kind(), kind(), third)
        assert post(client).status_code == 500
        assert left == [third]

    def test_transient(self, client: Any, monkeypatch: Any) -> None:
        """E4, E7: A second try that the database undoes is for the client to retry."""
        undone = OperationalError("undone")
        left = self.fail(monkeypatch, OperationalError("lost"), undone)
        monkeypatch.setattr(
            claims_in("default"), "is_transient", lambda error: error is undone
        )
        answer = post(client)
        assert (answer.status_code, code_of(answer)) == (
            503,
            "idempotency_transaction_failed",
        )
        assert not left


class TestDecisions:
    """E7, E9: what a person decides in code."""

    @pytest.fixture
    def stuck(self, client: Any, handle: Handle) -> IdempotencyRecord:
        """Return an abandoned record."""
        run_and_fail(client, handle)
        return the_record()

    @staticmethod
    def decide(record: IdempotencyRecord, verb: str) -> None:
        if verb == "resolve":
            record.resolve(HttpResponse(b"paid"))
        else:
            record.release()

    @staticmethod
    def assert_decided(verb: str) -> None:
        bodies = [bytes(found.body or b"") for found in IdempotencyRecord.objects.all()]
        assert bodies == ([b"paid"] if verb == "resolve" else [])

    @pytest.mark.parametrize("at", [1, 2])
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("verb", ["resolve", "release"])
    def test_lost(
        self, stuck: IdempotencyRecord, verb: str, when: str, at: int
    ) -> None:
        """E7, E9: A decision whose connection was lost is made, once."""
        with cut(at, when):
            self.decide(stuck, verb)
        self.assert_decided(verb)

    @pytest.mark.skipif(
        connection.vendor == "sqlite", reason="It writes in a statement of its own."
    )
    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("verb", ["resolve", "release"])
    def test_lost_commit(self, stuck: IdempotencyRecord, verb: str, when: str) -> None:
        """E7, E9: So is one whose COMMIT, or the reply to it, was lost."""
        with cut_commit(1, when):
            self.decide(stuck, verb)
        self.assert_decided(verb)

    @pytest.mark.parametrize("verb", ["resolve", "release"])
    def test_another_run(
        self, client: Any, handle: Handle, stuck: IdempotencyRecord, verb: str
    ) -> None:
        """E7, E9: What has come since is not decided about."""
        handle(create_effect)

        def rerun() -> None:
            assert post(client).status_code == 201
            connections.close_all()  # those of this thread

        def meanwhile(*statement: Any) -> None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(rerun).result()

        with cut(1, "before", meanwhile), pytest.raises(RecordChanged):
            self.decide(stuck, verb)
        assert the_record().attempt == 2

    @pytest.mark.parametrize("how", ["atomic", "autocommit is off"])
    def test_in_a_transaction(self, stuck: IdempotencyRecord, how: str) -> None:
        """E9: In a transaction of the caller's own nothing is repeated."""
        with ExitStack() as stack:
            if how == "atomic":
                stack.enter_context(transaction.atomic())
            else:
                transaction.set_autocommit(False)
            with pytest.raises(DatabaseError), cut(1, "before"):
                stuck.release()
            connection.close()
            connection.needs_rollback = False
        assert is_abandoned()


def test_in_a_testcase(monkeypatch: Any) -> None:
    """E11: In a TestCase's transaction no new connection could help a claim, either."""
    tries, statuses = [], []

    def claim(*arguments: Any, **options: Any) -> Any:
        tries.append(arguments)
        raise OperationalError("lost")

    class Case(TestCase):
        def test_leased(self) -> None:
            monkeypatch.setattr(claims_in("default"), "claim", claim)
            client = APIClient(raise_request_exception=False)
            client.credentials(HTTP_X_USER="ada")
            statuses.append(post(client, "/leased/").status_code)

    run_case(Case)
    assert (statuses, len(tries)) == ([500], 1)
