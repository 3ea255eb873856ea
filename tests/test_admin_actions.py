"""The admin as a desk: filters, decisions, the purge, the overview."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from datetime import timezone as zones
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery, current_app
from django.contrib.admin.models import LogEntry
from django.db import DatabaseError, connection, connections
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from idempotency.admin import purge
from idempotency.admin.overview import Overview
from idempotency.claims import claims_in
from idempotency.models import IdempotencyRecord, RecordChanged, State
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.support.admin_pages import (
    EVERYTHING,
    LIST,
    OVERVIEW,
    PURGE,
    RELEASE,
    RESOLVE,
    SEE_BODY,
    VIEW,
    Enter,
    Page,
    address,
    listed,
)
from tests.support.record_factories import RETENTION, make_record, make_records

pytestmark = pytest.mark.django_db

NO_ANSWER = {"body": None, "status_code": None, "headers": None, "completed_at": None}
DAY = timedelta(days=1)


def make_abandoned(**fields: Any) -> IdempotencyRecord:
    lease = timezone.now() - timedelta(minutes=5)
    given = {"state": State.ABANDONED, "lease_expires_at": lease, **NO_ANSWER}
    return make_record(**{**given, **fields})


def make_running(**fields: Any) -> IdempotencyRecord:
    lease = timezone.now() + timedelta(hours=1)
    return make_abandoned(state=State.IN_PROGRESS, lease_expires_at=lease, **fields)


@pytest.fixture
def desk(enter: Enter) -> Client:
    """Return a client that may do everything."""
    return enter(*EVERYTHING)


def decisions() -> list[LogEntry]:
    """Return what the admin's log has, apart from who read what."""
    read = [
        "Viewed the response.",
        "Viewed the results of steps.",
        "Downloaded the response.",
    ]
    return [*LogEntry.objects.exclude(change_message__in=read)]


# Filters.


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=abandoned", {"abandoned", "run-out", "left-behind"}),
        ("state=in_progress", {"running"}),
        ("state=completed", {"old", "expired", "moved", "refused", "put"}),
        ("state=not_kept", {"tombstone"}),
        ("state=nonsense", None),
        ("status=3xx", {"moved"}),
        ("status=4xx", {"refused"}),
        ("method=put", {"put"}),
        ("age=hour", {"abandoned", "run-out", "running"}),
        ("age=day", {"abandoned", "run-out", "running", "moved", "refused"}),
        ("age=older", {"old", "expired"}),
        ("expiry=past", {"expired"}),
        ("expiry=day", {"old"}),
        ("expiry=week", {"old"}),
        ("expiry=later&status=2xx", {"put", "tombstone"}),
        ("status=2xx&method=put", {"put"}),
    ],
)
def test_filters(staff: Client, query: str, found: set[str] | None) -> None:
    """A1: The list is narrowed by what a record is, alone and together."""
    make_abandoned(key="abandoned")
    make_running(key="running")
    make_abandoned(key="run-out", state=State.IN_PROGRESS)
    make_abandoned(
        key="left-behind",
        state=State.IN_PROGRESS,
        lease_expires_at=None,
        created_at=timezone.now() - 2 * DAY,
    )
    make_record(RETENTION - timedelta(hours=2), key="old")
    make_record(RETENTION + DAY, key="expired")
    make_record(timedelta(hours=2), key="moved", status_code=302)
    make_record(timedelta(hours=2), key="refused", status_code=402)
    make_record(2 * DAY, key="put", method="PUT")
    make_record(2 * DAY, key="tombstone", body=None)
    everything = set(listed(staff))
    assert len(everything) == 10
    assert set(listed(staff, f"?{query}")) == (everything if found is None else found)


def test_filters_without_an_index(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: They look at the last records to expire, and the page says so."""
    monkeypatch.setattr("idempotency.admin.lists.SEARCHED", 3)
    for days in range(6):
        make_record(days * DAY, key=f"k-{days}", method="PUT")
    make_abandoned(created_at=timezone.now() - 20 * DAY, key="abandoned")
    assert listed(staff, "?method=put") == ["k-0", "k-1", "k-2"]
    said = "These filters have no index"
    assert said in Page(staff.get(f"{LIST}?method=put")).text
    assert listed(staff, "?method=put&expiry=later") == ["k-0", "k-1", "k-2"]
    assert listed(staff, "?state=abandoned&method=post") == ["abandoned"]
    for days in (1, 25):
        make_abandoned(
            created_at=timezone.now() - days * DAY + timedelta(minutes=1),
            lease_expires_at=None,
            key=f"left-{days}",
        )
    assert listed(staff, "?state=abandoned") == ["abandoned", "left-1"]
    assert said in Page(staff.get(f"{LIST}?state=abandoned")).text
    assert listed(staff, "?state=abandoned&expiry=week") == ["left-25"]
    make_abandoned(lease_expires_at=None, key="left-0")
    assert listed(staff, "?state=abandoned") == ["abandoned", "left-1", "left-0"]
    assert listed(staff, "?method=put&q=k-5") == ["k-5"]
    for query in ("", "?expiry=later", "?method=put&expiry=day"):
        assert said not in Page(staff.get(LIST + query)).text


def test_filter_by_a_great_age(
    staff: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: Where newer records fill the places, it starts at what can be that old."""
    for days in range(6):
        make_record(days * DAY, key=f"new-{days}")
    for days in (8, 9, 10, 25):
        make_record(days * DAY, key=f"old-{days}")
    # As old, but kept for longer or less long than the others.
    make_record(9 * DAY, key="long", expires_at=timezone.now() + 90 * DAY)
    make_record(9 * DAY, key="brief", expires_at=timezone.now() + DAY)
    everything = ["long", "old-8", "old-9", "old-10", "old-25", "brief"]
    assert listed(staff, "?age=older") == everything
    said = "records that are a week old, assuming a retention of"
    assert said not in Page(staff.get(f"{LIST}?age=older")).text
    monkeypatch.setattr("idempotency.admin.lists.SEARCHED", 8)
    assert listed(staff, "?age=older") == everything[1:]
    monkeypatch.setattr("idempotency.admin.lists.SEARCHED", 2)
    assert listed(staff, "?age=older") == ["old-8", "old-9"]
    text = Page(staff.get(f"{LIST}?age=older")).text
    assert said in text
    assert "30 days" in text
    assert listed(staff, "?age=older&expiry=week") == ["old-25", "brief"]
    assert said not in Page(staff.get(f"{LIST}?age=week")).text
    settings.IDEMPOTENCY = {"RETENTION": 97 * DAY}
    assert listed(staff, "?age=older") == ["long"]


@pytest.mark.parametrize("quotes", ["", '"'])
def test_search_by_scope_and_key(staff: Client, quotes: str) -> None:
    """A1, S1: A scope before the key finds the one record of both."""
    client = Client(headers={"X-User": "ada"})
    for user in ("ada", "bob"):
        client.post("/function/", {}, headers={"X-User": user}, **key("the-key-of-two"))
    assert len(listed(staff, q="the-key-of-two")) == 2
    scope = IdempotencyRecord.objects.order_by("scope")[0].scope
    assert listed(staff, q=f"{scope} {quotes}the-key-of-two{quotes}") == [
        "the-key-of-two"
    ]
    assert listed(staff, q="nobody the-key-of-two") == []


# With very many records.

MANY = 100_000
QUERIES = [
    "",
    "?p=20",
    "?q=live-500",
    "?q=user:auth.user:500+live-500",
    "?state=abandoned",
    "?state=in_progress",
    "?state=completed",
    "?state=not_kept",
    "?status=4xx",
    "?method=put",
    "?age=hour",
    "?age=older",
    "?age=older&expiry=later",
    "?expiry=past",
    "?expiry=day",
    "?expiry=week&status=4xx",
    "?state=abandoned&age=hour&status=2xx",
    "?state=abandoned&caller=user:auth.user:1",
    "?caller=user:auth.user:1",
    "?caller=user:auth.user:1&status=4xx",
    "?caller=user:auth.user:1&endpoint=POST+/api/v2/user/assignments",
    "?endpoint=POST+/api/v2/user/assignments",
    "?endpoint=POST+/api/v2/user/assignments&age=older",
    "?endpoint=POST+/api/v2/user/assignments&status=4xx",
    "?endpoint=POST+/nowhere/&state=abandoned",
    "?q=user:auth.user:1",
    "?q=/api/v2/user/assignments",
    "?q=nobody",
]


@pytest.fixture
def very_many(transactional_db: None) -> Iterator[None]:
    """Fill the table, so that the planner has something to plan."""
    if connection.vendor != "postgresql":
        pytest.skip("Plans are read on PostgreSQL.")
    from benchmarks.records import fill  # noqa: PLC0415  # of one database

    fill(MANY // 2, "live", expired=False)
    fill(MANY // 2, "old", expired=True)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE idempotency_idempotencyrecord")
    yield
    IdempotencyRecord.objects.all()._raw_delete("default")  # type: ignore[attr-defined]


def test_plans(very_many: None, enter: Enter) -> None:
    """A2: No page reads the whole table, nor takes more than ten statements."""
    client = enter(VIEW, SEE_BODY, OVERVIEW)
    record = make_abandoned()
    places = [*(LIST + query for query in QUERIES), f"{LIST}overview/", address(record)]
    for place in places:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(place).status_code in (200, 302)
        assert len(queries) <= 10, place
        for query in queries:
            if "idempotency_idempotencyrecord" in query["sql"]:
                plan = explain(query["sql"])
                assert "Seq Scan" not in plan, f"{place}\n{query['sql']}\n{plan}"


def explain(sql: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}")
        return "\n".join(row[0] for row in cursor.fetchall())


# What happened.


def test_time_line(staff: Client) -> None:
    """A1: A record's times are listed in order."""
    done = make_record(3 * DAY, completed_at=timezone.now() - 2 * DAY)
    yesterday = timezone.now() - DAY
    in_error = "abandoned: the handler ended in an error"
    run_out = "abandoned: the lease ended before there was a response"
    for record, words in (
        (done, ["claimed", "completed", "expires"]),
        (make_abandoned(created_at=yesterday), ["claimed", in_error]),
        (
            make_abandoned(created_at=yesterday, state=State.IN_PROGRESS),
            ["claimed", run_out],
        ),
        (make_running(), ["claimed", "the lease ends unless it is renewed"]),
        (
            make_abandoned(lease_expires_at=None),
            ["claimed; abandoned without a response", "expires"],
        ),
    ):
        text = Page(staff.get(address(record))).text
        line = text[text.index("Timeline") :]
        places = [line.index(word) for word in words]
        assert places == sorted(places)
        assert ("abandoned" in line) is any("abandoned" in word for word in words)
    assert "2\xa0days ago" in Page(staff.get(address(done))).text


# Release.


def form_of(page: Page) -> dict[str, str | None]:
    """Return what the page's form would send, without the user's part."""
    return {
        str(attrs["name"]): attrs.get("value")
        for tag, attrs in page.elements
        if tag == "input" and attrs.get("type") == "hidden"
    }


@pytest.mark.parametrize("make", [make_record, make_abandoned])
def test_release(desk: Client, make: Any) -> None:
    """A3: After a page that says what it means, the key is free, and it is logged."""
    own = {"path": "/assignments/s3cret/", "route": "/assignments/<pk>/"}
    record = make(key="to-be-released", **own)
    record.refresh_from_db()
    place = address(record, "release")
    assert place in Page(desk.get(address(record))).links("/release/")
    page = Page(desk.get(place))
    assert "The next request with this key runs the handler again." in page.text
    assert ("The outcome is unknown" in page.text) is (make is make_abandoned)
    assert IdempotencyRecord.objects.count() == 1
    for reason in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 501}):
        refused = desk.post(place, form_of(page) | reason)
        assert "errorlist" in refused.content.decode()
    assert IdempotencyRecord.objects.count() == 1
    assert not decisions()
    form = form_of(page) | {"reason": "the provider knows of no charge"}
    answer = desk.post(place, form, follow=True)
    assert "The key is free" in Page(answer).text
    assert not IdempotencyRecord.objects.exists()
    (entry,) = decisions()
    assert entry.object_id == entry.object_repr == str(record.pk)
    said = entry.change_message
    assert said.startswith(
        "Released the key. Reason: “the provider knows of no charge”. Record: POST "
        "/assignments/<pk>/; "
    )
    state, response, attempt, claimed, completed, expires = said.split("; ")[1:]
    expected = ["abandoned", "response: no response", "completed -"]
    if make is make_record:
        at = record.completed_at.isoformat()
        expected = ["completed", "response: 201, 9 bytes", f"completed {at}"]
    assert [state, response, completed] == expected
    assert attempt == "attempt 1"
    assert claimed == f"claimed {record.created_at.isoformat()}"
    assert expires == f"expires {record.expires_at.isoformat()}."
    for secret in (record.key, record.scope, record.path, '"id"'):
        assert secret not in said


@pytest.mark.parametrize("page", ["release", "resolve"])
def test_changed_meanwhile(desk: Client, page: str) -> None:
    """A3: What was decided of one run is not done to another one."""
    record = make_abandoned()
    form = form_of(Page(desk.get(address(record, page))))
    form |= {"status_code": "201", "content_type": "text/plain", "body": "late"}
    for changed in ({"token": uuid4()}, {"state": State.COMPLETED, "status_code": 201}):
        IdempotencyRecord.objects.update(**changed)
        before = IdempotencyRecord.objects.values().get()
        if page == "release" and "state" in changed:
            continue  # a completed record can be released by who sees that it is one
        said = Page(desk.post(address(record, page), form, follow=True)).text
        assert "Nothing was done: the record has changed." in said
        assert IdempotencyRecord.objects.values().get() == before
    assert not decisions()


@pytest.mark.parametrize("page", ["release", "resolve"])
def test_changed_in_that_moment(
    desk: Client, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: A change between reading and writing is noticed, too."""
    record = make_abandoned()
    form = form_of(Page(desk.get(address(record, page))))
    form |= {"status_code": "201", "content_type": "text/plain", "body": "late"}
    form["reason"] = "lost"
    verb = getattr(IdempotencyRecord, page)

    def change_first(found: IdempotencyRecord, *arguments: Any) -> None:
        IdempotencyRecord.objects.update(token=uuid4())
        verb(found, *arguments)

    monkeypatch.setattr(IdempotencyRecord, page, change_first)
    said = Page(desk.post(address(record, page), form, follow=True)).text
    assert "Nothing was done: the record has changed." in said
    assert IdempotencyRecord.objects.get().state == State.ABANDONED
    assert not decisions()


def test_running_records_are_left_alone(desk: Client) -> None:
    """A3: A record that a handler has a lease on is offered no decision."""
    record = make_running()
    page = Page(desk.get(address(record)))
    assert not page.links("/release/")
    assert not page.links("/resolve/")
    form = {"token": str(record.token)}
    for place, said in (
        ("release", "The handler is running: the key can't be released now."),
        ("resolve", "Only an abandoned record that is in force can be resolved."),
    ):
        for answer in (
            desk.get(address(record, place), follow=True),
            desk.post(address(record, place), form, follow=True),
        ):
            assert said in Page(answer).text
    assert IdempotencyRecord.objects.count() == 1
    assert not decisions()


def test_the_log_is_for_everybody(
    desk: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: The log speaks the project's language, whatever the person's is."""
    monkeypatch.setattr(purge, "has_worker", lambda: False)
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.middleware.locale.LocaleMiddleware",
    ]

    def translate(message: str) -> str:
        return f"«{translation.get_language()}: {message}»"

    monkeypatch.setattr(translation._trans, "gettext", translate)
    monkeypatch.setattr(
        translation._trans, "ngettext", lambda _one, many, _number: translate(many)
    )
    german = {"headers": {"Accept-Language": "de"}, "follow": True}
    record = make_abandoned()
    form = {"token": str(record.token), "status_code": "201", "content_type": "a/b"}
    said = [
        Page(desk.post(address(record, "resolve"), form, **german)).text,
        Page(desk.post(f"{LIST}purge/", **german)).text,
    ]
    form |= {"token": str(IdempotencyRecord.objects.get().token), "reason": "lost"}
    said.append(Page(desk.post(address(record, "release"), form, **german)).text)
    assert all("«de: " in text for text in said)
    *others, released = [
        entry.change_message for entry in LogEntry.objects.order_by("pk")
    ]
    assert {*others} == {
        "«en: Stored a response with status 201.»",
        "«en: Viewed the response.»",
        "«en: Purged 0 expired records of the database “default”.»",
    }
    assert released.startswith("«en: Released the key. Reason: “lost”. Record: ")
    assert "«de" not in released


# Resolve.


def test_resolve(desk: Client, client: Any, handle: Any) -> None:
    """A3, E9: A person's answer is what the client's retry gets, to the byte."""
    client.post("/function/", {}, **key())
    IdempotencyRecord.objects.update(
        state=State.ABANDONED,
        lease_expires_at=timezone.now() - timedelta(seconds=1),
        **NO_ANSWER,
    )
    record = IdempotencyRecord.objects.get()
    assert code_of(client.post("/function/", {}, **key())) == (
        "idempotency_outcome_unknown"
    )
    place = address(record, "resolve")
    assert place in Page(desk.get(address(record))).links("/resolve/")
    body = '{"charge": "ch_1",\n "note": "Ж"}'
    form = form_of(Page(desk.get(place)))
    form |= {"status_code": "201", "content_type": "application/json"}
    form["body"] = body.replace("\n", "\r\n")  # as browsers send it
    said = Page(desk.post(place, form, follow=True)).text
    assert "requests with this key and the same content get this response until" in said
    retry = client.post("/function/", {}, **key())
    assert (retry.status_code, retry["Idempotent-Replayed"]) == (201, "true")
    assert retry.content == body.encode()
    assert retry["Content-Type"] == "application/json"
    assert Effect.objects.count() == 1
    (entry,) = decisions()
    assert entry.change_message == "Stored a response with status 201."


def test_resolve_what_is_expired(desk: Client, client: Any) -> None:
    """A3, P1: An expired record can't be resolved."""
    client.post("/function/", {}, **key())
    now = timezone.now()
    IdempotencyRecord.objects.update(
        state=State.ABANDONED, lease_expires_at=now - DAY, **NO_ANSWER
    )
    record = IdempotencyRecord.objects.get()
    form = form_of(Page(desk.get(address(record, "resolve"))))
    form |= {"status_code": "201", "content_type": "text/plain", "body": "late"}
    IdempotencyRecord.objects.update(expires_at=now - timedelta(seconds=1))
    assert not Page(desk.get(address(record))).links("/resolve/")
    for answer in (
        desk.get(address(record, "resolve"), follow=True),
        desk.post(address(record, "resolve"), form, follow=True),
    ):
        assert "Only an abandoned record that is in force" in Page(answer).text
    record.expires_at = now + DAY  # as it was when it was read
    with pytest.raises(RecordChanged):
        record.resolve(HttpResponse("late"))
    assert IdempotencyRecord.objects.get().state == State.ABANDONED
    client.post("/function/", {}, **key())
    assert Effect.objects.count() == 2


@pytest.mark.parametrize("is_streamed", [True, False])
def test_resolve_with_what_cannot_be_kept(settings: Any, is_streamed: bool) -> None:
    """A3, R4: Retries are to get the answer, so one that can't be kept is refused."""
    settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 10}
    record = make_abandoned()
    response = StreamingHttpResponse(["1"]) if is_streamed else HttpResponse("x" * 11)
    with pytest.raises(ValueError, match="MAX_RESPONSE_BYTES"):
        record.resolve(response)
    assert IdempotencyRecord.objects.get().state == State.ABANDONED
    record.resolve(HttpResponse("x" * 10))
    assert IdempotencyRecord.objects.get().body_size == 10


def test_resolve_after_a_mistake(desk: Client) -> None:
    """A3: A form that comes back with complaints is still about the run it was for."""
    record = make_abandoned()
    form = form_of(Page(desk.get(address(record, "resolve"))))
    form |= {"status_code": "600", "content_type": "text/plain", "body": "late"}
    IdempotencyRecord.objects.update(token=uuid4(), attempt=2)
    answer = desk.post(address(record, "resolve"), form, follow=True)
    assert "Nothing was done: the record has changed." in Page(answer).text
    assert not Page(answer).links("/body/")
    assert "token" not in form_of(Page(answer))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"status_code": "500"}, "less than or equal to 499"),
        ({"status_code": "101"}, "greater than or equal to 200"),
        (
            {"content_type": "text/plain\r\nSet-Cookie: a=b"},
            "visible ASCII characters only",
        ),
        ({"content_type": "text/plané"}, "visible ASCII characters only"),
        ({"content_type": ""}, "This field is required."),
        ({"body": "{"}, "This is not valid JSON"),
        ({"body": json.dumps("x" * 99)}, "A stored response has at most 100 bytes"),
        ({"body": json.dumps("x" * 99)}, "this one has 101."),
        ({"body": "[" * 100_000}, "This is not valid JSON"),
        ({"status_code": "204"}, "A response with this status has no body."),
        ({"content_type": "text/plain; charset=klingon"}, "unknown encoding: klingon"),
        (
            {"content_type": "text/plain; charset=ascii", "body": "Ж"},
            "body can&#x27;t be encoded in this charset",
        ),
    ],
)
def test_resolve_with_bad_input(
    desk: Client, settings: Any, fields: dict[str, str], complaint: str
) -> None:
    """A3: What can't be an answer is refused in words, and nothing is stored."""
    settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 100}
    record = make_abandoned()
    form = {
        "token": str(record.token),
        "status_code": "201",
        "content_type": "application/json",
        "body": "{}",
        **fields,
    }
    said = desk.post(address(record, "resolve"), form).content.decode()
    assert complaint in said
    assert IdempotencyRecord.objects.get().state == State.ABANDONED


# Purge.


def test_purge(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A3, P2: Where there is no worker it purges for a while, and says what is left."""
    monkeypatch.setattr(purge, "has_worker", lambda: False)
    make_record(RETENTION + DAY)
    make_record()
    assert desk.get(f"{LIST}purge/").status_code == 405
    assert "Purge all expired now" in Page(desk.get(LIST)).text
    said = Page(desk.post(f"{LIST}purge/", follow=True)).text
    purged = "Purged 1 expired record of the database “default”."
    assert purged in said
    assert "More are left" not in said
    assert IdempotencyRecord.objects.count() == 1
    assert LogEntry.objects.get().change_message == purged
    make_records(200, RETENTION + DAY)
    monkeypatch.setattr(purge, "PURGE_BUDGET", timedelta(0))
    said = Page(desk.post(f"{LIST}purge/", follow=True)).text
    assert "Purged 100 expired records of the database “default”. More are left" in said


@pytest.mark.parametrize("alias", ["default", "other"])
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_purge_under_atomic_requests(
    enter: Enter, settings: Any, monkeypatch: pytest.MonkeyPatch, alias: str
) -> None:
    """A3, P2: Batches are transactions of their own there, wherever records are."""
    monkeypatch.setattr(purge, "has_worker", lambda: False)
    settings.IDEMPOTENCY = {"USING": alias}
    monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)
    make_record(RETENTION + DAY)
    said = Page(enter(VIEW, PURGE).post(f"{LIST}purge/", follow=True)).text
    assert f"Purged 1 expired record of the database “{alias}”." in said
    assert not IdempotencyRecord.objects.exists()


@pytest.mark.parametrize("page", ["release", "resolve"])
def test_no_decision_without_its_log(
    desk: Client, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: What can't be logged is not done."""
    record = make_abandoned()
    form = form_of(Page(desk.get(address(record, page))))
    form |= {"status_code": "201", "content_type": "text/plain", "body": "done"}
    form["reason"] = "lost"

    def fail(**fields: Any) -> None:
        raise DatabaseError("the log is full")

    monkeypatch.setattr(LogEntry.objects, "create", fail)
    with pytest.raises(DatabaseError, match="the log is full"):
        desk.post(address(record, page), form)
    assert IdempotencyRecord.objects.get().state == State.ABANDONED


def test_purge_by_a_worker(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A3, P3: Where there is one, a worker gets the task."""
    monkeypatch.setattr(purge, "has_worker", lambda: True)
    make_record(RETENTION + DAY)
    current_app.conf.task_always_eager = True
    try:
        said = Page(desk.post(f"{LIST}purge/", follow=True)).text
    finally:
        current_app.conf.task_always_eager = False
    assert "A worker purges all" in said
    assert not IdempotencyRecord.objects.exists()


def test_no_worker() -> None:
    """A3: Silence is no worker."""
    assert purge.has_worker() is False


def test_no_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: Where Celery is not installed, no worker can answer."""
    monkeypatch.setitem(sys.modules, "celery", None)
    assert purge.has_worker() is False


def test_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: One that answers is one."""
    answer = [{"celery@host": {"ok": "pong"}}]
    monkeypatch.setattr(current_app.control, "ping", lambda **options: answer)
    assert purge.has_worker() is True


@pytest.mark.parametrize("broker", ["amqp://127.0.0.1:1//", "redis://127.0.0.1:1/0"])
def test_no_broker(monkeypatch: pytest.MonkeyPatch, broker: str) -> None:
    """A3: One that is down is tried once more, and not waited for."""
    slept: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    app = Celery(broker=broker, set_as_current=False)
    monkeypatch.setattr("celery.current_app", app)
    assert purge.has_worker() is False
    assert slept == []


# Permissions.


@pytest.mark.parametrize(
    ("permission", "page"),
    [(RELEASE, "release"), (RESOLVE, "resolve"), (PURGE, None)],
)
def test_permissions(enter: Enter, permission: str, page: str | None) -> None:
    """A3: Each decision has a permission of its own, and without it no way there."""
    record = make_abandoned()
    make_record(RETENTION + DAY)
    others = {VIEW, SEE_BODY, RELEASE, RESOLVE, PURGE} - {permission}
    place = address(record, page) if page else f"{LIST}purge/"
    form = {"token": str(record.token), "status_code": "201", "content_type": "a/b"}
    form["reason"] = "lost"
    client = enter(*others)
    assert client.post(place, form).status_code == 403
    shown = client.get(address(record) if page else LIST).content.decode()
    assert place not in shown
    assert IdempotencyRecord.objects.count() == 2
    assert IdempotencyRecord.objects.get(pk=record.pk).state == State.ABANDONED
    able = enter(VIEW, permission)
    assert place in able.get(address(record) if page else LIST).content.decode()
    assert able.post(place, form).status_code == 302


# Overview.


def test_overview(staff: Client) -> None:
    """A4: Figures of the last 30 days, exact where they can be."""
    now = timezone.now()
    paths = {201: "/function/", 402: "/method/", 302: "/action/"}
    for days, status in ((0, 201), (0, 402), (1, 302), (31, 201)):
        make_record(days * DAY, status_code=status, path=paths[status])
    # Whole days: a part of one may lie before midnight.
    make_record(29 * DAY, expires_at=now + DAY / 2, path=paths[201])
    make_record(body=None, path=paths[201])
    make_abandoned()
    make_abandoned(lease_expires_at=None)
    make_running()
    overview = Overview.of(IdempotencyRecord.objects, now)
    assert overview.is_exact
    assert (overview.number, overview.size) == (9, 5 * 9)
    assert [day.number for day in overview.days] == [1, *[0] * 27, 1, 6]
    assert [(bar.kind, bar.number) for bar in overview.days[-1].bars] == [
        ("2xx", 2),
        ("4xx", 1),
        ("none", 3),
    ]
    widths = [sum(bar.width for bar in day.bars) for day in overview.days]
    assert max(widths) == pytest.approx(100)
    assert [bar.x for bar in overview.days[-1].bars] == pytest.approx([0, 100 / 3, 50])
    assert (overview.not_kept, overview.abandoned, overview.in_progress) == (1, 2, 1)
    assert (overview.expired, overview.within_a_day, overview.within_a_week) == (
        1,
        1,
        1,
    )
    top = overview.endpoints[0]
    assert (top.route, top.number, top.width) == ("/function/", 4, 100)
    assert overview.endpoints_are_exact
    page = Page(staff.get(f"{LIST}overview/"))
    assert (
        "Counted from all 9 records available to you in the database “default”."
        in page.text
    )
    assert "no response: 3" in page.text
    assert "none: " not in page.text
    assert "Refused requests and replays leave no record" in page.text
    assert len([tag for tag, _attrs in page.elements if tag == "rect"]) >= 5
    assert f"{LIST}overview/" in Page(staff.get(LIST)).links("overview")


def test_overview_of_what_is_overdue(staff: Client) -> None:
    """A4, P2: The page says how long the oldest expired record has been so."""
    label = "The oldest of these expired"
    make_record(29 * DAY)
    assert label not in Page(staff.get(f"{LIST}overview/")).text
    for hours in (3, 51):
        make_record(30 * DAY + timedelta(hours=hours, minutes=1))
    overdue = Overview.of(IdempotencyRecord.objects).overdue
    assert overdue // timedelta(hours=1) == 51
    text = Page(staff.get(f"{LIST}overview/")).text
    assert label in text
    assert "2 days, 3 hours ago" in text.replace("\xa0", " ")


def test_overview_of_days_and_endpoints(staff: Client) -> None:
    """A4: A day is one of the reader's, and bars are as long as their numbers."""
    now = datetime(2026, 11, 20, 12, tzinfo=zones.utc)
    for number, path in enumerate(("/function/", "/function/", "/method/")):
        created = datetime(2026, 11, 19, 23 - number, 30, tzinfo=zones.utc)
        make_record(created_at=created, path=path)
    with timezone.override("Asia/Tokyo"):
        tokyo = Overview.of(IdempotencyRecord.objects, now).days
    with timezone.override("America/New_York"):
        overview = Overview.of(IdempotencyRecord.objects, now)
    assert [day.number for day in tokyo[-2:]] == [0, 3]
    assert [day.number for day in overview.days[-2:]] == [3, 0]
    assert [each.width for each in overview.endpoints] == [100, 50]


def test_overview_of_nothing(staff: Client) -> None:
    """A4: A table without records is no error."""
    assert "There are no records." in Page(staff.get(f"{LIST}overview/")).text


def test_overview_from_a_sample(
    staff: Client, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4: Many records are estimated from a sample, and the page says so."""
    monkeypatch.setattr("idempotency.admin.overview.SAMPLE", 200)
    monkeypatch.setattr("idempotency.admin.overview.MOST_COUNTED", 3)
    for number in range(1000):
        # Ids as the app makes them: a hash in all but a few bits.
        digest = UUID(int=hash_of(number))
        make_record(id=digest, key=f"k-{number}")
    for number in range(5):
        make_abandoned(id=UUID(int=hash_of(-number - 1)))
    overview = Overview.of(IdempotencyRecord.objects)
    assert not overview.is_exact
    assert overview.sample == 200
    assert 700 < overview.number < 1400
    assert (overview.abandoned, overview.abandoned_is_cut) == (3, True)
    assert 700 < overview.days[-1].number < 1400
    for _number in range(4):
        make_running()
    text = Page(staff.get(f"{LIST}overview/")).text
    assert "Abandoned nowmore than 3" in text.replace("\n", "")
    assert "In progress, leasedmore than 3" in text.replace("\n", "")
    assert "Estimated from a random sample of 200 records" in text
    assert re.search(r"~ 1,?\d\d\d|~ \d\d\d", text)


def test_overview_of_what_was_left_behind(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4, E5: Records without a lease are estimated from the sample, and marked so."""
    monkeypatch.setattr("idempotency.admin.overview.SAMPLE", 20)
    for number in range(100):
        make_record(id=UUID(int=hash_of(number)), key=f"k-{number}")
    assert Overview.of(IdempotencyRecord.objects).abandoned_is_exact
    make_abandoned(id=UUID(int=1), lease_expires_at=None)
    overview = Overview.of(IdempotencyRecord.objects)
    assert overview.abandoned >= 1
    assert (overview.abandoned_is_exact, overview.abandoned_is_cut) == (False, False)
    text = Page(staff.get(f"{LIST}overview/")).text
    assert "Abandoned now~ " in text.replace("\n", "")


def hash_of(number: int) -> int:
    octets = bytearray(hashlib.sha256(str(number).encode()).digest()[:16])
    octets[6] = octets[6] & 0x0F | 0x50
    octets[8] = octets[8] & 0x3F | 0x80
    return int.from_bytes(octets, "big")


def test_abandoned_records_keep_their_end(client: Any) -> None:
    """A4, E9: A record that was given up is found by the end of its lease."""
    record = make_running()
    claims_in("default").abandon(record)
    record.refresh_from_db()
    assert record.state == State.ABANDONED
    now = datetime.now(zones.utc)
    assert record.lease_expires_at is not None
    assert abs(record.lease_expires_at - now) < timedelta(minutes=5)
    record.resolve(HttpResponse("done"))
    assert record.lease_expires_at is None
