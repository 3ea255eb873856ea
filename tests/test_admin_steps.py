"""The admin shows steps, and lets people decide what a resumed run needs to know."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from datetime import timezone as zones
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.db import DatabaseError, connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.admin import messages
from idempotency.admin.columns import SHOWN_STEPS
from idempotency.admin.decoding import SHOWN_CHARACTERS
from idempotency.admin.messages import NEXT_RESPONSES, OTHER_CONTENT
from idempotency.admin.overview import Overview
from idempotency.context import RequestContext
from idempotency.database import UTCNow
from idempotency.decorators import idempotent
from idempotency.models import IdempotencyRecord, State, Status
from idempotency.steps import IN_DOUBT, as_text
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.support.admin_pages import (
    EVERYTHING,
    LIST,
    RESOLVE,
    SEE_BODY,
    VIEW,
    Enter,
    Page,
    address,
    listed,
)
from tests.support.record_admins import (
    OURS,
    THEIRS,
    CarefulAdmin,
    GuardedAdmin,
    TenantAdmin,
    place_of,
)
from tests.support.record_admins import urlpatterns as own_urls
from tests.support.record_factories import MARKUP, RETENTION, make_record
from tests.test_admin_actions import DAY, decisions, desk, form_of, make_abandoned
from tests.test_leased import urlpatterns as leased_urls

__all__ = ["desk"]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

BEGAN = datetime(2026, 11, 20, 12, 30, 15, 123456, tzinfo=zones.utc)
LEASED: dict[str, Any] = {"atomic": False, "on_abandoned": "resume"}


class Killed(BaseException):
    """The end of a process."""


class Provider:
    """An outside service, and what becomes of its callers."""

    charges = 0
    kills = False
    fails: Any = None


def charge(derived: str) -> dict[str, Any]:
    Provider.charges += 1
    if Provider.kills:
        raise Killed
    return {"charge": f"ch_{Provider.charges}"}


def book(steps: Any) -> Response:
    ride = steps.step("ride", lambda: {"id": Effect.objects.create(name="ride").pk})
    charged = steps.call("charge", charge, on_abandoned="hold")

    def confirm() -> Response:
        Effect.objects.create(name="receipt")
        return Response({"ride": ride["id"], "charge": charged["charge"]}, status=201)

    response: Response = steps.step("confirm", confirm)
    return response


def finish(steps: RequestContext) -> Any:
    if isinstance(Provider.fails, Exception):
        raise Provider.fails
    return Provider.fails or book(steps)


def handle(request: Request) -> Response:
    steps: Any = request.idempotency  # type: ignore[attr-defined]
    if "X-Die" in request.headers:
        steps.step("ride", lambda: {"id": Effect.objects.create(name="ride").pk})
        raise Killed
    return book(steps)


def view(**options: Any) -> Any:
    protected = idempotent(**LEASED, **options)(handle)
    return transaction.non_atomic_requests(api_view(["POST"])(protected))


def gone(steps: RequestContext) -> Any:
    raise AssertionError


urlpatterns = [
    *own_urls,
    *leased_urls,
    path("rides/", view(completer=finish)),
    path("without/", view()),
    path("broken/", view(completer="nowhere.to.be.found")),
]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("charges", "kills", "fails"):
        monkeypatch.setattr(Provider, name, getattr(Provider, name))


def entry(
    name: str, kind: str = "step", took: int | None = 12, **more: Any
) -> dict[str, Any]:
    """Return what a record says of a step that took so many milliseconds."""
    ended: dict[str, Any] = {IN_DOUBT: True} if took is None else {}
    if took is not None:
        ended["ended"] = (BEGAN + timedelta(milliseconds=took)).isoformat()
    return {"name": name, "kind": kind, "began": BEGAN.isoformat(), **ended, **more}


RIDE = entry("ride", result={"id": 7, "rider": "s3cret"})
CHARGE = entry("charge", "call", 2345, result={"charge": "ch_1"})
HELD = entry("charge", "call", None)


def make_cut_off(*entries: dict[str, Any], **fields: Any) -> IdempotencyRecord:
    """Store the record of a run that ended after these steps."""
    steps = as_text("", entries)
    return make_abandoned(**{"path": "/rides/", "steps": steps, **fields})


def cut_off(client: Any, place: str = "/rides/", **headers: str) -> IdempotencyRecord:
    """Send a request to an endpoint that is killed, and end its lease."""
    with pytest.raises(Killed):
        client.post(place, {}, headers=headers, **key())
    IdempotencyRecord.objects.update(lease_expires_at=UTCNow() - timedelta(seconds=1))
    return IdempotencyRecord.objects.get()


def held(client: Any) -> IdempotencyRecord:
    """Return the record of a run that was killed in its call."""
    Provider.kills = True
    record = cut_off(client)
    Provider.kills = False
    return record


def retry(client: Any, place: str = "/rides/") -> Any:
    return client.post(place, {}, **key())


def text_of(client: Client, record: IdempotencyRecord, page: str = "change") -> str:
    return Page(client.get(address(record, page))).text


def rows() -> list[Any]:
    return [*IdempotencyRecord.objects.order_by("pk").values()]


# The time line.


def test_time_line(staff: Client) -> None:
    """A1: Steps and calls stand in the time line, with their ends and durations."""
    record = make_cut_off(RIDE, CHARGE, created_at=BEGAN - timedelta(minutes=1))
    with timezone.override("Asia/Tokyo"):
        text = text_of(staff, record)
    line = text[text.index("Timeline") :]
    words = [
        "claimed",
        "2026-11-20 21:30:15 step “ride”: ended at 21:30:15 after 12 ms",
        "2026-11-20 21:30:15 call “charge”: ended at 21:30:17 after 2,345 ms",
        "abandoned: the handler ended in an error",
        "expires",
    ]
    places = [line.index(word) for word in words]
    assert places == sorted(places)


def test_time_line_without_time_zones(
    staff: Client, client: Any, settings: Any
) -> None:
    """A1, P1: With USE_TZ = False, times of steps and of records are in one zone."""
    settings.USE_TZ, settings.TIME_ZONE = False, "Asia/Tokyo"
    record = held(client)
    record.call_returned("charge", {"charge": "ch_1"})
    text = text_of(staff, record)
    for each, name in zip(
        record.entries, ("step “ride”", "call “charge”"), strict=True
    ):
        began = timezone.localtime(datetime.fromisoformat(each["began"]))
        assert f"{began:%Y-%m-%d %H:%M:%S} {name}: ended at " in text


def test_steps_keep_their_order(staff: Client) -> None:
    """A1: The clock of an application that is behind changes no order."""
    text = text_of(staff, make_cut_off(CHARGE, RIDE))
    line = text[text.index("Timeline") :]
    words = ["claimed", "call “charge”", "step “ride”", "abandoned"]
    assert [*sorted(words, key=line.index)] == words


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "call “charge”: in doubt, it may or may not have happened"),
        (
            {"state": State.IN_PROGRESS, "lease_expires_at": timezone.now() + DAY},
            "call “charge”: not ended",
        ),
        (
            {"state": State.COMPLETED, "lease_expires_at": None, "status_code": 201},
            "call “charge”: its end was not recorded",
        ),
    ],
)
def test_call_without_an_end(staff: Client, fields: Any, said: str) -> None:
    """A1, E13: What became of such a call is said as far as it is known."""
    text = text_of(staff, make_cut_off(RIDE, HELD, **fields))
    assert said in text
    assert text.count("call “charge”: ") == 1


def test_many_steps(staff: Client) -> None:
    """A2: A page shows the last steps, and says how many were before them."""
    steps = [entry(f"line-{n}", result="x") for n in range(1, SHOWN_STEPS + 1)]
    steps.insert(0, entry("zeroth", result="x"))
    text = text_of(staff, make_cut_off(*steps))
    assert "zeroth" not in text
    assert "step “line-1”: ended at 12:30:15 after 12 ms (after 1 earlier step" in text
    assert f"step “line-{SHOWN_STEPS}”" in text
    assert "earlier" not in text_of(staff, make_cut_off(*steps[1:]))


def test_no_steps(staff: Client) -> None:
    """A1: Other records look as before."""
    for record in (make_record(), make_abandoned(), make_cut_off()):
        text = text_of(staff, record)
        assert "step “" not in text
        assert "esults of steps" not in text


def test_markup(staff: Client) -> None:
    """A1: Neither a name nor a result can inject markup."""
    record = make_cut_off(entry(MARKUP[:100], result={MARKUP: MARKUP}))
    page = Page(staff.get(address(record)))
    assert page.is_harmless()
    assert page.text.count("<script>window.ran=true") >= 3


# Results.


def test_results(enter: Enter) -> None:
    """A1: Results need the permission for responses, and reading them is logged."""
    record = make_cut_off(RIDE, CHARGE)
    reader, other = enter(VIEW, SEE_BODY), enter(VIEW, RESOLVE)
    assert "s3cret" not in other.get(address(record)).content.decode()
    assert not LogEntry.objects.exists()
    text = text_of(reader, record)
    assert '{\n  "id": 7,\n  "rider": "s3cret"\n}' in text
    assert '{\n  "charge": "ch_1"\n}' in text
    (entry,) = LogEntry.objects.all()
    assert entry.change_message == "Viewed the results of steps."
    assert entry.object_id == entry.object_repr == str(record.pk)
    assert str(entry.user_id) == reader.session["_auth_user_id"]


def test_raw_steps(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A1: A subclass that shows the field does not show it to others by that."""
    from idempotency.admin import IdempotencyRecordAdmin  # noqa: PLC0415

    fieldsets = (("All", {"fields": ("key", ("steps", "step_results"))}),)
    monkeypatch.setattr(IdempotencyRecordAdmin, "fieldsets", fieldsets)
    record = make_cut_off(RIDE)
    assert "s3cret" not in enter(VIEW).get(address(record)).content.decode()
    assert "s3cret" in text_of(enter(VIEW, SEE_BODY), record)


def test_results_go(staff: Client, desk: Client) -> None:
    """E14: The results go when a person stores the response, too."""
    record = make_cut_off(RIDE, CHARGE)
    assert "s3cret" in text_of(staff, record)
    form = form_of(Page(desk.get(address(record, "resolve"))))
    form |= {"status_code": "201", "content_type": "text/plain", "body": "done"}
    assert desk.post(address(record, "resolve"), form).status_code == 302
    text = text_of(staff, record)
    assert "step “ride”: ended" in text
    assert "s3cret" not in text
    assert "esults of steps" not in text
    record.refresh_from_db()
    assert [each["name"] for each in record.entries] == ["ride", "charge"]
    assert "s3cret" not in str(record.steps)


@pytest.mark.parametrize(
    "result",
    [
        None,
        False,
        "Ж \ud83d\0",
        [1.5, []],
        {"deep": [[[[]]]]},
        json.loads("[" * 200 + "]" * 200),
    ],
)
def test_any_result(staff: Client, result: Any) -> None:
    """A1: Any JSON can be shown."""
    assert "ride" in text_of(staff, make_cut_off(entry("ride", result=result)))


def test_large_results(staff: Client) -> None:
    """A2: However many results there are, a page has so many characters of them."""
    results = [entry(f"line-{n}", result="x" * 30_000) for n in range(4)]
    text = text_of(staff, make_cut_off(*results))
    assert SHOWN_CHARACTERS * 0.9 < text.count("x") < SHOWN_CHARACTERS * 1.1
    assert "x…" in text


def test_lists_load_no_results(staff: Client) -> None:
    """A2: The list loads no results, and the overview none."""
    make_cut_off(RIDE)
    for place in (LIST, f"{LIST}?state=abandoned"):
        with CaptureQueriesContext(connection) as queries:
            assert staff.get(place).status_code == 200
        for query in queries:
            assert "steps" not in query["sql"]


# The next request.


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], messages.BEGIN),
        ([RIDE], messages.RESUME.format(name="ride")),
        ([RIDE, CHARGE], messages.RESUME.format(name="charge")),
        ([RIDE, HELD], messages.IN_DOUBT.format(name="charge")),
        ([entry("{x}")], messages.RESUME.format(name="{x}")),
    ],
)
def test_next_request(staff: Client, steps: list[Any], said: str) -> None:
    """A1, E12, E13: The sentence says from where the next request goes on."""
    for state in (State.ABANDONED, State.IN_PROGRESS):
        text = text_of(staff, make_cut_off(*steps, state=state))
        assert f"{said} {OTHER_CONTENT}" in text


@pytest.mark.parametrize(
    ("place", "steps"), [("/rides/", None), ("/rerun/", "[]"), ("/asking/", "[]")]
)
def test_next_request_of_another_mode(
    staff: Client, place: str, steps: str | None
) -> None:
    """A1, E16: After a change of the option a person decides, and the page says so."""
    text = text_of(staff, make_cut_off(path=place, steps=steps and as_text("")))
    said = f"{messages.CHANGED} {NEXT_RESPONSES[Status.ABANDONED]} {OTHER_CONTENT}"
    assert said in text


def test_sentences_hold(staff: Client, client: Any) -> None:
    """A1, E12, E13: A retry gets what the page says."""
    record = held(client)
    assert "refused with 409 idempotency_outcome_unknown" in text_of(staff, record)
    refused = retry(client)
    assert (refused.status_code, code_of(refused)) == (
        409,
        "idempotency_outcome_unknown",
    )
    for model in (IdempotencyRecord, Effect):
        model._default_manager.all().delete()
    record = cut_off(client, **{"X-Die": "1"})
    assert "cut off after “ride”" in text_of(staff, record)
    assert retry(client).status_code == 201
    assert {*Effect.objects.values_list("name", flat=True)} == {"ride", "receipt"}


# A call in doubt.


def test_call_returned(desk: Client, client: Any) -> None:
    """A3, E13: Somebody records what a call returned, and the retry goes on with it."""
    record = held(client)
    assert Page(desk.get(address(record))).links("/call/") == [address(record, "call")]
    page = Page(desk.get(address(record, "call")))
    assert "How did the call “charge” end?" in page.text
    form = form_of(page) | {"outcome": "returned", "result": '{"charge": "ch_42"}'}
    answer = desk.post(address(record, "call"), form, follow=True)
    text = Page(answer).text
    assert "Recorded what the call “charge” returned." in text
    assert "The run was cut off after “charge”." in text
    (entry,) = decisions()
    assert entry.change_message == "Recorded what the call “charge” returned."
    assert entry.object_id == entry.object_repr == str(record.pk)
    done = retry(client)
    assert (done.status_code, done.data["charge"]) == (201, "ch_42")
    assert Provider.charges == 1
    assert Effect.objects.count() == 2


def test_call_never_happened(desk: Client, client: Any) -> None:
    """A3, E13: Somebody records that a call never happened, and the retry calls."""
    record = held(client)
    form = form_of(Page(desk.get(address(record, "call")))) | {"outcome": "never"}
    text = Page(desk.post(address(record, "call"), form, follow=True)).text
    assert "Recorded that the call “charge” never happened." in text
    assert "The run was cut off after “ride”." in text
    (entry,) = decisions()
    assert entry.change_message == "Recorded that the call “charge” never happened."
    assert entry.object_repr == str(record.pk)
    done = retry(client)
    assert (done.status_code, done.data["charge"]) == (201, "ch_2")
    assert Effect.objects.count() == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "This field is required."),
        ({"outcome": "perhaps"}, "Select a valid choice."),
        ({"outcome": "returned"}, "This is not valid JSON"),
        ({"outcome": "returned", "result": "{'a': 1}"}, "This is not valid JSON"),
        ({"outcome": "returned", "result": "[NaN]"}, "This is not valid JSON: NaN"),
        ({"outcome": "returned", "result": "1" * 5000}, "This is not valid JSON"),
        ({"outcome": "returned", "result": "[" * 99_999}, "This is not valid JSON"),
        ({"outcome": "never", "result": "1"}, "never happened has no result"),
        (
            {"outcome": "returned", "result": json.dumps("x" * 2000)},
            "longer than MAX_RESPONSE_BYTES",
        ),
    ],
)
def test_bad_input(desk: Client, settings: Any, given: Any, said: str) -> None:
    """A3: Mistakes are explained, and nothing is recorded."""
    settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 2000}
    record = make_cut_off(HELD)
    before = rows()
    form = form_of(Page(desk.get(address(record, "call")))) | given
    page = Page(desk.post(address(record, "call"), form))
    assert said in page.text
    assert rows() == before
    assert not decisions()


def test_result_of_null(desk: Client) -> None:
    """A3, E13: A call can have returned null."""
    record = make_cut_off(HELD)
    form = {"token": str(record.token), "outcome": "returned", "result": " null "}
    assert desk.post(address(record, "call"), form).status_code == 302
    record.refresh_from_db()
    (entry,) = record.entries
    assert entry["result"] is None
    assert datetime.fromisoformat(entry["ended"]) > BEGAN


@pytest.mark.parametrize("page", ["call", "complete"])
def test_changed_meanwhile(desk: Client, page: str) -> None:
    """A3: What was decided of one run is not done to another one."""
    record = make_cut_off(RIDE, *([HELD] if page == "call" else []))
    form = form_of(Page(desk.get(address(record, page)))) | {"outcome": "never"}
    IdempotencyRecord.objects.update(token=uuid4())
    before = rows()
    text = Page(desk.post(address(record, page), form, follow=True)).text
    assert "Nothing was done: the record has changed." in text
    assert rows() == before
    assert not decisions()
    assert not Effect.objects.exists()


@pytest.mark.parametrize("outcome", ["returned", "never"])
def test_changed_in_that_moment(
    desk: Client, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: A record that changes after the page has read it is left alone."""
    record = make_cut_off(HELD)
    unchanged = IdempotencyRecord._unchanged

    def change(self: IdempotencyRecord) -> Any:
        IdempotencyRecord.objects.update(token=uuid4())
        return unchanged(self)

    monkeypatch.setattr(IdempotencyRecord, "_unchanged", change)
    form = {"token": str(record.token), "outcome": outcome, "result": ""}
    if outcome == "returned":
        form["result"] = "1"
    text = Page(desk.post(address(record, "call"), form, follow=True)).text
    assert "Nothing was done: the record has changed." in text
    assert not decisions()


@pytest.mark.parametrize(
    ("fields", "page"),
    [
        ({"lease_expires_at": timezone.now() + DAY}, "call"),
        ({"lease_expires_at": timezone.now() + DAY}, "complete"),
        ({"created_at": timezone.now() - RETENTION - DAY}, "call"),
        ({"created_at": timezone.now() - RETENTION - DAY}, "complete"),
        ({"status_code": 201, "state": State.COMPLETED}, "call"),
        ({"status_code": 201, "state": State.COMPLETED}, "complete"),
        ({"steps": as_text("", [HELD])}, "complete"),
        ({"steps": as_text("", [RIDE])}, "call"),
        ({"steps": as_text("")}, "call"),
        ({"steps": as_text("")}, "complete"),
        ({"steps": None}, "call"),
        ({"steps": None}, "complete"),
        ({"path": "/without/"}, "complete"),
        ({"path": "/broken/"}, "complete"),
        ({"path": "/rerun/"}, "complete"),
        ({"path": "/nowhere/"}, "complete"),
    ],
)
def test_nothing_to_decide(desk: Client, fields: Any, page: str) -> None:
    """A3: Decisions are offered, and taken, for records that wait for them alone."""
    entries = [RIDE, HELD] if page == "call" else [RIDE]
    record = make_cut_off(*entries, **{"state": State.IN_PROGRESS, **fields})
    before = rows()
    assert not Page(desk.get(address(record))).links(f"/{page}/")
    form = {"token": str(record.token), "outcome": "never"}
    said = {"call": "No call of this record is", "complete": "Only an abandoned record"}
    for answer in (
        desk.get(address(record, page), follow=True),
        desk.post(address(record, page), form, follow=True),
    ):
        assert said[page] in Page(answer).text
    assert rows() == before
    assert not decisions()


# Complete now.


def test_complete(desk: Client, client: Any) -> None:
    """A3, E17: Somebody completes a request, and a retry gets its response."""
    record = cut_off(client, **{"X-Die": "1"})
    place = address(record, "complete")
    assert Page(desk.get(address(record))).links("/complete/") == [place]
    page = Page(desk.get(place))
    assert "goes on after “ride”" in page.text
    assert Provider.charges == 0
    answer = desk.post(place, form_of(page), follow=True)
    text = Page(answer).text
    assert "Completed: retries get the response, with status 201." in text
    assert "gets this response again, with status 201" in text
    (entry,) = decisions()
    assert entry.change_message == "Began to complete the request."
    assert entry.object_id == entry.object_repr == str(record.pk)
    done = retry(client)
    assert (done.status_code, done["Idempotent-Replayed"]) == (201, "true")
    assert Provider.charges == 1
    assert Effect.objects.count() == 2


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (ZeroDivisionError("s3cret"), "The completer failed: ZeroDivisionError."),
        (HttpResponse(status=502), "The completer failed: 502."),
    ],
)
def test_complete_in_vain(
    desk: Client, client: Any, fails: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A3, E17: A completer that fails is no error of the admin, and may run again."""
    record = cut_off(client, **{"X-Die": "1"})
    form = form_of(Page(desk.get(address(record, "complete"))))
    Provider.fails = fails
    text = Page(desk.post(address(record, "complete"), form, follow=True)).text
    assert said in text
    assert "s3cret" not in text
    assert "The run was cut off after “ride”." in text
    assert len(decisions()) == 1
    is_error = isinstance(fails, Exception)
    assert ("A completer failed: record" in caplog.text) is is_error
    Provider.fails = None
    form = form_of(Page(desk.get(address(record, "complete"))))
    text = Page(desk.post(address(record, "complete"), form, follow=True)).text
    assert "Completed: " in text


def test_completed_in_that_moment(desk: Client, client: Any) -> None:
    """A3, E17: A completion that another run overtakes changes nothing."""
    record = cut_off(client, **{"X-Die": "1"})
    form = form_of(Page(desk.get(address(record, "complete"))))

    class Overtaken(HttpResponse):
        """A response of a run whose claim is gone."""

        @property
        def is_rendered(self) -> bool:
            IdempotencyRecord.objects.update(token=uuid4())
            return True

    Provider.fails = Overtaken("late")
    text = Page(desk.post(address(record, "complete"), form, follow=True)).text
    assert "Nothing was done: the record has changed." in text
    assert IdempotencyRecord.objects.get().status_code is None


@pytest.mark.parametrize("page", ["call", "complete"])
def test_no_decision_without_its_log(
    desk: Client, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: What can't be logged is not done."""
    record = make_cut_off(RIDE, *([HELD] if page == "call" else []))
    before = rows()

    def fail(**fields: Any) -> None:
        raise DatabaseError("the log is full")

    monkeypatch.setattr(LogEntry.objects, "create", fail)
    form = {"token": str(record.token), "outcome": "never"}
    with pytest.raises(DatabaseError, match="the log is full"):
        desk.post(address(record, page), form)
    assert rows() == before
    assert not Effect.objects.exists()


def test_complete_under_atomic_requests(
    desk: Client, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3, E17: Under ATOMIC_REQUESTS a request is completed all the same."""
    record = cut_off(client, **{"X-Die": "1"})
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    form = form_of(Page(desk.get(address(record, "complete"))))
    text = Page(desk.post(address(record, "complete"), form, follow=True)).text
    assert "Completed: " in text


def test_release_of_what_is_half_done(desk: Client) -> None:
    """A3: Before a release the page says what the next request does again."""
    text = text_of(desk, make_cut_off(RIDE), "release")
    assert "The run has recorded “ride”. The next request does it again." in text
    text = text_of(desk, make_cut_off(RIDE, CHARGE), "release")
    assert "has recorded 2 steps and calls up to “charge”" in text
    for record in (make_cut_off(), make_record(steps=as_text("", [RIDE]))):
        assert "has recorded" not in text_of(desk, record, "release")


# A project's rules.


def test_permission(enter: Enter) -> None:
    """A3: Both decisions need the permission for abandoned records."""
    in_doubt, stuck = make_cut_off(HELD), make_cut_off(RIDE)
    before = rows()
    client = enter(*{*EVERYTHING} - {RESOLVE})
    for record, page in ((in_doubt, "call"), (stuck, "complete")):
        assert not Page(client.get(address(record))).links(f"/{page}/")
        form = {"token": str(record.token), "outcome": "never"}
        assert client.get(address(record, page)).status_code == 403
        assert client.post(address(record, page), form).status_code == 403
    assert rows() == before
    able = enter(VIEW, RESOLVE)
    for record, page in ((in_doubt, "call"), (stuck, "complete")):
        assert Page(able.get(address(record))).links(f"/{page}/")
        assert able.get(address(record, page)).status_code == 200


@pytest.mark.parametrize(
    ("kind", "status"), [(TenantAdmin, 404), (GuardedAdmin, 403), (CarefulAdmin, 403)]
)
@pytest.mark.parametrize("page", ["call", "complete"])
def test_records_of_others(enter: Enter, kind: Any, status: int, page: str) -> None:
    """A1, A3: No decision about a record that the ModelAdmin keeps from the user."""
    client = enter(*EVERYTHING)
    here = place_of(kind)
    entries = [RIDE, HELD] if page == "call" else [RIDE]
    theirs, ours = (make_cut_off(*entries, scope=scope) for scope in (THEIRS, OURS))
    before = rows()
    form = {"token": str(theirs.token), "outcome": "never"}
    for answer in (
        client.get(f"{here}{theirs.pk}/{page}/"),
        client.post(f"{here}{theirs.pk}/{page}/", form),
    ):
        assert answer.status_code == status
        assert b"s3cret" not in answer.content
    if kind is CarefulAdmin:
        shown = client.get(f"{here}{theirs.pk}/change/")
        assert not Page(shown).links(f"/{page}/")
        assert b"s3cret" not in shown.content
    assert rows() == before
    assert not decisions()
    assert client.get(f"{here}{ours.pk}/{page}/").status_code == 200
    assert Page(client.get(f"{here}{ours.pk}/change/")).links(f"/{page}/")


# Records that expire half done.


def test_overview(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A4: The overview counts half-done records that expire within a day."""
    soon = timezone.now() - RETENTION + DAY / 2
    for number in range(3):
        make_cut_off(RIDE, created_at=soon, key=f"half-{number}")
    make_cut_off(RIDE)
    make_cut_off(created_at=soon)
    make_cut_off(RIDE, created_at=soon - DAY)
    make_cut_off(RIDE, created_at=soon, lease_expires_at=timezone.now() + DAY)
    make_abandoned(created_at=soon)
    make_record(created_at=soon, steps=as_text("", [RIDE]))
    overview = Overview.of(IdempotencyRecord.objects)
    assert (overview.half_done_within_a_day, overview.abandoned) == (3, 7)
    page = Page(staff.get(f"{LIST}overview/"))
    said = "Half done, expire within a day"
    assert f"{said}3" in page.text.replace("\n", "")
    (link,) = page.links("expiry=day")
    shown = set(listed(staff, link.removeprefix(LIST)))
    assert shown >= {"half-0", "half-1", "half-2"}
    monkeypatch.setattr("idempotency.admin.overview.MOST_COUNTED", 6)
    assert f"{said}at least " in Page(staff.get(f"{LIST}overview/")).text.replace(
        "\n", ""
    )


def test_overview_of_no_abandoned_records() -> None:
    """A4: Without abandoned records there are no half-done ones."""
    make_record()
    assert Overview.of(IdempotencyRecord.objects).half_done_within_a_day == 0


def test_purge(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: The button says how many records lose recorded steps."""
    monkeypatch.setattr("idempotency.admin.purge.has_worker", lambda: False)
    make_record(RETENTION + DAY)
    make_cut_off(RIDE, created_at=timezone.now() - RETENTION - DAY)
    text = Page(desk.post(f"{LIST}purge/", follow=True)).text
    said = "Purged 2 expired records of the database “default”. "
    assert f"{said}1 of them had recorded steps, but no response." in text
    make_record(RETENTION + DAY)
    text = Page(desk.post(f"{LIST}purge/", follow=True)).text
    assert "had recorded steps" not in text
