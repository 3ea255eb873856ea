"""The action that erases records: who may, what it asks, and what it leaves alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.db import DatabaseError
from django.test import Client
from django.utils import timezone

from idempotency.admin import erasing
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.support.admin_pages import (
    ERASE,
    EVERYTHING,
    LIST,
    RELEASE,
    SEE_BODY,
    VIEW,
    Enter,
    Page,
    address,
)
from tests.support.record_factories import MARKUP, make_record

pytestmark = pytest.mark.django_db

ADDRESS, OVERVIEW = f"{LIST}erase/", f"{LIST}overview/"


def select(client: Client, *records: IdempotencyRecord, **data: Any) -> Page:
    """Choose the action for records, and return the page that asks to confirm."""
    given = {"action": "erase_selected", "index": 0, **data}
    given["_selected_action"] = [str(record.pk) for record in records]
    return Page(client.post(LIST, given))


def fields(page: Page) -> list[str]:
    """Return what a page's form sends of records."""
    return [
        str(attrs["value"])
        for tag, attrs in page.elements
        if tag == "input" and attrs.get("name") == erasing.FIELD
    ]


def confirm(client: Client, page: Page) -> Page:
    return Page(client.post(ADDRESS, {erasing.FIELD: fields(page)}, follow=True))


def make_running(**given: Any) -> IdempotencyRecord:
    lease = timezone.now() + timedelta(hours=1)
    nothing = {"body": None, "status_code": None, "headers": None}
    return make_record(
        state=State.IN_PROGRESS, lease_expires_at=lease, **nothing, **given
    )


def test_action(enter: Enter, client: Any) -> None:
    """P4, A3: Chosen records are erased after a confirmation, and each is logged."""
    desk = enter(VIEW, ERASE)
    client.post("/function/", {}, **key())
    record = IdempotencyRecord.objects.get()
    other = make_record(path="/people/grace", key="key-of-grace")
    page = select(desk, record)
    assert record.key in page.text
    assert other.key not in page.text
    assert "can't be undone" in page.text
    assert IdempotencyRecord.objects.filter(key="").count() == 0
    done = confirm(desk, page)
    assert "Erased 1 record." in done.text
    keys = IdempotencyRecord.objects.values_list("key", flat=True)
    assert {*keys} == {"", other.key}
    (entry,) = LogEntry.objects.all()
    assert (entry.object_id, entry.object_repr) == (str(record.pk), str(record.pk))
    assert (entry.action_flag, entry.change_message) == (CHANGE, "Erased the record.")
    assert code_of(client.post("/function/", {}, **key())) == (
        "idempotency_response_not_kept"
    )
    assert Effect.objects.count() == 1


def test_pages_of_an_erased_record(enter: Enter) -> None:
    """P4, A1: List and page say that it is erased; searches find it no more."""
    desk = enter(*EVERYTHING)
    record = make_record(key="key-of-ada", scope="user:auth.user:77", path="/p/ada")
    record.erase()
    listed = Page(desk.get(LIST))
    assert any("erased" in cell for cell in listed.cells)
    assert address(record) in listed.links(str(record.pk))
    page = Page(desk.get(address(record)))
    assert "What this record said of a person is erased." in page.text
    assert page.text.count("erased") > 3  # title, scope, state, body
    assert Page(desk.get(address(record, "release"))).text
    assert Page(desk.get(f"{LIST}?state=erased")).links(str(record.pk))
    overview = Page(desk.get(OVERVIEW))
    assert not overview.links("?caller=")
    for text in (listed.text, page.text, overview.text):
        assert "key-of-ada" not in text
        assert "auth.user:77" not in text
        assert "/p/ada" not in text
    assert str(record.pk) not in Page(desk.get(f"{LIST}?q=key-of-ada")).text
    again = select(desk, record)
    assert f"{record.pk} · erased" in again.text
    assert "1 record was left alone" in confirm(desk, again).text


@pytest.mark.parametrize("permissions", [(), (VIEW,), (ERASE,), (VIEW, RELEASE)])
def test_permission(enter: Enter, permissions: tuple[str, ...]) -> None:
    """P4, A3: It needs a permission of its own, besides that to view records."""
    client = enter(*permissions)
    record = make_record()
    chosen = {erasing.FIELD: f"{record.pk} {record.token}"}
    assert client.post(ADDRESS, chosen).status_code == 403
    if VIEW in permissions:
        page = Page(client.get(LIST))
        assert "Erase selected records" not in page.text
        given = {"action": "erase_selected", "_selected_action": [str(record.pk)]}
        assert not fields(Page(client.post(LIST, given, follow=True)))
    record.refresh_from_db()
    assert record.key


def test_by_post_only(enter: Enter) -> None:
    """P4, A3: A link erases nothing."""
    client = enter(VIEW, ERASE)
    answer = client.get(ADDRESS)
    assert (answer.status_code, answer["Allow"]) == (405, "POST")


def test_records_left_alone(enter: Enter) -> None:
    """P4, A3: Running, changed, erased and vanished records are left, and counted."""
    desk = enter(VIEW, ERASE)
    running, changed, erased, gone, other = [
        make_running(key="running"),
        *(make_record(key=name) for name in ("changed", "erased", "gone", "other")),
    ]
    page = select(desk, running, changed, erased, gone, other)
    changed.token = gone.token
    changed.save()
    erased.erase()
    gone.release()
    done = confirm(desk, page)
    assert "Erased 1 record." in done.text
    assert "4 records were left alone" in done.text
    assert {*IdempotencyRecord.objects.values_list("key", flat=True)} == {
        "running",
        "changed",
        "",
    }
    assert LogEntry.objects.count() == 1


def test_nonsense(enter: Enter) -> None:
    """P4, A3: An id that is none is a record that is not there."""
    desk = enter(VIEW, ERASE)
    given = {erasing.FIELD: ["", "x y", "  "]}
    said = Page(desk.post(ADDRESS, given, follow=True)).text
    assert "3 records were left alone" in said


def test_many(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4, A2: The page has a limit, says so, and names the command."""
    monkeypatch.setattr(erasing, "MOST", 2)
    desk = enter(VIEW, ERASE)
    records = [make_record() for _number in range(3)]
    page = select(desk, *records[:2])
    assert "Only the first" not in page.text
    page = select(desk, *records, select_across="1")
    assert "Only the first 2 records are erased" in page.text
    assert "idempotency_erase" in page.text
    assert len(fields(page)) == 2
    assert "Erased 2 records." in confirm(desk, page).text


def test_no_erase_without_its_log(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4, A3: What can't be logged is not done."""
    desk = enter(VIEW, ERASE)
    page = select(desk, make_record())

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError

    monkeypatch.setattr(LogEntry.objects, "create", refuse)
    with pytest.raises(DatabaseError):
        desk.post(ADDRESS, {erasing.FIELD: fields(page)})
    assert IdempotencyRecord.objects.get().key


def test_rules_of_a_project(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4, A1: A record that the project withholds is neither shown nor erased."""
    desk = enter(VIEW, ERASE, SEE_BODY)
    mine, others = make_record(key="mine"), make_record(key="of-others")
    monkeypatch.setattr(
        "idempotency.admin.IdempotencyRecordAdmin.has_erase_permission",
        lambda self, request, obj=None: obj is None or obj.key == "mine",
    )
    page = select(desk, mine, others)
    assert "of-others" not in page.text
    assert len(fields(page)) == 1
    page = select(desk, others)
    assert "You do not have permission" in page.text
    chosen = [f"{others.pk} {others.token}"]
    assert desk.post(ADDRESS, {erasing.FIELD: chosen}).status_code == 403
    others.refresh_from_db()
    assert others.key


def test_markup(enter: Enter) -> None:
    """P4, A1: What a record says is text."""
    page = select(enter(VIEW, ERASE), make_record(key=MARKUP, scope=MARKUP))
    assert page.is_harmless()
