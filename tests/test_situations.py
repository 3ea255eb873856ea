"""The table of what happens when, row by row."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import (
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.http import FileResponse, Http404, StreamingHttpResponse
from django.urls import path
from rest_framework import views as drf_views
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.permissions import BasePermission
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.throttling import BaseThrottle

from idempotency.claims import claims_in
from idempotency.completing import complete
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.app.views import MixinView, behave
from tests.conftest import KEY
from tests.support.read_only_sessions import end_writes
from tests.test_docs import code, table
from tests.urls import urlpatterns as usual_urls

pytestmark = pytest.mark.urls(__name__)

LONG_ENOUGH = 60

ROWS = {
    row["situation"]: row for row in table("situation", "response", "effect", "record")
}
STATUSES = {
    code(row["code"]): int(row["status"])
    for row in table("code", "status", "what to do")
}


class ResumingView(MixinView):
    idempotency_atomic = False
    idempotency_on_abandoned = "resume"

    @staticmethod
    def idempotency_completer(context: Any) -> Any:
        return behave(SimpleNamespace(idempotency=context))  # type: ignore[arg-type]


urlpatterns = [*usual_urls, path("resuming/", ResumingView.as_view())]


class World:
    """A client, a handler that counts its runs, and what was there before."""

    def __init__(self, handle: Any, settings: Any, monkeypatch: Any) -> None:
        self.settings = settings
        self.monkeypatch = monkeypatch
        self.first: Any = None
        self.runs = 0
        self.work: Callable[[], Any] = self.act
        self.afterwards = ExitStack()
        handle(self._handler)

    def _handler(self, request: Any) -> Any:
        self.runs += 1
        self.steps = request.idempotency if hasattr(request, "idempotency") else None
        return self.work()

    def act(self, status: int = 201) -> Response:
        """Have the usual effect, and answer as no other run does."""
        Effect.objects.create()
        return Response({"ran": self.name_of_run()}, status=status)

    def write(self) -> None:
        Effect.objects.create()

    def name_of_run(self) -> str:
        return f"run {self.runs}"

    def send(
        self,
        content: Any = "Essay",
        *,
        method: str = "post",
        url: str = "/mixin-view/",
        user: str | None = "ada",
        query: str = f"?$idempotency={KEY}",
        **headers: str,
    ) -> Any:
        client = APIClient(raise_request_exception=False)
        if user:
            client.credentials(HTTP_X_USER=user)
        send = getattr(client, method)
        body = {"title": content} if method == "post" else None
        return send(url + query, body, **headers)

    def send_first(self, **arguments: Any) -> None:
        """Send what the situation's request is a retry of, and get an answer."""
        self.first = self.send(**arguments)
        assert self.first.status_code < 500

    def remember(self) -> None:
        """Take what is there for what was there before the situation's request."""
        self.runs_before = self.runs
        self.effects_before = Effect.objects.count()
        self.records_before = records()


def records() -> dict[Any, dict[str, Any]]:
    return {found["id"]: found for found in IdempotencyRecord.objects.values()}


@pytest.fixture
def world(
    atomic_requests: bool, handle: Any, settings: Any, monkeypatch: Any
) -> Iterator[World]:
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": answer_with_code,
    }
    world = World(handle, settings, monkeypatch)
    with world.afterwards:
        yield world


def answer_with_code(exc: Exception, context: Any) -> Response | None:
    response = drf_views.exception_handler(exc, context)
    if response is not None and isinstance(exc, APIException):
        response.data = {"code": exc.get_codes(), "detail": str(exc.detail)}
    return response


# What each situation is: prepare it, and return what sends its request.

Scenario = Callable[[World], Callable[[], Any]]
SCENARIOS: list[tuple[str, Scenario]] = []


def scenario(situation: str) -> Callable[[Scenario], Scenario]:
    def add(function: Scenario) -> Scenario:
        SCENARIOS.append((situation, function))
        return function

    return add


@scenario("First request, status below 500 outside `released_statuses`")
def created(world: World) -> Callable[[], Any]:
    """E1, O1: the effect and its answer are stored together."""
    return world.send


@scenario("First request, status below 500 outside `released_statuses`")
def payment_required(world: World) -> Callable[[], Any]:
    """O1: so is an error that gives the key no freedom."""
    world.work = lambda: world.act(402)
    return world.send


@scenario("Retry after a stored response")
def retried(world: World) -> Callable[[], Any]:
    """R2, R3: the first answer comes again, marked."""
    world.send_first()
    return world.send


@scenario("Used key with another request")
def reused(world: World) -> Callable[[], Any]:
    """F4: another content is another request."""
    world.send_first()
    return lambda: world.send("Another essay")


@scenario("Duplicate while the first request runs")
def duplicate(world: World) -> Callable[[], Any]:
    """E3: refused at once."""
    first = Running(world, "/mixin-view/")
    world.afterwards.callback(first.end)
    return world.send


@scenario('Duplicate with `on_concurrent="wait"`, first request ends in time')
def waits(world: World) -> Callable[[], Any]:
    """E3: the waiting duplicate replays."""
    first = Running(world, "/waiting/")

    def end_the_first() -> None:
        if world.first is None:
            world.first = first.end()
            world.remember()

    world.monkeypatch.setattr("idempotency.execution.time", Clock(end_the_first))
    return lambda: world.send(url="/waiting/")


@scenario("The same, after `wait_timeout`")
def waits_in_vain(world: World) -> Callable[[], Any]:
    """E3: waiting ends."""
    first = Running(world, "/waiting/")
    world.afterwards.callback(first.end)
    world.monkeypatch.setattr("idempotency.execution.time", Clock(lambda: None))
    return lambda: world.send(url="/waiting/")


@scenario("No key")
def no_key(world: World) -> Callable[[], Any]:
    """K4: the app is not there."""
    return lambda: world.send(query="")


@scenario("No key, `required` endpoint")
def required(world: World) -> Callable[[], Any]:
    """K4: the endpoint insists."""
    return lambda: world.send(query="", url="/required/")


MISSPELLED = "Misspelled name, such as `$idempotency[]`"


@scenario(MISSPELLED)
def misspelled(world: World) -> Callable[[], Any]:
    """K1: it is no key, and the client is told."""
    return lambda: world.send(query=f"?$idempotency[]={KEY}")


@scenario("New key over the quota")
def over_quota(world: World) -> Callable[[], Any]:
    """X1: the claim is undone before its handler runs."""
    use_up_quota(world)
    return world.send


@scenario("Retry over the quota")
def replayed_over_quota(world: World) -> Callable[[], Any]:
    """X1: replays do not count."""
    world.send_first()
    use_up_quota(world)
    return world.send


@scenario("Malformed key")
def malformed_in_query(world: World) -> Callable[[], Any]:
    """K3: a key is visible ASCII."""
    return lambda: world.send(query="?$idempotency=schl%C3%BCssel-12345678")


@scenario("Malformed key")
def malformed_in_header(world: World) -> Callable[[], Any]:
    """K2: a quote that opens must close."""
    return lambda: world.send(query="", HTTP_IDEMPOTENCY_KEY=f'"{KEY}')


@scenario("Two different keys")
def ambiguous(world: World) -> Callable[[], Any]:
    """K1: query and header disagree."""
    return lambda: world.send(HTTP_IDEMPOTENCY_KEY="another-" + KEY)


@scenario(
    "Chunked body that [Django does not see](contract.md#f3-reading-leaves-no-trace)"
)
def hidden(world: World) -> Callable[[], Any]:
    """F3: under WSGI Django reads nothing without a length."""
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    return lambda: world.send(**chunked)


@scenario("Weak key, known caller")
def weak(world: World) -> Callable[[], Any]:
    """K6: it works, with a warning."""
    return lambda: world.send(query="?$idempotency=1700000000")


@scenario("Key that does not look random, anonymous caller")
def weak_and_anonymous(world: World) -> Callable[[], Any]:
    """K6: strangers share their scope."""
    return lambda: world.send(query="?$idempotency=1700000000", user=None)


@scenario("Key that does not look random, anonymous caller")
def short_and_anonymous(world: World) -> Callable[[], Any]:
    """S1: what is strong enough for one caller is not for all strangers."""
    return lambda: world.send(query="?$idempotency=x7Pq-order-1a2b3c", user=None)


@scenario('Key, anonymous caller, `ANONYMOUS = "refuse"`')
def refused_and_anonymous(world: World) -> Callable[[], Any]:
    """S1: the project wants to know whose key it is."""
    world.settings.IDEMPOTENCY = {"ANONYMOUS": "refuse"}
    return lambda: world.send(user=None)


@scenario("Key on another method, such as GET")
def ignored(world: World) -> Callable[[], Any]:
    """K5: the view runs as always, with a warning."""
    return lambda: world.send(method="get")


@scenario("Key on an unprotected POST, with the middleware")
def unsupported(world: World) -> Callable[[], Any]:
    """K5: a retry would act again, and the client is told."""
    return lambda: world.send(url="/unprotected/")


NO_HANDLER = "Key on a 405 or a 404 of the URLconf"


@scenario(NO_HANDLER)
def not_allowed(world: World) -> Callable[[], Any]:
    """K5: a retry would not act either, so nobody is warned."""
    world.monkeypatch.delattr(MixinView, "post")
    return world.send


@scenario(NO_HANDLER)
def not_found(world: World) -> Callable[[], Any]:
    """K5: nor is anybody where there is no endpoint."""
    return lambda: world.send(url="/nowhere/")


@scenario("Another caller's key")
def of_another_caller(world: World) -> Callable[[], Any]:
    """S1: it is another key."""
    world.send_first(user="grace")
    return world.send


@scenario("Authentication, permissions or throttles refuse")
def forbidden(world: World) -> Callable[[], Any]:
    """S2: permissions come before the key."""

    class Nobody(BasePermission):
        def has_permission(self, request: Any, view: Any) -> bool:
            return False

    world.send_first()
    world.monkeypatch.setattr(MixinView, "permission_classes", [Nobody])
    return world.send


@scenario("Authentication, permissions or throttles refuse")
def throttled(world: World) -> Callable[[], Any]:
    """S2: throttles come before the key."""

    class Never(BaseThrottle):
        def allow_request(self, request: Any, view: Any) -> bool:
            return False

    world.send_first()
    world.monkeypatch.setattr(MixinView, "throttle_classes", [Never])
    return world.send


@scenario("Handler returns a status in `released_statuses`")
def released(world: World) -> Callable[[], Any]:
    """O2: the handler's writes are what they are without a key."""
    world.work = lambda: world.act(400)
    return world.send


@scenario("Handler raises an APIException below 500, Http404 or PermissionDenied")
def raises_api_exception(world: World) -> Callable[[], Any]:
    """O2: a raised refusal gives the key back."""
    return raising(world, ValidationError("no"))


@scenario("Handler raises an APIException below 500, Http404 or PermissionDenied")
def raises_404(world: World) -> Callable[[], Any]:
    """O2: so does Django's 404."""
    return raising(world, Http404())


@scenario("Handler raises an APIException below 500, Http404 or PermissionDenied")
def raises_403(world: World) -> Callable[[], Any]:
    """O2: so does Django's 403."""
    return raising(world, PermissionDenied())


@scenario("Handler returns a status from 500 up")
def returns_500(world: World) -> Callable[[], Any]:
    """O3: undone, and the answer goes out."""
    world.work = lambda: world.act(502)
    return world.send


@scenario("Handler raises anything else")
def fails(world: World) -> Callable[[], Any]:
    """O3: undone."""
    return raising(world, ZeroDivisionError())


@scenario("Handler raises anything else")
def fails_with_api_exception(world: World) -> Callable[[], Any]:
    """O3: undone, raised or returned."""
    return raising(world, APIException())


@scenario("Response can't be rendered")
def cannot_be_rendered(world: World) -> Callable[[], Any]:
    """O3: undone, also where the renderer says no."""

    def refuse(response: Any) -> None:
        raise Http404

    def work() -> Response:
        response = world.act()
        response.add_post_render_callback(refuse)
        return response

    world.work = work
    return world.send


@scenario("Handler calls `set_rollback(True)`")
def marks_for_rollback(world: World) -> Callable[[], Any]:
    """E2: the answer goes out, the effects do not stay."""

    def work() -> Response:
        response = world.act()
        transaction.set_rollback(True)
        return response

    world.work = work
    return world.send


@scenario("Project gives a failure a status below 400")
def forgives(world: World) -> Callable[[], Any]:
    """O3: whatever makes a success of it."""

    def forgive(exc: Any, context: Any) -> Response | None:
        if isinstance(exc, ValueError):
            return Response({"ok": True}, status=200)
        return answer_with_code(exc, context)

    def work() -> Response:
        world.act()
        raise ValueError

    world.monkeypatch.setattr(
        drf_views.APIView, "get_exception_handler", lambda self: forgive
    )
    world.work = work
    return world.send


@scenario("Batch sends parts with its own key and other content")
def batch(world: World) -> Callable[[], Any]:
    """E6: they run under its claim, as parts of its one run."""

    def work() -> Response:
        if world.work is not work:
            return world.act()
        world.work = world.act
        part = world.send("Part")
        world.runs -= 1
        assert part.status_code == 201
        return Response({"ran": world.name_of_run()}, status=201)

    world.work = work
    return world.send


@scenario("Database error caught without a savepoint, response below 400")
def swallows_and_succeeds(world: World) -> Callable[[], Any]:
    """E2: a success would be a lie."""
    return swallowing(world, 201)


@scenario("Database error caught without a savepoint, response from 400 up")
def swallows_and_refuses(world: World) -> Callable[[], Any]:
    """E2, O2: a refusal is the handler's to give."""
    return swallowing(world, 409)


@scenario("Database error caught without a savepoint, response from 400 up")
def swallows_and_demands(world: World) -> Callable[[], Any]:
    """E2: also one that would be stored."""
    return swallowing(world, 402)


@scenario("Deadlock or serialization failure")
def deadlock(world: World) -> Callable[[], Any]:
    """E4: everything is undone, and a retry is welcome."""

    def work() -> Response:
        response = world.act()
        fail_transiently()
        return response

    world.work = work
    return world.send


@scenario("Database can't be reached or written to, new key")
def unavailable(world: World) -> Callable[[], Any]:
    """E4: nothing has run."""

    def send() -> Any:
        end_writes()
        try:
            return world.send()
        finally:
            connection.close()

    return send


@scenario("Worker dies before COMMIT")
def stopped(world: World) -> Callable[[], Any]:
    """E1: neither the effect nor the answer is there."""
    fail = raising(world, SystemExit())

    def send() -> None:
        with pytest.raises(SystemExit):
            fail()

    return send


UNKEPT = (
    "Response that can't be kept: streaming, file, over `MAX_RESPONSE_BYTES`, or "
    "`should_store_response` says no"
)


@scenario(UNKEPT)
def streams(world: World) -> Callable[[], Any]:
    """R4: a stream goes out untouched."""

    def work() -> StreamingHttpResponse:
        world.act()
        return StreamingHttpResponse([world.name_of_run().encode()])

    world.work = work
    return world.send


@scenario(UNKEPT)
def sends_file(world: World) -> Callable[[], Any]:
    """R4: a file goes out untouched."""

    def work() -> FileResponse:
        world.act()
        return FileResponse(io.BytesIO(world.name_of_run().encode()))

    world.work = work
    return world.send


@scenario(UNKEPT)
def too_large(world: World) -> Callable[[], Any]:
    """R4: a body over MAX_RESPONSE_BYTES goes out untouched."""
    world.settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 3}
    return world.send


@scenario(UNKEPT)
def held_back(world: World) -> Callable[[], Any]:
    """O4: the project keeps the effects and not the answer."""
    world.monkeypatch.setattr(MixinView, "should_store_response", lambda *args: False)
    return world.send


@scenario("Retry after such a response")
def not_kept(world: World) -> Callable[[], Any]:
    """R4: it never runs again."""
    world.monkeypatch.setattr(MixinView, "should_store_response", lambda *args: False)
    world.send_first()
    return world.send


@scenario("Retry after the record was [erased](security.md#erasing-a-person)")
def erased(world: World) -> Callable[[], Any]:
    """P4: it never runs again."""
    world.send_first()
    IdempotencyRecord.objects.all().erase()
    return world.send


@scenario("`check_replay` refuses a retry")
def replay_refused(world: World) -> Callable[[], Any]:
    """S2: the hook repeats the handler's own checks."""

    def check_replay(self: Any, request: Any, record: IdempotencyRecord) -> None:
        raise PermissionDenied

    world.send_first()
    world.monkeypatch.setattr(MixinView, "check_replay", check_replay)
    return world.send


@scenario("Retry after a handler that committed without pipelines and died")
def outcome_unknown(world: World) -> Callable[[], Any]:
    """E5: nobody knows what it did."""

    def work() -> None:
        world.act()
        connection.connection.commit()
        raise ZeroDivisionError

    claims = type(claims_in("default"))
    world.monkeypatch.setattr(claims, "why_one_by_one", lambda _: "a test says so")
    connection.close()
    world.work = work
    assert world.send().status_code == 500
    assert IdempotencyRecord.objects.get().state == State.IN_PROGRESS
    world.work = world.act
    return world.send


@scenario("Expired key, purged or not")
def expired(world: World) -> Callable[[], Any]:
    """P1: it is a new key, with any content."""
    world.send_first()
    IdempotencyRecord.objects.update(expires_at=UTCNow())
    return lambda: world.send("Another essay")


@scenario("Expired key, purged or not")
def expired_and_purged(world: World) -> Callable[[], Any]:
    """P1: the purge changes nothing about that."""
    world.send_first()
    IdempotencyRecord.objects.update(expires_at=UTCNow())

    def send() -> Any:
        IdempotencyRecord.objects.purge()
        return world.send("Another essay")

    return send


@scenario("Retry after a worker died between two steps")
def resumed(world: World) -> Callable[[], Any]:
    """E12: the retry has the effect that was missing, and not the other one again."""
    die_between_steps(world)
    return lambda: world.send(url="/resuming/")


@scenario("Completer, after a worker died between two steps")
def completed(world: World) -> Callable[[], Any]:
    """E17: so has a completer, without a client."""
    die_between_steps(world)
    return lambda: complete(IdempotencyRecord.objects.get()) and None


@scenario("Retry with a call in doubt")
def in_doubt(world: World) -> Callable[[], Any]:
    """E13: nobody knows whether it has happened."""

    def die(key: str) -> Any:
        raise SystemExit

    world.work = lambda: world.steps.call("charge", die, on_abandoned="hold")
    with pytest.raises(SystemExit):
        world.send(url="/resuming/")
    world.work = world.act
    return lambda: world.send(url="/resuming/")


@scenario("Handler raises a refusal after a step")
def raises_after_step(world: World) -> Callable[[], Any]:
    """E15: the key is not free, because the step stays."""

    def work() -> None:
        world.steps.step("ride", world.write)
        raise ValidationError("no")

    world.work = work
    return lambda: world.send(url="/resuming/")


@scenario("Handler returns a status in `released_statuses` after a step")
def returns_after_step(world: World) -> Callable[[], Any]:
    """E15: for the same reason the response is stored."""

    def work() -> Response:
        world.steps.step("ride", world.write)
        return Response({"ran": world.name_of_run()}, status=400)

    world.work = work
    return lambda: world.send(url="/resuming/")


@scenario("Last step returns a status from 500 up")
def last_step_fails(world: World) -> Callable[[], Any]:
    """E15: it is undone, and can be run again."""
    world.work = lambda: world.steps.step("confirm", lambda: world.act(503))
    return lambda: world.send(url="/resuming/")


# What they are made of.


def die_between_steps(world: World) -> None:
    def work(dies: bool = False) -> Any:
        world.steps.step("ride", world.write)
        if dies:
            raise SystemExit
        return world.steps.step("confirm", world.act)

    world.work = lambda: work(dies=True)
    with pytest.raises(SystemExit):
        world.send(url="/resuming/")
    world.work = work


def use_up_quota(world: World) -> None:
    world.settings.REST_FRAMEWORK = {
        **world.settings.REST_FRAMEWORK,
        "DEFAULT_THROTTLE_RATES": {"idempotency": "0/day"},
    }


def raising(world: World, error: BaseException) -> Callable[[], Any]:
    def work() -> None:
        world.act()
        raise error

    world.work = work
    return world.send


def swallowing(world: World, status: int) -> Callable[[], Any]:
    Effect.objects.create(name="taken")

    def work() -> Response:
        response = world.act(status)
        with suppress(IntegrityError):
            Effect.objects.create(name="taken")
        return response

    world.work = work
    return world.send


def fail_transiently() -> None:
    """Let the database say that the transaction is undone and may do well later."""
    statements = {
        "postgresql": "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$",
        "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'x'",
    }
    if connection.vendor == "sqlite":
        raise OperationalError("database is locked")
    with connection.cursor() as cursor:
        cursor.execute(statements[connection.vendor])


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


class Running:
    """A request whose handler has acted and does not return before its end."""

    def __init__(self, world: World, url: str) -> None:
        self.acted = threading.Event()
        self.may_end = threading.Event()
        self.answer: Any = None
        self.url = url
        self.world = world
        world.work = self.work
        self.thread = threading.Thread(target=self.send)
        self.thread.start()
        assert self.acted.wait(LONG_ENOUGH)
        world.work = world.act
        if connection.vendor == "sqlite":
            # The test won't wait for its turn to write.
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA busy_timeout = 0")

    def work(self) -> Response:
        response = self.world.act()
        self.acted.set()
        assert self.may_end.wait(LONG_ENOUGH)
        return response

    def send(self) -> None:
        try:
            self.answer = self.world.send(url=self.url)
        finally:
            self.acted.set()
            connections.close_all()

    def end(self) -> Any:
        """Let it end, and return its answer, which nobody has disturbed."""
        self.may_end.set()
        self.thread.join()
        assert self.answer.status_code == 201
        return self.answer


NEEDS_TURN = ("duplicate", "waits", "waits_in_vain")


# The tests.


def test_every_row_has_a_scenario() -> None:
    """What the page says is tried, and nothing else is."""
    assert {situation for situation, _ in SCENARIOS} == {*ROWS}


@pytest.mark.parametrize(
    ("situation", "prepare"),
    [pytest.param(*pair, id=pair[1].__name__) for pair in SCENARIOS],
)
def test_row(
    situation: str, prepare: Scenario, world: World, atomic_requests: bool
) -> None:
    """The answer, the effect and the record are what the row says (X1)."""
    if (
        connection.vendor == "sqlite"
        and atomic_requests
        and prepare.__name__ in NEEDS_TURN
    ):
        pytest.skip("Django takes the turn: test_turn_under_atomic_requests")
    row = ROWS[situation]
    send = prepare(world)
    expected = effects_without_key(world) if row["effect"] == "as usual" else 0
    world.remember()
    response = send()
    ANSWERS[kind_of(row["response"])](world, row["response"], response)
    check_effect(world, row["effect"], expected)
    RECORDS[row["record"]](world, response)
    if row["record"] == "none" and row["effect"] in ("undone", "as usual"):
        check_key_is_free(world)


def test_turn_under_atomic_requests(world: World, atomic_requests: bool) -> None:
    """On SQLite Django's own transaction may not get its turn, and nothing runs (E3).

    It begins before the view, so the answer is the project's. A retry replays.
    """
    if connection.vendor != "sqlite" or not atomic_requests:
        pytest.skip("SQLite with ATOMIC_REQUESTS alone")
    first = Running(world, "/mixin-view/")
    assert world.send().status_code == 500
    answer = first.end()
    retry = world.send()
    assert retry.content == answer.content
    assert retry["Idempotent-Replayed"] == "true"
    assert (world.runs, Effect.objects.count()) == (1, 1)


def effects_without_key(world: World) -> int:
    before = Effect.objects.count()
    world.send(query="")
    return Effect.objects.count() - before


def kind_of(answer: str) -> str:
    return "a code" if answer.startswith("`") else answer.partition(", with ")[0]


def content_of(response: Any) -> bytes:
    return response.getvalue() if response.streaming else response.content


def is_by_handler(world: World, cell: str, response: Any) -> None:
    assert world.runs == world.runs_before + 1
    assert world.name_of_run().encode() in content_of(response)
    assert "Idempotent-Replayed" not in response.headers
    _, _, warning = cell.partition(", with ")
    if warning:
        name = code(warning)
        assert response["Idempotency-Warning"].startswith(f"{name};message=")
        assert [w["code"] for w in response.json()["$warnings"]] == [name]
    else:
        assert "Idempotency-Warning" not in response.headers


def is_first_again(world: World, cell: str, response: Any) -> None:
    assert response.status_code == world.first.status_code
    assert response.content == world.first.content
    assert response["Content-Type"] == world.first["Content-Type"]
    assert response["Idempotent-Replayed"] == "true"
    assert response["Idempotency-Expires"] == world.first["Idempotency-Expires"]


def is_refused(world: World, cell: str, response: Any) -> None:
    assert response.json()["code"] == code(cell)
    assert response.status_code == STATUSES[code(cell)]
    assert "Idempotent-Replayed" not in response.headers


def is_by_project(world: World, cell: str, response: Any) -> None:
    assert response.status_code >= 400
    assert b"idempotency_" not in response.content
    assert "Idempotency-Warning" not in response.headers
    assert "Idempotent-Replayed" not in response.headers


def is_nothing(world: World, cell: str, response: Any) -> None:
    assert response is None


ANSWERS = {
    "handler's": is_by_handler,
    "replay": is_first_again,
    "a code": is_refused,
    "project's error": is_by_project,
    "nothing": is_nothing,
}


def check_effect(world: World, cell: str, without_key: int) -> None:
    ran = world.runs - world.runs_before
    effects = Effect.objects.count() - world.effects_before
    assert (ran, effects) == {
        "stays": (1, 1),
        "none": (0, 0),
        "undone": (1, 0),
        "as usual": (1, without_key),
    }[cell]


def is_stored(world: World, response: Any) -> None:
    (record,) = [
        r for r in records().values() if r not in world.records_before.values()
    ]
    assert record["state"] == State.COMPLETED
    assert record["status_code"] == response.status_code
    assert record["body"] is not None
    assert len(records()) == len(world.records_before) + 1


def is_tombstone(world: World, response: Any) -> None:
    (record,) = records().values()
    assert record["state"] == State.COMPLETED
    assert record["status_code"] == response.status_code
    assert record["body"] is None
    assert "Idempotency-Expires" in response.headers


def is_absent(world: World, response: Any) -> None:
    assert records() == {}


def is_unchanged(world: World, response: Any) -> None:
    assert records() == world.records_before


def is_replaced(world: World, response: Any) -> None:
    (before,) = world.records_before.values()
    (after,) = records().values()
    assert after["id"] == before["id"]
    assert after["token"] != before["token"]
    assert after["state"] == State.COMPLETED
    assert after["expires_at"] > before["expires_at"]


def is_completed(world: World, response: Any) -> None:
    (before,) = world.records_before.values()
    (after,) = records().values()
    assert before["state"] == State.ABANDONED
    assert (after["id"], after["state"]) == (before["id"], State.COMPLETED)
    assert after["attempt"] == before["attempt"] + 1


def is_abandoned(world: World, response: Any) -> None:
    (record,) = records().values()
    assert record["state"] == State.ABANDONED


RECORDS = {
    "completed": is_completed,
    "abandoned": is_abandoned,
    "stored": is_stored,
    "tombstone": is_tombstone,
    "none": is_absent,
    "unchanged": is_unchanged,
    "replaced": is_replaced,
}


def check_key_is_free(world: World) -> None:
    world.work = world.act
    world.remember()
    is_by_handler(world, "handler's", world.send())
    assert Effect.objects.count() == world.effects_before + 1
