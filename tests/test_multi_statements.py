"""Atomic mode on MariaDB by multi-statements: round trips, failures, watchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from django.db import (
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency.checks.databases import check_round_trips
from idempotency.claims import claims_in
from idempotency.claims.multi_statements import (
    COMMIT_IF_WRITTEN,
    MultiStatementTransaction,
    why_not,
)
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import KEY, assert_refused, key
from tests.support.processes import wait_until
from tests.support.round_trips import counting_round_trips, trips_of
from tests.test_pipelines import TABLE, assert_acts_once, options, send

pytestmark = [
    pytest.mark.skipif(connection.vendor != "mysql", reason="MariaDB alone"),
    pytest.mark.usefixtures("database"),
    pytest.mark.urls("tests.test_pipelines"),
]

Handler = Callable[[Request], Any]
Handle = Callable[[Handler], None]
BEGIN, COMMIT = "SET autocommit = 0; ", f"; {COMMIT_IF_WRITTEN}"


def reasons() -> list[str]:
    """Return what ``check --database default`` says about round trips."""
    return [message.msg for message in check_round_trips(databases=["default"])]


def kill_session(number: int) -> None:
    """Let the server end a session, and wait until it has."""
    with closing(connection.copy("rival")) as rival, rival.cursor() as cursor:

        def is_over() -> bool:
            cursor.execute(
                "SELECT 1 FROM information_schema.processlist WHERE id = %s", [number]
            )
            return cursor.fetchone() is None

        cursor.execute("KILL CONNECTION %s", [number])
        wait_until(is_over, "the session to end")


@contextmanager
def at_commit(*, before: Any = None, after: Any = None) -> Iterator[None]:
    """Call functions before or after the message that has the COMMIT in it."""

    def watch(execute: Any, sql: str, *others: Any) -> Any:
        is_last = sql.endswith(COMMIT)
        if is_last and before:
            before()
        result = execute(sql, *others)
        if is_last and after:
            after()
        return result

    with connection.execute_wrapper(watch):
        yield


class TestRoundTrips:
    """R6: what a keyed request waits for."""

    def test_own_transaction(self, client: APIClient, handle: Handle) -> None:
        """R6: A first-time request waits as often as the bare view's transaction."""
        send(client, "open-the-connection")
        bare = trips_of(client, "/bare/")
        assert bare == 4
        assert trips_of(client, "/function/", **key()) == bare
        assert trips_of(client, "/function/", **key()) == 1
        handle(lambda request: Response(status=400))
        assert trips_of(client, "/function/", **key("refused-key")) == 3

    def test_expired(self, client: APIClient) -> None:
        """P1: An expired record is taken over in as many round trips."""
        send(client)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        with counting_round_trips(connection) as trips:
            answer = client.post("/function/", {"another": "body"}, **key())
        assert (answer.status_code, Effect.objects.count()) == (201, 2)
        assert trips.count == 4
        assert "Idempotent-Replayed" in client.post(
            "/function/", {"another": "body"}, **key()
        )


class TestFailures:
    """E1 to E5: nothing is lost or half done, wherever it fails."""

    @pytest.mark.parametrize("loss", ["token", "row"])
    @pytest.mark.parametrize("status_code", [201, 400])
    def test_claim_lost(
        self, client: APIClient, handle: Handle, status_code: int, loss: str
    ) -> None:
        """E5: The server commits only if the statement before has hit its row."""

        def handler(request: Request) -> Response:
            create_effect(request)
            record = IdempotencyRecord.objects.filter(pk=request.idempotency.record_id)
            if loss == "row":
                record.delete()
            else:
                record.update(token=KEY[:32].encode().hex()[:32])
            return Response(status=status_code)

        handle(handler)
        assert_refused(send(client), 503, "idempotency_transaction_failed")
        assert Effect.objects.count() == 0
        handle(create_effect)
        assert_acts_once(client)

    def test_handler_commits(self, client: APIClient, handle: Handle) -> None:
        """E5: A handler that commits by itself keeps its record in progress."""

        def handler(request: Request) -> Response:
            response = create_effect(request)
            with connection.cursor() as cursor:
                cursor.execute("COMMIT")
            assert connection.connection.get_autocommit() is False
            assert IdempotencyRecord.objects.get().state == State.IN_PROGRESS
            return response

        handle(handler)
        assert_acts_once(client)

    def test_handler_rolls_back(self, client: APIClient, handle: Handle) -> None:
        """E5: A handler that rolls back has no claim any more."""

        def handler(request: Request) -> Response:
            response = create_effect(request)
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")
            Effect.objects.create(name="later")
            return response

        handle(handler)
        assert_refused(send(client), 503, "idempotency_transaction_failed")
        assert Effect.objects.count() == 0

    def test_record_refused(self, client: APIClient) -> None:
        """E5: Where the response can't be stored, its effects are rolled back."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"ALTER TABLE {TABLE} ADD CONSTRAINT x CHECK (body_size < 0)"
            )
        try:
            assert_refused(send(client), 503, "idempotency_transaction_failed")
            assert Effect.objects.count() == 0
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"ALTER TABLE {TABLE} DROP CONSTRAINT x")
        assert_acts_once(client)

    def test_connection_lost_before(self, client: APIClient) -> None:
        """E4: If the connection is lost before the COMMIT is sent, nothing happened."""
        session = connection.cursor().connection.thread_id
        with at_commit(before=lambda: kill_session(session())):
            assert send(client).status_code in (500, 503)
        connection.close()
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0
        assert_acts_once(client)

    def test_reply_lost(self, client: APIClient) -> None:
        """E4: If the COMMIT's reply is lost, it is a 500, and the retry a replay."""

        def lose() -> None:
            raise connection.Database.OperationalError(2013, "the reply is lost")

        with at_commit(after=lose):
            answer = send(client)
        assert answer.status_code == 500
        assert "Idempotency-Expires" not in answer
        connection.close()
        assert "Idempotent-Replayed" in send(client)
        assert Effect.objects.count() == 1

    # After 1180 other nodes of Galera may commit, so it does not count as undone.
    @pytest.mark.parametrize(
        ("number", "status_code"), [(1213, 503), (1180, 500), (1105, 500)]
    )
    def test_commit_fails(
        self, client: APIClient, handle: Handle, number: int, status_code: int
    ) -> None:
        """E4, O5: A COMMIT that fails stores nothing and runs no on_commit function."""
        seen: list[int] = []

        def handler(request: Request) -> Response:
            transaction.on_commit(
                lambda: seen.append(IdempotencyRecord.objects.count())
            )
            return create_effect(request)

        # As a cluster refuses a COMMIT, which one server alone does not.
        fail = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}"
        handle(handler)
        with patch("idempotency.claims.multi_statements.COMMIT_IF_WRITTEN", fail):
            answer = send(client)
        assert (answer.status_code, seen) == (status_code, [])
        assert "Idempotency-Expires" not in answer
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0
        assert_acts_once(client)
        assert seen == [1]

    def test_busy(self, client: APIClient) -> None:
        """E3: A request whose key is in progress leaves the connection as it was."""
        send(client)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        with closing(connection.copy("rival")) as rival, rival.cursor() as cursor:
            rival.set_autocommit(False)
            cursor.execute(f"SELECT 1 FROM {TABLE} FOR UPDATE")
            assert send(client).status_code == 409
            assert connection.connection.get_autocommit() is True
            rival.rollback()
        assert send(client).status_code == 201
        assert Effect.objects.count() == 2

    def test_connection_lost_while_busy(self, client: APIClient) -> None:
        """E4: If the savepoint of a busy claim is lost, the request is refused."""
        send(client)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        lost = OperationalError(2013, "the connection is lost")
        with closing(connection.copy("rival")) as rival, rival.cursor() as cursor:
            rival.set_autocommit(False)
            cursor.execute(f"SELECT 1 FROM {TABLE} FOR UPDATE")
            with (
                transaction.atomic(),
                patch.object(
                    connections["default"], "savepoint_rollback", side_effect=lost
                ),
            ):
                answer = send(client)
                transaction.set_rollback(True)
            rival.rollback()
        assert answer.status_code == 503
        assert Effect.objects.count() == 1


class TestHandlers:
    """E2: what a handler may do in the transaction is what it may do elsewhere."""

    def test_driver_state(self, client: APIClient, handle: Handle) -> None:
        """E2: Inside and after, the driver's connection is as Django leaves it."""

        def handler(request: Request) -> Response:
            assert connection.connection.get_autocommit() is False
            assert connection.get_autocommit() is False
            assert connection.in_atomic_block
            return create_effect(request)

        handle(handler)
        assert send(client).status_code == 201
        assert connection.connection.get_autocommit() is True
        for name in ("_commit", "_start_transaction_under_autocommit"):
            assert name not in vars(connection)

    def test_replaced_commit(self, client: APIClient) -> None:
        """E2: A project's own method in place of COMMIT is there again afterwards."""
        commits: list[None] = []
        with patch.object(connections["default"], "_commit", commits.append) as own:
            assert_acts_once(client)
            assert connections["default"]._commit is own
        assert commits == []

    def test_savepoint(self, client: APIClient, handle: Handle) -> None:
        """E2: An error in a savepoint of the handler's undoes what is in it."""

        def handler(request: Request) -> Response:
            response = create_effect(request)
            with pytest.raises(IntegrityError), transaction.atomic():
                Effect.objects.create(pk=Effect.objects.get().pk)
            return response

        handle(handler)
        assert_acts_once(client)

    def test_ended_while_it_begins(self, client: APIClient) -> None:
        """E1: A worker that is stopped meanwhile leaves no BEGIN for others behind."""
        claims: Any = claims_in("default")

        def stop(self: Any) -> None:
            claims.begins_with_next = True
            raise SystemExit

        with (
            patch.object(MultiStatementTransaction, "_begin_with_claim", stop),
            pytest.raises(SystemExit),
        ):
            send(client)
        assert claims.look_up(uuid4()) is None
        assert connection.connection.get_autocommit() is True
        assert_acts_once(client)

    def test_error_before_the_claim(self, client: APIClient) -> None:
        """E1: If no claim was sent, the next request begins anew."""
        with patch.object(type(claims_in("default")), "claim", side_effect=ValueError):
            assert send(client).status_code == 500
        assert connection.connection.get_autocommit() is True
        assert_acts_once(client)


class TestWatchers:
    """What watches a project's statements sees the app's."""

    def test_query_log(self, client: APIClient) -> None:
        """``connection.queries`` has each message, in the order of its execution."""
        with CaptureQueriesContext(connection) as queries:
            send(client)
        sent = [query["sql"] for query in queries.captured_queries]
        look_up, claim, effect, end = sent
        assert look_up.startswith(
            "SET STATEMENT innodb_lock_wait_timeout=0, wsrep_sync_wait=1 FOR SELECT"
        )
        assert claim.startswith(BEGIN + "SET STATEMENT innodb_lock_wait_timeout=0 FOR ")
        assert effect.startswith("INSERT INTO `app_effect`")
        assert end.startswith("UPDATE")
        assert end.endswith(COMMIT)

    def test_on_commit(self, client: APIClient, handle: Handle) -> None:
        """O5: on_commit functions run after the COMMIT, outside of the transaction."""
        seen: list[int] = []

        def note() -> None:
            assert not connection.in_atomic_block
            with closing(connection.copy("rival")) as rival, rival.cursor() as cursor:
                cursor.execute("SELECT COUNT(*) FROM app_effect")
                seen.append(cursor.fetchone()[0])

        def handler(request: Request) -> Response:
            transaction.on_commit(note)
            return create_effect(request)

        handle(handler)
        send(client)
        assert seen == [1]


class TestWays:
    """Where multi-statements can't be used, each statement is sent by itself."""

    def test_used(self) -> None:
        """The driver allows them unless the project says otherwise."""
        connection.ensure_connection()
        assert why_not(connection) is None
        assert reasons() == []

    def test_switched_off(self, client: APIClient) -> None:
        """The driver's own option switches them off."""
        with options(multi_statements=False):
            assert_acts_once(client)
            (reason,) = reasons()
            assert reason.endswith("multi-statements: the driver does not allow them.")

    def test_refused(self, client: APIClient, monkeypatch: Any) -> None:
        """A server or proxy that refuses one gets the same request in single ones."""
        monkeypatch.setattr(
            "idempotency.claims.mariadb.why_not", lambda connection: None
        )
        with options(multi_statements=False):
            claims = claims_in("default")
            monkeypatch.setattr(
                claims, "refuses_multi_statements", False, raising=False
            )
            assert_acts_once(client)
            assert "the server refuses them" in reasons()[0]

    def test_other_begin(self, client: APIClient, monkeypatch: Any) -> None:
        """A backend that begins transactions by itself is left to it."""
        begun: list[Any] = []

        def begin() -> None:
            begun.append(None)
            connection._set_autocommit(False)

        connection.ensure_connection()
        name = "_start_transaction_under_autocommit"
        monkeypatch.setattr(connection, name, begin, raising=False)
        assert "begins transactions by itself" in reasons()[0]
        assert_acts_once(client)
        assert begun

    @pytest.mark.parametrize(
        "first", ["SET autocommit = 0; CALL no()", "SELECT 1 FROM nowhere"]
    )
    def test_other_errors(self, client: APIClient, first: str) -> None:
        """E4: Other errors of the first message are the project's own 500."""
        with patch("idempotency.claims.mariadb.BEGIN", first):
            assert send(client).status_code == 500
        with pytest.raises(OperationalError), connection.cursor() as cursor:
            cursor.execute("CALL no()")
        assert_acts_once(client)
