"""Projects with USE_TZ = False, and time zones with summer time: times are instants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from datetime import timezone as zones
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.db.models import Max
from django.test import Client
from django.utils.http import parse_http_date

from idempotency.admin.overview import Overview
from idempotency.claims import claims_in
from idempotency.database import UTCNow, now_in
from idempotency.models import IdempotencyRecord
from idempotency.testing import abandon_record, age_records
from tests.app.models import Effect
from tests.conftest import KEY, key
from tests.support.admin_pages import LIST, RELEASE, VIEW, Enter, Page, address, listed
from tests.support.processes import run_python
from tests.support.record_factories import RETENTION, left, make_record
from tests.test_admin_actions import make_abandoned

pytestmark = [
    pytest.mark.usefixtures("database"),
    pytest.mark.urls("tests.test_leased"),
]

UTC = zones.utc
# Clocks are put back from 3:00 to 2:00, so half past two comes twice.
AUTUMN = datetime(2025, 10, 26, 1, tzinfo=UTC)
# Clocks are put on from 2:00 to 3:00, so half past two does not come.
SPRING = datetime(2025, 3, 30, 1, tzinfo=UTC)
HALF = timedelta(minutes=30)
QUARTER = timedelta(minutes=15)
# By which a project may switch: how it keeps its own times, and its databases' zone.
PROJECTS = {
    "utc": (True, "UTC", None),
    "naive": (False, "Europe/Berlin", None),
    "naive, elsewhere": (False, "America/New_York", None),
    "aware": (True, "Europe/Berlin", None),
    "database's zone": (True, "UTC", "Europe/Berlin"),
}
Switch = Callable[[str], None]


@pytest.fixture
def switch(settings: Any) -> Any:
    """Return what makes the project another one, as far as its times go."""
    # The thing itself, not what stands for it in each thread.
    connection = connections["default"]
    own = connection.settings_dict
    before = own["TIME_ZONE"]

    def to(project: str) -> None:
        settings.USE_TZ, settings.TIME_ZONE, own["TIME_ZONE"] = PROJECTS[project]
        connection.close()
        for name in ("timezone", "timezone_name"):
            vars(connection).pop(name, None)

    yield to
    own["TIME_ZONE"] = before
    to("utc")


@pytest.fixture(params=[name for name in PROJECTS if name != "utc"])
def project(request: pytest.FixtureRequest, switch: Switch) -> str:
    """Run a test in each kind of project."""
    switch(request.param)
    return str(request.param)


def instants() -> dict[str, datetime]:
    """Return the expiry of each record by its key."""
    return dict(IdempotencyRecord.objects.values_list("key", "expires_at"))


@pytest.mark.parametrize("change", [AUTUMN, SPRING], ids=["autumn", "spring"])
def test_the_same_instants(project: str, switch: Switch, change: datetime) -> None:
    """P1: A record's times stay what they are when a project changes its setting."""
    made = {
        f"{minutes:+}": change + timedelta(minutes=minutes)
        for minutes in (-90, -30, -1, 0, 30, 90)
    }
    for name, at in made.items():
        make_record(key=name, expires_at=at)
    for other in (project, *PROJECTS):
        switch(other)
        assert instants() == made, other
        assert all(at.tzinfo is UTC for at in instants().values())
        for record in IdempotencyRecord.objects.all():
            found = claims_in("default").look_up(record.pk)
            assert found is not None
            assert found.expires_at == record.expires_at == made[record.key]
            assert IdempotencyRecord.objects.get(expires_at=made[record.key]) == record
        latest = IdempotencyRecord.objects.aggregate(at=Max("expires_at"))
        assert latest == {"at": made["+90"]}


def test_from_any_project_to_any(project: str, switch: Switch, client: Any) -> None:
    """P1: An answer that was stored before is replayed after the change."""
    first = client.post("/function/", {}, **key())
    switch("utc")
    again = client.post("/function/", {}, **key())
    assert again.content == first.content
    assert again["Idempotency-Expires"] == first["Idempotency-Expires"]
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("url", ["/function/", "/leased/"])
def test_requests(project: str, client: Any, url: str) -> None:
    """P1, E7: Claims, leases and replays are as in any project."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    first = client.post(url, {}, **key())
    record = IdempotencyRecord.objects.get()
    assert record.completed_at is not None
    after = datetime.now(UTC) + timedelta(seconds=1)
    assert before <= record.created_at <= record.completed_at <= after
    assert record.expires_at - record.created_at == RETENTION
    assert parse_http_date(first["Idempotency-Expires"]) == int(
        record.expires_at.timestamp()
    )
    again = client.post(url, {}, **key())
    assert again.content == first.content
    assert again["Idempotency-Expires"] == first["Idempotency-Expires"]
    age_records(RETENTION - timedelta(minutes=1))
    assert client.post(url, {}, **key()).content == first.content
    age_records(timedelta(minutes=1))
    assert client.post(url, {}, **key()).content != first.content
    assert Effect.objects.count() == 2


@pytest.mark.parametrize("minutes", [-90, -1, 1, 90])
def test_leases(project: str, client: Any, minutes: int) -> None:
    """E7: A lease ends when it ends, also one that has an hour to go."""
    client.post("/leased/", {}, **key())
    abandon_record(KEY)
    IdempotencyRecord.objects.update(
        state="in_progress", lease_expires_at=UTCNow() + timedelta(minutes=minutes)
    )
    (record,) = IdempotencyRecord.objects.with_lease_state()
    is_live = minutes > 0
    assert record.is_leased is is_live
    assert record.lease_expires_at is not None
    assert (record.lease_expires_at > record.read_at) is is_live
    answer = client.post("/leased/", {}, **key())
    code = "idempotency_in_progress" if is_live else "idempotency_outcome_unknown"
    assert (answer.status_code, answer.data["detail"].code) == (409, code)


def test_purge_in_the_hour_that_comes_twice(project: str) -> None:
    """P2: Instants decide what is expired, in the hour that comes twice, too."""
    make_record(key="summer", expires_at=AUTUMN - HALF)
    make_record(key="winter", expires_at=AUTUMN + HALF)
    purge = IdempotencyRecord.objects.purge
    # A quarter to three in summer time, then a quarter past two in winter time.
    assert purge(now=AUTUMN - HALF - QUARTER).deleted == 0
    assert purge(now=AUTUMN + QUARTER).deleted == 1
    assert left() == {"winter"}
    assert purge(now=AUTUMN + HALF).deleted == 1


def test_times_without_a_zone(settings: Any, switch: Switch) -> None:
    """P2: Where a project's own times have no zone, they are in its time zone."""
    switch("naive")
    make_record(key="old", expires_at=datetime(2025, 7, 1, 12))  # noqa: DTZ001
    assert instants() == {"old": datetime(2025, 7, 1, 10, tzinfo=UTC)}
    expired = IdempotencyRecord.objects.expired
    assert not expired(datetime(2025, 7, 1, 11, 59)).exists()  # noqa: DTZ001
    assert expired(datetime(2025, 7, 1, 12)).exists()  # noqa: DTZ001


def test_dry_run(project: str, settings: Any, capsys: Any) -> None:
    """P3: Days are counted by the project's time zone."""
    for hours in (-3, 1):
        make_record(
            expires_at=datetime(2025, 7, 1, 4, tzinfo=UTC) + timedelta(hours=hours)
        )
    call_command("purge_idempotency_records", "--dry-run")
    days = {
        "America/New_York": ["2025-06-30  1", "2025-07-01  1"],
    }.get(settings.TIME_ZONE, ["2025-07-01  2"])
    assert capsys.readouterr().out.splitlines()[:-1] == days


class TestAdmin:
    """A1, A4: people see times by the project's time zone."""

    @pytest.fixture(autouse=True)
    def _staff_leaves(self, database: None) -> Iterator[None]:
        yield
        User.objects.all().delete()

    @pytest.mark.parametrize("name", ["naive", "aware"])
    def test_pages(self, staff: Client, switch: Switch, name: str) -> None:
        """A1: List and record."""
        record = make_record(created_at=AUTUMN - HALF - RETENTION)
        switch(name)
        record.refresh_from_db()
        page = Page(staff.get(LIST)).text
        assert "2025-09-26\xa002:30" in page
        page = Page(staff.get(address(record))).text
        # The time line has seconds.
        assert "2025-09-26 02:30:00" in page
        assert "2025-10-26 02:30:00" in page

    def test_release(self, enter: Enter, switch: Switch) -> None:
        """A3: What a person decides about says when it was claimed."""
        record = make_record(created_at=AUTUMN - HALF)
        switch("naive")
        page = Page(enter(VIEW, RELEASE).get(address(record, "release")))
        assert "2025-10-26 02:30:00" in page.text

    def test_what_waits(self, project: str, staff: Client) -> None:
        """A1: The caller that has waited longest comes first."""
        for scope, minutes in {"b": -15, "a": 45}.items():
            make_abandoned(
                scope=scope, key=scope, created_at=AUTUMN + timedelta(minutes=minutes)
            )
        assert listed(staff, "?state=abandoned") == ["b", "a"]
        assert listed(staff, "?age=hour&state=abandoned") == []

    def test_overview(self, switch: Switch) -> None:
        """A4: Days are those of the project's time zone."""
        make_record(created_at=datetime(2025, 7, 1, 3, tzinfo=UTC))
        at = datetime(2025, 7, 1, 5, tzinfo=UTC)
        for name, place in {"naive": -1, "naive, elsewhere": -2}.items():
            switch(name)
            overview = Overview.of(IdempotencyRecord.objects.all(), at)
            assert overview.days[-1].day.isoformat() == "2025-07-01"
            assert overview.days[place].number == 1
            assert now_in("default").tzinfo is UTC
            assert Overview.of(IdempotencyRecord.objects.all()).number == 1


def test_naive_project(client: Any) -> None:
    """P1: A project that starts with USE_TZ = False, and one that has it off later."""
    first = client.post("/mixin-view/", {"a": 1}, **key())
    make_record(key="summer", expires_at=AUTUMN - HALF)
    make_record(key="winter", expires_at=AUTUMN + HALF)
    here = {name: at.isoformat() for name, at in instants().items()}
    module = "tests.support.project_without_tz"
    done = run_python("-m", module, DJANGO_SETTINGS_MODULE=module)
    told = json.loads(done.stdout)
    assert told["checks"] == ["idempotency.W015"]  # both records expired long ago
    assert told["migrations"] == "No changes detected in app 'idempotency'\n"
    assert told["instants"] == here
    assert told["replay"] == [first.content.decode(), first["Idempotency-Expires"]]
    assert told["purged"] == ["summer"]
    again = client.post("/mixin-view/", {"a": 2}, **key("of-the-naive-project"))
    assert [again.content.decode(), again["Idempotency-Expires"]] == told["first"]
    assert Effect.objects.count() == 2
