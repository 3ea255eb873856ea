"""Databases that can't be reached or written to, and COMMITs around the handler."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import (
    DatabaseError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.http import HttpRequest, HttpResponse
from django.test import TestCase, override_settings
from django.urls import path
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.checks import check_durability
from idempotency.claims import Claims, MySQLClaims, claims_in
from idempotency.database import UTCNow
from idempotency.database_errors import is_read_only, is_unavailable
from idempotency.decorators import idempotent
from idempotency.exceptions import DatabaseUnavailable
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.app.views import behave, create_effect
from tests.conftest import code_of, key
from tests.support.failing_commits import commit_fails_with
from tests.support.read_only_sessions import end_writes
from tests.support.round_trips import trips_of
from tests.test_claims import caused, driver_error
from tests.test_leased import run_case
from tests.test_lost_connections import end_session
from tests.test_pipelines import options
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

Handle = Callable[[Callable[[Any], Any]], None]

VENDOR = connection.vendor
UNAVAILABLE = "idempotency_database_unavailable"
FAILED = "idempotency_transaction_failed"
PATIENCE = 30

postgresql = pytest.mark.skipif(VENDOR != "postgresql", reason="PostgreSQL's own")
mariadb = pytest.mark.skipif(VENDOR != "mysql", reason="MariaDB's own")

# What undoes a transaction, by the database.
TRANSIENT: dict[str, Callable[[], OperationalError]] = {
    "postgresql": lambda: caused(driver_error(sqlstate="40001"), "could not serialize"),
    "mysql": lambda: OperationalError(1213, "Deadlock found"),
    "sqlite": lambda: OperationalError("database is locked"),
}


class AsksDatabase(BaseAuthentication):
    """Looks up who is calling, as tokens and sessions do."""

    def authenticate(self, request: Request) -> None:
        ContentType.objects.count()


class ChoosesAuthentication:
    """Authenticates by the request, which views have before they wrap it."""

    request: Any

    def get_authenticators(self) -> list[Any]:
        return [AsksDatabase()] if self.request.method in ("GET", "POST") else []


class Authenticated(ChoosesAuthentication, IdempotencyMixin, APIView):
    idempotency_scope = staticmethod(lambda request: "ada")

    def post(self, request: Request) -> Any:
        return behave(request)

    def get(self, request: Request) -> Any:
        return behave(request)


class AuthenticatedSet(ChoosesAuthentication, IdempotencyMixin, ViewSet):
    idempotency_scope = staticmethod(lambda request: "ada")

    def create(self, request: Request) -> Any:
        return behave(request)


class Registers(BasePermission):
    """Has functions called after the COMMIT, as permissions that write do."""

    functions: list[Callable[[], None]] = []

    def has_permission(self, request: Request, view: Any) -> bool:
        for function in self.functions:
            transaction.on_commit(function)
        return True


class Registering(APIView):
    permission_classes = [Registers]

    @idempotent
    def post(self, request: Request) -> Any:
        return behave(request)


class Leased(APIView):
    @idempotent(atomic=False, on_abandoned="hold")
    def post(self, request: Request) -> Any:
        return behave(request)


class Rerun(APIView):
    @idempotent(atomic=False, on_abandoned="rerun")
    def post(self, request: Request) -> Any:
        return behave(request)


def refuse_replay(request: Request, record: IdempotencyRecord) -> None:
    raise PermissionDenied


class Guarded(APIView):
    @idempotent(check_replay=refuse_replay)
    def post(self, request: Request) -> Any:
        return behave(request)


@idempotent(scope=lambda request: "ada")
def plain(request: HttpRequest) -> HttpResponse:
    ContentType.objects.count()
    return HttpResponse(b"plain", status=201)


@idempotent(scope=lambda request: f"ada-{ContentType.objects.count()}")
def plain_of_caller(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"plain", status=201)


def asked(view: Any) -> Any:
    """Return a plain view that looks something up before it is called."""

    def ask(request: HttpRequest) -> Any:
        ContentType.objects.count()
        return view(request)

    return ask


urlpatterns = [
    *usual_urls,
    path("authenticated/", Authenticated.as_view()),
    path("authenticated-set/", AuthenticatedSet.as_view({"post": "create"})),
    path("leased/", transaction.non_atomic_requests(Leased.as_view())),
    path("rerun/", transaction.non_atomic_requests(Rerun.as_view())),
    path("guarded/", Guarded.as_view()),
    path("registering/", Registering.as_view()),
    path("plain/", plain),
    path("plain/asked/", asked(plain)),
    path("plain/of-caller/", plain_of_caller),
]


def post(url: str = "/function/", body: Any = None, **headers: Any) -> Any:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_X_USER="ada")
    return client.post(url, {} if body is None else body, **(headers or key()))


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a thread, with connections of its own."""

    def call() -> Any:
        try:
            return function(*arguments)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(PATIENCE)


def run(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else None


def assert_unavailable(response: Any) -> None:
    assert (response.status_code, response["Retry-After"]) == (503, "5")
    assert response["Idempotency-Error"] == UNAVAILABLE
    assert b"was not executed" in response.content
    assert b"undid" not in response.content


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the app's lines from WARNING up, all of which are warnings."""
    lines = [r for r in caplog.records if r.name == "idempotency"]
    loud = [line for line in lines if line.levelno > logging.INFO]
    assert {line.levelname for line in loud} <= {"WARNING"}
    assert "savepoint" not in caplog.text
    return [line.getMessage() for line in loud]


@pytest.fixture
def handler(handle: Handle) -> list[Any]:
    """Let each handler note its request, then act."""
    seen: list[Any] = []

    def note(request: Any) -> Any:
        seen.append(request)
        return create_effect(request)

    handle(note)
    return seen


def settings_without_connection(how: str) -> dict[str, Any]:
    if VENDOR == "sqlite":
        return {"NAME": "/nowhere/at/all.sqlite3"}
    if how == "login refused":
        return {"USER": "nobody-at-all", "PASSWORD": "wrong"}
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return {"HOST": "127.0.0.1", "PORT": str(free.getsockname()[1])}


@pytest.fixture(params=["port closed", "login refused"])
def unreachable(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[], Any]]:
    """Let the next connections be refused; return what ends that."""
    if VENDOR == "sqlite" and request.param == "login refused":
        pytest.skip("SQLite has no login.")
    connection.ensure_connection()
    connection.close()
    settings = connection.settings_dict
    changed = settings_without_connection(request.param)
    before = {name: settings[name] for name in changed}
    settings.update(changed)

    def mend() -> None:
        settings.update(before)

    yield mend
    mend()


class TestNoConnection:
    """E4: a connection that can't be had before the claim."""

    @pytest.mark.parametrize(
        "url",
        [
            *("/function/", "/leased/", "/authenticated/", "/authenticated-set/"),
            *("/plain/", "/plain/asked/", "/plain/of-caller/", "/mixin-view/"),
        ],
    )
    def test_refused(
        self,
        atomic_requests: bool,
        unreachable: Any,
        handler: list[Any],
        url: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """E4: Nothing has run, wherever the connection was missed, and a retry runs."""
        assert_unavailable(post(url))
        assert handler == []
        (line,) = warnings_of(caplog)
        assert UNAVAILABLE in line
        assert "OperationalError" in line
        unreachable()
        retry = post(url)
        assert retry.status_code == 201
        assert "Idempotent-Replayed" not in retry
        assert "Idempotent-Replayed" in post(url)

    def test_unknown_server(
        self, monkeypatch: Any, unreachable: Any, handler: list[Any]
    ) -> None:
        """E4: So is a process's first request, which has to ask what the server is."""
        monkeypatch.delattr(connection, "_idempotency_claims", raising=False)
        for name in ("mysql_server_data", "mysql_is_mariadb", "mysql_server_info"):
            vars(connection).pop(name, None)
        assert_unavailable(post())
        assert handler == []

    def test_other_errors_of_an_unknown_server(self, monkeypatch: Any) -> None:
        """O3: Other errors stay the project's, then."""

        def fail(alias: str) -> Any:
            raise DatabaseError("what is this?")

        monkeypatch.setattr("idempotency.modes.base.claims_in", fail)
        assert post().status_code == 500

    @pytest.mark.parametrize(
        ("url", "headers"),
        [
            ("/authenticated/", {"HTTP_X_OTHER": "no key"}),
            ("/unprotected/", key()),
            ("/authenticated/?$idempotency=abc", {"method": "get"}),
        ],
    )
    @pytest.mark.parametrize("atomic_requests", [True], indirect=True)
    def test_not_for_the_app(
        self, atomic_requests: bool, unreachable: Any, url: str, headers: Any
    ) -> None:
        """K4: Requests without a key that counts get the project's own 500."""
        client = APIClient(raise_request_exception=False)
        call = getattr(client, headers.get("method", "post"))
        sent = {n: v for n, v in headers.items() if n.startswith("HTTP")}
        response = call(url, **sent)
        assert response.status_code == 500
        assert "Idempotency-Error" not in response

    @pytest.mark.parametrize("atomic_requests", [True], indirect=True)
    def test_switched_off(self, atomic_requests: bool, unreachable: Any) -> None:
        """K4: Switched off, the app answers nothing."""
        with override_settings(IDEMPOTENCY={"ENABLED": False}):
            assert post().status_code == 500

    @pytest.mark.parametrize("atomic_requests", [True], indirect=True)
    def test_key_in_the_query(self, atomic_requests: bool, unreachable: Any) -> None:
        """E4: The key may be in the query, too."""
        client = APIClient(raise_request_exception=False)
        assert_unavailable(client.post("/function/?$idempotency=" + "k" * 30 + "1"))

    @pytest.mark.parametrize("atomic_requests", [True], indirect=True)
    def test_success_of_the_project(
        self, atomic_requests: bool, unreachable: Any, settings: Any
    ) -> None:
        """O3: A project's handler makes no success of it."""
        settings.REST_FRAMEWORK = {
            **settings.REST_FRAMEWORK,
            "EXCEPTION_HANDLER": f"{__name__}.as_success",
        }
        response = post()
        assert response.status_code == 503
        assert response["Idempotency-Error"] == FAILED

    @pytest.mark.parametrize("atomic_requests", [True], indirect=True)
    def test_without_a_route(self, atomic_requests: bool) -> None:
        """E4: An error before the URL was resolved is the project's."""
        from idempotency.failures import response_to_failure  # noqa: PLC0415

        request = HttpRequest()
        request.META.update(key())
        assert response_to_failure(request, TRANSIENT[VENDOR]()) is None

    def test_signal(self, unreachable: Any, caplog: pytest.LogCaptureFixture) -> None:
        """X1: The refusal is told like others."""
        with caplog.at_level(logging.INFO, logger="idempotency"):
            post("/authenticated/")
        (line,) = [
            vars(record)
            for record in caplog.records
            if vars(record).get("idempotency_event") == "request_refused"
        ]
        assert line["idempotency_code"] == UNAVAILABLE
        assert line["idempotency_view"] == f"{__name__}.Authenticated"


@pytest.fixture
def lose_server(database: None) -> Iterator[Callable[[], None]]:
    """Return what ends the connection, and lets the next ones be refused."""
    if VENDOR == "sqlite":
        pytest.skip("SQLite has no connections to lose.")
    settings = connection.settings_dict
    before = dict(settings)

    def lose() -> None:
        end_session()
        settings.update(settings_without_connection("port closed"))

    yield lose
    settings.update(before)
    connection.close()


@pytest.mark.usefixtures("atomic_requests")
class TestServerGone:
    """E4: a server that is lost in a transaction, and can't be reached after it.

    Django then fails to connect at the end of the transaction, and raises that.
    """

    @pytest.fixture
    def lost_at(self, lose_server: Any) -> Iterator[Callable[[str], None]]:
        """Let the server be gone at the first of the app's statements with a text."""
        wanted: list[str] = []

        def lose(execute: Any, sql: str, *others: Any) -> Any:
            if wanted and wanted[0] in sql and IdempotencyRecord._meta.db_table in sql:
                wanted.clear()
                lose_server()
            return execute(sql, *others)

        with connection.execute_wrapper(lose):
            yield wanted.append
        assert not wanted

    @pytest.mark.usefixtures("each_way")
    @pytest.mark.parametrize("url", ["/function/", "/mixin-view/", "/plain/"])
    def test_claim(
        self, lost_at: Any, handler: list[Any], url: str, caplog: Any
    ) -> None:
        """E4: Nothing has run, and that is said once."""
        caplog.set_level(logging.INFO, logger="idempotency")
        lost_at("")
        assert_unavailable(post(url))
        assert handler == []
        assert len(warnings_of(caplog)) == 1
        events = [vars(r).get("idempotency_event") for r in caplog.records]
        assert events.count("request_refused") == 1

    @pytest.mark.usefixtures("by_statements")
    @pytest.mark.parametrize("url", ["/function/", "/mixin-view/"])
    def test_response(self, lost_at: Any, handler: list[Any], url: str) -> None:
        """E4: Before the COMMIT it is certain that all was undone."""
        lost_at("UPDATE")
        response = post(url)
        assert (response.status_code, code_of(response)) == (503, FAILED)
        assert len(handler) == 1

    def test_handler(self, lose_server: Any, handle: Handle) -> None:
        """O3: What a handler does not catch is the project's."""

        def lose(request: Any) -> Any:
            lose_server()
            return create_effect(request)

        handle(lose)
        response = post()
        assert response.status_code == 500
        assert "Idempotency-Error" not in response

    def test_leased(self, lose_server: Any, handle: Handle) -> None:
        """E7, E9: After a leased handler nobody knows, so it is the project's."""

        def lose(request: Any) -> Any:
            lose_server()
            return create_effect(request)

        handle(lose)
        assert post("/leased/").status_code == 500


def as_success(error: Exception, context: Any) -> Response:
    return Response({"all": "well"})


@pytest.fixture
def read_only(database: None) -> Iterator[Callable[[], None]]:
    """Return what makes this session read-only, as on a standby."""

    yield end_writes
    connection.close()


@pytest.mark.usefixtures("atomic_requests", "each_way")
class TestReadOnly:
    """E4: a server that refuses writes."""

    @pytest.mark.parametrize("url", ["/function/", "/leased/", "/rerun/"])
    def test_new_key(
        self, read_only: Any, handler: list[Any], url: str, caplog: Any
    ) -> None:
        """E4: The handler does not run, and the retry does, on a server that writes."""
        read_only()
        assert_unavailable(post(url))
        assert handler == []
        assert UNAVAILABLE in warnings_of(caplog)[0]
        connection.close()
        assert post(url).status_code == 201
        assert len(handler) == 1

    @pytest.mark.parametrize("url", ["/function/", "/leased/"])
    def test_replay(
        self, read_only: Any, handler: list[Any], url: str, atomic_requests: bool
    ) -> None:
        """E4: What was answered already is replayed, and 422 and tombstones as well."""
        if VENDOR == "sqlite" and atomic_requests:
            pytest.skip("Django's BEGIN IMMEDIATE is a write.")
        first = post(url)
        read_only()
        retry = post(url)
        assert (retry.status_code, retry.content) == (201, first.content)
        assert "Idempotent-Replayed" in retry
        assert code_of(post(url, {"another": "body"})) == "idempotency_key_reused"
        IdempotencyRecord.objects.using("other").update(body=None, body_size=None)
        assert code_of(post(url)) == "idempotency_response_not_kept"
        assert len(handler) == 1

    @pytest.mark.parametrize("url", ["/function/", "/leased/"])
    def test_expired(self, read_only: Any, handler: list[Any], url: str) -> None:
        """E4, P1: An expired key is a new one."""
        post(url)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        read_only()
        assert_unavailable(post(url))
        assert len(handler) == 1

    @pytest.mark.parametrize(
        ("url", "code"),
        [("/leased/", "idempotency_outcome_unknown"), ("/rerun/", UNAVAILABLE)],
    )
    def test_abandoned(
        self, read_only: Any, handle: Handle, url: str, code: str
    ) -> None:
        """E4, E9: An abandoned record can't be taken over; a person's stays one's."""

        def fail(request: Request) -> Any:
            raise ValueError

        handle(fail)
        post(url)
        handle(create_effect)
        read_only()
        assert post(url)["Idempotency-Error"] == code
        assert IdempotencyRecord.objects.get().attempt == 1
        assert not Effect.objects.exists()

    def test_new_connection(self, read_only: Any, atomic_requests: bool) -> None:
        """E4: The next request gets another connection, perhaps to another server."""
        read_only()
        assert_unavailable(post())
        if atomic_requests:  # Django's transaction was open
            connection.close()
        assert post().status_code == 201


class TestNotReady:
    """E4: a node of Galera that refuses all statements."""

    NOT_READY = OperationalError(1047, "WSREP has not yet prepared node")

    @pytest.fixture
    def not_ready(self) -> Iterator[list[str]]:
        """Let all statements that name the records' table fail."""
        refused: list[str] = []

        def refuse(execute: Any, sql: str, *others: Any) -> Any:
            if IdempotencyRecord._meta.db_table not in sql:
                return execute(sql, *others)
            refused.append(sql)
            raise self.NOT_READY

        with connection.execute_wrapper(refuse):
            yield refused

    @pytest.mark.parametrize("url", ["/function/", "/leased/"])
    @mariadb
    def test_claim(
        self,
        atomic_requests: bool,
        each_way: None,
        not_ready: list[str],
        handler: list[Any],
        url: str,
        caplog: Any,
    ) -> None:
        """E4: 1047 at the claim is 503, and nothing has run."""
        assert_unavailable(post(url))
        assert (handler, bool(not_ready)) == ([], True)
        assert "1047" in warnings_of(caplog)[0]

    @mariadb
    def test_end(
        self, atomic_requests: bool, each_way: None, handle: Handle, caplog: Any
    ) -> None:
        """E4: 1047 instead of the response's UPDATE undoes it, and blames nobody."""

        def refuse(execute: Any, sql: str, *others: Any) -> Any:
            if sql.startswith(("UPDATE", "INSERT")) and "status_code" in sql:
                raise self.NOT_READY
            return execute(sql, *others)

        with connection.execute_wrapper(refuse):
            response = post()
        assert (response.status_code, code_of(response)) == (503, FAILED)
        assert not Effect.objects.exists()
        (line,) = warnings_of(caplog)
        assert FAILED in line

    @mariadb
    @pytest.mark.parametrize("number", [1180, 2013])
    def test_in_doubt(
        self,
        atomic_requests: bool,
        by_statements: None,
        handler: Any,
        number: int,
        caplog: Any,
    ) -> None:
        """E4: After 1180 other nodes may commit, so nobody says that it is undone."""
        lost = OperationalError(number, "Got error 6 during COMMIT")
        with commit_fails_with(lost, is_done=True):
            response = post()
        assert response.status_code == 500
        assert "Idempotency-Error" not in response
        (line,) = warnings_of(caplog)
        assert "its outcome is unknown. The client may retry" in line
        assert str(number) in line
        assert "Idempotent-Replayed" in post()


def compete(body: Any = None) -> int:
    status: int = post(body=body).status_code
    return status


class TestCommit:
    """E4: a COMMIT that undoes the transaction, the app's and Django's."""

    @pytest.fixture(autouse=True)
    def _each(self, atomic_requests: bool, each_way: None) -> None:
        pass

    @pytest.fixture
    def commit_fails(self) -> Iterator[Callable[[Callable[[], Any]], Any]]:
        """Let the next COMMIT fail, after something else has happened."""
        methods = vars(connections["default"])

        def arrange(meanwhile: Callable[[], Any]) -> None:
            def fail() -> None:
                del methods["_commit"]
                connection._rollback()
                meanwhile()
                error = TRANSIENT[VENDOR]()
                raise error

            methods["_commit"] = fail

        yield arrange
        methods.pop("_commit", None)

    @pytest.mark.usefixtures("by_statements")
    @pytest.mark.parametrize("url", ["/function/", "/mixin-view/", "/plain/function/"])
    def test_undone(
        self, commit_fails: Any, handler: list[Any], url: str, caplog: Any
    ) -> None:
        """E4: The client may retry, and the log blames nobody."""
        commit_fails(bool)
        response = post(url)
        assert response.status_code == 503
        assert response["Idempotency-Error"] == FAILED
        assert response["Retry-After"] == "1"
        assert "Idempotency-Expires" not in response
        assert not Effect.objects.exists()
        (line,) = warnings_of(caplog)
        assert FAILED in line
        assert post(url).status_code == 201
        assert len(handler) == 2

    @pytest.mark.usefixtures("by_statements")
    def test_released(self, commit_fails: Any, handle: Handle) -> None:
        """E4: So is a response that frees its key."""

        def refuse(request: Request) -> Response:
            Effect.objects.create()
            return Response(status=404)

        handle(refuse)
        commit_fails(bool)
        assert post()["Idempotency-Error"] == FAILED
        assert not Effect.objects.exists()

    @pytest.mark.usefixtures("by_statements")
    def test_lost_to_another(self, commit_fails: Any, handler: list[Any]) -> None:
        """E4: Who loses to a duplicate's COMMIT gets that one's response."""
        commit_fails(lambda: elsewhere(compete))
        response = post()
        assert response.status_code == 201
        assert "Idempotent-Replayed" in response
        assert "Idempotency-Expires" in response
        assert "Idempotency-Error" not in response
        assert Effect.objects.count() == 1
        assert response.content == post().content
        assert len(handler) == 2

    @pytest.mark.usefixtures("by_statements", "handler")
    def test_lost_to_another_request(self, commit_fails: Any) -> None:
        """E4, F4: A different request's response is nobody else's."""
        commit_fails(lambda: elsewhere(compete, {"another": "body"}))
        assert post()["Idempotency-Error"] == FAILED
        assert code_of(post()) == "idempotency_key_reused"

    @pytest.mark.usefixtures("by_statements", "handler")
    def test_lost_to_a_tombstone(self, commit_fails: Any) -> None:
        """E4, R4: If the other's response was not kept, that is said."""

        def leave_tombstone() -> None:
            compete()
            IdempotencyRecord.objects.update(body=None, body_size=None)

        commit_fails(lambda: elsewhere(leave_tombstone))
        assert post()["Idempotency-Error"] == "idempotency_response_not_kept"

    @pytest.mark.usefixtures("by_statements", "handler")
    def test_guarded(self, commit_fails: Any) -> None:
        """E4, S2: The winner's response is replayed only to whom it may be."""
        commit_fails(lambda: elsewhere(post, "/guarded/"))
        response = post("/guarded/")
        assert response.status_code == 403
        assert "Idempotency-Error" not in response

    @pytest.mark.usefixtures("by_statements", "handler")
    def test_look_up_fails(self, commit_fails: Any, monkeypatch: Any) -> None:
        """E4: Without the look-up it is a refusal."""

        def fail(*arguments: Any) -> Any:
            raise OperationalError

        commit_fails(lambda: monkeypatch.setattr(claims_in("default"), "look_up", fail))
        assert post()["Idempotency-Error"] == FAILED

    @pytest.mark.usefixtures("by_statements")
    def test_replay(
        self, commit_fails: Any, handler: list[Any], atomic_requests: bool
    ) -> None:
        """E4: A replay whose COMMIT fails under ATOMIC_REQUESTS is one."""
        if not atomic_requests:
            pytest.skip("The app's own transaction may end before the replay.")
        first = post()
        commit_fails(bool)
        response = post()
        assert (response.status_code, response.content) == (201, first.content)
        assert len(handler) == 1

    @pytest.mark.parametrize("status", [201, 404])
    @pytest.mark.parametrize("when", ["before the claim", "in the handler"])
    def test_on_commit(
        self,
        handle: Handle,
        monkeypatch: Any,
        atomic_requests: bool,
        when: str,
        status: int,
    ) -> None:
        """O5: An error after the COMMIT is the project's, and the effects stay."""
        is_early = when == "before the claim"
        if is_early and not atomic_requests:
            pytest.skip("No transaction is open before the claim.")

        def fail() -> None:
            error = TRANSIENT[VENDOR]()
            raise error

        def act(request: Request) -> Response:
            if not is_early:
                transaction.on_commit(fail)
            Effect.objects.create()
            return Response({}, status=status)

        handle(act)
        with monkeypatch.context() as patch:
            patch.setattr(Registers, "functions", [fail] if is_early else [])
            response = post("/registering/")
        assert response.status_code == 500
        assert "Idempotency-Error" not in response
        assert Effect.objects.count() == 1
        assert IdempotencyRecord.objects.count() == (status == 201)

    @pytest.mark.parametrize("is_replay", [True, False])
    def test_on_commit_without_effects(
        self, handle: Handle, monkeypatch: Any, atomic_requests: bool, is_replay: bool
    ) -> None:
        """O5: So it is if the handler did not run, or its effects were undone."""
        if not atomic_requests:
            pytest.skip("No transaction is open before the claim.")

        def fail() -> None:
            error = TRANSIENT[VENDOR]()
            raise error

        handle(lambda request: Response({}, status=201 if is_replay else 503))
        first = post("/registering/")
        monkeypatch.setattr(Registers, "functions", [fail])
        response = post("/registering/")
        assert first.status_code == (201 if is_replay else 503)
        assert response.status_code == 500
        assert "Idempotency-Error" not in response

    @pytest.mark.usefixtures("handler")
    @pytest.mark.parametrize("kind", [OperationalError, IntegrityError])
    def test_other_errors(self, kind: Any, caplog: Any) -> None:
        """E4: Of other errors nobody knows, so they are the project's."""
        with commit_fails_with(kind("disk full")):
            response = post()
        assert response.status_code == 500
        assert "Idempotency-Error" not in response
        lines = warnings_of(caplog)
        assert ["unknown" in each for each in lines] == [True] * (
            kind is OperationalError
        )

    @pytest.mark.usefixtures("by_statements", "handler")
    def test_without_the_middleware(
        self, commit_fails: Any, settings: Any, atomic_requests: bool
    ) -> None:
        """E4: Without the middleware, the COMMIT of ATOMIC_REQUESTS is Django's."""
        settings.MIDDLEWARE = []
        commit_fails(bool)
        assert post().status_code == (500 if atomic_requests else 503)


@pytest.mark.usefixtures("handler")
def test_callbacks_of_a_testcase() -> None:
    """O5: In a TestCase, the project's on_commit functions alone are counted."""
    counts: list[int] = []

    class Case(TestCase):
        def test_one(self) -> None:
            with self.captureOnCommitCallbacks() as callbacks:
                assert post().status_code == 201
            counts.append(len(callbacks))

    logging.getLogger("idempotency").setLevel(logging.INFO)
    run_case(Case)
    assert counts == [0]


class TestErrors:
    """E4: which errors mean that a database is not available."""

    @pytest.mark.parametrize("attribute", ["sqlstate", "pgcode"])
    @pytest.mark.parametrize(
        ("state", "unavailable", "read_only"),
        [
            (None, True, False),
            ("08006", True, False),
            ("08P01", True, False),
            ("25006", True, True),
            ("53300", True, False),
            ("57P03", True, False),
            ("57014", False, False),
            ("40001", False, False),
        ],
    )
    def test_postgresql(
        self, attribute: str, state: Any, unavailable: bool, read_only: bool
    ) -> None:
        """E4: PostgreSQL's errors by SQLSTATE; the client's have none."""
        error = caused(driver_error(**{attribute: state}), "said")
        assert (is_unavailable(error), is_read_only(error)) == (unavailable, read_only)

    @pytest.mark.parametrize(("state", "unavailable"), [(None, True), ("25P02", False)])
    def test_out_of_step(self, state: Any, unavailable: bool) -> None:
        """E4: psycopg calls it internal if a pooler refuses a BEGIN and hangs up."""
        error = InternalError("received 2 results from command 'BEGIN'")
        error.__cause__ = driver_error(sqlstate=state)
        assert is_unavailable(error) is unavailable

    @pytest.mark.parametrize(
        ("number", "unavailable", "read_only"),
        [
            (1047, True, False),
            (1290, True, True),
            (1792, True, True),
            (2003, True, False),
            (2013, True, False),
            (1180, False, False),
            (1213, False, False),
            (1146, False, False),
        ],
    )
    def test_mariadb(self, number: int, unavailable: bool, read_only: bool) -> None:
        """E4: MariaDB's errors by number."""
        error = OperationalError(number, "said")
        assert (is_unavailable(error), is_read_only(error)) == (unavailable, read_only)

    @pytest.mark.parametrize(
        "error",
        [
            *(ValueError("x"), KeyError(1290)),
            *(OperationalError(), InterfaceError(0, ""), Error()),
        ],
    )
    def test_others(self, error: Exception) -> None:
        """E4: An error that says nothing, or is no database's, is the project's."""
        assert not is_unavailable(error)
        assert not is_read_only(error)


@postgresql
class TestDurability:
    """E7: what a failover must not lose."""

    @pytest.fixture
    def at_commit(self) -> Iterator[Callable[[], list[str]]]:
        """Note the setting at the COMMIT of each write; return what was noted."""
        table = IdempotencyRecord._meta.db_table
        run("CREATE TABLE tests_noted (id serial, setting text)")
        run(
            "CREATE FUNCTION tests_note() RETURNS trigger LANGUAGE plpgsql AS $$ "
            "BEGIN INSERT INTO tests_noted (setting) "
            "VALUES (TG_OP || ' ' || current_setting('synchronous_commit')); "
            "RETURN NULL; END $$"
        )
        run(
            f"CREATE CONSTRAINT TRIGGER tests_noting AFTER INSERT OR UPDATE ON {table} "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tests_note()"
        )

        def noted() -> list[str]:
            found = run("SELECT setting FROM tests_noted ORDER BY id")
            run("DELETE FROM tests_noted")
            return [setting for (setting,) in found]

        yield noted
        connection.close()
        run(f"DROP TRIGGER tests_noting ON {table}")
        run("DROP FUNCTION tests_note")
        run("DROP TABLE tests_noted")

    @pytest.mark.parametrize(
        ("setting", "raised"),
        [
            *(("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on")),
            ("remote_apply", "remote_apply"),
        ],
    )
    def test_leased(
        self, at_commit: Any, handle: Handle, setting: str, raised: str
    ) -> None:
        """E7: Claim, renewal and take-over wait as long as "on" does, or longer."""

        def renew(request: Any) -> Any:
            request.idempotency.renew()
            raise ValueError

        run(f"SET synchronous_commit = '{setting}'")
        handle(renew)
        assert post("/rerun/").status_code == 500
        # The last write marks the record as abandoned, as its lease's end would.
        claim, renewal, abandoned = at_commit()
        assert (claim, renewal) == (f"INSERT {raised}", f"UPDATE {raised}")
        assert abandoned == f"UPDATE {setting}"
        handle(create_effect)
        assert post("/rerun/").status_code == 201
        assert at_commit() == [f"UPDATE {raised}", f"UPDATE {setting}"]
        assert run("SHOW synchronous_commit") == [(setting,)]

    @pytest.mark.parametrize("each_way", ["together", "by_statements"], indirect=True)
    def test_atomic(self, each_way: None, at_commit: Any, handler: list[Any]) -> None:
        """E1: In atomic mode record and effects share the session's setting."""
        run("SET synchronous_commit = 'off'")
        assert post().status_code == 201
        assert {noted.split()[1] for noted in at_commit()} == {"off"}

    def test_check(self) -> None:
        """X2: A session that is set lower is found."""
        assert check_durability(databases=["default"]) == []
        run("SET synchronous_commit = 'off'")
        (message,) = check_durability(databases=["default"])
        assert message.id == "idempotency.W016"

    def test_round_trips(self, handler: list[Any]) -> None:
        """R6: It costs no round trip: a claim, the handler's write, the response."""
        client = APIClient()
        client.credentials(HTTP_X_USER="ada")
        counts = []
        for number, setting in enumerate(["on", "off"]):
            run(f"SET synchronous_commit = '{setting}'")
            counts.append(trips_of(client, "/leased/", **key(f"{number}-" + "k" * 30)))
        assert counts == [3, 3]


@postgresql
@pytest.mark.parametrize("url", ["/function/", "/leased/", "/plain/"])
def test_no_connection_in_the_pool(handler: list[Any], url: str) -> None:
    """E4: Who gets none in time has run nothing, and may retry."""
    pytest.importorskip("psycopg_pool")
    one = {"min_size": 0, "max_size": 1, "timeout": 0.2}
    with options(pool=one):
        connection.ensure_connection()
        assert_unavailable(elsewhere(post, url))
        assert handler == []
        connection.close()
        assert elsewhere(post, url).status_code == 201
        connections.close_all()
        connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's


@mariadb
def test_check_of_mariadb() -> None:
    """X2: The server is asked as it is, with Galera or without."""
    ((_name, value),) = run("SHOW VARIABLES LIKE 'innodb_flush_log_at_trx_commit'")
    found = check_durability(databases=["default"])
    assert len(found) == (value not in ("1", "3"))


class TestGeneralStatements:
    """E3, E4: MySQL's errors by the statements that every database supports."""

    def test_errors(self) -> None:
        """E3, E4: A lock wait that timed out is busy, a deadlock may be retried."""
        here = MySQLClaims(connection)
        busy, undone = OperationalError(1205, "wait"), OperationalError(1213, "again")
        assert (here.is_busy(busy), here.is_busy(undone)) == (True, False)
        assert (here.is_transient(busy), here.is_transient(undone)) == (False, True)

    def test_sqlstate(self) -> None:
        """E4: A database that is not known may say so by SQLSTATE."""
        undone = caused(driver_error(sqlstate="40001"))
        assert Claims(connection).is_transient(undone)

    @mariadb
    def test_race(self, handle: Handle, monkeypatch: Any) -> None:
        """E4: Duplicates of a request that frees its key get no 500 for a deadlock."""
        monkeypatch.setattr("idempotency.claims._kind_for", lambda _own: MySQLClaims)
        handle(lambda request: Response({}, status=400))

        def ask(_number: int) -> int:
            status: int = post().status_code
            connections.close_all()
            return status

        with ThreadPoolExecutor(10) as pool:
            statuses = {*pool.map(ask, range(100))}
        assert 400 in statuses
        assert statuses <= {400, 409, 503}
        assert not IdempotencyRecord.objects.exists()


@mariadb
class TestGalera:
    """E3: a node that has not applied what others have committed."""

    def test_look_up(self, handler: list[Any]) -> None:
        """E3: The look-up waits for that."""
        asked: list[str] = []

        def note(execute: Any, sql: str, *others: Any) -> Any:
            asked.append(sql)
            return execute(sql, *others)

        post()
        with connection.execute_wrapper(note):
            assert "Idempotent-Replayed" in post()
        (look_up,) = asked
        assert ", wsrep_sync_wait=1 FOR SELECT" in look_up

    def test_without_galera(self, handler: list[Any], monkeypatch: Any) -> None:
        """E3: A server that was built without Galera refuses that once."""
        here = claims_in("default")
        monkeypatch.setattr(
            here, "at_once", here.AT_ONCE_AND_SYNCED.replace("wsrep", "no_such")
        )
        assert post().status_code == 201
        assert "Idempotent-Replayed" in post()
        assert here.at_once == here.AT_ONCE

    @pytest.mark.parametrize("knows_galera", [True, False])
    def test_leased_claim(
        self, handler: list[Any], monkeypatch: Any, knows_galera: bool
    ) -> None:
        """E7: No node repeats a claim by itself: it would tell each that it has won."""
        here = claims_in("default")
        if not knows_galera:
            monkeypatch.setattr(here, "at_once", here.AT_ONCE)
        asked: list[str] = []

        def note(execute: Any, sql: str, *others: Any) -> Any:
            asked.append(sql)
            return execute(sql, *others)

        with connection.execute_wrapper(note):
            assert post("/rerun/").status_code == 201
        (claim,) = [sql for sql in asked if "INSERT IGNORE" in sql]
        assert ("wsrep_retry_autocommit=0 FOR INSERT" in claim) is knows_galera


def test_text() -> None:
    """X1: The refusal says nothing of what may have been done."""
    assert "not executed" in DatabaseUnavailable.default_detail
    assert DatabaseUnavailable().wait == 5
