"""The admin keeps a project's rules, and what many may see gives nothing away."""

from __future__ import annotations

import re
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.db import DatabaseError
from django.test import Client, RequestFactory
from django.urls import include, path, re_path, register_converter
from django.utils import timezone

from idempotency.admin import IdempotencyRecordAdmin
from idempotency.admin.lists import OF_A_CALLER
from idempotency.admin.overview import LONGEST_PATH, Overview
from idempotency.admin.permissions import Permissions
from idempotency.models import IdempotencyRecord, State
from idempotency.routes import route_of
from tests.support.admin_pages import (
    EVERYTHING,
    LIST,
    NO_PERMISSION,
    OVERVIEW,
    PURGE,
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
    ClosedAdmin,
    GuardedAdmin,
    TenantAdmin,
    no_view,
    place_of,
)
from tests.support.record_admins import urlpatterns as own_urls
from tests.support.record_factories import (
    RETENTION,
    make_answer,
    make_record,
    new_record,
)
from tests.test_admin_actions import DAY, desk, make_abandoned
from tests.test_docs import blocks, code, table

__all__ = ["desk"]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


class Fragile:
    """A converter that fails where nobody expects it."""

    regex = "fragile"

    def to_python(self, value: str) -> str:
        raise ZeroDivisionError

    def to_url(self, value: str) -> str:
        return value


register_converter(Fragile, "fragile")
inner = [
    re_path(r"^items/(?P<pk>[^/.]+)/(?:now/)?(\d+)$", no_view),
    path("<fragile:x>/", no_view),
]
urlpatterns = [*own_urls, path("shop/", include(inner))]


def form_for(record: IdempotencyRecord) -> dict[str, str]:
    return {
        "token": str(record.token),
        "status_code": "201",
        "content_type": "a/b",
        "reason": "lost",
    }


# A project's rules.


@pytest.mark.parametrize(("kind", "status"), [(TenantAdmin, 404), (GuardedAdmin, 403)])
def test_records_of_others(
    enter: Enter, kind: type[IdempotencyRecordAdmin], status: int
) -> None:
    """A1, A3: No page shows a record that the ModelAdmin hides from the user."""
    client = enter(*EVERYTHING)
    theirs = make_answer("json", scope=THEIRS)
    stuck = make_abandoned(scope=THEIRS)
    ours = make_record(scope=OURS)
    here = place_of(kind)
    before = [*IdempotencyRecord.objects.order_by("pk").values()]
    for record in (theirs, stuck):
        for page in ("body", "release", "resolve", "call", "complete"):
            answers = [client.get(f"{here}{record.pk}/{page}/")]
            if page != "body":
                form = form_for(record)
                answers.append(client.post(f"{here}{record.pk}/{page}/", form))
            for answer in answers:
                assert answer.status_code == status
                assert b"$request" not in answer.content
        shown = client.get(f"{here}{record.pk}/change/")
        assert shown.status_code == (302 if status == 404 else 403)
    assert [*IdempotencyRecord.objects.order_by("pk").values()] == before
    assert not LogEntry.objects.exists()
    for query in ("", f"?q={theirs.key}", "?state=abandoned", f"?caller={THEIRS}"):
        page = Page(client.get(here + query))
        assert not page.links(str(theirs.pk))
        assert not page.links(str(stuck.pk))
    assert str(ours.pk) in client.get(here).content.decode()
    for page in ("body", "release", "change"):
        assert client.get(f"{here}{ours.pk}/{page}/").status_code == 200


def test_figures_of_a_tenant(enter: Enter) -> None:
    """A4: The overview is about the records of its ModelAdmin."""
    client = enter(*EVERYTHING)
    for scope, place, number in ((OURS, "/function/", 2), (THEIRS, "/method/", 3)):
        for _each in range(number):
            make_record(scope=scope, path=place)
            make_abandoned(scope=scope, path=place)
    overview = client.get(f"{place_of(TenantAdmin)}overview/")
    figures = overview.context["overview"]
    assert (figures.number, figures.abandoned, figures.size) == (4, 2, 2 * 9)
    text = Page(overview).text
    assert "/function/" in text
    assert "/method/" not in text
    assert THEIRS not in text
    everybody = client.get(f"{LIST}overview/")
    assert everybody.context["overview"].number == 10
    assert "Counted from all 4 records available to you" in text


def test_decisions_about_others(enter: Enter) -> None:
    """A1, A3: Permissions are asked about the record, by pages and buttons alike."""
    client = enter(*EVERYTHING)
    here = place_of(CarefulAdmin)
    for scope, may in ((OURS, True), (THEIRS, False)):
        done = make_answer("json", scope=scope)
        stuck = make_abandoned(scope=scope)
        for record, page in ((done, "body"), (done, "release"), (stuck, "resolve")):
            shown = Page(client.get(f"{here}{record.pk}/change/"))
            assert bool(shown.links(f"/{page}/")) is may
            status = client.get(f"{here}{record.pk}/{page}/").status_code
            assert status == (200 if may else 403)
        shown = Page(client.get(f"{here}{done.pk}/change/"))
        assert ("$request" in shown.text) is may
        assert (NO_PERMISSION in shown.text) is not may
        for record, page in ((done, "release"), (stuck, "resolve")):
            answer = client.post(f"{here}{record.pk}/{page}/", form_for(record))
            assert answer.status_code == (302 if may else 403)
    assert {*IdempotencyRecord.objects.values_list("scope", "state")} == {
        (OURS, State.COMPLETED),  # the one that was resolved
        (THEIRS, State.COMPLETED),
        (THEIRS, State.ABANDONED),
    }


def counts(page: Page) -> set[str]:
    """Return how many records or results a list says that it has."""
    return {*re.findall(r"(\d+) (?:results?|idempotency records?)\b", page.text)}


def test_no_count_of_hidden_records(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: The list counts and pages only records that the user may view."""
    monkeypatch.setattr(IdempotencyRecordAdmin, "list_per_page", 2)
    client = enter(*EVERYTHING)
    here = place_of(GuardedAdmin)
    for number in range(5):
        make_record(scope=THEIRS, key=f"theirs-{number}")
    assert counts(Page(client.get(here))) == {"0"}
    for number in range(3):
        make_record(scope=OURS, key=f"ours-{number}")
    pages = [Page(client.get(here + query)) for query in ("", "?p=2", "?all=")]
    assert [len(page.links("/change/")) for page in pages] == [2, 1, 3]
    for page in pages:
        assert counts(page) == {"3"}
        assert page.links("p=3") == []
    assert client.get(f"{here}?p=3").status_code == 302
    assert counts(Page(client.get(LIST))) == {"8"}
    assert "p=4" in "".join(Page(client.get(LIST)).links("p="))


def test_a_search_does_not_tell_of_hidden_records(enter: Enter) -> None:
    """A1: A search for a hidden key looks like one for a missing key."""
    client = enter(*EVERYTHING)
    here = place_of(GuardedAdmin)
    make_record(scope=THEIRS, key="theirs")
    hidden, missing = (
        client.get(f"{here}?q={key}").content.decode() for key in ("theirs", "nobody")
    )
    assert "0 results" in hidden
    assert "Nothing was found" in hidden
    assert remove_tokens(hidden.replace("theirs", "nobody")) == remove_tokens(missing)
    make_record(scope=OURS, key="theirs")
    assert "1 result" in Page(client.get(f"{here}?q=theirs")).text


def remove_tokens(page: str) -> str:
    return re.sub('name="csrfmiddlewaretoken" value="[^"]+"', "", page)


def test_no_count_of_what_a_caller_has_else(enter: Enter) -> None:
    """A1: Beside the oldest of a caller no number may include what is hidden."""
    client = enter(*EVERYTHING)
    for _each in range(OF_A_CALLER + 2):
        make_abandoned(scope=OURS)
    for kind, is_counted in ((GuardedAdmin, False), (CarefulAdmin, True)):
        page = Page(client.get(f"{place_of(kind)}?state=abandoned"))
        assert page.text.count("more of this caller") == 1
        assert ("2 more of this caller" in page.text) is is_counted
        assert len(page.links("&caller=")) == 1


def test_what_is_about_all(enter: Enter) -> None:
    """A1, A4: What can't be restricted to some records has a permission of its own."""
    make_record(RETENTION + DAY)
    here = place_of(ClosedAdmin)
    for client, place in (
        (enter(*EVERYTHING), here),
        (enter(*{*EVERYTHING} - {PURGE, OVERVIEW}), LIST),
    ):
        page = Page(client.get(place))
        assert not page.links("overview")
        assert "Purge" not in page.text
        assert client.get(f"{place}overview/").status_code == 403
        assert client.post(f"{place}purge/").status_code == 403
    assert IdempotencyRecord.objects.exists()
    able = enter(VIEW, OVERVIEW)
    assert Page(able.get(LIST)).links("overview")
    assert able.get(f"{LIST}overview/").status_code == 200


# What the page says of them.


def test_methods_on_the_page() -> None:
    """A1: The methods that a project may override are listed as they are."""
    rows = table("method", "asked before")
    named = [code(row["method"]).partition("(") for row in rows]
    own = [name for name in vars(Permissions) if name.startswith("has_")]
    assert [name for name, *_rest in named] == ["has_view_permission", *own]
    for name, _bracket, arguments in named:
        taken = [*signature(getattr(IdempotencyRecordAdmin, name)).parameters]
        assert arguments.rstrip(")").replace("=None", "").split(", ") == taken[1:]


def test_sample_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A1: The page's own restricted admin has what it says."""
    (source,) = [
        block
        for block in blocks("python", "docs/admin.md")
        if block.startswith("# support/admin.py")
    ]
    site = AdminSite("sample")
    site.register(IdempotencyRecord)
    monkeypatch.setattr(admin, "site", site)
    monkeypatch.setattr(admin, "register", partial(admin.register, site=site))
    exec(source, {"__name__": "sample"})
    restricted: Any = site.get_model_admin(IdempotencyRecord)
    make_record(scope="tenant:7:ada", key="ours")
    make_record(scope="tenant:70:ada", key="theirs")
    request: Any = RequestFactory().get("/")
    for is_senior in (True, False):
        request.user = SimpleNamespace(
            tenant_id=7, is_senior=is_senior, has_perm=lambda permission: True
        )
        assert [each.key for each in restricted.get_queryset(request)] == ["ours"]
        assert restricted.has_body_permission(request) is is_senior


# The log.


def test_reading_is_logged(enter: Enter) -> None:
    """A1: The log names who read or downloaded a response, and the record's id."""
    reader, other = enter(VIEW, SEE_BODY), enter(VIEW)
    record = make_answer("json", path="/reset/s3cret/")
    assert other.get(address(record)).status_code == 200
    assert other.get(address(record, "body")).status_code == 403
    assert reader.get(address(make_abandoned())).status_code == 200
    empty = make_record(body=None, status_code=204, headers=[])
    assert reader.get(address(empty, "body")).status_code == 404
    assert not LogEntry.objects.exists()
    reader.get(address(record))
    reader.get(address(record, "body"))
    entries = LogEntry.objects.order_by("pk")
    assert [entry.change_message for entry in entries] == [
        "Viewed the response.",
        "Downloaded the response.",
    ]
    for entry in entries:
        assert entry.object_id == entry.object_repr == str(record.pk)
        assert str(entry.user_id) == reader.session["_auth_user_id"]
        said = f"{entry.object_repr} {entry.change_message}"
        for secret in (record.key, record.scope, "s3cret"):
            assert secret not in said
    assert "Viewed the response." in Page(other.get(address(record, "history"))).text


@pytest.mark.parametrize("page", ["change", "body"])
def test_no_reading_without_its_log(
    staff: Client, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: What can't be logged is not shown."""
    record = make_answer("json")

    def fail(**fields: Any) -> None:
        raise DatabaseError("the log is full")

    monkeypatch.setattr(LogEntry.objects, "create", fail)
    with pytest.raises(DatabaseError, match="the log is full"):
        staff.get(address(record, page))


def test_names_of_records() -> None:
    """A1, X1: A record's own text is its id: logs and error reports have no more."""
    record = make_record(key="the-key", scope="the-scope")
    assert str(record) == str(record.pk)
    assert repr(record) == f"<IdempotencyRecord: {record.pk}>"


# What support sees.

SECRET = "c3VwcG9ydCBtdXN0IG5vdCBzZWUgdGhpcw"


def test_capability_urls(enter: Enter) -> None:
    """A1: Without the permission for answers a path and a fingerprint are not shown."""
    client = enter(*{*EVERYTHING} - {SEE_BODY})
    own = {"path": f"/reset/{SECRET}/", "fingerprint": "ab" * 32}
    done = make_answer("json", **own)
    stuck = make_abandoned(**own)
    gone = make_record(path=f"/gone/{SECRET}/", fingerprint="ab" * 32)
    pages = [
        LIST,
        f"{LIST}overview/",
        *(address(each) for each in (done, stuck, gone)),
        *(address(each, "history") for each in (done, stuck, gone)),
        address(done, "release"),
        address(stuck, "resolve"),
    ]
    for place in pages:
        text = client.get(place).content.decode()
        assert SECRET not in text
        assert "ab" * 32 not in text
    for place in (LIST, f"{LIST}overview/", address(done), address(done, "release")):
        assert "/reset/<token>/" in Page(client.get(place)).text
    assert "unknown route" in Page(client.get(address(gone))).text
    assert "unknown route" in Page(client.get(f"{LIST}overview/")).text
    reader = enter(*EVERYTHING)
    for place in (address(done), address(done, "release"), address(stuck, "resolve")):
        assert f"POST /reset/{SECRET}/" in Page(reader.get(place)).text
    assert "ab" * 32 in Page(reader.get(address(done))).text
    # Many look over a shoulder there.
    for place in (LIST, f"{LIST}overview/"):
        assert SECRET not in reader.get(place).content.decode()


def test_own_fieldsets(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A1: A subclass that arranges the fields does not show the hidden ones by that."""
    fields = ("key", ("asked", "path"), "fingerprint", ["stored_headers", "answer"])
    fieldsets = (("All", {"fields": fields, "classes": ("wide",)}),)
    monkeypatch.setattr(IdempotencyRecordAdmin, "fieldsets", fieldsets)
    record = make_answer("json", path=f"/reset/{SECRET}/", fingerprint="ab" * 32)
    page = Page(enter(VIEW).get(address(record)))
    for hidden in (SECRET, "ab" * 32, "$request", "/assignments/1"):
        assert hidden not in page.text
    assert "/reset/<token>/" in page.text
    assert NO_PERMISSION in page.text
    assert (
        f"POST /reset/{SECRET}/"
        in Page(enter(VIEW, SEE_BODY).get(address(record))).text
    )


@pytest.mark.parametrize(
    ("place", "route"),
    [
        ("/reset/s3cret/", "/reset/<token>/"),
        ("/shop/items/s3cret/now/7", "/shop/items/<pk>/<var>"),
        ("/mixin-view/", "/mixin-view/"),
        ("/shop/fragile/", None),
        ("/reset/s3cret", None),
        ("nowhere", None),
        ("", None),
        ("/\n", None),
    ],
)
def test_route_of(place: str, route: str | None) -> None:
    """A1: A route has no value of the path's in it, and no path is an error."""
    assert route_of(place) == route


# Bounds.


def test_very_many_paths(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A2, A4: So many paths are looked up and no more; the first stand for all."""
    monkeypatch.setattr("idempotency.admin.overview.MOST_RESOLVED", 10)
    asked = []
    monkeypatch.setattr(
        "idempotency.admin.overview.route_of",
        lambda path: asked.append(path) or route_of(path),
    )
    IdempotencyRecord.objects.bulk_create(
        new_record(path=f"/reset/{number}/") for number in range(40)
    )
    overview = Overview.of(IdempotencyRecord.objects)
    assert len(asked) == 10
    assert [(each.route, each.number) for each in overview.endpoints] == [
        ("/reset/<token>/", 40)
    ]
    assert (overview.is_exact, overview.endpoints_are_exact) == (True, False)
    page = Page(staff.get(f"{LIST}overview/"))
    assert "/reset/<token>/~ 40~ 360" in page.text.replace("\n", "")
    IdempotencyRecord.objects.update(path="/reset/1/")
    assert Overview.of(IdempotencyRecord.objects).endpoints_are_exact


def test_very_long_paths() -> None:
    """A4: Of a path that no server lets through the overview reads a part."""
    for more in (0, 1):
        IdempotencyRecord.objects.all().delete()
        make_record(path=f"/reset/{'x' * (LONGEST_PATH - 8 + more)}/")
        (endpoint,) = Overview.of(IdempotencyRecord.objects).endpoints
        assert endpoint.route == (None if more else "/reset/<token>/")


# Callers.


def test_who_stores_most(staff: Client) -> None:
    """A4: The overview names who stores most, and leads to their records."""
    for scope, number in ((OURS, 2), ("authorization:ab c&d", 3), (THEIRS, 1)):
        for _each in range(number):
            make_record(scope=scope)
    overview = staff.get(f"{LIST}overview/")
    page = Page(overview)
    assert [
        (each.scope, each.number, each.size)
        for each in overview.context["overview"].callers
    ] == [("authorization:ab c&d", 3, 27), (OURS, 2, 18), (THEIRS, 1, 9)]
    assert len(page.links("/auth/user/")) == 2
    links = page.links("caller=")
    assert [len(listed(staff, link.removeprefix(LIST))) for link in links] == [3, 2, 1]
    chosen = Page(staff.get(links[0]))
    assert "authorization:ab c&d" in chosen.text


def test_callers_apart(staff: Client) -> None:
    """A1, K3: A caller is chosen as it is, capitals and small letters apart."""
    for scope in ("token:ab", "token:AB"):
        make_record(scope=scope, key=scope[-2:])
    assert listed(staff, "?caller=token:AB") == ["AB"]


def test_as_many_as_are_listed(staff: Client) -> None:
    """A1: Where a caller's records are all listed, nothing leads to more."""
    for _each in range(OF_A_CALLER):
        make_abandoned()
    assert len(listed(staff, "?state=abandoned")) == OF_A_CALLER
    page = Page(staff.get(f"{LIST}?state=abandoned"))
    assert "more of this caller" not in page.text


@pytest.mark.parametrize("lease", [True, False])
def test_one_caller_can_not_flood_the_desk(
    staff: Client, lease: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: What waits for a decision comes by caller, the oldest first, some of each."""
    now = timezone.now()
    own: dict[str, Any] = {} if lease else {"lease_expires_at": None}
    for number in range(OF_A_CALLER + 7):
        make_abandoned(
            scope=THEIRS,
            key=f"flood-{number}",
            created_at=now - 5 * DAY + number * DAY / 99,
            **own,
        )
    for number in (2, 1):
        make_abandoned(
            scope=OURS, key=f"ours-{number}", created_at=now - number * DAY, **own
        )
    make_abandoned(scope="anonymous", key="oldest", created_at=now - 9 * DAY, **own)
    make_record(scope=THEIRS)
    shown = listed(staff, "?state=abandoned")
    flood = [f"flood-{number}" for number in range(OF_A_CALLER + 7)]
    assert shown == ["oldest", *flood[:OF_A_CALLER], "ours-2", "ours-1"]
    page = Page(staff.get(f"{LIST}?state=abandoned"))
    assert f"the {OF_A_CALLER} oldest records of each" in page.text
    assert page.text.count("7 more of this caller") == 1
    (more,) = [link for link in page.links("caller=") if "state=abandoned" in link]
    assert listed(staff, more.removeprefix(LIST)) == flood
    assert "more of this caller" not in Page(staff.get(more)).text
    # Where that many fill the list, others have their places all the same.
    monkeypatch.setattr("idempotency.admin.lists.LISTED", OF_A_CALLER + 1)
    assert set(listed(staff, "?state=abandoned")) >= {"oldest"}
    assert listed(staff, f"?state=abandoned&caller={OURS}") == ["ours-2", "ours-1"]
    assert listed(staff, "?state=abandoned&q=flood-9") == ["flood-9"]
