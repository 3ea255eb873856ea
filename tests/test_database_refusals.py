"""What databases refuse, each refusal provoked for real: no success without effect."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import (
    DatabaseError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.urls import path
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.decorators import idempotent
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.app.views import behave
from tests.conftest import code_of, key
from tests.support.processes import running, wait_until
from tests.support.rendezvous import PATIENCE, Rendezvous
from tests.urls import urlpatterns as usual_urls

pytestmark = [
    pytest.mark.usefixtures("atomic_requests", "each_way"),
    pytest.mark.urls(__name__),
]

Handle = Callable[[Callable[[Request], Any]], None]
Write = Callable[[str], Any]

VENDOR = connection.vendor
RECORDS = IdempotencyRecord._meta.db_table

postgresql = pytest.mark.skipif(VENDOR != "postgresql", reason="PostgreSQL's own")
mariadb = pytest.mark.skipif(VENDOR != "mysql", reason="MariaDB's own")
sqlite = pytest.mark.skipif(VENDOR != "sqlite", reason="SQLite's own")
locks_rows = pytest.mark.skipif(VENDOR == "sqlite", reason="SQLite locks no rows")


class ReadsFirst(BasePermission):
    """A permission that looks something up, as most do, and then lets a test act."""

    steps: list[Callable[[], Any]] = []

    def has_permission(self, request: Request, view: Any) -> bool:
        ContentType.objects.count()
        while self.steps:
            self.steps.pop()()
        return True


class Early(APIView):
    """A view whose transaction is older than the claim under ATOMIC_REQUESTS."""

    permission_classes = [ReadsFirst]

    @idempotent
    def post(self, request: Request) -> Any:
        return behave(request)


urlpatterns = [*usual_urls, path("early/", Early.as_view())]


def run(sql: str, *values: Any) -> Any:
    """Execute a statement of the session's own."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values or None)
        return cursor.fetchall() if cursor.description else None


class Rival:
    """Another session, which does one thing after another in a thread of its own."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)

    def start(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin something that may have to wait for the test's own session."""
        return self.pool.submit(function, *arguments)

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.start(function, *arguments).result(PATIENCE)

    def run(self, *statements: str) -> Any:
        """Execute statements and return the rows of the last."""
        return [self.do(run, statement) for statement in statements][-1]

    def gain_weight(self) -> None:
        """Change more than any handler does: MariaDB's victim has changed less."""
        self.run("INSERT INTO tests_scratch VALUES (0)" + ", (0)" * 99)

    def end(self) -> None:
        self.do(connections.close_all)
        self.pool.shutdown()


@pytest.fixture
def rival(database: None) -> Iterator[Rival]:
    """Return another session, which ends with the test."""
    rival = Rival()
    yield rival
    rival.end()


@pytest.fixture
def furniture(database: None) -> None:
    """Make rows that two sessions can want."""
    Effect.objects.bulk_create(Effect(name=name) for name in ("left", "right"))


def change(name: str) -> None:
    run("UPDATE app_effect SET note = 'changed' WHERE name = %s", name)


def change_by_orm(name: str) -> None:
    Effect.objects.filter(name=name).update(note="changed")


def read_for_update(name: str) -> None:
    Effect.objects.select_for_update().get(name=name)


@pytest.fixture(
    params=[change, change_by_orm, read_for_update],
    ids=["cursor", "orm", "select_for_update"],
)
def write(request: pytest.FixtureRequest) -> Write:
    """Run a test with statements that Django marks when they fail, and others."""
    return request.param  # type: ignore[no-any-return]


def new_client() -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_X_USER="ada")
    return client


def post(path: str = "/function/", **extra: Any) -> Any:
    """Send the request of every test, from whichever thread."""
    return new_client().post(path, {}, **key(), **extra)


def act(note: str = "handler") -> Response:
    """Have an effect, and answer for it."""
    Effect.objects.create(note=note)
    return Response({"note": note}, status=201)


def effects() -> list[str]:
    """Return what handlers did, the furniture included if it was changed."""
    found = Effect.objects.exclude(note="").order_by("pk")
    return [*found.values_list("note", flat=True)]


def assert_failed(answer: Any) -> None:
    assert answer.status_code == 503
    assert code_of(answer) == "idempotency_transaction_failed"
    assert answer["Retry-After"] == "1"


def assert_undone(answer: Any, status_code: int = 503) -> None:
    """Check what the client is told, and that nothing stays of its request."""
    assert answer.status_code == status_code
    if status_code == 503:
        assert_failed(answer)
    assert "Idempotency-Expires" not in answer
    assert effects() == []
    assert IdempotencyRecord.objects.count() == 0


def assert_in_progress(answer: Any) -> None:
    assert answer.status_code == 409
    assert code_of(answer) == "idempotency_in_progress"
    assert answer["Retry-After"] == "1"


def assert_replayed(answer: Any) -> None:
    assert answer.status_code == 201
    assert answer["Idempotent-Replayed"] == "true"


def assert_stored(answer: Any, *notes: str) -> None:
    """Check that a success has its effects, and that a retry has no others."""
    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer
    assert effects() == [*notes]
    retry = post()
    assert_replayed(retry)
    assert retry.content == answer.content
    assert effects() == [*notes]
    record = IdempotencyRecord.objects.get()
    assert (record.state, record.status_code) == (State.COMPLETED, 201)


def assert_retry_runs(handle: Handle) -> None:
    """Check that the very next retry runs, and the one after it replays."""
    handle(lambda request: act("retry"))
    assert_stored(post(), "retry")


def assert_outcome_unknown(answer: Any) -> None:
    assert answer.status_code == 409
    assert code_of(answer) == "idempotency_outcome_unknown"


@pytest.fixture
def scratch(database: None) -> Iterator[str]:
    """Return the name of a table that a test may make, and that goes with it."""
    yield "tests_scratch"
    run("DROP TABLE IF EXISTS tests_scratch")


@locks_rows
@pytest.mark.usefixtures("furniture")
class TestDeadlocks:
    """E4: two sessions lock the same rows in opposite orders; the handler loses."""

    @pytest.fixture
    def meet(self, rival: Rival, scratch: str) -> Callable[[Write], None]:
        """Return what leads the handler into a deadlock."""
        run("CREATE TABLE tests_scratch (id int)")

        def meet(write: Write) -> None:
            rival.run(
                "BEGIN", "UPDATE app_effect SET note = 'rival' WHERE name = 'right'"
            )
            change("left")
            if VENDOR == "postgresql":
                # Whoever looks for deadlocks is the victim. It looks only once.
                rival.run("SET deadlock_timeout = '1h'")
                ((pid,),) = rival.run("SELECT pg_backend_pid()")
                run("SET LOCAL deadlock_timeout = '1ms'")
                waiting = rival.start(change, "left")
                wait_until(lambda: is_waiting(pid), "the rival to wait")
            else:
                rival.gain_weight()
                waiting = rival.start(change, "left")
            with pytest.raises(OperationalError, match=r"(?i)deadlock") as met:
                write("right")
            waiting.result(PATIENCE)
            rival.run("ROLLBACK")
            raise met.value

        return meet

    def test_uncaught(self, handle: Handle, meet: Any, write: Write) -> None:
        """E4: A deadlock that the handler does not catch is 503; the retry runs."""

        def handler(request: Request) -> Any:
            act()
            meet(write)
            return act()

        handle(handler)
        assert_undone(post())
        assert_retry_runs(handle)

    def test_caught(self, handle: Handle, meet: Any, write: Write) -> None:
        """E2, E5: A database error that it catches does not pass for a success."""

        def handler(request: Request) -> Any:
            answer = act()
            with suppress(OperationalError):
                meet(write)
            return answer

        handle(handler)
        assert_undone(post())
        assert_retry_runs(handle)

    def test_caught_and_gone_on(self, handle: Handle, meet: Any, write: Write) -> None:
        """E5: What the handler writes after a deadlock does not stay.

        MariaDB has undone the transaction, claim included, and lets a new one begin.
        """

        def handler(request: Request) -> Any:
            act()
            with suppress(OperationalError):
                meet(write)
            run("INSERT INTO app_effect (note) VALUES ('later')")
            with transaction.atomic():
                return act("even later")

        handle(handler)
        # To PostgreSQL, going on is an error of its own, which the handler lets go.
        own = VENDOR == "postgresql" and write is not change_by_orm
        assert_undone(post(), 500 if own else 503)
        assert_retry_runs(handle)

    def test_caught_in_a_savepoint(
        self, request: Any, handle: Handle, meet: Any, write: Write
    ) -> None:
        """E2, E5: In a savepoint it is the handler's own affair, if that survives.

        MariaDB undoes the whole transaction, savepoints included.
        """

        def handler(request: Request) -> Any:
            answer = act()
            with suppress(OperationalError), transaction.atomic():
                meet(write)
            return answer

        handle(handler)
        answer = post()
        if VENDOR == "postgresql":
            assert_stored(answer, "handler")
        else:
            assert_undone(answer)
            assert_retry_runs(handle)

    @pytest.mark.parametrize("raised", [False, True], ids=["returned", "raised"])
    def test_made_a_refusal(
        self, handle: Handle, meet: Any, write: Write, raised: bool
    ) -> None:
        """O2, E5: Made a refusal of, it frees the key; a claim that is gone is 503."""

        def handler(request: Request) -> Any:
            act()
            try:
                meet(write)
            except OperationalError:
                if raised:
                    raise ValidationError("too busy") from None
            return Response({"why": "too busy"}, status=400)

        handle(handler)
        claim_is_gone = VENDOR == "mysql" and write is not change_by_orm
        assert_undone(post(), 503 if claim_is_gone else 400)
        assert_retry_runs(handle)


def is_waiting(pid: int) -> bool:
    """Return whether a session of PostgreSQL waits for another one's lock."""
    return bool(run("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", pid))


class TestCommit:
    """E4, O3: a COMMIT that fails leaves nothing, whatever the response."""

    @pytest.mark.skipif(VENDOR == "mysql", reason="MariaDB defers no constraint")
    def test_deferred_constraint(self, handle: Handle, scratch: str) -> None:
        """O3: A constraint that fails at COMMIT is the project's own 500."""
        run(
            "CREATE TABLE tests_scratch (effect bigint REFERENCES app_effect (id) "
            "DEFERRABLE INITIALLY DEFERRED)"
        )
        told: list[str] = []

        def handler(request: Request) -> Any:
            run("INSERT INTO tests_scratch VALUES (0)")
            transaction.on_commit(lambda: told.append("committed"))
            return act()

        handle(handler)
        assert_undone(post(), 500)
        assert told == []
        assert_retry_runs(handle)

    @pytest.fixture
    def at_commit(self, furniture: None, scratch: str) -> Iterator[Callable[[], None]]:
        """Return what makes this transaction's COMMIT change a row."""
        run("CREATE TABLE tests_scratch (id int)")
        run(
            "CREATE FUNCTION tests_change() RETURNS trigger LANGUAGE plpgsql AS $$ "
            "BEGIN UPDATE app_effect SET note = 'changed' WHERE name = 'right'; "
            "RETURN NULL; END $$"
        )
        run(
            "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON tests_scratch "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tests_change()"
        )
        yield lambda: run("INSERT INTO tests_scratch VALUES (1)")
        run("DROP FUNCTION tests_change CASCADE")

    @postgresql
    def test_serialization_failure(
        self, handle: Handle, rival: Rival, at_commit: Any
    ) -> None:
        """E4: At the app's own COMMIT and at Django's it is 503."""
        run("SET default_transaction_isolation = 'repeatable read'")

        def handler(request: Request) -> Any:
            at_commit()
            rival.run("UPDATE app_effect SET name = 'r' WHERE name = 'right'")
            rival.run("UPDATE app_effect SET name = 'right' WHERE name = 'r'")
            return act()

        handle(handler)
        assert_undone(post())
        assert_retry_runs(handle)

    @postgresql
    def test_deadlock(self, handle: Handle, rival: Rival, at_commit: Any) -> None:
        """E4: So with a deadlock that the COMMIT runs into."""
        waiting: list[Future[Any]] = []

        def handler(request: Request) -> Any:
            change("left")
            at_commit()
            rival.run("BEGIN", "SET deadlock_timeout = '1min'")
            rival.do(change, "right")
            ((pid,),) = rival.run("SELECT pg_backend_pid()")
            # The rival has to wait again when the app's savepoint is released.
            run("SET LOCAL deadlock_timeout = '1s'")
            waiting.append(rival.start(change, "left"))
            wait_until(lambda: is_waiting(pid), "the rival to wait")
            return act()

        handle(handler)
        answer = post()
        waiting[0].result(PATIENCE)
        rival.run("ROLLBACK")
        assert_undone(answer)
        assert_retry_runs(handle)

    @postgresql
    def test_write_skew(
        self, handle: Handle, rival: Rival, scratch: str, atomic_requests: bool
    ) -> None:
        """E4: Of two transactions that can't be serialized, one is undone."""
        run("CREATE TABLE tests_scratch (name text)")
        for session in (run, rival.run):
            session("SET default_transaction_isolation = 'serializable'")

        def handler(request: Request) -> Any:
            run("SELECT count(*) FROM tests_scratch WHERE name = 'rival'")
            rival.run("BEGIN")
            rival.run("SELECT count(*) FROM tests_scratch WHERE name = 'handler'")
            run("INSERT INTO tests_scratch VALUES ('handler')")
            rival.run("INSERT INTO tests_scratch VALUES ('rival')", "COMMIT")
            return act()

        handle(handler)
        assert_undone(post())
        assert run("SELECT * FROM tests_scratch") == [("rival",)]
        assert_retry_runs(handle)


ISOLATIONS = {
    "postgresql": {
        "repeatable read": ["SET default_transaction_isolation = 'repeatable read'"],
        "serializable": ["SET default_transaction_isolation = 'serializable'"],
    },
    "mysql": {
        "repeatable read": ["SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"],
        "snapshot isolation": [
            "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "SET SESSION innodb_snapshot_isolation = ON",
        ],
        "serializable": ["SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
    },
    "sqlite": {},
}[VENDOR]


@locks_rows
class TestSerializationFailures:
    """E4: 40001 and its like, at isolation levels above the usual one."""

    @pytest.fixture(params=ISOLATIONS)
    def isolation(self, request: pytest.FixtureRequest, rival: Rival) -> str:
        """Run a test at each isolation level that has such failures."""
        if request.param == "snapshot isolation" and not run(
            "SHOW VARIABLES LIKE 'innodb_snapshot_isolation'"
        ):
            assert "CI" not in os.environ, "CI needs a newer MariaDB."
            pytest.skip("This MariaDB is older than snapshot isolation.")
        for statement in ISOLATIONS[request.param]:
            run(statement)
            rival.run(statement)
        return str(request.param)

    @pytest.mark.usefixtures("furniture")
    @pytest.mark.parametrize("caught", ["uncaught", "caught", "in a savepoint"])
    def test_changed_since_it_was_read(
        self,
        request: Any,
        handle: Handle,
        rival: Rival,
        isolation: str,
        write: Write,
        caught: str,
        scratch: str,
    ) -> None:
        """E4: A row that another session changed meanwhile is 503, caught or not.

        MariaDB's REPEATABLE READ lets the handler overwrite it, and that stays.
        """
        run("CREATE TABLE tests_scratch (id int)")
        locks = isolation == "serializable" and VENDOR == "mysql"  # to read is to lock
        overwrites = isolation == "repeatable read" and VENDOR == "mysql"

        def clash() -> None:
            Effect.objects.get(name="left")
            if locks:
                rival.run("BEGIN", "SELECT * FROM app_effect WHERE name = 'left'")
                rival.gain_weight()
                waiting = rival.start(change, "left")
            else:
                rival.run("UPDATE app_effect SET name = 'r' WHERE name = 'left'")
                rival.run("UPDATE app_effect SET name = 'left' WHERE name = 'r'")
            if overwrites:
                return write("left")
            said = "could not serialize|try restarting|changed since last read"
            with pytest.raises(DatabaseError, match=said) as refused:
                write("left")
            if locks:
                waiting.result(PATIENCE)
                rival.run("ROLLBACK")
            raise refused.value

        def handler(request: Request) -> Any:
            answer = act()
            if caught == "uncaught":
                clash()
            elif caught == "caught":
                with suppress(DatabaseError):
                    clash()
            else:
                with suppress(DatabaseError), transaction.atomic():
                    clash()
            return answer

        handle(handler)
        answer = post()
        if overwrites:
            changed = [] if write is read_for_update else ["changed"]
            assert_stored(answer, *changed, "handler")
        elif caught == "in a savepoint" and VENDOR == "postgresql":
            assert_stored(answer, "handler")
        else:
            assert_undone(answer)
            assert_retry_runs(handle)

    def test_claimed_since_the_request_read(
        self, rival: Rival, isolation: str, atomic_requests: bool
    ) -> None:
        """E4: A duplicate whose snapshot is older than the first answer acts never."""
        ReadsFirst.steps.append(lambda: rival.do(post, "/early/"))
        answer = post("/early/")
        fails = VENDOR == "postgresql" or isolation == "snapshot isolation"
        if atomic_requests and fails:
            assert_failed(answer)
        else:
            assert_replayed(answer)
        assert Effect.objects.count() == 1
        assert_replayed(post("/early/"))
        assert Effect.objects.count() == 1

    def test_held(
        self,
        handle: Handle,
        rival: Rival,
        isolation: str,
    ) -> None:
        """E3: A key that another session executes is refused at once."""
        is_held, may_end = Event(), Event()

        def handler(request: Request) -> Any:
            is_held.set()
            assert may_end.wait(PATIENCE)
            return act()

        handle(handler)
        holding = rival.start(post, "/early/")
        assert is_held.wait(PATIENCE)
        if VENDOR == "mysql":
            run(f"SET SESSION innodb_lock_wait_timeout = {10 * PATIENCE}")
        try:
            answer = post("/early/")
        finally:
            may_end.set()
            first = holding.result(PATIENCE)
        assert_in_progress(answer)
        assert first.status_code == 201
        assert_replayed(post("/early/"))


@locks_rows
@pytest.mark.usefixtures("furniture")
class TestTimeouts:
    """O3: a lock timeout is the project's own 500, and nothing stays."""

    TIMEOUTS = {
        "postgresql": {
            "statement_timeout": "SET statement_timeout = '10ms'",
            "lock_timeout": "SET lock_timeout = '10ms'",
        },
        "mysql": {
            "max_statement_time": "SET SESSION max_statement_time = 0.01",
            "innodb_lock_wait_timeout": "SET SESSION innodb_lock_wait_timeout = 0",
        },
        "sqlite": {},
    }[VENDOR]

    @pytest.fixture(params=TIMEOUTS)
    def limit(self, request: pytest.FixtureRequest) -> str:
        """Run a test with each timeout, and return the statement that sets it."""
        return self.TIMEOUTS[request.param]

    @pytest.fixture
    def wait(self, rival: Rival, write: Write, limit: str) -> Callable[[], None]:
        """Return what waits in the handler for a row until its time is over."""
        rival.run("BEGIN")
        rival.do(change, "left")

        def wait() -> None:
            run(limit)
            said = "timeout|Lock wait|max_statement_time"
            with pytest.raises(OperationalError, match=said) as refused:
                write("left")
            raise refused.value

        return wait

    @pytest.fixture(autouse=True)
    def _ends(self, rival: Rival) -> Iterator[None]:
        yield
        rival.run("ROLLBACK")

    def test_uncaught(self, handle: Handle, wait: Any) -> None:
        """O3: In the handler."""

        def handler(request: Request) -> Any:
            act()
            wait()
            return act()

        handle(handler)
        assert_undone(post(), 500)
        assert_retry_runs(handle)

    def test_caught(self, handle: Handle, wait: Any, write: Write) -> None:
        """E2, E5: Caught by the handler: a success has its effects, or is none."""

        def handler(request: Request) -> Any:
            answer = act()
            with suppress(OperationalError):
                wait()
            return answer

        handle(handler)
        answer = post()
        if VENDOR == "mysql" and write is not change_by_orm:
            # The statement alone is undone, and Django has not heard of it.
            assert_stored(answer, "handler")
        else:
            assert_undone(answer)
            assert_retry_runs(handle)

    def test_caught_in_a_savepoint(self, handle: Handle, wait: Any) -> None:
        """E2: In a savepoint it is the handler's own affair."""

        def handler(request: Request) -> Any:
            answer = act()
            with suppress(OperationalError), transaction.atomic():
                wait()
            return answer

        handle(handler)
        assert_stored(post(), "handler")


@locks_rows
class TestTimeoutsOfClaims:
    """E3, O3: claims that a table's lock holds up."""

    @pytest.mark.parametrize(
        ("limit", "status_code"),
        {
            "postgresql": [
                ("SET statement_timeout = '10ms'", 500),
                ("SET lock_timeout = '10ms'", 500),
            ],
            "mysql": [
                ("SET SESSION max_statement_time = 0.01", 500),
                ("SET SESSION lock_wait_timeout = 0", 409),
            ],
            "sqlite": [],
        }[VENDOR],
    )
    def test_at_the_claim(
        self, handle: Handle, rival: Rival, limit: str, status_code: int
    ) -> None:
        """E3, O3: Nothing runs, nothing stays; afterwards the retry runs."""
        handle(lambda request: act())
        if VENDOR == "postgresql":
            rival.run("BEGIN", f"LOCK TABLE {RECORDS} IN ACCESS EXCLUSIVE MODE")
        else:
            rival.run(f"LOCK TABLES {RECORDS} READ")
        run(limit)
        answer = post()
        rival.run("ROLLBACK" if VENDOR == "postgresql" else "UNLOCK TABLES")
        assert_undone(answer, status_code)
        if status_code == 409:
            assert_in_progress(answer)
        connection.close()  # and with it, the limit
        assert_retry_runs(handle)


@locks_rows
class TestConnections:
    """E1, E5: the server ends the session of a handler."""

    @pytest.fixture
    def lose(self, rival: Rival) -> Callable[[], None]:
        """Return what finds out that the connection is gone."""

        def lose() -> None:
            own_id, end = {
                "postgresql": ("pg_backend_pid()", "SELECT pg_terminate_backend({})"),
                "mysql": ("connection_id()", "KILL {}"),
            }[VENDOR]
            ((session,),) = run(f"SELECT {own_id}")
            rival.run(end.format(session))
            with pytest.raises(OperationalError) as lost:
                run("SELECT 1")
            raise lost.value

        return lose

    def test_uncaught(self, handle: Handle, lose: Any) -> None:
        """O3: A connection that is lost in the handler is the project's own 500."""

        def handler(request: Request) -> Any:
            act()
            lose()
            return act()

        handle(handler)
        assert_undone(post(), 500)
        assert_retry_runs(handle)

    @pytest.mark.parametrize("savepoint", [False, True], ids=["bare", "in a savepoint"])
    def test_caught(
        self, request: Any, handle: Handle, lose: Any, savepoint: bool
    ) -> None:
        """E5: Caught by the handler, it does not pass for a success."""

        def handler(request: Request) -> Any:
            answer = act()
            with suppress(DatabaseError):
                if savepoint:
                    with transaction.atomic():
                        lose()
                else:
                    lose()
            return answer

        handle(handler)
        assert_undone(post())
        assert_retry_runs(handle)


def make_table() -> None:
    """Commit on MariaDB, whatever was open; elsewhere it is a statement like others."""
    run("CREATE TABLE tests_scratch (id int)")


def table_exists() -> bool:
    return "tests_scratch" in connection.introspection.table_names()


@pytest.mark.usefixtures("scratch")
class TestTablesMadeByHandlers:
    """E5: DDL in a handler, which MariaDB commits at once, with claim and effects."""

    def test_success(self, handle: Handle) -> None:
        """E1: The answer is stored after all."""

        def handler(request: Request) -> Any:
            act("before")
            make_table()
            return act("after")

        handle(handler)
        assert_stored(post(), "before", "after")

    @pytest.mark.parametrize("raised", [False, True], ids=["returned", "raised"])
    def test_failure(self, handle: Handle, raised: bool) -> None:
        """O3, E5: A failure undoes all, or what MariaDB has not committed yet."""

        def handler(request: Request) -> Any:
            act("before")
            make_table()
            act("after")
            if raised:
                raise RuntimeError
            return Response(status=500)

        handle(handler)
        answer = post()
        if VENDOR != "mysql":
            assert_undone(answer, 500)
            assert not table_exists()
            assert_retry_runs(handle)
            return
        assert answer.status_code == 500
        for _ in range(2):
            assert_outcome_unknown(post())
        assert effects() == ["before"]

    @pytest.mark.parametrize("raised", [False, True], ids=["returned", "raised"])
    def test_refusal(self, handle: Handle, raised: bool, atomic_requests: bool) -> None:
        """O2, E5: A refusal frees the key, unless its transaction ends in between."""

        def handler(request: Request) -> Any:
            act("before")
            make_table()
            act("after")
            if raised:
                raise ValidationError("no")
            return Response(status=400)

        handle(handler)
        assert post().status_code == 400
        if not (raised and atomic_requests):
            assert effects() == ["before", "after"]
            assert IdempotencyRecord.objects.count() == 0
        elif VENDOR == "mysql":
            # REST framework rolls back what the handler had not committed yet.
            assert effects() == ["before"]
            assert_outcome_unknown(post())
            assert effects() == ["before"]
        else:
            assert effects() == []
            assert_retry_runs(handle)

    @mariadb
    def test_duplicate_meanwhile(self, handle: Handle, rival: Rival) -> None:
        """E5: A duplicate that finds a record without a lease runs nothing."""
        answers: list[Any] = []

        def handler(request: Request) -> Any:
            make_table()
            answers.append(rival.do(post))
            return act()

        handle(handler)
        assert_stored(post(), "handler")
        assert_outcome_unknown(answers[0])

    @mariadb
    def test_killed_afterwards(self, rendezvous: Rendezvous, tmp_path: Path) -> None:
        """E5: A worker that is killed after it leaves its outcome unknown."""
        command = [sys.executable, "-c", WORKER, str(rendezvous.address)]
        with running(command, tmp_path / "log"):
            rendezvous.wait().kill()
        for _ in range(2):
            assert_outcome_unknown(post())
        assert effects() == ["before"]
        assert post("/early/").status_code == 422


# A worker without a server, which dies as one does.
WORKER = """
import sys
import django
django.setup()
from django.conf import settings
from django.test import override_settings
from tests import test_database_refusals as tests
from tests.app.views import Behaviour
from tests.support.rendezvous import meet

def handler(request):
    tests.act("before")
    tests.make_table()
    tests.act("after")
    meet(sys.argv[1])

Behaviour.handler = staticmethod(handler)
urls = "tests.test_database_refusals"
with override_settings(ALLOWED_HOSTS=["*"], ROOT_URLCONF=urls):
    tests.post()
"""


@sqlite
class TestOneWriter:
    """E3, E4: "database is locked", wherever SQLite says so."""

    @pytest.fixture
    def opened(self, rival: Rival, tmp_path: Path) -> Iterator[Callable[..., None]]:
        """Return what opens a copy of the database, in a mode, without patience."""
        settings = connections.settings["default"]
        before = {name: settings[name] for name in ("NAME", "OPTIONS")}
        copy = tmp_path / "copy.sqlite3"
        connection.ensure_connection()
        with closing(connection.Database.connect(copy)) as target:
            connection.connection.backup(target)

        def open_copy(transaction_mode: str, journal_mode: str = "WAL") -> None:
            connection.close()
            options = {
                "transaction_mode": transaction_mode,
                "timeout": 0,
                "init_command": f"PRAGMA journal_mode={journal_mode}",
            }
            settings.update(NAME=str(copy), OPTIONS=options)
            connection.ensure_connection()

        yield open_copy
        rival.do(connections.close_all)
        connection.close()
        settings.update(before)

    @pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
    def test_at_begin(
        self,
        handle: Handle,
        rival: Rival,
        opened: Any,
        atomic_requests: bool,
        mode: str,
    ) -> None:
        """E3: No turn to write is 409; before the view is called, the project's 500."""
        opened(mode)
        handle(lambda request: act())
        rival.run("BEGIN IMMEDIATE")
        answer = post()
        rival.run("ROLLBACK")
        if not atomic_requests:
            assert_in_progress(answer)
        assert_undone(answer, 500 if atomic_requests else 409)
        assert_retry_runs(handle)

    @pytest.mark.parametrize("journal", ["WAL", "DELETE"])
    @pytest.mark.parametrize("path", ["/function/", "/early/"], ids=["new", "has read"])
    def test_at_the_claim(
        self, handle: Handle, rival: Rival, opened: Any, journal: str, path: str
    ) -> None:
        """E3: A deferred transaction that gets no turn at its claim is 409."""
        opened("DEFERRED", journal)
        handle(lambda request: act())
        rival.run("BEGIN IMMEDIATE", "INSERT INTO app_effect (note) VALUES ('rival')")
        answer = post(path)
        rival.run("ROLLBACK")
        assert_in_progress(answer)
        assert_undone(answer, 409)
        assert_retry_runs(handle)

    def test_claimed_since_the_request_read(
        self, rival: Rival, opened: Any, atomic_requests: bool
    ) -> None:
        """E3: A duplicate whose snapshot is older than the first answer acts never."""
        opened("DEFERRED")
        ReadsFirst.steps.append(lambda: rival.do(post, "/early/"))
        answer = post("/early/")
        if atomic_requests:
            assert_in_progress(answer)
        else:
            assert_replayed(answer)
        assert_replayed(post("/early/"))
        assert Effect.objects.count() == 1

    @pytest.mark.parametrize("completed", [False, True], ids=["new", "completed"])
    def test_at_the_look_up(
        self, request: Any, handle: Handle, rival: Rival, opened: Any, completed: bool
    ) -> None:
        """E3: Where a writer keeps readers out as well, it is 409, never 500."""
        opened("DEFERRED", "DELETE")
        handle(lambda request: act())
        if completed:
            first = post()
        rival.run("BEGIN EXCLUSIVE")
        answer = post()
        rival.run("ROLLBACK")
        assert_in_progress(answer)
        if completed:
            assert post().content == first.content
        else:
            assert_undone(answer, 409)
            assert_retry_runs(handle)

    @pytest.mark.parametrize("caught", [False, True], ids=["uncaught", "caught"])
    def test_in_the_handler(
        self, handle: Handle, rival: Rival, opened: Any, caught: bool
    ) -> None:
        """E4: A second connection of the handler's own can't write beside the first."""
        opened("IMMEDIATE")

        def handler(request: Request) -> Any:
            answer = act()
            with pytest.raises(OperationalError, match="locked") as refused:
                rival.run("INSERT INTO app_effect (note) VALUES ('beside')")
            if not caught:
                raise refused.value
            return answer

        handle(handler)
        answer = post()
        if caught:
            assert_stored(answer, "handler")
        else:
            assert_undone(answer)
            assert_retry_runs(handle)

    @pytest.mark.parametrize("mode", ["DEFERRED", "IMMEDIATE"])
    def test_at_commit(
        self, handle: Handle, rival: Rival, opened: Any, mode: str
    ) -> None:
        """E4: A COMMIT that a reader blocks is 503, Django's, too."""
        opened(mode, "DELETE")
        handle(lambda request: act())
        rival.run("BEGIN DEFERRED", "SELECT * FROM app_effect")
        answer = post()
        rival.run("ROLLBACK")
        assert_undone(answer)
        assert_retry_runs(handle)
