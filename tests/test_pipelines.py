"""Atomic mode on PostgreSQL by pipelines: round trips, failures, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from signal import SIGUSR1, pthread_kill, signal
from threading import main_thread
from typing import Any

import pytest
from django.db import (
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency.checks.databases import check_round_trips
from idempotency.claims import PostgreSQLClaims, claims_in
from idempotency.claims.pipelines import why_not
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import KEY, assert_refused, code_of, key
from tests.support.processes import wait_until
from tests.support.round_trips import counting_round_trips, trips_of
from tests.urls import urlpatterns as usual_urls

pytestmark = [
    pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL alone"),
    pytest.mark.usefixtures("database"),
    pytest.mark.urls(__name__),
]


class Stop(BaseException):
    """What ends a request from outside, such as a timeout of gevent's."""


Handler = Callable[[Request], Any]
Handle = Callable[[Handler], None]
TABLE = IdempotencyRecord._meta.db_table


@api_view(["POST"])
def bare(request: Request) -> Response:
    with transaction.atomic():
        return create_effect(request)


urlpatterns = [*usual_urls, path("bare/", bare)]


def way() -> str | None:
    claims = claims_in("default")
    assert isinstance(claims, PostgreSQLClaims)
    return claims.why_one_by_one()


def infos() -> list[str]:
    """Return which isolation levels ``check --database default`` names."""
    found = check_round_trips(databases=["default"])
    assert {message.id for message in found} <= {"idempotency.I001"}
    return [message.msg.rpartition(" is ")[2].rstrip(".") for message in found]


@contextmanager
def configured(**changes: Any) -> Iterator[None]:
    """Let new connections be made with other settings."""
    settings = connections.settings["default"]
    before = {name: settings[name] for name in changes}
    connections.close_all()
    settings.update(changes)
    try:
        yield
    finally:
        connections.close_all()
        settings.update(before)


@contextmanager
def options(**changes: Any) -> Iterator[None]:
    usual = connection.settings_dict["OPTIONS"]
    # A pool goes with no other age.
    with configured(OPTIONS={**usual, **changes}, CONN_MAX_AGE=0):
        yield


@contextmanager
def deferred_trigger(error_code: str) -> Iterator[None]:
    """Let each COMMIT that has an effect in it fail."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{error_code}'; END $$"
        )
        cursor.execute(
            "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON app_effect "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()"
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION fail() CASCADE")


def fetch_one(cursor: Any, sql: str, values: list[Any]) -> Any:
    # Within a transaction the server's view of its sessions stands still.
    cursor.execute("SELECT pg_stat_clear_snapshot()")
    cursor.execute(sql, values)
    row = cursor.fetchone()
    return row and row[0]


def send(client: APIClient, value: str = KEY) -> Any:
    return client.post("/function/", {}, **key(value))


def assert_acts_once(client: APIClient) -> None:
    first, again = send(client), send(client)
    assert (first.status_code, again["Idempotent-Replayed"]) == (201, "true")
    assert again.content == first.content
    assert Effect.objects.count() == 1


class TestRoundTrips:
    """R6: what a keyed request waits for."""

    def test_own_transaction(self, client: APIClient, handle: Handle) -> None:
        """R6: A first-time request waits as often as the bare view's transaction."""
        send(client, "open-the-connection")
        bare = trips_of(client, "/bare/")
        assert bare == 3
        assert trips_of(client, "/function/", **key()) == bare
        assert trips_of(client, "/function/", **key()) == 2
        handle(lambda request: Response(status=400))
        assert trips_of(client, "/function/", **key("refused-key")) == 2
        handle(lambda request: Response(status=500))
        assert trips_of(client, "/function/", **key("failing-key")) == 2

    @pytest.mark.parametrize("atomic_requests", [True], indirect=True)
    def test_atomic_requests(
        self, client: APIClient, handle: Handle, atomic_requests: bool
    ) -> None:
        """R6: Under ATOMIC_REQUESTS two are added, and one for a replay."""

        def ask(request: Request) -> Response:
            # So that BEGIN is not the app's to wait for.
            Effect.objects.exists()
            return create_effect(request)

        send(client, "open-the-connection")
        handle(ask)
        without = trips_of(client, "/function/")
        assert without == 4
        assert trips_of(client, "/function/", **key()) == without + 2
        # BEGIN and COMMIT are Django's.
        assert trips_of(client, "/function/", **key()) == 3

    def test_batch_of_replays(self, client: APIClient) -> None:
        """R6: Replays in one transaction do not nest their savepoints."""
        send(client)
        with transaction.atomic():
            with counting_round_trips(connection) as trips:
                for _time in range(3):
                    assert "Idempotent-Replayed" in send(client)
            with CaptureQueriesContext(connection) as queries:
                send(client)
            Effect.objects.create()
        # BEGIN; one each; a RELEASE for all but the first.
        assert trips.count == 1 + 3 + 2
        verbs = [query["sql"].split()[0] for query in queries.captured_queries]
        assert verbs == ["SAVEPOINT", "RELEASE"]
        assert Effect.objects.count() == 2

    def test_one_row_version(self, client: APIClient) -> None:
        """R6: A first-time request writes its row once, and leaves no dead one."""
        with connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {TABLE}")
            send(client)
            cursor.execute(f"SELECT ctid::text, xmax::text FROM {TABLE}")
            assert cursor.fetchall() == [("(0,1)", "0")]

    def test_expired(self, client: APIClient) -> None:
        """P1: An expired record is taken over; its token alone may be replaced."""
        send(client)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        answer = client.post("/function/", {"another": "body"}, **key())
        assert (answer.status_code, Effect.objects.count()) == (201, 2)
        assert IdempotencyRecord.objects.get().expires_at.timestamp() > 0
        assert "Idempotent-Replayed" in client.post(
            "/function/", {"another": "body"}, **key()
        )


class TestFailures:
    """E1 to E5: nothing is lost or half done, wherever it fails."""

    @pytest.mark.parametrize("statement", ["ROLLBACK", "COMMIT"])
    def test_transaction_ended(
        self, client: APIClient, handle: Handle, statement: str
    ) -> None:
        """E5: Nothing is stored in another transaction than the claim's."""

        def handler(request: Request) -> Response:
            response = create_effect(request)
            with connection.cursor() as cursor:
                cursor.execute(statement)
            return response

        handle(handler)
        answer = send(client)
        assert_refused(answer, 503, "idempotency_transaction_failed")
        assert Effect.objects.count() == (statement == "COMMIT")

    def test_record_refused(self, client: APIClient, handle: Handle) -> None:
        """E5: Where the record can't be stored, its effects are undone."""

        def handler(request: Request) -> Response:
            response = create_effect(request)
            with connection.cursor() as cursor:
                cursor.execute(
                    f"ALTER TABLE {TABLE} ADD CONSTRAINT never CHECK (body_size < 0)"
                )
            return response

        handle(handler)
        answer = send(client)
        assert_refused(answer, 503, "idempotency_transaction_failed")
        assert Effect.objects.count() == 0
        handle(create_effect)
        assert_acts_once(client)

    @pytest.mark.parametrize("error_code", ["40P01", "23514"])
    def test_commit_fails(self, client: APIClient, error_code: str) -> None:
        """E4, O5: A COMMIT that fails stores nothing and runs no on_commit function."""
        with deferred_trigger(error_code):
            answer = send(client)
        expected = 503 if error_code == "40P01" else 500
        assert (answer.status_code, Effect.objects.count()) == (expected, 0)
        assert IdempotencyRecord.objects.count() == 0
        assert "Idempotency-Expires" not in answer
        assert_acts_once(client)

    @pytest.mark.parametrize("interruption", [Stop, RuntimeError])
    def test_interrupted(
        self,
        client: APIClient,
        handle: Handle,
        interruption: type[BaseException],
        caplog: Any,
    ) -> None:
        """E4: An exception while COMMIT waits leaves its outcome open."""

        def interrupt(*_arguments: Any) -> None:
            raise interruption

        with closing(connection.copy()) as rival, rival.cursor() as cursor:
            rival.set_autocommit(False)
            rival.inc_thread_sharing()
            session: list[int] = []

            def handler(request: Request) -> Response:
                cursor.execute(f"LOCK TABLE {TABLE} IN SHARE MODE")
                session.append(connection.connection.info.backend_pid)
                waiting.append(pool.submit(stop_when_waiting))
                return create_effect(request)

            def stop_when_waiting() -> None:
                waits = (
                    "SELECT wait_event_type = 'Lock' FROM pg_stat_activity "
                    "WHERE pid = %s"
                )
                wait_until(lambda: fetch_one(cursor, waits, session), "the COMMIT")
                pthread_kill(main_thread().ident or 0, SIGUSR1)

            waiting: list[Future[None]] = []
            usual = signal(SIGUSR1, interrupt)
            handle(handler)
            try:
                with ThreadPoolExecutor(1) as pool:
                    if interruption is Stop:
                        with pytest.raises(Stop):
                            send(client)
                    else:
                        assert send(client).status_code == 500
                    waiting[0].result()
            finally:
                signal(SIGUSR1, usual)
            assert "rolled back" not in caplog.text
            assert "key_released" not in caplog.text
            rival.rollback()
            gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
            wait_until(lambda: fetch_one(cursor, gone, session), "the session's end")
            rival.rollback()
            rival.set_autocommit(True)
        handle(create_effect)
        assert send(client).status_code == 201
        assert Effect.objects.count() == 1

    def test_on_commit(self, client: APIClient, handle: Handle) -> None:
        """O5: on_commit functions run after the COMMIT, and not where it fails."""
        seen: list[int] = []

        def note() -> None:
            assert not connection.in_atomic_block
            seen.append(IdempotencyRecord.objects.count())

        def handler(request: Request) -> Response:
            transaction.on_commit(note)
            return create_effect(request)

        handle(handler)
        with deferred_trigger("23514"):
            send(client)
        assert seen == []
        send(client)
        assert seen == [1]

    def test_lock_before_look_up(self, client: APIClient) -> None:
        """E1, E3: What is committed between the two is seen, and does not run again."""
        first = send(client)
        pk = IdempotencyRecord.objects.get().pk
        with closing(connection.copy()) as rival, rival.cursor() as cursor:
            # The first request again, on its way to its COMMIT.
            cursor.execute(f"CREATE TABLE kept AS SELECT * FROM {TABLE}")
            IdempotencyRecord.objects.all()._raw_delete("default")
            claims = PostgreSQLClaims(rival)
            rival.set_autocommit(False)
            cursor.execute(claims.lock_sql, claims.lock_key(pk))
            cursor.execute(f"INSERT INTO {TABLE} SELECT * FROM kept")
            cursor.execute("SELECT pg_advisory_lock(1)")
            session = connection.connection.info.backend_pid
            rival.inc_thread_sharing()

            def commit_between() -> None:
                waits = (
                    "SELECT wait_event_type = 'Lock' FROM pg_stat_activity "
                    "WHERE pid = %s"
                )
                try:
                    wait_until(lambda: fetch_one(cursor, waits, [session]), "the lock")
                    rival.commit()
                    rival.set_autocommit(True)
                finally:
                    cursor.execute("SELECT pg_advisory_unlock(1)")

            def watch(execute: Any, sql: str, *others: Any) -> Any:
                if sql.startswith("BEGIN"):
                    wait = "DO $$ BEGIN PERFORM pg_advisory_xact_lock(1); END $$"
                    begin, first, second = sql.split("; ")
                    sql = f"{begin}; {first}; {wait}; {second}"
                return execute(sql, *others)

            with ThreadPoolExecutor(1) as pool, connection.execute_wrapper(watch):
                committed = pool.submit(commit_between)
                again = send(client)
                committed.result()
            cursor.execute("DROP TABLE kept")
        assert again.content == first.content
        assert "Idempotent-Replayed" in again
        assert Effect.objects.count() == 1

    def test_within_itself(self, client: APIClient, handle: Handle) -> None:
        """E3, E6: A handler that sends its own request again does not run twice."""
        inner: list[Any] = []

        def handler(request: Request) -> Response:
            if not inner:
                inner.append(send(client))
            return create_effect(request)

        handle(handler)
        assert send(client).status_code == 201
        assert (inner[0].status_code, code_of(inner[0])) == (
            409,
            "idempotency_in_progress",
        )
        assert Effect.objects.count() == 1

    def test_no_savepoint(self, client: APIClient, monkeypatch: Any) -> None:
        """E1: Where no savepoint can be set, nothing runs, and the rest goes on."""

        def refuse() -> None:
            raise OperationalError("no savepoint")

        with transaction.atomic():
            Effect.objects.create()
            monkeypatch.setattr(connections["default"], "savepoint", refuse)
            assert send(client).status_code == 500
            monkeypatch.undo()
            assert Effect.objects.count() == 1
        assert Effect.objects.count() == 1

    def test_dead_connection(self, client: APIClient) -> None:
        """E4: A connection that died between two requests is replaced if asked for."""
        with configured(CONN_HEALTH_CHECKS=True, CONN_MAX_AGE=None):
            send(client, "first-of-the-two")
            pid = connection.connection.info.backend_pid
            with closing(connection.copy("other")) as rival, rival.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            connection.close_if_unusable_or_obsolete()
            connection.health_check_done = False
            assert send(client).status_code == 201

    def test_dead_connection_without_health_checks(self, client: APIClient) -> None:
        """E4: Else nothing has run, and the next request has a new connection."""
        send(client, "first-of-the-two")
        pid = connection.connection.info.backend_pid
        with closing(connection.copy("other")) as rival, rival.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        refused = send(client)
        assert refused.status_code == 503
        assert code_of(refused) == "idempotency_database_unavailable"
        assert Effect.objects.count() == 1
        assert send(client).status_code == 201


class TestHandlers:
    """E2: what a handler may do in the transaction is what it may do elsewhere."""

    def test_locking_iterator(self, client: APIClient, handle: Handle) -> None:
        """E2: A server-side cursor of a transaction can lock rows."""

        def handler(request: Request) -> Response:
            create_effect(request)
            rows = Effect.objects.select_for_update().iterator()
            return Response({"rows": len([*rows])}, status=201)

        handle(handler)
        assert send(client).data == {"rows": 1}

    def test_driver_state(self, client: APIClient, handle: Handle) -> None:
        """E2: Inside and after, the driver's connection is as Django leaves it."""

        def handler(request: Request) -> Response:
            assert connection.connection.autocommit is False
            assert connection.get_autocommit() is False
            return create_effect(request)

        handle(handler)
        assert send(client).status_code == 201
        assert connection.connection.autocommit is True
        assert not hasattr(connection, "_start_transaction_under_autocommit")

    def test_savepoint(self, client: APIClient, handle: Handle) -> None:
        """E2: An error in a savepoint of the handler's undoes what is in it."""

        def handler(request: Request) -> Response:
            response = create_effect(request)
            with pytest.raises(IntegrityError), transaction.atomic():
                Effect.objects.create(pk=Effect.objects.get().pk)
            return response

        handle(handler)
        assert_acts_once(client)


class TestWatchers:
    """What watches a project's statements sees the app's."""

    STARTS = ("BEGIN; SELECT pg_try", "INSERT", "INSERT", "COMMIT")

    def test_query_log(self, client: APIClient) -> None:
        """``connection.queries`` has each statement, in the order of its execution."""
        with CaptureQueriesContext(connection) as queries:
            send(client)
        sent = [query["sql"] for query in queries.captured_queries]
        assert len(sent) == len(self.STARTS), sent
        for sql, start in zip(sent, self.STARTS, strict=True):
            assert sql.startswith(start)

    def test_execute_wrapper(self, client: APIClient) -> None:
        """``execute_wrapper`` sees text, parameters and the results' arrival."""
        seen = []

        def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            result = execute(sql, params, many, context)
            status = connection.connection.pgconn.pipeline_status
            seen.append((sql.split(maxsplit=1)[0], len(params or ()), status))
            return result

        with connection.execute_wrapper(watch):
            send(client)
        # The last one of a pipeline returns when all replies are there.
        assert [(verb, status) for verb, _count, status in seen] == [
            ("BEGIN;", 0),
            ("INSERT", 0),
            ("INSERT", 0),
        ]
        # Only statements without parameters may share a message.
        assert [bool(count) for _verb, count, _status in seen] == [False, True, True]

    @pytest.mark.parametrize("atomic_requests", [False, True], indirect=True)
    def test_pghistory(
        self, client: APIClient, handle: Handle, atomic_requests: bool
    ) -> None:
        """Statements that django-pghistory puts in front take effect."""
        pghistory = pytest.importorskip("pghistory")

        def handler(request: Request) -> Response:
            response = create_effect(request)
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('pghistory.context_id')")
                response.data["context"] = cursor.fetchone()[0]
            return response

        handle(handler)
        with pghistory.context(user=1) as context:
            assert_acts_once(client)
            assert send(client).json()["context"] == str(context.id)
            with deferred_trigger("40P01"):
                failed = send(client, "another-key")
        assert failed.status_code == 503
        assert way() is None
        assert Effect.objects.count() == 1

    def test_opentelemetry(self, client: APIClient) -> None:
        """OpenTelemetry's instrumentation of psycopg has a span for each."""
        instrumentation = pytest.importorskip("opentelemetry.instrumentation.psycopg")
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
            SimpleSpanProcessor,
        )
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: PLC0415
            InMemorySpanExporter,
        )

        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        instrumentor = instrumentation.PsycopgInstrumentor()
        instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
        connections.close_all()
        try:
            send(client)
            assert way() is None
        finally:
            instrumentor.uninstrument()
            connections.close_all()
        texts = [
            span.attributes["db.statement"] for span in exporter.get_finished_spans()
        ]
        assert sum(TABLE in text for text in texts) == 2, texts


class TestConnections:
    """Each kind of connection takes the way that suits it."""

    def test_usual(self, client: APIClient) -> None:
        """R6: psycopg 3 with Django's own settings has pipelines."""
        assert way() is None
        assert_acts_once(client)

    @pytest.mark.parametrize(
        "level", ["READ_COMMITTED", "REPEATABLE_READ", "SERIALIZABLE"]
    )
    def test_isolation_level(self, client: APIClient, level: str) -> None:
        """E1: A level that is set in OPTIONS decides before anything is sent."""
        from psycopg import IsolationLevel  # noqa: PLC0415

        with options(isolation_level=IsolationLevel[level]):
            name = level.lower().replace("_", " ")
            usual = level == "READ_COMMITTED"
            assert way() == (None if usual else f"the isolation level is {name}")
            assert infos() == ([] if usual else [name])
            assert_acts_once(client)

    def test_isolation_level_of_the_server(self, client: APIClient) -> None:
        """E1: A level that the server has by default is noticed in the transaction."""
        with options(options="-c default_transaction_isolation=serializable"):
            assert way() is None
            assert_acts_once(client)
            assert way() == "the isolation level is serializable"
            connection.close()
            assert infos() == ["serializable"]
            send(client, "the-next-key")
            assert Effect.objects.count() == 2

    @pytest.mark.parametrize("atomic_requests", [True], indirect=True)
    def test_isolation_level_of_a_transaction(
        self, client: APIClient, atomic_requests: bool, monkeypatch: Any
    ) -> None:
        """E1: A level of one transaction says nothing of the next."""
        from tests.app.authentication import UserHeaderAuthentication  # noqa: PLC0415

        authenticate = UserHeaderAuthentication.authenticate

        def serializable(self: Any, request: Any) -> Any:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            return authenticate(self, request)

        with monkeypatch.context() as patch:
            patch.setattr(UserHeaderAuthentication, "authenticate", serializable)
            assert_acts_once(client)
        assert way() is None

    def test_options_of_transactions(self, client: APIClient, monkeypatch: Any) -> None:
        """E2: Transactions begin as the project wants them."""
        connection.ensure_connection()
        connection.connection.read_only = False
        claims_in("default")._driver = None  # type: ignore[attr-defined]
        assert way() == "the project sets options for its transactions"
        assert_acts_once(client)

    def test_refused(self, client: APIClient, monkeypatch: Any) -> None:
        """R6: A connection that refuses pipelines gets statement by statement."""
        import psycopg  # noqa: PLC0415

        def refuse(self: Any) -> Any:
            raise psycopg.NotSupportedError("not here")

        connections.close_all()
        monkeypatch.setattr(psycopg.Connection, "pipeline", refuse)
        assert_acts_once(client)
        assert way() == "the connection refuses pipelines"

    def test_foreign_cursors(self, client: APIClient, monkeypatch: Any) -> None:
        """R6: Cursors that are not Django's are left as they are."""

        class Wrapped:
            def __init__(self, cursor: Any) -> None:
                self.inner = cursor

            def __getattr__(self, name: str) -> Any:
                return getattr(self.inner, name)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *error: Any) -> None:
                self.inner.close()

            def __iter__(self) -> Any:
                return iter(self.inner)

        plain = connection.cursor
        monkeypatch.setattr(connection, "cursor", lambda: Wrapped(plain()))
        assert_acts_once(client)
        assert way() == "the cursors are not Django's"

    @pytest.mark.parametrize(
        ("attribute", "value", "reason"),
        [
            ("is_supported", staticmethod(lambda: False), "libpq is older than"),
            ("connection", object(), "the driver is not psycopg 3"),
            ("_autocommit", None, "this release of psycopg"),
            (
                "_start_transaction_under_autocommit",
                None,
                "begins transactions by itself",
            ),
            ("cursor_factory", object, "the cursors are not psycopg's"),
        ],
    )
    def test_obstacles(
        self, monkeypatch: Any, attribute: str, value: Any, reason: str
    ) -> None:
        """R6: What can't have pipelines says why."""
        import psycopg  # noqa: PLC0415

        connection.ensure_connection()
        wrapper = connections["default"]
        driver: Any = wrapper.connection
        if attribute == "_autocommit":
            monkeypatch.delattr(driver, attribute)
        else:
            owner = {
                "is_supported": psycopg.Pipeline,
                "connection": wrapper,
                "_start_transaction_under_autocommit": wrapper,
                "cursor_factory": driver,
            }[attribute]
            monkeypatch.setattr(owner, attribute, value, raising=False)
        found = why_not(wrapper)
        monkeypatch.undo()
        assert reason in str(found)

    @pytest.mark.parametrize(
        "changes",
        [
            {"server_side_binding": True},
            {"server_side_binding": True, "prepare_threshold": 0},
            {"prepare_threshold": 0},
            {"pool": {"min_size": 1, "max_size": 2}},
        ],
        ids=["server_side_binding", "prepared", "client_side_prepared", "pool"],
    )
    def test_options(self, client: APIClient, changes: dict[str, Any]) -> None:
        """R6: Options of Django's that change cursors or connections go with it."""
        if "pool" in changes:
            pytest.importorskip("psycopg_pool")
        with options(**changes):
            assert_acts_once(client)
            assert way() is None
            for number in range(3):
                send(client, f"one-more-key-{number}")
            assert Effect.objects.count() == 4
            if "pool" in changes:
                connections.close_all()
                connection.close_pool()  # type: ignore[attr-defined]

    def test_rows_of_another_kind(self, client: APIClient) -> None:
        """R6: A project's rows and cursors with fewer arguments go with it."""
        import psycopg  # noqa: PLC0415

        class Own(psycopg.ClientCursor[Any]):
            def execute(self, query: Any, params: Any = None) -> Any:  # type: ignore[override]
                return super().execute(query, params)

        for changes in (
            {"prepare_threshold": 0},
            {"cursor_factory": Own, "prepare_threshold": 0},
        ):
            with options(**changes):
                connection.ensure_connection()
                connection.connection.row_factory = psycopg.rows.namedtuple_row
                send(client, f"key-of-twenty-chars-{len(changes)}")
                again = send(client, f"key-of-twenty-chars-{len(changes)}")
                assert "Idempotent-Replayed" in again
                assert way() is None
        assert Effect.objects.count() == 2

    def test_large_response(self, client: APIClient, handle: Handle) -> None:
        """R2: A body travels as bytes both ways, whatever the project's cursors are."""
        text = "é\\x00'\"%s" * 50_000
        handle(lambda request: Response({"text": text}, status=201))
        first = send(client)
        with CaptureQueriesContext(connection) as queries:
            again = send(client)
        assert again.content == first.content
        assert sum(len(query["sql"]) for query in queries.captured_queries) < 5_000
        assert bytes(IdempotencyRecord.objects.get().body or b"") == first.content


@pytest.fixture
def tenants() -> Iterator[Any]:
    """Two schemas of django-tenants, each with records and effects."""
    pytest.importorskip("django_tenants")
    settings = connections.settings["default"]
    engine = "django_tenants.postgresql_backend"
    connections.settings["tenants"] = {**settings, "ENGINE": engine}
    schemas = ("north", "south")
    with connection.cursor() as cursor:
        for schema in schemas:
            cursor.execute(f"CREATE SCHEMA {schema}")
            cursor.execute(
                f"CREATE TABLE {schema}.{TABLE} (LIKE public.{TABLE} INCLUDING ALL)"
            )
            cursor.execute(f"CREATE TABLE {schema}.tests_effect (id serial)")
    try:
        yield connections["tenants"]
    finally:
        connections["tenants"].close()
        del connections["tenants"], connections.settings["tenants"]
        with connection.cursor() as cursor:
            for schema in schemas:
                cursor.execute(f"DROP SCHEMA {schema} CASCADE")


def test_tenants(tenants: Any, client: APIClient, handle: Handle) -> None:
    """S1: Each schema has its own keys, though one connection serves them all."""

    def handler(request: Request) -> Response:
        with tenants.cursor() as cursor:
            cursor.execute("INSERT INTO tests_effect DEFAULT VALUES")
        return Response({}, status=201)

    handle(handler)
    with override_settings(IDEMPOTENCY={"USING": "tenants"}):
        for name in ("north", "south", "north"):
            tenants.set_schema(name)
            assert send(client).status_code == 201
    claims = claims_in("tenants")
    assert isinstance(claims, PostgreSQLClaims)
    assert claims.why_one_by_one() is None
    with connection.cursor() as cursor:
        for name in ("north", "south"):
            cursor.execute(
                f"SELECT (SELECT COUNT(*) FROM {name}.tests_effect), "
                f"(SELECT COUNT(*) FROM {name}.{TABLE})"
            )
            assert cursor.fetchone() == (1, 1)
    assert IdempotencyRecord.objects.count() == 0
