"""What receivers and the log get, and when."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    transaction,
)
from django.http import Http404
from django.urls import path, re_path
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency import signals
from idempotency.claims import claims_in
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, State
from idempotency.signals import LoggedSignal
from tests.app.models import Effect
from tests.app.views import MixinView, create_effect
from tests.conftest import KEY, key
from tests.support.failing_commits import commit_fails_with
from tests.support.processes import ROOT
from tests.support.record_factories import make_records
from tests.test_docs import code, table
from tests.test_leased import Leased, Rerun
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]
urlpatterns = [
    *usual_urls,
    path("leased/", Leased.as_view()),
    path("rerun/", Rerun.as_view()),
    re_path(r"(?s)^mixin-view/.+$", MixinView.as_view()),
]

Handle = Callable[[Callable[[Request], Any]], None]
ATOMIC, LEASED = "/mixin-view/", "/leased/"
BOTH = pytest.mark.parametrize("place", [ATOMIC, LEASED])
ALL = {
    name: signal
    for name, signal in vars(signals).items()
    if isinstance(signal, LoggedSignal)
}


class Told:
    """What receivers were told, in order; and what was committed at that moment."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.senders: list[Any] = []
        self.depths: list[bool] = []

    def names(self) -> list[str]:
        return [name for name, _details in self.events]

    def last(self) -> Any:
        return self.events[-1][1]


@pytest.fixture
def told() -> Iterator[Told]:
    """Listen to every signal."""
    heard = Told()
    with ExitStack() as stack:
        for name, signal in ALL.items():

            def receive(
                sender: Any, details: Any, name: str = name, **more: Any
            ) -> None:
                heard.events.append((name, details))
                heard.senders.append(sender)
                heard.depths.append(connection.in_atomic_block)

            signal.connect(receive, weak=False)
            stack.callback(signal.disconnect, receive)
        yield heard


def post(client: APIClient, place: str, value: str = KEY, body: Any = None) -> Any:
    return client.post(place, {"n": 1} if body is None else body, **key(value))


@BOTH
def test_first_time_and_replay(client: APIClient, told: Told, place: str) -> None:
    """A first request sends key_claimed and, after the commit, response_stored."""
    first = post(client, place)
    record = IdempotencyRecord.objects.get()
    assert told.names() == ["key_claimed", "response_stored"]
    claimed, stored = (details for _name, details in told.events)
    mode = "leased" if place == LEASED else "atomic"
    view = {ATOMIC: "tests.app.views.MixinView", LEASED: "tests.test_leased.Leased"}
    same = {
        "view": view[place],
        "action": None,
        "method": "POST",
        "mode": mode,
        "record_id": record.pk,
        "attempt": 1,
    }
    assert dataclasses.asdict(claimed) == same
    size = len(first.content)
    assert dataclasses.asdict(stored) == {
        **same,
        "status_code": 201,
        "body_size": size,
    }
    # In atomic mode the claim is told inside its transaction.
    assert told.depths == [mode == "atomic", False]
    assert post(client, place).content == first.content
    assert told.names()[2:] == ["response_replayed"]
    assert told.last().status_code == 201
    assert timedelta(0) < told.last().age < timedelta(hours=1)
    assert {f"{each.__module__}.{each.__name__}" for each in told.senders} == {
        view[place]
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.last().status_code = 500


def test_action(client: APIClient, told: Told) -> None:
    """A ViewSet's action is named."""
    post(client, "/mixin-viewset/extra/")
    assert [details.action for _name, details in told.events] == ["extra", "extra"]


@BOTH
def test_not_kept(client: APIClient, told: Told, place: str, settings: Any) -> None:
    """R4: An answer that was not kept has no size."""
    settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 1}
    post(client, place)
    assert told.names() == ["key_claimed", "response_stored"]
    assert told.last().body_size is None
    post(client, place)
    assert told.names()[2:] == ["request_refused"]
    refused = told.last()
    assert (refused.code, refused.status_code, refused.attempt) == (
        "idempotency_response_not_kept",
        409,
        1,
    )


@pytest.mark.parametrize(
    ("place", "headers", "code"),
    [
        ("/required/", {}, "idempotency_key_required"),
        (ATOMIC, key(""), "idempotency_key_invalid"),
        (ATOMIC, key("a-long-key, another"), "idempotency_key_ambiguous"),
    ],
)
def test_refused_early(
    client: APIClient, told: Told, place: str, headers: Any, code: str
) -> None:
    """X1: A refusal before there is a valid key has no record."""
    assert client.post(place, {}, **headers).status_code == 400
    assert told.names() == ["request_refused"]
    assert (told.last().code, told.last().record_id) == (code, None)
    # A function under @api_view goes by its own name.
    name = "required" if place == "/required/" else "MixinView"
    assert told.last().view == f"tests.app.views.{name}"


@BOTH
def test_reused(client: APIClient, told: Told, place: str) -> None:
    """F4: A key with another payload is refused."""
    post(client, place)
    assert post(client, place, body={"n": 2}).status_code == 422
    assert told.names()[2:] == ["request_refused"]
    assert told.last().code == "idempotency_key_reused"
    assert told.last().record_id == IdempotencyRecord.objects.get().pk


def test_without_a_key(client: APIClient, told: Told) -> None:
    """K4: Without a key no signal is sent."""
    assert client.post(ATOMIC, {}).status_code == 201
    assert told.events == []


def fail_with(error: Exception) -> Callable[[Request], Any]:
    def handler(request: Request) -> Any:
        create_effect(request)
        raise error

    return handler


def answer_with(status: int) -> Callable[[Request], Any]:
    return lambda request: Response({}, status=status)


@pytest.mark.parametrize(
    ("handler", "status_code"),
    [
        (answer_with(404), 404),
        (answer_with(500), 500),
        (fail_with(exceptions.ValidationError("no")), 400),
        (fail_with(exceptions.APIException("no")), 500),
        (fail_with(Http404()), None),
        (fail_with(ValueError()), None),
    ],
)
def test_released(
    client: APIClient, told: Told, handle: Handle, handler: Any, status_code: int
) -> None:
    """O2, O3: A run that leaves no record sends key_released."""
    handle(handler)
    post(client, ATOMIC)
    assert not IdempotencyRecord.objects.exists()
    assert told.names() == ["key_claimed", "key_released"]
    assert told.last().status_code == status_code


def test_set_rollback(client: APIClient, told: Told, handle: Handle) -> None:
    """E2: A run that the handler wants undone releases its key."""

    def undo(request: Request) -> Any:
        transaction.set_rollback(True)
        return Response({}, status=202)

    handle(undo)
    post(client, ATOMIC)
    assert told.names() == ["key_claimed", "key_released"]
    assert told.last().status_code == 202


@pytest.mark.parametrize(
    ("handler", "end", "status_code"),
    [
        (answer_with(404), "key_released", 404),
        (answer_with(500), "key_abandoned", 500),
        (fail_with(exceptions.ValidationError("no")), "key_released", 400),
        (fail_with(ValueError()), "key_abandoned", None),
    ],
)
def test_end_of_a_leased_run(
    client: APIClient,
    told: Told,
    handle: Handle,
    handler: Any,
    end: str,
    status_code: int | None,
) -> None:
    """E9: A failed leased run sends key_abandoned, a refusal key_released."""
    handle(handler)
    post(client, LEASED)
    assert told.names() == ["key_claimed", end]
    assert told.last().status_code == status_code
    assert told.last().mode == "leased"


@pytest.mark.parametrize("fails", [True, False])
def test_release_by_the_handler(
    client: APIClient, told: Told, handle: Handle, fails: bool
) -> None:
    """E9: release() frees the key, whatever the answer."""

    def release(request: Any) -> Any:
        request.idempotency.derive("charge")
        request.idempotency.release()
        if fails:
            raise ValueError
        return Response({})

    handle(release)
    post(client, LEASED)
    assert told.names() == ["key_claimed", "key_released"]


def test_refusal_after_acting(client: APIClient, told: Told, handle: Handle) -> None:
    """E9: A refusal after derive() leaves the outcome unknown; a rerun counts on."""

    def act(request: Any) -> Any:
        request.idempotency.derive("charge")
        raise exceptions.ValidationError("no")

    handle(act)
    post(client, "/rerun/")
    assert told.names() == ["key_claimed", "key_abandoned"]
    handle(create_effect)
    post(client, "/rerun/")
    assert told.names()[2:] == ["key_claimed", "response_stored"]
    assert [details.attempt for _name, details in told.events] == [1, 1, 2, 2]


@pytest.mark.parametrize("fails", [True, False])
def test_lost_claim(client: APIClient, told: Told, handle: Handle, fails: bool) -> None:
    """E7: A run that lost its claim sends request_refused alone."""

    def lose(request: Any) -> Any:
        IdempotencyRecord.objects.update(token="00000000-0000-5000-8000-000000000000")
        if fails:
            raise ValueError
        return Response({})

    handle(lose)
    post(client, LEASED)
    assert told.names() == ["key_claimed", *([] if fails else ["request_refused"])]


def test_run_that_could_not_be_given_up(
    client: APIClient, told: Told, handle: Handle
) -> None:
    """E9: It is abandoned all the same: its lease ends by itself."""
    handle(fail_with(ValueError()))
    with patch.object(type(claims_in("default")), "abandon", side_effect=DatabaseError):
        post(client, LEASED)
    assert told.names() == ["key_claimed", "key_abandoned"]


def test_outcome_unknown(client: APIClient, told: Told, handle: Handle) -> None:
    """E9: A retry that is held sends request_refused."""
    handle(fail_with(ValueError()))
    post(client, LEASED)
    assert IdempotencyRecord.objects.get().state == State.ABANDONED
    assert post(client, LEASED).status_code == 409
    assert told.names()[2:] == ["request_refused"]
    assert told.last().code == "idempotency_outcome_unknown"


@pytest.mark.usefixtures("by_statements")
def test_claim_that_fails(client: APIClient, told: Told) -> None:
    """E4: A claim that failed sends no key_released."""
    here = type(claims_in("default"))
    with (
        patch.object(here, "claim", side_effect=DatabaseError),
        patch.object(here, "is_transient", return_value=True),
    ):
        assert post(client, ATOMIC).status_code == 503
    assert told.names() == ["request_refused"]


@pytest.mark.usefixtures("by_statements")
def test_store_that_fails(client: APIClient, told: Told) -> None:
    """E5: Where the answer can't be stored, the key is free and the request refused."""
    with patch.object(type(claims_in("default")), "complete", side_effect=ClaimLost):
        assert post(client, ATOMIC).status_code == 503
    assert told.names() == ["key_claimed", "key_released", "request_refused"]
    assert told.last().code == "idempotency_transaction_failed"
    assert not Effect.objects.exists()


def test_commit_that_fails(
    client: APIClient, told: Told, atomic_requests: bool
) -> None:
    """An answer is not told as stored before it is; nor released, if nobody knows."""
    with commit_fails_with(OperationalError(2013, "gone"), is_done=True):
        assert post(client, ATOMIC).status_code == 500
    assert told.names() == ["key_claimed"]
    assert IdempotencyRecord.objects.count() == 1


@pytest.mark.usefixtures("by_statements")
def test_transient_failure_of_commit(
    client: APIClient, told: Told, atomic_requests: bool
) -> None:
    """E4: A transaction that the database undid is refused, whose COMMIT it was."""
    claims = type(claims_in("default"))
    with (
        patch.object(claims, "is_transient", return_value=True),
        commit_fails_with(OperationalError("deadlock")),
    ):
        status = post(client, ATOMIC).status_code
    assert status == 503
    # The app's own COMMIT, or Django's.
    released = [] if atomic_requests else ["key_released"]
    assert told.names() == ["key_claimed", *released, "request_refused"]


def test_rollback_of_an_outer_transaction(client: APIClient, told: Told) -> None:
    """What a project's own transaction undoes was never stored."""
    with transaction.atomic():
        assert post(client, ATOMIC).status_code == 201
        transaction.set_rollback(True)
    assert told.names() == ["key_claimed"]


def test_purge(told: Told) -> None:
    """P2: A purge sends one signal, with its report."""
    make_records(3, timedelta(days=31))
    report = IdempotencyRecord.objects.purge(batch_size=2)
    assert told.names() == ["records_purged"]
    assert told.senders == [IdempotencyRecord]
    assert dataclasses.asdict(told.last()) == {
        "database": "default",
        **dataclasses.asdict(report),
    }
    assert report.deleted == 3


@BOTH
def test_receivers_that_fail(client: APIClient, place: str) -> None:
    """A receiver's error is its own."""

    def fail(sender: Any, **more: Any) -> None:
        raise ValueError

    for signal in ALL.values():
        signal.connect(fail)
    try:
        first = post(client, place)
        second = post(client, place)
    finally:
        for signal in ALL.values():
            signal.disconnect(fail)
    assert first.status_code == second.status_code == 201
    assert first.content == second.content
    assert Effect.objects.count() == 1


def test_log(client: APIClient, caplog: pytest.LogCaptureFixture) -> None:
    """Each event is a line with structured extras, and no key, scope or body in it."""
    secret = "a-key-that-nobody-may-read-0123456789"
    with caplog.at_level(logging.DEBUG, logger="idempotency"):
        post(client, ATOMIC, secret, {"card": "visa"})
        post(client, ATOMIC, secret, {"card": "visa"})
        post(client, ATOMIC, secret, {"card": "amex"})
        make_records(1, timedelta(days=31))
        IdempotencyRecord.objects.purge()
    lines = [record for record in caplog.records if record.name == "idempotency"]
    assert [(line.levelname, vars(line)["idempotency_event"]) for line in lines] == [
        ("DEBUG", "key_claimed"),
        ("DEBUG", "response_stored"),
        ("INFO", "response_replayed"),
        ("INFO", "request_refused"),
        ("INFO", "records_purged"),
    ]
    refused = lines[3]
    record_id = IdempotencyRecord.objects.get().pk
    extras = {
        name: value
        for name, value in vars(refused).items()
        if name.startswith(signals.PREFIX)
    }
    assert extras == {
        "idempotency_event": "request_refused",
        "idempotency_view": "tests.app.views.MixinView",
        "idempotency_action": None,
        "idempotency_method": "POST",
        "idempotency_mode": "atomic",
        "idempotency_record_id": record_id,
        "idempotency_attempt": 1,
        "idempotency_code": "idempotency_key_reused",
        "idempotency_status_code": 422,
    }
    assert refused.getMessage() == (
        "request_refused: view=tests.app.views.MixinView method=POST mode=atomic "
        f"record_id={record_id} attempt=1 code=idempotency_key_reused status_code=422"
    )
    everything = json.dumps([vars(line) for line in lines], default=str)
    # No words that a number or a UUID could hold by chance.
    for word in (secret, secret[:8], "visa", "amex", "user:"):
        assert word not in everything


def test_log_of_lost_effects(
    client: APIClient, handle: Handle, caplog: pytest.LogCaptureFixture
) -> None:
    """E5: The log says which error took the effects, and quotes no row of theirs."""
    card = "4111111111111111"

    def swallow(request: Request) -> Response:
        Effect.objects.create(name=request.data["card"])
        with suppress(IntegrityError):
            Effect.objects.create(name=request.data["card"])
        return Response({}, 201)

    handle(swallow)
    assert post(client, ATOMIC, body={"card": card}).status_code == 503
    (line,) = [
        record
        for record in caplog.records
        if record.name == "idempotency" and record.levelno > logging.INFO
    ]
    assert line.levelname == "ERROR"
    assert line.exc_info is None
    known = vars(line)
    assert known["idempotency_event"] == "effects_undone"
    assert known["idempotency_attempt"] == 1
    (released,) = [
        record
        for record in caplog.records
        if vars(record).get("idempotency_event") == "key_released"
    ]
    record_id = vars(released)["idempotency_record_id"]
    assert known["idempotency_record_id"] == record_id
    error, driver_error = known["idempotency_error"].split(", ")
    assert error == "IntegrityError"
    assert driver_error.endswith(("IntegrityError", "UniqueViolation"))
    text = line.getMessage()
    assert f"rolled back: IntegrityError, {driver_error}. " in text
    assert text.endswith(f" Record {record_id}, POST {ATOMIC}")
    everything = json.dumps([vars(each) for each in caplog.records], default=str)
    assert card not in everything + caplog.text


FORGED = "\n2026-11-29 ERROR idempotency: all keys are free\x1b[2J\u2028\\n"


def test_log_of_a_path_that_forges_lines(
    client: APIClient, handle: Handle, caplog: pytest.LogCaptureFixture
) -> None:
    """X1: A path can't add a line to the log, nor steer a terminal that shows it."""

    def swallow(request: Request) -> Response:
        for _twice in range(2):
            with suppress(IntegrityError):
                Effect.objects.create(name="once")
        return Response({}, 201)

    handle(swallow)
    assert post(client, ATOMIC + quote(FORGED)).status_code == 503
    (line,) = [
        record
        for record in caplog.records
        if (record.name, record.levelname) == ("idempotency", "ERROR")
    ]
    assert "all keys are free" in line.getMessage()
    assert line.getMessage().isprintable()
    assert line.getMessage().endswith(r"free\x1b[2J\u2028\\n")


def test_signals_that_forge_lines(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """X1: Whatever a detail says, receivers, the line and its extras get one line."""
    purged = signals.RecordsPurged(
        database=FORGED, deleted=1, half_done=0, batches=1, seconds=0.5, more=False
    )
    with caplog.at_level(logging.INFO, logger="idempotency"):
        signals.records_purged.emit(IdempotencyRecord, purged)
    (line,) = caplog.records
    for text in (
        told.last().database,
        line.getMessage(),
        vars(line)["idempotency_database"],
    ):
        assert text.isprintable()
    assert told.last().seconds == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/a b/é/世/%0A", "/a b/é/世/%0A"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x7f\x85\u2028\u202e\ud83d", r"\x7f\x85\u2028\u202e\ud83d"),
        (r"\n", r"\\n"),
    ],
)
def test_escaped(text: str, said: str) -> None:
    """X1: What can be printed stays as it is, and nothing passes for what it is not."""
    assert signals.escaped(text) == said


def test_lines_alone_escape() -> None:
    """X1: No line of the app's has a word of the client's that is not escaped."""
    calls = [call for call in log_calls() if call.args[1:]]
    assert calls
    for call in calls:
        for argument in call.args[1:]:
            written = ast.unparse(argument)
            is_escaped = written.startswith("escaped(")
            assert is_escaped or written in OF_THE_APP, written


def test_silence(client: APIClient) -> None:
    """Without a receiver no details are made."""
    logger = logging.getLogger("idempotency")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with patch.object(LoggedSignal, "emit", side_effect=AssertionError):
            assert post(client, ATOMIC).status_code == 201
            assert post(client, ATOMIC).status_code == 201
    finally:
        logger.setLevel(level)


def test_one_view(client: APIClient) -> None:
    """A receiver can listen to one view."""
    heard: list[str] = []

    def receive(sender: Any, details: Any, **more: Any) -> None:
        heard.append(details.view)

    signals.response_stored.connect(receive, sender=Leased)
    try:
        post(client, ATOMIC, "one-key-of-a-client")
        post(client, LEASED, "another-key-of-a-client")
    finally:
        signals.response_stored.disconnect(receive, sender=Leased)
    assert heard == ["tests.test_leased.Leased"]


def test_page(capsys: pytest.CaptureFixture[str], client: APIClient) -> None:
    """The page names each signal, its level and its fields, and its code runs."""
    page = (ROOT / "docs" / "signals.md").read_text()
    rows = [
        re.findall(r"`(\w+)`", line)
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    levels = {
        code(row["signal"]): row["level of its line"]
        for row in table("signal", "level of its line", document=page)
    }
    assert levels == {
        name: logging.getLevelName(signal.level) for name, signal in ALL.items()
    }
    assert all(name == signal.name for name, signal in ALL.items())
    start = rows.index(["view", "action", "method", "mode", "record_id", "attempt"])
    shared = rows[start]
    named: dict[str, list[str]] = {}
    for row in rows[start + 1 :]:
        names = [name for name in row if name in ALL]
        for name in names:
            own = [field for field in row if field not in names]
            named[name] = own if name == "records_purged" else shared + own
    kinds = [getattr(signals, name.title().replace("_", "")) for name in named]
    assert set(ALL) - set(named) == {"key_claimed"}
    for fields, kind in zip(named.values(), kinds, strict=True):
        assert fields == [field.name for field in dataclasses.fields(kind)]
    sample, configuration = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    before = [*signals.request_refused.receivers]
    # A receiver is held weakly: what defines it must live.
    space: dict[str, Any] = {}
    exec(sample + configuration, space)
    assert [*space["LOGGING"]["loggers"]] == [signals.logger.name]
    try:
        client.post("/required/", {})
    finally:
        signals.request_refused.receivers = before
        signals.request_refused.sender_receivers_cache.clear()
    assert capsys.readouterr().out == (
        "tests.app.views.required idempotency_key_required\n"
    )


# What log lines may say as it is, since no client has a say in it. The methods are
# those that an endpoint is protected for.
OF_THE_APP = (
    "TransactionFailed.default_code",
    "refusal.default_code",
    "name",
    "action",
    "method",
    "response.status_code",
    "self.context.record_id",
    "context.record_id",
    "kind",
    "claimed.pk",
    "claimed.attempt",
    "ran.record.pk",
    "ran.record.attempt",
    "record.pk",
    "record.attempt",
    "attempt",
    "current",
    "self.keyed.method",
)


def level_of(method: str) -> str:
    """Return the level of what a logger's method writes, if it writes anything."""
    level = {"exception": "ERROR"}.get(method, method.upper())
    return level if hasattr(logging, level) else ""


def log_calls() -> Iterator[ast.Call]:
    """Yield the calls that write a line which is no signal's."""
    for path_ in {*(ROOT / "idempotency").rglob("*.py")} - {Path(signals.__file__)}:
        for call in ast.walk(ast.parse(path_.read_text("utf-8"))):
            match call:
                case ast.Call(func=ast.Attribute(ast.Name("logger"), attr=method)) if (
                    level_of(method)
                ):
                    yield call


def lines_alone() -> Iterator[tuple[str, str, list[str]]]:
    """Yield event, level and extras of each line that is no signal's."""
    for call in log_calls():
        assert isinstance(call.func, ast.Attribute)
        given = {each.arg: each.value for each in call.keywords}["extra"]
        assert isinstance(given, ast.Call)
        (event,) = map(ast.literal_eval, given.args)
        yield event, level_of(call.func.attr), [str(n.arg) for n in given.keywords]


def test_lines_on_the_page() -> None:
    """Each line that is no signal's is listed with its level and extras."""
    page = (ROOT / "docs" / "signals.md").read_text()
    listed = {
        code(row["event"]): (row["level"], re.findall(r"`(\w+)`", row["extras"]))
        for row in table("event", "level", document=page)
    }
    found = {event: (level, names) for event, level, names in lines_alone()}
    assert found == listed
    assert not {*listed} & {*ALL}
