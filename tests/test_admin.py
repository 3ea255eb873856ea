"""The admin: everything to read for those who may, and nothing to change."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import Any
from urllib.parse import unquote as unquote_address
from uuid import UUID, uuid4

import pytest
from django.contrib.admin import AdminSite
from django.contrib.admin.utils import unquote
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone, translation
from django.utils.connection import ConnectionDoesNotExist

from idempotency.admin import IdempotencyRecordAdmin
from idempotency.admin.decoding import SHOWN_CHARACTERS
from idempotency.models import IdempotencyRecord, State
from testproject import settings as demo
from tests.support.admin_pages import (
    LIST,
    NO_PERMISSION,
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
from tests.support.record_factories import (
    ANSWERS,
    MARKUP,
    make_answer,
    make_record,
    make_records,
)
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

ops = AdminSite("ops")
ops.register(IdempotencyRecord, IdempotencyRecordAdmin)
urlpatterns = [*usual_urls, path("ops/", ops.urls)]

# Browsable, never addable or editable.


@pytest.mark.parametrize("fields", [{}, {"is_superuser": True}])
def test_read_only(enter: Enter, fields: dict[str, Any]) -> None:
    """A1: Nobody adds, changes or deletes a record, superusers included."""
    client = enter(VIEW, SEE_BODY, **fields)
    record = make_answer("json")
    before = IdempotencyRecord.objects.values().get()
    for refused in (
        client.get(f"{LIST}add/"),
        client.post(f"{LIST}add/", {"key": "mine"}),
        client.post(address(record), {"key": "changed", "state": "abandoned"}),
        client.get(address(record, "delete")),
        client.post(address(record, "delete"), {"post": "yes"}),
    ):
        assert refused.status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [record.pk], "index": 0}
    client.post(LIST, {**chosen, "post": "yes"})
    assert IdempotencyRecord.objects.values().get() == before
    for shown in (client.get(LIST), client.get(address(record))):
        page = Page(shown)
        assert not page.links(f"{LIST}add/")
        assert not page.links("/delete/")
        names = {
            attrs.get("name")
            for tag, attrs in page.elements
            if tag in ("input", "select", "textarea")
        }
        # Of the action that erases, for those who may (P4).
        action = ("action", "select_across", "index", "_selected_action")
        # The navigation's own filter has no name.
        assert names <= {None, "csrfmiddlewaretoken", "q", *(action if fields else ())}
        assert ("option", {"value": "delete_selected"}) not in page.elements


def pages_of(record: IdempotencyRecord) -> list[str]:
    """Return the addresses of all pages."""
    pages = ("change", "body", "release", "resolve", "call", "complete")
    return [
        LIST,
        f"{LIST}overview/",
        f"{LIST}purge/",
        f"{LIST}erase/",
        *(address(record, page) for page in pages),
    ]


@pytest.mark.parametrize(
    "permissions", [(), (SEE_BODY, RELEASE, RESOLVE, PURGE, OVERVIEW)]
)
def test_without_view_permission(enter: Enter, permissions: tuple[str, ...]) -> None:
    """A1: Without view permission no page opens."""
    client = enter(*permissions)
    record = make_answer("json")
    for page in pages_of(record):
        assert client.get(page).status_code == 403


def test_strangers(settings: Any) -> None:
    """A1: Visitors must log in as staff first."""
    settings.MIDDLEWARE = demo.MIDDLEWARE
    record = make_answer("json")
    for page in pages_of(record):
        response = Client().get(page)
        assert response.status_code == 302
        assert response["Location"].startswith("/admin/login/")


def test_unknown_record(staff: Client) -> None:
    """A1: The pages around a record work, and a record that is gone is no error."""
    assert Page(staff.get(address(make_answer("json"), "history")))
    for unknown in (str(uuid4()), "nonsense"):
        assert staff.get(f"{LIST}{unknown}/change/").status_code == 302
        assert staff.get(f"{LIST}{unknown}/body/").status_code == 404


# The list.


def cells_of(client: Client, query: str = "") -> dict[str, str]:
    """Return the first row of the list, by the heads of its columns."""
    cells = Page(client.get(LIST + query)).cells
    heads = cells[: len(IdempotencyRecordAdmin.list_display)]
    return dict(zip(heads, cells[len(heads) :], strict=False))


def test_columns(staff: Client) -> None:
    """A1: The list says whose key it is, what was asked, and what became of it."""
    record = make_record(
        timedelta(days=3, hours=5), key="k-1", scope="s-1", path="/function/"
    )
    took = timedelta(seconds=1, milliseconds=234)
    IdempotencyRecord.objects.update(completed_at=record.created_at + took)
    row = cells_of(staff)
    times = row.pop("Created and expires")
    assert times.endswith("3\xa0days agoexpires in 3\xa0weeks")
    created = timezone.localtime(IdempotencyRecord.objects.get().created_at)
    assert times.startswith(created.strftime("%Y-%m-%d\xa0%H:%M:%S"))
    assert row == {
        "Key and scope": "k-1s-1",
        "State": "✓completed1 attempt",
        "Request": "POST/function/views.function",
        "Response": "2019 bytesafter 1,234\xa0ms",
    }


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"body": b"x" * 1234}, "2011,234 bytesafter 0\xa0ms"),
        ({"body": b""}, "2010 bytesafter 0\xa0ms"),
        ({"body": None}, "201not keptafter 0\xa0ms"),
        ({"body": None, "status_code": None, "state": State.ABANDONED}, "-"),
    ],
)
def test_size(staff: Client, fields: dict[str, Any], size: str) -> None:
    """A1: The list says how large an answer is, or that it was not kept."""
    make_record(**fields)
    assert cells_of(staff)["Response"] == size


def test_scope_of_a_user(staff: Client, settings: Any) -> None:
    """A1, S1: A user's scope leads to the user; another one leads nowhere."""
    for scope in ("user:auth.user:7", "user:auth.user:", "user:auth.group:7", "7"):
        make_record(scope=scope, key=scope)
    page = Page(staff.get(LIST))
    assert page.links("/auth/user/") == ["/admin/auth/user/7/change/"]
    record = IdempotencyRecord.objects.get(scope="user:auth.user:7")
    page = Page(staff.get(address(record)))
    assert page.links("/auth/user/") == ["/admin/auth/user/7/change/"]
    other = staff.get(f"/ops/idempotency/idempotencyrecord/{record.pk}/change/")
    assert not Page(other).links("/auth/user/")


@pytest.mark.parametrize("pk", ["a\nb", "user_2Fab", "a/b?c"])
def test_scope_of_a_user_with_any_primary_key(staff: Client, pk: str) -> None:
    """A1, S1: Whatever a primary key is made of, the link leads to that user."""
    make_record(scope=f"user:auth.user:{pk}")
    (link,) = Page(staff.get(LIST)).links("/auth/user/")
    (quoted,) = re.findall("^/admin/auth/user/(.+)/change/$", link)
    assert unquote(unquote_address(quoted)) == pk


def test_nothing_inline(staff: Client) -> None:
    """A1: A policy that refuses inline styles and scripts leaves the pages whole."""
    for place in (LIST, address(make_answer("json")), f"{LIST}overview/"):
        names = [
            name for _tag, attrs in Page(staff.get(place)).elements for name in attrs
        ]
        assert "style" not in names


def test_long_values(staff: Client) -> None:
    """A1: Long values are cut in the list, and whole on the record's page."""
    key, scope, path = "k" * 255, "s" * 512, "/path" * 500
    record = make_record(key=key, scope=scope, path=path)
    row = cells_of(staff)
    assert row["Key and scope"] == "k" * 99 + "…" + "s" * 99 + "…"
    assert row["Request"] == "POSTunknown route"
    page = Page(staff.get(address(record)))
    assert all(whole in page.text for whole in (key, scope, path))


def test_order(staff: Client) -> None:
    """A2: The last to expire come first, whatever order the address asks for."""
    for days in (2, 1, 3):
        make_record(timedelta(days=days), key=f"k-{days}", scope=f"s-{4 - days}")
    make_record(key="brief", expires_at=timezone.now() + timedelta(days=1))
    for query in ("", "?o=1", "?o=-2.1", "?o=7", "?o=99"):
        assert listed(staff, query) == ["k-1", "k-2", "k-3", "brief"]
    assert (
        "the list shows the 1000 records that expire last" in Page(staff.get(LIST)).text
    )
    assert not Page(staff.get(LIST)).links("o=")


def test_order_of_equals(staff: Client) -> None:
    """A2: What expires in the same moment has an order, so that no page hides some."""
    expires_at = timezone.now() + timedelta(days=1)
    for number in (2, 3, 1):
        make_record(id=UUID(int=number), key=f"k-{number}", expires_at=expires_at)
    assert listed(staff) == ["k-3", "k-2", "k-1"]


@pytest.mark.parametrize(
    ("term", "keys"),
    [
        ("Key-1", ["Key-1"] * 2),
        ("  Key-1 ", ["Key-1"] * 2),
        ('"Key-1"', ["Key-1"] * 2),
        ("KEY-1", []),
        ("key-1", []),
        ('"key-1"', []),
        ("Kèy-1", []),
        ("Key-1ß", []),
        ("'it\"s'", ["'it\"s'"]),
        # As a header says it (RFC 9651).
        ('"\'it\\"s\'"', ["'it\"s'"]),
        (r"back\slash", [r"back\slash"]),
        (r'"back\\slash"', [r"back\slash"]),
        ('"', []),
        ('Key-1"', []),
        ("a b", []),
        # A form that is not valid searches for nothing; the page says why.
        ("Key-1\x00", None),
        ("", None),
    ],
)
def test_search(staff: Client, term: str, keys: list[str] | None) -> None:
    """A1, K2, K3: The whole of a key finds it, bare or quoted, in every scope."""
    for scope in ("user:1", "user:2"):
        make_record(key="Key-1", scope=scope)
    for key in ("Key-10", "'it\"s'", r"back\slash"):
        make_record(key=key)
    if keys is None:
        assert len(listed(staff, q=term)) == 5
    else:
        assert listed(staff, q=term) == keys


def test_state(staff: Client) -> None:
    """A1, E5: The state is a word, and says what the record is and not what it was."""
    now = timezone.now()
    own = {"body": None, "status_code": None, "headers": None}
    for key, state, lease in (
        ("done", State.COMPLETED, None),
        ("given-up", State.ABANDONED, None),
        ("left-behind", State.IN_PROGRESS, None),
        ("run-out", State.IN_PROGRESS, now - timedelta(hours=1)),
        ("at-work", State.IN_PROGRESS, now + timedelta(hours=1)),
    ):
        now -= timedelta(minutes=1)
        record = make_record(
            created_at=now, key=key, state=state, lease_expires_at=lease, **own
        )
        is_abandoned = key in ("given-up", "left-behind", "run-out")
        expected = "abandoned" if is_abandoned else str(state.label)
        assert expected in Page(staff.get(address(record))).text
        assert cells_of(staff, f"?q={key}")["State"][1:] == f"{expected}1 attempt"


def test_pages(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A2: The list ends with those that expire last; a key finds the others."""
    monkeypatch.setattr("idempotency.admin.lists.LISTED", 70)
    for age in range(80):
        make_record(timedelta(minutes=age), key=f"k-{age}")
    assert listed(staff) == [f"k-{age}" for age in range(50)]
    second = listed(staff, p=2)
    assert second == [f"k-{age}" for age in range(50, 70)]
    assert staff.get(LIST, {"p": 3}).status_code == 302
    assert listed(staff, q="k-79") == ["k-79"]


def test_statements(staff: Client) -> None:
    """A2: The list counts only what it shows, and loads no bodies."""
    make_answer("json")
    counted = []
    for query in ("", "?q=json", "?_facets=True", "?all="):
        with CaptureQueriesContext(connection) as queries:
            listed(staff, query)
        said = [
            q["sql"] for q in queries if "idempotency_idempotencyrecord" in q["sql"]
        ]
        counts = [sql for sql in said if "COUNT(" in sql]
        assert all("LIMIT 1000" in sql for sql in counts)
        for column in ("body", "headers"):
            name = f".{connection.ops.quote_name(column)}"
            assert not any(name in sql for sql in said)
        counted.append(len(queries))
    make_records(60)
    with CaptureQueriesContext(connection) as queries:
        listed(staff)
    searched = counted.pop(1)
    assert {*counted, len(queries)} == {counted[0]}
    assert max(searched, *counted) <= 10


def test_search_uses_the_index(staff: Client) -> None:
    """A2: A key is compared as it is, which the index on it can answer."""
    with CaptureQueriesContext(connection) as queries:
        listed(staff, q="json")
    said = " ".join(q["sql"] for q in queries if "idempotencyrecord" in q["sql"])
    assert f"{connection.ops.quote_name('key')} IN (" in said
    for slow in ("UPPER(", "LIKE", "lower("):
        assert slow not in said


@pytest.mark.skipif(connection.vendor != "mysql", reason="Compares twice there alone.")
def test_search_uses_the_index_on_mariadb(staff: Client) -> None:
    """A2, K3: To compare exactly besides does not keep from the index."""
    make_records(500)
    make_record(key="asked-for")
    with CaptureQueriesContext(connection) as queries:
        assert listed(staff, q="asked-for") == ["asked-for"]
    # The others look for callers of that name.
    said = [q["sql"] for q in queries if "`key` IN" in q["sql"]]
    assert said
    for sql in said:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN FORMAT=JSON {sql}")
            assert '"key": "idempotency_record_key"' in cursor.fetchone()[0]


@pytest.mark.parametrize(
    "query",
    ["body__startswith=x", "headers__icontains=x", "scope=x", "state__exact=abandoned"],
)
def test_no_other_look_ups(enter: Enter, query: str) -> None:
    """A1, A2: Addresses made by hand neither probe bodies nor search unindexed."""
    client = enter(VIEW)
    make_answer("json")
    assert client.get(f"{LIST}?{query}").status_code == 400


def test_database(staff: Client, settings: Any) -> None:
    """A1: Records are looked for where the settings say that they are."""
    settings.IDEMPOTENCY = {"USING": "elsewhere"}
    with pytest.raises(ConnectionDoesNotExist, match="elsewhere"):
        staff.get(LIST)


# One record.


@pytest.mark.parametrize("name", ANSWERS)
def test_answer(staff: Client, name: str) -> None:
    """A1: An answer is decoded; what is no text is described; the whole can be had."""
    _headers, body, shown = ANSWERS[name]
    record = make_answer(name)
    page = Page(staff.get(address(record)))
    assert page.is_harmless()
    assert shown in page.text
    downloads = page.links("/body/")
    if not body:
        assert not downloads
        return
    assert hashlib.sha256(body).hexdigest() in page.text
    texts = [a for _tag, a in page.elements if a.get("class") == "idempotency-text"]
    # Headers are one of them.
    is_text = len(texts) > bool(record.headers)
    no_text = ("binary", "compressed", "no type", "strange type", "strange header")
    assert is_text == (name not in no_text)
    sizes = {0: "0 bytes", 1: "1 byte ", 8: "8 bytes"}
    assert sizes.get(len(body), f"{len(body):,} bytes") in page.text
    (download,) = downloads
    response = staff.get(download)
    assert response.content == body


@pytest.mark.parametrize("name", ["big text", "big json", "deep json"])
def test_big_answer(staff: Client, name: str) -> None:
    """A1: A response too large for a page is cut, and the page says so."""
    page = Page(staff.get(address(make_answer(name))))
    assert len(page.text) < SHOWN_CHARACTERS + 20_000
    assert f"Only the first {SHOWN_CHARACTERS} characters are shown." in page.text
    page = Page(staff.get(address(make_answer("json"))))
    assert "characters are shown" not in page.text


@pytest.mark.parametrize("more", [0, 1])
def test_answer_that_just_fits(staff: Client, more: int) -> None:
    """A1: A response that just fits is not marked as cut."""
    headers = [["Content-Type", "text/plain"]]
    body = b"a" * (SHOWN_CHARACTERS + more)
    page = Page(staff.get(address(make_record(headers=headers, body=body))))
    assert ("characters are shown" in page.text) == bool(more)


@pytest.mark.parametrize(
    ("hours", "said"),
    [(1, "There is no response yet."), (-1, "No response was stored.")],
)
def test_no_answer(staff: Client, hours: int, said: str) -> None:
    """A1: A record without an answer says so, and has nothing to download."""
    record = make_record(
        state=State.IN_PROGRESS,
        lease_expires_at=timezone.now() + timedelta(hours=hours),
        status_code=None,
        headers=None,
        body=None,
    )
    page = Page(staff.get(address(record)))
    assert said in page.text
    assert not page.links("/body/")
    assert staff.get(address(record, "body")).status_code == 404


@pytest.mark.parametrize("fields", [{}, {"is_superuser": True}])
def test_everything_of_a_record(enter: Enter, fields: dict[str, Any]) -> None:
    """A1: A record's page shows what was asked, when, and what was answered."""
    own = {"scope": "user:7", "path": "/a/b", "fingerprint": "ab" * 32, "attempt": 3}
    client = enter(*([] if fields else [VIEW, SEE_BODY]), **fields)
    page = Page(client.get(address(make_answer("json", **own))))
    for said in ("json", "user:7", "/a/b", "ab" * 32, "3", "201", "completed"):
        assert said in page.text
    assert "Content-Type: application/json\nLocation: /assignments/1" in page.text


def test_without_permission_for_answers(enter: Enter) -> None:
    """A1: Without its permission an answer is neither shown nor loaded nor sent."""
    client = enter(VIEW)
    record = make_answer("json")
    with CaptureQueriesContext(connection) as queries:
        page = Page(client.get(address(record)))
    assert NO_PERMISSION in page.text
    assert "201" in page.text
    for hidden in ("$request", "/assignments/1", "SHA-256"):
        assert hidden not in page.text
    said = " ".join(q["sql"] for q in queries)
    for column in ("body", "headers"):
        assert f".{connection.ops.quote_name(column)}" not in said
    assert not page.links("/body/")
    assert client.get(address(record, "body")).status_code == 403


def test_markup(staff: Client) -> None:
    """A1: What a client chose, and what a view said, stays text on every page."""
    own = {"key": MARKUP, "scope": MARKUP, "path": MARKUP, "method": "<b>"}
    record = make_answer("html", **own)
    for response in (
        staff.get(LIST),
        staff.get(LIST, {"q": MARKUP}),
        staff.get(address(record)),
        staff.get(address(record, "history")),
    ):
        page = Page(response)
        assert page.is_harmless()
        # What a history is about is named by its id.
        assert (MARKUP in page.text) is ("history" not in response.request["PATH_INFO"])


@pytest.mark.parametrize("name", ["html", "svg", "json", "binary"])
def test_download(staff: Client, settings: Any, name: str) -> None:
    """A1: A body is sent as a file of no type, which no browser renders."""
    # The page's own, whatever the project's middleware adds.
    settings.SECURE_CONTENT_TYPE_NOSNIFF = False
    staff.handler.load_middleware()
    record = make_answer(name)
    response = staff.get(address(record, "body"))
    assert response.content == ANSWERS[name][1]
    assert response["Content-Type"] == "application/octet-stream"
    assert response["Content-Disposition"] == f'attachment; filename="{record.pk}.bin"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"] == "sandbox"
    assert "no-store" in response["Cache-Control"]


# Where else an admin may be.


def test_other_admin_site(staff: Client) -> None:
    """A1: An admin site under another name links to itself."""
    record = make_answer("json")
    page = Page(staff.get(f"/ops/idempotency/idempotencyrecord/{record.pk}/change/"))
    (download,) = page.links("/body/")
    assert download == f"/ops/idempotency/idempotencyrecord/{record.pk}/body/"
    assert staff.get(download).status_code == 200


def test_translation(
    enter: Enter, staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: Every sentence of the app's own can be had in another language."""
    one_by_one = {
        name: address(make_answer(name))
        for name in ("not kept", "empty", "no type", "big text")
    }
    open_record = make_record(
        state=State.IN_PROGRESS, status_code=None, headers=None, body=None
    )

    def translate(message: str) -> str:
        return f"«{message}»"

    def translate_number(one: str, many: str, number: int) -> str:
        return f"«{many}»"

    monkeypatch.setattr(translation._trans, "gettext", translate)
    monkeypatch.setattr(translation._trans, "ngettext", translate_number)
    said = {name: Page(staff.get(page)).text for name, page in one_by_one.items()}
    assert "«The response was not kept" in said["not kept"]
    assert "«The response has no body.»" in said["empty"]
    assert "«no content type» · «1 bytes» · «Download»" in said["no type"]
    assert "«Only the first " in said["big text"]
    assert "«No response was stored.»" in Page(staff.get(address(open_record))).text
    hidden = Page(enter(VIEW).get(address(open_record))).text
    assert f"«{NO_PERMISSION}»" in hidden
    texts = [*said.values(), Page(staff.get(LIST)).text]
    for word in ("state", "headers", "body", "Request", "Times", "Response"):
        assert any(f"«{word}»".lower() in text.lower() for text in texts)
    assert "«abandoned»" in texts[-1]
    assert "«Search for a whole" in texts[-1]
