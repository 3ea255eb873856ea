"""What records say of a person goes, and what stops a second effect stays."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from io import StringIO
from threading import Barrier, Event
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, connections, transaction
from django.http import StreamingHttpResponse
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import path
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency import erasing, signals
from idempotency.context import context_of
from idempotency.database import UTCNow
from idempotency.erasing import EraseReport
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, RecordChanged, State, Status
from idempotency.scopes import authorization_scope, user_scope
from tests.app.authentication import NamedUser
from tests.app.models import Effect
from tests.app.views import behave, create_effect
from tests.conftest import KEY, code_of, key
from tests.support.processes import PATIENCE
from tests.support.record_factories import RETENTION, make_record, new_record
from tests.support.rendezvous import session_id
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

Handle = Callable[[Callable[[Request], Any]], None]
ADA = NamedUser("ada")
NOT_KEPT, REUSED = "idempotency_response_not_kept", "idempotency_key_reused"
records = IdempotencyRecord.objects


class Rerunning(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned: Any = "rerun"

    def post(self, request: Request) -> Any:
        return behave(request)

    def check_replay(self, request: Request, record: IdempotencyRecord) -> None:
        """Rely on what each completed record had."""
        assert all((record.scope, record.key, record.path, record.headers))


class Holding(Rerunning):
    idempotency_on_abandoned = "hold"


class Resuming(Rerunning):
    idempotency_on_abandoned = "resume"


def enquire(record: IdempotencyRecord, request: Request) -> Any:
    raise AssertionError("An erased record is nobody's to find out about.")


class Asking(Rerunning):
    idempotency_on_abandoned = enquire


urlpatterns = [
    *usual_urls,
    path("rerunning/", Rerunning.as_view()),
    path("holding/", Holding.as_view()),
    path("resuming/", Resuming.as_view()),
    path("asking/", Asking.as_view()),
]


def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function on a database connection of its own, and return its result."""

    def run() -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(PATIENCE)


def needs_row_locks() -> None:
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("This database locks no single rows.")


def erase(caller: Any = ADA) -> EraseReport:
    return records.of_caller(caller).erase()


def row() -> dict[str, Any]:
    (found,) = records.values()
    return found


def fail(request: Request) -> Any:
    Effect.objects.create(note="before the failure")
    raise RuntimeError


def stream(request: Request) -> Any:
    Effect.objects.create()
    return StreamingHttpResponse([b"1"], headers={"Location": "/people/ada"})


def fail_after_step(request: Request) -> Any:
    context_of(request).step("write", lambda: Effect.objects.create().pk)
    raise RuntimeError


def fail_in_call(request: Request) -> Any:
    context_of(request).step("write", lambda: Effect.objects.create().pk)

    def ask(derived: str) -> Any:
        raise RuntimeError

    context_of(request).call("ask", ask, on_abandoned="hold")


# What goes, and what stays.


GONE = {
    "scope": "",
    "key": "",
    "path": "",
    "headers": None,
    "body": None,
    "body_size": None,
    "steps": None,
}
# What a row has besides. A new field belongs here, or to the others.
KEPT = (
    *("id", "method", "route", "fingerprint", "fingerprint_version", "state"),
    *("attempt", "lease_expires_at", "status_code", "encrypted_by"),
    *("created_at", "completed_at", "expires_at"),
)


def test_fields(client: Any) -> None:
    """P4: Scope, key, path, headers and body go; id, fingerprint and times stay."""
    client.post("/function/", {"of": "ada"}, **key())
    before = row()
    assert {*before} == {*GONE, *KEPT, "token"}
    assert all(before[name] for name in GONE if name != "steps")
    assert erase() == EraseReport(erased=1)
    after = row()
    assert after.pop("token") != before.pop("token")
    assert after == before | GONE
    assert (after["status_code"], after["state"]) == (201, State.COMPLETED)
    (record,) = records.with_lease_state()
    assert record.status is Status.ERASED
    statuses = {status: records.with_status(status).count() for status in Status}
    assert statuses == {**dict.fromkeys(Status, 0), Status.ERASED: 1}
    assert erase() == EraseReport()


def test_steps_of_an_abandoned_record(client: Any, handle: Handle) -> None:
    """P4: A record without a response is over, and says nothing of its steps."""
    handle(fail_after_step)
    client.post("/resuming/", {}, **key())
    before = row()
    assert before["steps"]
    assert before["lease_expires_at"]
    assert erase() == EraseReport(erased=1)
    after = row()
    assert after["steps"] is after["lease_expires_at"] is after["status_code"] is None
    assert (after["state"], after["completed_at"]) == (State.COMPLETED, None)
    assert after["created_at"] == before["created_at"]
    assert not records.resumable().exists()
    assert not records.abandoned().exists()


CASES = {
    "completed": ("/function/", create_effect, "status 201"),
    "leased": ("/rerunning/", create_effect, "status 201"),
    "plain view": ("/plain/function/", create_effect, "status 201"),
    "not kept": ("/function/", stream, "status 200"),
    "held": ("/holding/", fail, "the outcome of its request is unknown"),
    "to be run again": ("/rerunning/", fail, "the outcome of its request is unknown"),
    "to be asked about": ("/asking/", fail, "the outcome of its request is unknown"),
    "to be resumed": ("/resuming/", fail_after_step, "outcome of its request is"),
    "in doubt": ("/resuming/", fail_in_call, "the outcome of its request is unknown"),
}


@pytest.mark.parametrize("case", CASES)
def test_retries(client: Any, handle: Handle, case: str, each_way: None) -> None:
    """P4, R4, F4: A retry acts on nothing, and is told why; another request, too."""
    address, handler, said = CASES[case]
    handle(handler)
    first = client.post(address, {"of": "ada"}, **key())
    effects = Effect.objects.count()
    assert effects == 1
    assert erase() == EraseReport(erased=1)
    handle(create_effect)
    for _again in range(2):
        retry = client.post(address, {"of": "ada"}, **key())
        assert (retry.status_code, retry["Idempotency-Error"]) == (409, NOT_KEPT)
        assert said in retry.content.decode()
        assert "Location" not in retry
        assert "Retry-After" not in retry
        if "Idempotency-Expires" in first:
            assert retry["Idempotency-Expires"] == first["Idempotency-Expires"]
    other = client.post(address, {"of": "grace"}, **key())
    assert (other.status_code, other["Idempotency-Error"]) == (422, REUSED)
    assert Effect.objects.count() == effects
    assert not row()["scope"]


@pytest.mark.parametrize("version", ["custom", "unknown"])
def test_other_fingerprints(client: Any, settings: Any, version: str) -> None:
    """P4, F4: A custom fingerprint tells requests apart; an unknown version refuses."""
    settings.IDEMPOTENCY = {"FINGERPRINT": f"{__name__}.by_order"}
    client.post("/function/", {"order": 1}, **key())
    erase()
    if version == "unknown":
        records.update(fingerprint_version=99)
    same = client.post("/function/", {"order": 1, "at": "noon"}, **key())
    other = client.post("/function/", {"order": 2}, **key())
    assert code_of(same) == (NOT_KEPT if version == "custom" else REUSED)
    assert code_of(other) == REUSED
    assert Effect.objects.count() == 1


def by_order(request: Request) -> str:
    return str(request.data["order"])


def test_expired(client: Any, each_way: None) -> None:
    """P4, P1: An expired record is erased, too; its key is new, and its row whole."""
    client.post("/function/", {}, **key())
    before = row()
    past = timezone.now() - timedelta(days=1)
    records.update(expires_at=past)
    assert erase() == EraseReport(erased=1)
    assert row()["expires_at"] == past
    answer = client.post("/function/", {"other": 1}, **key())
    assert (answer.status_code, Effect.objects.count()) == (201, 2)
    names = ("id", "scope", "key", "path")
    assert [row()[name] for name in names] == [before[name] for name in names]
    again = client.post("/function/", {"other": 1}, **key())
    assert again["Idempotent-Replayed"] == "true"
    assert erase() == EraseReport(erased=1)


def test_purge_of_erased(client: Any) -> None:
    """P2, P4: What is left goes with the purge, when the record expires."""
    client.post("/function/", {}, **key())
    erase()
    assert records.purge().deleted == 0
    assert records.purge(now=timezone.now() + RETENTION + timedelta(1)).deleted == 1


# Whose records.


def test_whose() -> None:
    """P4, S1: A caller is a user or a scope, and nobody else's records go."""
    ada, grace = saved_user(1), saved_user(2)
    for scope in map(user_scope, (ada, grace)):
        make_record(scope=scope)
    assert records.of_caller(ada).get().scope == f"user:auth.user:{ada.pk}"
    assert records.of_caller(SimpleLazyObject(lambda: ada)).count() == 1
    assert erase(ada).erased == 1
    assert records.of_caller(grace).count() == 1
    assert erase(f"user:auth.user:{grace.pk}").erased == 1


def saved_user(pk: int) -> User:
    user = User(pk=pk)
    user._state.adding = False
    return user


def test_scopes_that_nearly_are_one() -> None:
    """P4, K3: Case and trailing blanks count, whatever the collation says."""
    scopes = ("tenant:a", "tenant:A", "tenant:a ", "tenant:ä")
    for scope in scopes:
        make_record(scope=scope)
    for scope in scopes:
        assert [each.scope for each in records.of_caller(scope)] == [scope]
    assert erase("tenant:a") == EraseReport(erased=1)
    assert {*records.values_list("scope", flat=True)} == {"", *scopes[1:]}


@pytest.mark.parametrize(
    "caller",
    [None, 5, "", "x" * 513, "a\0b", "\ud800", AnonymousUser(), User(username="new")],
    ids=["none", "pk", "empty", "long", "nul", "surrogate", "anonymous", "unsaved"],
)
def test_no_caller(caller: Any) -> None:
    """P4, X1: Nobody is everybody; the error does not repeat what was given."""
    make_record()
    with pytest.raises(ValueError, match="scope") as caught:
        records.of_caller(caller)
    assert not caller or caller not in caught.value.args
    assert "xxx" not in str(caught.value)
    assert caught.value.__context__ is None


def test_callers_by_their_header() -> None:
    """P4, S1: Who knows a caller's header can find what it has left."""
    for token in ("4f2", "4f3"):
        make_record(scope=authorization_scope(f"Token {token}"))
    assert erase(authorization_scope("Token 4f2")) == EraseReport(erased=1)
    assert records.of_caller(authorization_scope("Token 4f3")).exists()


def test_not_by_the_manager() -> None:
    """P4: No slip of the pen erases the whole table."""
    assert not hasattr(records, "erase")
    make_record()
    assert records.all().erase().erased == 1


def test_index() -> None:
    """P4, A2: An index finds a caller's records, and each batch of them."""
    records.bulk_create([new_record(scope=f"user:auth.user:{n}") for n in range(3000)])
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("ANALYZE TABLE idempotency_idempotencyrecord")
            cursor.fetchall()
        else:
            cursor.execute("ANALYZE idempotency_idempotencyrecord")
    with CaptureQueriesContext(connection) as queries:
        assert records.of_caller("user:auth.user:7").get()
        assert erase("user:auth.user:7").erased == 1
    sent = [query["sql"] for query in queries if "user:auth.user:7" in query["sql"]]
    assert len(sent) >= 4
    plan = "EXPLAIN QUERY PLAN " if connection.vendor == "sqlite" else "EXPLAIN "
    for sql in sent:
        with connection.cursor() as cursor:
            cursor.execute(plan + sql)
            said = str(cursor.fetchall())
        # Few records have a lease; another index knows them.
        assert any(f"idempotency_{name}" in said for name in ("caller", "lease")), sql


# Beside running handlers.


def test_in_progress(client: Any, handle: Handle) -> None:
    """P4, E7: What is being executed is left alone and counted."""
    reports = []

    def handler(request: Request) -> Response:
        reports.append(erase())
        with pytest.raises(RecordChanged):
            records.get().erase()
        return create_effect(request)

    handle(handler)
    assert client.post("/rerunning/", {}, **key()).status_code == 201
    assert reports == [EraseReport(in_progress=1)]
    assert reports[0].left == 1
    assert client.post("/rerunning/", {}, **key())["Idempotent-Replayed"] == "true"
    assert erase() == EraseReport(erased=1)


@pytest.mark.parametrize("way", ["answer", "renew", "error", "step"])
def test_late_handlers(client: Any, handle: Handle, way: str) -> None:
    """P4, E7: A handler whose lease is over brings nothing back of an erased record."""

    def expire_and_erase() -> EraseReport:
        records.update(lease_expires_at=UTCNow() - timedelta(seconds=1))
        return erase()

    def handler(request: Request) -> Any:
        assert in_thread(expire_and_erase) == EraseReport(erased=1)
        if way == "renew":
            context_of(request).renew()
        if way == "step":
            context_of(request).step("write", lambda: Effect.objects.create().pk)
        if way == "error":
            raise RuntimeError
        return Response({"of": "ada"}, status=201)

    handle(handler)
    answer = client.post("/resuming/", {}, **key())
    if way == "error":
        assert answer.status_code == 500
    else:
        assert code_of(answer) == "idempotency_claim_lost"
    left = row()
    assert not left["scope"]
    assert left["headers"] is left["body"] is left["steps"] is None
    assert Effect.objects.count() == 0
    handle(create_effect)
    assert code_of(client.post("/resuming/", {}, **key())) == NOT_KEPT
    assert Effect.objects.count() == 0


def test_step_that_is_late(client: Any, handle: Handle) -> None:
    """P4, E12: A step that commits after the lease was over is undone by an erase."""
    needs_row_locks()

    def write() -> int:
        records.using("other").update(lease_expires_at=UTCNow() - timedelta(seconds=1))
        effect = Effect.objects.create()
        assert in_thread(erase) == EraseReport(erased=1)
        return effect.pk

    handle(lambda request: Response(context_of(request).step("write", write)))
    assert code_of(client.post("/resuming/", {}, **key())) == "idempotency_claim_lost"
    assert Effect.objects.count() == 0
    assert row()["steps"] is None


def test_left_behind() -> None:
    """P4, E5: A run that committed behind the app's back loses its claim, too."""
    record = make_record(
        scope=user_scope(ADA), state=State.IN_PROGRESS, body=None, status_code=None
    )
    assert erase() == EraseReport(erased=1)
    with pytest.raises(RecordChanged):
        record.release()


def test_atomic_runs_that_have_not_committed(client: Any, handle: Handle) -> None:
    """P4, E1: Nobody sees them; what they commit after the erase goes with the next."""
    needs_row_locks()
    reports = []

    def handler(request: Request) -> Response:
        reports.append(in_thread(erase))
        return create_effect(request)

    handle(handler)
    assert client.post("/function/", {}, **key()).status_code == 201
    assert reports == [EraseReport()]
    assert row()["scope"]
    assert erase() == EraseReport(erased=1)


def test_rows_that_others_hold(client: Any, handle: Handle, each_way: None) -> None:
    """P4, P2: An erase waits for nobody: it leaves the row, and says so."""
    needs_row_locks()
    client.post("/function/", {}, **key())
    records.update(expires_at=timezone.now() - timedelta(days=1))
    make_record(scope=user_scope(ADA))
    reports = []

    def handler(request: Request) -> Response:
        reports.append(in_thread(erase))
        with pytest.raises(RecordChanged):
            in_thread(lambda: records.exclude(scope="").get().erase())
        return create_effect(request)

    handle(handler)
    assert client.post("/function/", {}, **key()).status_code == 201
    assert reports == [EraseReport(erased=1, held=1)]
    assert erase() == EraseReport(erased=1)


CLIENTS, KEYS = 4, 8


@pytest.mark.parametrize("address", ["/function/", "/rerunning/"])
def test_under_load(handle: Handle, address: str, each_way: None) -> None:
    """P4: Clients retry until a record is erased; each key has acted once, no more."""
    keys = [f"{KEY}-{number}" for number in range(KEYS)]
    begin, is_over = Barrier(CLIENTS + 1, timeout=PATIENCE), Event()

    def act(request: Request) -> Response:
        Effect.objects.create(note=request.headers["Idempotency-Key"])
        return Response({"of": "ada"}, status=201)

    def retry(seed: int) -> Counter[Any]:
        client = ada()
        order = random.Random(seed)
        left, seen = [*keys], Counter[Any]()
        begin.wait()
        while left and not is_over.is_set():
            one = order.choice(left)
            answer = client.post(address, {}, **key(one))
            code = answer.headers.get("Idempotency-Error")
            seen[code] += 1
            if code is None:
                assert (answer.status_code, answer.data) == (201, {"of": "ada"})
            elif code == NOT_KEPT:
                left.remove(one)
            else:
                assert answer["Retry-After"], code
        return seen

    def keep_erasing() -> int:
        begin.wait()
        erased = 0
        while not is_over.is_set():
            erased += erase().erased
        return erased

    handle(act)
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        eraser = pool.submit(closing(keep_erasing))
        try:
            runs = [pool.submit(closing(retry), seed) for seed in range(CLIENTS)]
            seen = sum((run.result(PATIENCE) for run in runs), Counter[Any]())
        finally:
            begin.abort()
            is_over.set()
        assert eraser.result(PATIENCE) == KEYS
    assert seen[NOT_KEPT] == CLIENTS * KEYS
    effects = Counter(Effect.objects.values_list("note", flat=True))
    assert effects == dict.fromkeys(keys, 1)
    assert [*records.values_list("scope", "key").distinct()] == [("", "")]


def test_abandoned_records_under_load(handle: Handle) -> None:
    """P4, E9: A retry takes a record over, or finds it erased; never both."""
    keys = [f"{KEY}-{number}" for number in range(KEYS)]
    handle(fail)
    for one in keys:
        ada().post("/rerunning/", {}, **key(one))
    Effect.objects.all().delete()
    begin = Barrier(CLIENTS + 1, timeout=PATIENCE)

    def act(request: Request) -> Response:
        Effect.objects.create(note=request.headers["Idempotency-Key"])
        return Response({"of": "ada"}, status=201)

    def retry(seed: int) -> set[str]:
        client, done = ada(), set()
        order = random.Random(seed)
        begin.wait()
        for one in order.sample(keys, len(keys)):
            answer = client.post("/rerunning/", {}, **key(one))
            while answer.headers.get("Idempotency-Error") not in (None, NOT_KEPT):
                assert answer["Retry-After"]
                answer = client.post("/rerunning/", {}, **key(one))
            if answer.status_code == 201:
                done.add(one)
        return done

    def erase_all() -> int:
        begin.wait()
        erased = 0
        while erased < KEYS:
            erased += erase().erased
        return erased

    handle(act)
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        eraser = pool.submit(closing(erase_all))
        runs = [pool.submit(closing(retry), seed) for seed in range(CLIENTS)]
        done = set().union(*(run.result(PATIENCE) for run in runs))
        assert eraser.result(PATIENCE) == KEYS
    acted = Counter(Effect.objects.values_list("note", flat=True))
    assert set(acted.values()) <= {1}
    assert done == {*acted}
    for one in keys:
        assert code_of(ada().post("/rerunning/", {}, **key(one))) == NOT_KEPT
    assert Effect.objects.count() == sum(acted.values())


def ada() -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_X_USER="ada")
    return client


def closing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that leaves no connection of its thread open."""

    def run(*args: Any) -> Any:
        try:
            return function(*args)
        finally:
            connections.close_all()

    return run


# Many records.


@pytest.fixture
def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a batch have two rows, and return how long the erase has rested."""
    rests: list[float] = []
    monkeypatch.setattr(erasing, "BATCH_SIZE", 2)
    monkeypatch.setattr("idempotency.erasing.time.sleep", rests.append)
    return rests


def test_batches(batches_of_two: list[float]) -> None:
    """P4, P2: It goes in short transactions, and rests between them."""
    for number in range(5):
        make_record(timedelta(hours=number), scope="tenant:a", path=f"/{number}")
    make_record(scope="tenant:a", created_at=timezone.now() - timedelta(hours=1))
    make_record(scope="tenant:b")
    sizes: list[int] = []

    def watch(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if sql.startswith("UPDATE"):
            sizes.append(in_other())
        return result

    def in_other() -> int:
        # On SQLite the other connection would wait for this one.
        return 0 if connection.vendor == "sqlite" else seen_by_others()

    def seen_by_others() -> int:
        return records.using("other").filter(key="").count()

    with connection.execute_wrapper(watch):
        assert erase("tenant:a") == EraseReport(erased=6)
    if connection.vendor != "sqlite":
        assert sizes == [0, 2, 4]
    assert len(batches_of_two) == 3
    assert {*records.values_list("scope", flat=True)} == {"", "tenant:b"}


def test_same_moment(batches_of_two: list[float]) -> None:
    """P4: Records of one moment are more than a batch."""
    now = timezone.now()
    for _number in range(5):
        make_record(scope="tenant:a", created_at=now)
    assert erase("tenant:a").erased == 5


@pytest.mark.parametrize("failures", [1, 3, 4])
def test_failed_batches(batches_of_two: list[float], failures: int) -> None:
    """P4, P2: After a deadlock a batch is tried again; what is done stays done."""
    for _number in range(3):
        make_record(scope="tenant:a")
    left = [*range(failures)]

    def deadlock(execute: Any, sql: str, *args: Any) -> Any:
        is_second = records.using("other").filter(key="").exists()
        if sql.startswith("UPDATE") and is_second and left:
            left.pop()
            raise OperationalError(1213, "Deadlock found: tenant:a")
        return execute(sql, *args)

    with connection.execute_wrapper(deadlock), ExitStack() as stack:
        if failures == 4:
            stack.enter_context(pytest.raises(OperationalError))
        assert erase("tenant:a") == EraseReport(erased=3)
    erased = records.filter(key="").count()
    assert erased == (2 if failures == 4 else 3)
    assert batches_of_two[1:] == [*erasing.PAUSES][:failures]


def test_lost_connection() -> None:
    """P4, E7: A batch is tried again on a new connection."""
    if connection.vendor == "sqlite":
        pytest.skip("Its connection can't be lost.")
    make_record(scope="tenant:a")
    connection.ensure_connection()
    kill = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL %s"}
    lost = [session_id()]

    def lose(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and lost:
            with connections["other"].cursor() as cursor:
                cursor.execute(kill[connection.vendor], lost)
            lost.clear()
        return execute(sql, *args)

    with connection.execute_wrapper(lose):
        assert erase("tenant:a") == EraseReport(erased=1)
    assert not lost


def test_errors_say_no_values(batches_of_two: list[float]) -> None:
    """P4, X1: An error of the database does not repeat the scope."""
    make_record(scope="tenant:a")

    def refuse(execute: Any, sql: str, *args: Any) -> Any:
        if "idempotency" in sql:
            raise OperationalError(1366, "Incorrect value: tenant:a")
        return execute(sql, *args)

    record = records.get()
    for function in (lambda: erase("tenant:a"), record.erase):
        with (
            connection.execute_wrapper(refuse),
            pytest.raises(OperationalError) as caught,
        ):
            function()
        assert "tenant" not in str(caught.value)
        assert caught.value.__context__ is None
    assert record.key


def test_not_inside_a_transaction() -> None:
    """P4: In a transaction, batches would hold all rows at once."""
    make_record(scope="tenant:a")
    with transaction.atomic(), pytest.raises(RuntimeError):
        erase("tenant:a")
    with transaction.atomic():
        records.get().erase()
    assert not row()["scope"]


@pytest.mark.parametrize("way", ["token", "erased", "released"])
def test_record_that_changed(way: str) -> None:
    """P4, A3: One record is erased if it still is as it was read."""
    record = make_record()
    if way == "token":
        records.update(token=uuid4())
    elif way == "erased":
        records.all().erase()
    else:
        record.release()
    with pytest.raises(RecordChanged):
        record.erase()


def test_record_by_itself() -> None:
    """P4: The object forgets, too."""
    record = make_record()
    record.erase()
    assert record.is_erased
    assert record.status is Status.ERASED
    assert (record.scope, record.path, record.body) == ("", "", None)
    assert record.token == row()["token"]


# What else could know.


def test_nothing_else_knows(
    client: Any, handle: Handle, caplog: pytest.LogCaptureFixture
) -> None:
    """P4, X1: Signals and log lines of a record's whole life name nobody."""
    caplog.set_level(logging.DEBUG, "idempotency")
    told: list[str] = []

    def tell(sender: Any, details: Any, **kwargs: Any) -> None:
        told.append(repr(details))

    every = [s for s in vars(signals).values() if isinstance(s, signals.LoggedSignal)]
    for signal in every:
        signal.connect(tell)
    try:
        client.post("/function/", {"of": "body-of-ada"}, **key())
        client.post("/function/", {"of": "body-of-ada"}, **key())
        client.post("/function/", {"of": "other"}, **key())
        handle(fail_after_step)
        client.post("/resuming/", {"of": "body-of-ada"}, **key(f"{KEY}-2"))
        assert erase().erased == 2
        client.post("/function/", {"of": "body-of-ada"}, **key())
        records.purge(now=timezone.now() + RETENTION + timedelta(1))
    finally:
        for signal in every:
            signal.disconnect(tell)
    ours = [each for each in caplog.records if each.name == "idempotency"]
    lines = [f"{each.getMessage()} {vars(each)}" for each in ours]
    assert len(told) >= 6
    assert len(lines) >= 6
    for text in [*told, *lines]:
        assert KEY not in text
        assert "NamedUser" not in text
        assert "body-of-ada" not in text


# The command.


def command(*options: str) -> str:
    out = StringIO()
    call_command("idempotency_erase", *options, stdout=out, stderr=out)
    return out.getvalue()


def test_command() -> None:
    """P4: It erases the records of a user, who may be gone, and those of a scope."""
    scope = "user:auth.user:42"
    for each in (scope, scope, f"tenant:1:{scope}", "anonymous"):
        make_record(scope=each)
    said = command("--user", "42", "--dry-run")
    assert said == "Would erase 2 idempotency records. 0 are in progress.\n"
    assert records.of_caller(scope).count() == 2
    assert command("--user", "042", "--scope", f"tenant:1:{scope}") == (
        "Erased 3 idempotency records.\n"
    )
    assert records.get(key__gt="").scope == "anonymous"
    assert command("--user", "42") == "Erased 0 idempotency records.\n"


def test_command_with_records_left() -> None:
    """P4: It fails while there is something left, for what erases until all is gone."""
    lease = {"body": None, "state": State.IN_PROGRESS, "status_code": None}
    until = timezone.now() + timedelta(hours=1)
    make_record(scope="tenant:a", lease_expires_at=until, **lease)
    make_record(scope="tenant:a")
    said = command("--scope", "tenant:a", "--dry-run")
    assert said == "Would erase 1 idempotency records. 1 are in progress.\n"
    out = StringIO()
    with pytest.raises(CommandError, match="1 are in progress, and 0 in use") as error:
        call_command("idempotency_erase", "--scope", "tenant:a", stdout=out)
    assert error.value.returncode == 1
    assert out.getvalue() == "Erased 1 idempotency records.\n"
    records.update(lease_expires_at=UTCNow() - timedelta(seconds=1))
    assert command("--scope", "tenant:a") == "Erased 1 idempotency records.\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Name the caller"),
        (["--user", "ada"], "'ada' is not a primary key of auth.User."),
        (["--scope", ""], "1 to 512 characters"),
        (["--scope", "a", "--database", "nowhere"], "is not an alias in DATABASES"),
    ],
)
def test_command_without_a_caller(options: list[str], said: str) -> None:
    """P4: A mistake erases nothing."""
    make_record()
    with pytest.raises(CommandError, match=said):
        command(*options)
    assert row()["scope"]


def test_command_with_scopes_of_the_project() -> None:
    """P4: It says that a user may have another scope, where the project names them."""
    with override_settings(IDEMPOTENCY={"SCOPE": f"{__name__}.by_order"}):
        assert "Name it by --scope" in command("--user", "1", "--database", "other")
        assert "--scope" not in command("--scope", "a")


def test_command_without_a_database() -> None:
    """P4, X1: An error of the database does not repeat the scope."""

    def refuse(execute: Any, sql: str, *args: Any) -> Any:
        raise OperationalError(1366, "Incorrect value: tenant:a")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(CommandError, match="Database error") as caught,
    ):
        command("--scope", "tenant:a")
    assert "tenant" not in str(caught.value)


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_isolation(client: Any, level: str) -> None:
    """P4: A project's isolation level makes no erase fail, and holds nobody up."""
    if connection.vendor == "sqlite":
        pytest.skip("It has one level.")
    client.post("/function/", {}, **key())
    sql = {
        "postgresql": f"SET default_transaction_isolation = '{level}'",
        "mysql": f"SET SESSION TRANSACTION ISOLATION LEVEL {level}",
    }
    with connection.cursor() as cursor:
        cursor.execute(sql[connection.vendor])
    levels = []

    def note(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE"):
            levels.append(level_now())
        return execute(sql, *args)

    def level_now() -> Any:
        if connection.vendor == "mysql":
            return "read committed"  # it shows the session's alone
        with connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            return cursor.fetchone()[0]

    with connection.execute_wrapper(note):
        assert erase() == EraseReport(erased=1)
    assert levels == ["read committed"]
