"""Application servers whose clocks are wrong: the database's decides (P1, P2)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from django.utils.http import parse_http_date

from idempotency.admin.overview import Overview
from idempotency.database import UTCNow, now_in
from idempotency.models import IdempotencyRecord, RecordChanged, State
from idempotency.signals import response_replayed
from idempotency.testing import abandon_record, age_records
from tests.app.models import Effect
from tests.conftest import key
from tests.support.admin_pages import LIST, Page, address, listed
from tests.support.record_factories import RETENTION, left, make_record

pytestmark = [
    pytest.mark.usefixtures("database"),
    pytest.mark.urls("tests.test_leased"),
]

DAY = timedelta(days=1)
# Between two looks at a clock in one test; clocks that are wrong differ by more.
SOON = timedelta(minutes=5)
URLS = ["/function/", "/leased/"]
AHEAD, BEHIND = 40, -40


@pytest.fixture(params=[AHEAD, BEHIND], ids=["ahead", "behind"])
def wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the application's clock be wrong by more than the retention."""
    put(monkeypatch, request.param)
    return int(request.param)


def put(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    now = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: now() + days * DAY)


@pytest.mark.parametrize("url", URLS)
def test_completed(
    client: Any, monkeypatch: pytest.MonkeyPatch, url: str, atomic_requests: bool
) -> None:
    """P1: A server whose clock is a month ahead does not run a completed key again."""
    first = client.post(url, {}, **key())
    put(monkeypatch, AHEAD)
    again = client.post(url, {}, **key())
    assert (again.status_code, again.content) == (201, first.content)
    assert again["Idempotent-Replayed"] == "true"
    assert again["Idempotency-Expires"] == first["Idempotency-Expires"]
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("url", URLS)
def test_expired(
    client: Any, monkeypatch: pytest.MonkeyPatch, url: str, atomic_requests: bool
) -> None:
    """P1: A server whose clock is behind keeps no expired record in force."""
    client.post(url, {}, **key())
    age_records(RETENTION + timedelta(seconds=1))
    put(monkeypatch, BEHIND)
    first = client.post(url, {"other": "content"}, **key())
    assert first.status_code == 201
    assert "Idempotent-Replayed" not in first
    again = client.post(url, {"other": "content"}, **key())
    assert again.content == first.content
    assert again["Idempotency-Expires"] == first["Idempotency-Expires"]
    assert Effect.objects.count() == 2


@pytest.mark.parametrize("taken_over", [False, True], ids=["new", "taken over"])
@pytest.mark.parametrize("url", URLS)
def test_times(client: Any, wrong: int, url: str, taken_over: bool) -> None:
    """P1: All times of a record are the database's, those that clients get, too."""
    if taken_over:
        client.post(url, {}, **key())
        age_records(RETENTION + timedelta(seconds=1))
    before = now_in("default")
    response = client.post(url, {}, **key())
    record = IdempotencyRecord.objects.get()
    after = now_in("default")
    assert before <= record.created_at <= after
    assert record.completed_at is not None
    assert record.created_at <= record.completed_at <= after
    assert record.expires_at - record.created_at == RETENTION
    told = parse_http_date(response["Idempotency-Expires"])
    assert told == int(record.expires_at.timestamp())


def test_resumed_after_a_crash(client: Any, wrong: int) -> None:
    """P1, E9: What takes an abandoned record over is in force from then on."""
    client.post("/rerun/", {}, **key())
    abandon_record(key()["HTTP_IDEMPOTENCY_KEY"])
    age_records(10 * DAY)
    before = now_in("default")
    response = client.post("/rerun/", {}, **key())
    assert response.status_code == 201
    record = IdempotencyRecord.objects.get()
    assert before + RETENTION <= record.expires_at <= now_in("default") + RETENTION
    told = parse_http_date(response["Idempotency-Expires"])
    assert told == int(record.expires_at.timestamp())


def test_age(client: Any, wrong: int) -> None:
    """O3: What listeners hear of a replay's age is by the database's clock."""
    client.post("/function/", {}, **key())
    age_records(DAY)
    told: list[Any] = []

    def hear(details: Any, **kwargs: Any) -> None:
        told.append(details)

    response_replayed.connect(hear)
    try:
        client.post("/function/", {}, **key())
    finally:
        response_replayed.disconnect(hear)
    assert DAY <= told[0].age < DAY + SOON


def test_purge(wrong: int) -> None:
    """P2: The database's clock decides what is expired."""
    at = now_in("default")
    make_record(key="old", created_at=at - RETENTION - SOON)
    make_record(key="young", created_at=at - RETENTION + SOON)
    expired = IdempotencyRecord.objects.expired()
    assert [record.key for record in expired] == ["old"]
    assert IdempotencyRecord.objects.purge().deleted == 1
    assert left() == {"young"}


def test_purge_of_what_is_older(wrong: int) -> None:
    """P2: The database's clock decides how long ago a key was claimed."""
    at = now_in("default")
    for name, age in {"40 days": 40 * DAY, "50 days": 50 * DAY}.items():
        make_record(key=name, created_at=at - age)
    assert IdempotencyRecord.objects.purge(older_than=45 * DAY).deleted == 1
    assert left() == {"40 days"}


@pytest.mark.parametrize("expired", [False, True])
def test_resolve(client: Any, wrong: int, expired: bool) -> None:
    """P1, A3: Whether an answer can be stored is by the database's clock, too."""
    client.post("/leased/", {}, **key())
    record = abandon_record(key()["HTTP_IDEMPOTENCY_KEY"])
    at = now_in("default")
    if expired:
        age_records(RETENTION)
        with pytest.raises(RecordChanged):
            record.resolve(HttpResponse("late"))
        return
    record.resolve(HttpResponse("in time"))
    assert record.completed_at is not None
    assert at <= record.completed_at <= now_in("default")
    assert record.completed_at == IdempotencyRecord.objects.get().completed_at


@pytest.mark.django_db
class TestAdmin:
    """A1, A4, P1: what the admin says of times is by the database's clock."""

    def test_pages(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        """A1: Sentences, ages and filters."""
        at = now_in("default")
        young = make_record(key="young", created_at=at - 2 * DAY - SOON)
        make_record(key="old", created_at=at - RETENTION - 2 * DAY)
        # Not ahead: the session would be over.
        put(monkeypatch, BEHIND)
        page = Page(staff.get(address(young))).text
        assert "2\xa0days ago" in page
        assert "the key is new" not in page.replace("expires: the key is new again", "")
        for query, found in {
            "expiry=past": {"old"},
            "expiry=later": {"young"},
            "age=week": {"young"},
            "age=older": {"old"},
        }.items():
            assert {*listed(staff, f"?{query}")} == found, query
        assert "2\xa0days ago" in Page(staff.get(LIST)).text

    def test_overview(self, wrong: int) -> None:
        """A4: The database's clock decides what is expired and which day it is."""
        at = now_in("default")
        make_record(key="old", created_at=at - RETENTION - DAY)
        make_record(key="young", created_at=at - 2 * DAY)
        overview = Overview.of(IdempotencyRecord.objects.all())
        assert overview.expired == 1
        assert overview.days[-1].day == timezone.localtime(at).date()
        assert sum(day.number for day in overview.days) == 1


def test_text_of_times() -> None:
    """P1: The clock's times compare with Django's, which are text in SQLite."""
    record = make_record(state=State.COMPLETED)
    rows = IdempotencyRecord.objects.filter(pk=record.pk)
    for _turn in range(50):
        rows.update(expires_at=UTCNow(), created_at=UTCNow() - RETENTION)
        record.refresh_from_db()
        assert rows.filter(
            expires_at=record.expires_at, created_at=record.created_at
        ).exists()
        assert record.expires_at - record.created_at == RETENTION


@pytest.mark.skipif(connection.vendor != "postgresql", reason="a session's time zone")
@pytest.mark.parametrize("offset", [-200, 200])
def test_days_that_are_no_24_hours(offset: int) -> None:
    """P1: A retention over a change to or from summer time is as long as any."""
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'Europe/Berlin'")
    record = make_record()
    rows = IdempotencyRecord.objects.filter(pk=record.pk)
    rows.update(created_at=UTCNow(), expires_at=UTCNow() + offset * DAY)
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    record.refresh_from_db()
    assert record.expires_at - record.created_at == offset * DAY
