"""The admin of records in another database than the default one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError, connections
from django.test import Client
from django.urls import path
from django.utils import timezone
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency.admin import IdempotencyRecordAdmin, purge
from idempotency.decorators import idempotent
from idempotency.models import IdempotencyRecord, State
from idempotency.tasks import purge_expired_records
from testproject import settings as demo
from tests.conftest import key
from tests.support.admin_pages import Page
from tests.support.processes import ROOT
from tests.support.record_factories import RETENTION, make_record, new_record
from tests.test_admin_actions import NO_ANSWER, form_of
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("ledger")]
DAY = timedelta(days=1)
HERE = "/desk/school/ledgerrecord/"


@api_view(["POST"])
def book(request: Request) -> Response:
    """Answer with the record that this run has claimed."""

    # Here, since an alias is looked for where it is named.
    @idempotent(using="ledger")
    def handler(request: Request) -> Response:
        record_id = request.idempotency.record_id  # type: ignore[attr-defined]  # set by the app
        return Response({"record": str(record_id)}, status=201)

    return handler(request)


desk = admin.AdminSite("desk")
desk.register(IdempotencyRecord, IdempotencyRecordAdmin)
PAGE = (ROOT / "docs" / "admin.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
)


def load(patch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """Run one of the page's files as a module of an app that has migrations."""
    module = ModuleType(f"testproject.school.{name}")
    patch.setitem(sys.modules, name, module)
    exec(source, vars(module))


with pytest.MonkeyPatch.context() as patch:
    load(patch, "models", FILES["models"])
    # On a site whose addresses nobody has asked for yet.
    patch.setattr(admin, "register", partial(admin.register, site=desk))
    load(patch, "admin", FILES["admin"])

urlpatterns = [*usual_urls, path("desk/", desk.urls), path("book/", book)]


@pytest.fixture
def ledger(database: None, tmp_path: Path) -> Iterator[None]:
    """Make a second database, another one than the suite's."""
    connections.settings["ledger"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "ledger.sqlite3"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }
    call_command("migrate", "idempotency", database="ledger", verbosity=0)
    yield
    connections["ledger"].close()
    del connections["ledger"], connections.settings["ledger"]
    User.objects.all().delete()


@pytest.fixture
def staff(settings: Any) -> Client:
    """Return somebody who may do everything."""
    settings.MIDDLEWARE = demo.MIDDLEWARE
    client = Client()
    client.force_login(User.objects.create_superuser("grace"))
    return client


def found(staff: Client, place: str, **data: Any) -> list[str]:
    response = staff.get(place, data)
    return [record.key for record in response.context["cl"].result_list]


def make_abandoned() -> IdempotencyRecord:
    """Leave a record in the ledger as a dead worker would."""
    assert APIClient().post("/book/", {}, **key()).status_code == 201
    records = IdempotencyRecord.objects.using("ledger")
    lease = timezone.now() - DAY
    records.update(state=State.ABANDONED, lease_expires_at=lease, **NO_ANSWER)
    return records.get()


def test_list_and_record(staff: Client) -> None:
    """A1: Each admin has the records of its own database, and says which that is."""
    make_record(key="in-default")
    record = make_abandoned()
    other = "/desk/idempotency/idempotencyrecord/"
    assert found(staff, other) == ["in-default"]
    assert found(staff, HERE) == [record.key]
    assert found(staff, HERE, q=f"{record.scope} {record.key}") == [record.key]
    nowhere = Page(staff.get(HERE, {"q": "in-default"})).text
    assert "Nothing was found in the database “ledger”." in nowhere
    assert "Nothing was found" not in Page(staff.get(HERE)).text
    page = Page(staff.get(f"{HERE}{record.pk}/change/"))
    assert "409 idempotency_outcome_unknown" in page.text
    assert page.links("/resolve/") == [f"{HERE}{record.pk}/resolve/"]
    assert staff.get(f"{other}{record.pk}/change/").status_code == 302


def test_decisions(staff: Client) -> None:
    """A3: A decision counts for clients of that database."""
    record = make_abandoned()
    place = f"{HERE}{record.pk}/"
    form = form_of(Page(staff.get(f"{place}resolve/")))
    form |= {"status_code": "201", "content_type": "text/plain", "body": "booked"}
    assert (
        "get this response until"
        in Page(staff.post(f"{place}resolve/", form, follow=True)).text
    )
    retry = APIClient().post("/book/", {}, **key())
    assert (retry.content, retry["Idempotent-Replayed"]) == (b"booked", "true")
    assert staff.get(f"{place}body/").content == b"booked"
    history = Page(staff.get(f"{place}history/")).text
    assert "Stored a response with status 201." in history
    form = form_of(Page(staff.get(f"{place}release/"))) | {"reason": "lost"}
    staff.post(f"{place}release/", form)
    again = APIClient().post("/book/", {}, **key())
    assert again.json() == {"record": str(record.pk)}
    read = ["Viewed the response.", "Downloaded the response."]
    assert LogEntry.objects.exclude(change_message__in=read).count() == 2


@pytest.mark.parametrize("page", ["release", "resolve"])
def test_no_decision_without_its_log(
    staff: Client, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """A3: What can't be logged is not done, though the log is in another database."""
    place = f"{HERE}{make_abandoned().pk}/{page}/"
    form = form_of(Page(staff.get(place)))
    form |= {"status_code": "201", "content_type": "text/plain", "body": "booked"}
    form["reason"] = "lost"

    def fail(**fields: Any) -> None:
        raise DatabaseError("the log is full")

    monkeypatch.setattr(LogEntry.objects, "create", fail)
    with pytest.raises(DatabaseError, match="the log is full"):
        staff.post(place, form)
    assert IdempotencyRecord.objects.using("ledger").get().state == State.ABANDONED


@pytest.mark.parametrize("is_by_a_worker", [True, False])
def test_purge(
    staff: Client, monkeypatch: pytest.MonkeyPatch, is_by_a_worker: bool
) -> None:
    """A3, P3: Page and worker purge that database alone."""
    monkeypatch.setattr(purge, "has_worker", lambda: is_by_a_worker)
    monkeypatch.setattr(purge_expired_records, "delay", purge_expired_records)
    make_record(RETENTION + DAY)
    new_record(RETENTION + DAY).save(using="ledger")
    staff.post(f"{HERE}purge/")
    assert not IdempotencyRecord.objects.using("ledger").exists()
    assert IdempotencyRecord.objects.count() == 1


def test_overview(staff: Client) -> None:
    """A4: The figures are those of that database."""
    make_record()
    for _number in range(2):
        new_record(path="/book/").save(using="ledger")
    page = Page(staff.get(f"{HERE}overview/"))
    assert (
        "Counted from all 2 records available to you in the database “ledger”."
        in page.text
    )
    assert f"{HERE}?state=abandoned" in page.links("state=abandoned")
    new_record().save(using="ledger")
    IdempotencyRecord.objects.using("ledger").filter(path="/book/").delete()
    text = Page(staff.get(f"{HERE}overview/")).text
    assert (
        "Counted from the one record available to you in the database “ledger”." in text
    )
