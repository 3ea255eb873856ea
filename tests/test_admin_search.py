"""Support finds a caller's requests, and an endpoint's, and reads them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin import AdminSite
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.admin import IdempotencyRecordAdmin
from idempotency.admin.decoding import BIDIRECTIONAL
from idempotency.admin.overview import Overview
from idempotency.decorators import idempotent
from idempotency.models import IdempotencyRecord, State
from idempotency.routes import MAX_LENGTH, route_in
from idempotency.steps import as_text, held_entry, new_entry
from tests.conftest import key
from tests.support.admin_pages import (
    EVERYTHING,
    LIST,
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
    GuardedAdmin,
    TenantAdmin,
    place_of,
)
from tests.support.record_admins import urlpatterns as own_urls
from tests.support.record_factories import make_record
from tests.test_docs import blocks

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

DAY = timedelta(days=1)
SEE_USERS = "view_user"
ROUTE, OTHER = "/reset/<token>/", "/refunds/<int:pk>/"
NO_ANSWER = {"body": None, "status_code": None, "headers": None, "completed_at": None}


@api_view(["POST", "PUT"])
@idempotent
def refunds(request: Request, pk: int) -> Response:
    return Response(status=201)


class PlainUserAdmin(UserAdmin):
    """Finds users by nothing but their names."""

    search_fields = ()


class TenantUserAdmin(IdempotencyRecordAdmin):
    """Names callers as its project's endpoints do."""

    def get_scope_of_user(self, user: Any) -> str | None:
        return f"tenant:7:{user.username}" if user.username != "nobody" else None


plain, tenants = AdminSite("plain"), AdminSite("tenants")
plain.register(User, PlainUserAdmin)
plain.register(IdempotencyRecord, IdempotencyRecordAdmin)
tenants.register(User, UserAdmin)
tenants.register(IdempotencyRecord, TenantUserAdmin)
urlpatterns = [
    *own_urls,
    path("refunds/<int:pk>/", refunds),
    path("plain/", plain.urls),
    path("tenants/", tenants.urls),
]


def user_scope(user: User) -> str:
    return f"user:auth.user:{user.pk}"


def found_by(client: Client, term: str, place: str = LIST, **filters: str) -> list[str]:
    """Return the keys that a search ends with, in their order."""
    answer = client.get(place, {"q": term, **filters}, follow=True)
    assert answer.status_code == 200
    return [record.key for record in answer.context["cl"].result_list]


def offered(client: Client, term: str, place: str = LIST) -> list[str]:
    """Return the names of the callers and endpoints that a search offers."""
    answer = client.get(place, {"q": term})
    return [offer.label for _address, offer in answer.context["offers"]]


# Callers.


@pytest.fixture
def grace() -> User:
    """Store a user with two requests, and another one with one."""
    user = User.objects.create(
        username="grace", first_name="Grace", last_name="Hopper", email="g@example.com"
    )
    other = User.objects.create(username="gracelin")
    make_record(DAY, scope=user_scope(user), key="earlier")
    make_record(scope=user_scope(user), key="later")
    make_record(DAY / 2, scope=user_scope(other), key="other")
    make_record(scope="authorization:ab", key="token")
    return user


@pytest.mark.parametrize(
    "term", ["Grace Hopper", "hopper", "g@example.com", "{pk}", "{scope}", " {scope} "]
)
def test_a_caller(enter: Enter, grace: User, term: str) -> None:
    """A1: A name, a primary key or a scope finds a caller's records, newest first."""
    client = enter(VIEW, SEE_USERS)
    asked = term.format(pk=grace.pk, scope=user_scope(grace))
    assert found_by(client, asked) == ["later", "earlier"]


def test_callers_of_one_name(enter: Enter, grace: User) -> None:
    """A1: Where a name fits several callers, each is one click away."""
    client = enter(VIEW, SEE_USERS)
    answer = client.get(LIST, {"q": "grace"})
    offers = {offer.label: address for address, offer in answer.context["offers"]}
    assert [*offers] == ["grace", "gracelin"]
    page = Page(answer)
    assert user_scope(grace) in page.text
    assert "Nothing was found" not in page.text
    for name, keys in {"grace": ["later", "earlier"], "gracelin": ["other"]}.items():
        assert offers[name] in page.links("caller=")
        assert listed(client, offers[name].removeprefix(LIST)) == keys


def test_the_exact_name_comes_first(enter: Enter) -> None:
    """A1: Whose name is what was asked is offered, however many names contain it."""
    for name in (*(f"annabel-{number}" for number in range(30)), "ann"):
        user = User.objects.create(username=name)
        make_record(scope=user_scope(user))
    names = offered(enter(VIEW, SEE_USERS), "ann")
    assert names[0] == "ann"
    assert len(names) == 21


def test_callers_without_records(enter: Enter) -> None:
    """A1: A caller who has sent nothing is not offered."""
    User.objects.create(username="grace")
    client = enter(VIEW, SEE_USERS)
    for number in range(2):
        page = Page(client.get(LIST, {"q": "grace"}))
        assert "Nothing was found in the database" in page.text
        assert not page.links("caller=")
        make_record(scope=f"user:auth.user:{-number}")


def test_names_need_their_permission(enter: Enter, grace: User) -> None:
    """A1: Whoever may not see users finds none by name, but by primary key."""
    client = enter(VIEW)
    assert found_by(client, "hopper") == []
    assert offered(client, "grace") == []
    assert found_by(client, str(grace.pk)) == ["later", "earlier"]


def test_sites_without_users(enter: Enter, grace: User) -> None:
    """A1: A site that does not show users finds callers by primary key and scope."""
    client = enter(VIEW, SEE_USERS)
    place = place_of(TenantAdmin)
    assert found_by(client, "hopper", place) == []
    IdempotencyRecord.objects.filter(key="later").update(scope=OURS)
    assert found_by(client, "1", place)[0] == "later"


def test_admins_without_search_fields(enter: Enter, grace: User) -> None:
    """A1: Where users can't be searched, the whole name finds one."""
    client = enter(VIEW, SEE_USERS)
    here = "/plain/idempotency/idempotencyrecord/"
    assert found_by(client, "grace", here) == ["later", "earlier"]
    assert found_by(client, "hopper", here) == []


def test_scopes_of_a_project(enter: Enter, grace: User) -> None:
    """A1, S1: A project says which scope a user has."""
    make_record(scope="tenant:7:grace", key="tenant's")
    User.objects.create(username="nobody", first_name="Grace")
    here = "/tenants/idempotency/idempotencyrecord/"
    client = enter(VIEW, SEE_USERS)
    assert found_by(client, "hopper", here) == ["tenant's"]
    assert found_by(client, "nobody", here) == []


def test_scopes_on_the_page() -> None:
    """A1, S1: The page's own admin names callers as it says."""
    (source,) = [
        block
        for block in blocks("python", "docs/admin.md")
        if "get_scope_of_user" in block
    ]
    own: dict[str, Any] = {"__name__": "sample"}
    exec(source, own)
    admin = own["RecordsOfCustomers"](IdempotencyRecord, AdminSite("sample"))
    assert admin.get_scope_of_user(User(pk=7)) == "customer:7"


def test_names_of_another_type(
    enter: Enter, grace: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: A name that can't be one finds nothing, and is no error."""
    monkeypatch.setattr(User, "USERNAME_FIELD", "id")
    monkeypatch.setattr(User, "__str__", lambda user: "somebody")
    client = enter(VIEW, SEE_USERS)
    assert found_by(client, "hopper") == ["later", "earlier"]
    assert offered(client, "nowhere") == []


def test_repeated_users(
    enter: Enter, grace: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: A user who fits twice is offered once."""
    from django.contrib.auth.models import Group  # noqa: PLC0415  # of this test

    grace.groups.set([Group.objects.create(name=f"crew {n}") for n in range(2)])
    monkeypatch.setattr(UserAdmin, "search_fields", ("groups__name",))
    assert found_by(enter(VIEW, SEE_USERS), "crew") == ["later", "earlier"]


def test_a_key_comes_first(enter: Enter, grace: User) -> None:
    """A1: What is a key is shown; callers that fit, too, are offered above."""
    make_record(key="hopper", scope="anonymous")
    client = enter(VIEW, SEE_USERS)
    assert found_by(client, "hopper") == ["hopper"]
    assert offered(client, "hopper") == ["grace"]


def test_filters_go_along(enter: Enter, grace: User) -> None:
    """A1: A search for a caller keeps the other filters, and replaces the caller."""
    client = enter(VIEW, SEE_USERS)
    filters = {"age": "hour", "caller": "authorization:ab", "p": "1"}
    assert found_by(client, "hopper", **filters) == ["later"]


def test_a_caller_in_sql(enter: Enter, grace: User) -> None:
    """A2: A caller's records are read in the order of the index, up to its limit."""
    client = enter(VIEW, SEE_USERS)
    with CaptureQueriesContext(connection) as queries:
        listed(client, f"?caller={user_scope(grace)}")
    said = [q["sql"] for q in queries if "idempotency_idempotencyrecord" in q["sql"]]
    created_at = connection.ops.quote_name("created_at")
    ordered = [sql for sql in said if "ORDER BY" in sql and created_at in sql]
    assert ordered
    assert not any("UPPER(" in sql or "LIKE" in sql for sql in said)


@pytest.mark.skipif(connection.vendor != "mysql", reason="Compares twice there alone.")
@pytest.mark.parametrize(
    ("query", "index"),
    [("caller=asked-for", "caller"), ("endpoint=POST+/asked/", "endpoint")],
)
def test_indexes_on_mariadb(staff: Client, query: str, index: str) -> None:
    """A2, K3: To compare exactly besides does not keep from the index."""
    for number in range(300):
        make_record(scope=f"s-{number}", route=f"/{number}/")
    make_record(scope="asked-for", route="/asked/", key="asked-for")
    with CaptureQueriesContext(connection) as queries:
        assert listed(staff, f"?{query}") == ["asked-for"]
    said = [q["sql"] for q in queries if "idempotencyrecord" in q["sql"]]
    assert said
    for sql in said:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN FORMAT=JSON {sql}")
            assert f'"key": "idempotency_{index}"' in cursor.fetchone()[0]


# Endpoints.


@pytest.fixture
def endpoints() -> None:
    """Store records of two endpoints, and one of an earlier version."""
    for number in range(2):
        make_record(
            (2 - number) * DAY,
            key=f"reset-{number}",
            path=f"/reset/s3cret-{number}/",
            route=ROUTE,
        )
    make_record(key="refund", path="/refunds/7/", route=OTHER)
    make_record(key="put", method="PUT", path="/refunds/7/", route=OTHER)
    make_record(key="old", path="/refunds/7/")


@pytest.mark.parametrize(
    ("term", "keys"),
    [
        (ROUTE, ["reset-1", "reset-0"]),
        (f"POST {ROUTE}", ["reset-1", "reset-0"]),
        ("/reset/any/", ["reset-1", "reset-0"]),
        ("post /reset/any/", ["reset-1", "reset-0"]),
        ("no_view", ["reset-1", "reset-0"]),
        ("PUT /refunds/7/", ["put"]),
        ("POST /refunds/", ["refund"]),
        ("DELETE /refunds/7/", []),
        ("/nowhere/", []),
    ],
)
def test_an_endpoint(
    staff: Client, endpoints: None, term: str, keys: list[str]
) -> None:
    """A1: A route, a path or a view finds an endpoint's records, newest first."""
    assert found_by(staff, term) == keys


@pytest.mark.parametrize("term", ["/refunds/7/", "test_admin_search.Refunds", "FUND"])
def test_endpoints_of_one_name(staff: Client, endpoints: None, term: str) -> None:
    """A1: Each endpoint that has records and fits is one click away."""
    assert sorted(offered(staff, term)) == [f"POST {OTHER}", f"PUT {OTHER}"]
    assert "tests.test_admin_search.refunds" in Page(staff.get(LIST, {"q": term})).text


@pytest.mark.parametrize("query", ["caller=%00", "endpoint=POST+%00", "endpoint=%00+/"])
def test_nul(staff: Client, query: str) -> None:
    """A1: An address that was tampered with finds nothing, and is no error."""
    make_record()
    response = staff.get(f"{LIST}?{query}")
    assert response.status_code == 200
    assert Page(response).links("/change/") == []


def test_routes_that_are_gone(staff: Client) -> None:
    """A1: An endpoint is found by its route, though the project has it no more."""
    make_record(key="gone", route="/gone/<pk>/")
    assert found_by(staff, "/gone/<pk>/") == ["gone"]
    assert listed(staff, "?endpoint=POST+/gone/<pk>/") == ["gone"]
    assert listed(staff, "?endpoint=PUT+/gone/<pk>/") == []
    assert listed(staff, "?endpoint=") == ["gone"]


def test_routes_are_compared_exactly(staff: Client) -> None:
    """A1: Capitals and small letters are apart, whatever a database's collation."""
    for route in ("/a/", "/A/"):
        make_record(key=route, route=route)
    assert listed(staff, "?endpoint=POST+/A/") == ["/A/"]


def test_requests_store_their_route(client: Any) -> None:
    """A1: A first-time request stores its route, which has no value of the path."""
    assert client.post("/refunds/7/", {}, **key("of-a-route")).status_code == 201
    record = IdempotencyRecord.objects.get()
    assert (record.method, record.route, record.path) == ("POST", OTHER, "/refunds/7/")


def test_routes_that_can_not_be_stored(rf: RequestFactory) -> None:
    """A1: A request without a route stores none, and a long one is cut."""
    assert route_in(rf.post("/").resolver_match) is None
    record = make_record(route=f"/{'x' * 400}/"[:MAX_LENGTH])
    record.refresh_from_db()
    assert record.route is not None
    assert len(record.route) == MAX_LENGTH == 255
    request, asked = rf.post("/refunds/7/"), str(uuid4())
    assert refunds(request, 7).status_code == 201
    request = rf.post("/refunds/7/", headers={"Idempotency-Key": asked})
    assert refunds(request, 7).status_code == 201
    assert IdempotencyRecord.objects.get(key=asked).route is None


def test_overview_leads_to_endpoints(enter: Enter, endpoints: None) -> None:
    """A4: The overview leads to the records of an endpoint that stored its route."""
    client = enter(*EVERYTHING)
    make_record(key="unrouted", path="/function/")
    page = Page(client.get(f"{LIST}overview/"))
    links = page.links("endpoint=")
    assert len(links) == 3
    assert "POST /function/" in page.text.replace("\n", "")
    found = [set(listed(client, link.removeprefix(LIST))) for link in links]
    assert {"reset-0", "reset-1"} in found
    assert {"put"} in found
    numbers = {
        each.value: each.number
        for each in Overview.of(IdempotencyRecord.objects).endpoints
    }
    assert numbers[f"POST {OTHER}"] == 2  # with the record of an earlier version


# Each other.


def test_from_a_record(enter: Enter, grace: User) -> None:
    """A1: A record leads to its caller's and its endpoint's others, list and page."""
    make_record(scope="authorization:ab", key="same", path="/refunds/7/", route=OTHER)
    record = make_record(
        scope=user_scope(grace), key="asked", path="/refunds/8/", route=OTHER
    )
    client = enter(VIEW)
    for page in (Page(client.get(address(record))), Page(client.get(LIST))):
        callers = {*page.links("caller=")}
        lists = [set(listed(client, each.removeprefix(LIST))) for each in callers]
        assert {"asked", "later", "earlier"} in lists
        (endpoint,) = {
            link for link in page.links("endpoint=") if link.startswith(f"{LIST}?end")
        }
        assert listed(client, endpoint.removeprefix(LIST)) == ["asked", "same"]
        assert f"/admin/auth/user/{grace.pk}/change/" in page.links("/auth/user/")
    whole = Page(client.get(address(record))).text
    assert "tests.test_admin_search.refunds" in whole
    assert "/refunds/8/" not in whole
    assert "test_admin_search.refunds" in Page(client.get(LIST)).text


def test_records_without_a_route(staff: Client) -> None:
    """A1: A record of an earlier version shows its route, and leads to no others."""
    record = make_record(path="/refunds/7/")
    gone = make_record(path="/nowhere/")
    for each, view in ((record, "tests.test_admin_search.refunds"), (gone, "unknown")):
        page = Page(staff.get(address(each)))
        assert view in page.text
        assert not page.links("endpoint=")
    page = Page(staff.get(LIST))
    assert OTHER in page.text
    assert not page.links("endpoint=")


# Filters.


def choices(client: Client, query: str = "") -> dict[str, list[str]]:
    """Return what the list's filters offer, by their parameters."""
    specs = client.get(LIST + query).context["cl"].filter_specs
    return {
        spec.parameter_name: [str(name) for name, _label in spec.lookup_choices]
        for spec in specs
    }


def test_filters_have_something_behind_them(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: Methods, statuses and endpoints that no record has are not offered."""
    always = ["state", "age", "expiry"]
    assert [*choices(staff)] == always
    make_record(route=ROUTE)
    assert [*choices(staff)] == always
    make_record(DAY, status_code=402, route=OTHER)
    make_record(2 * DAY)
    found = choices(staff)
    assert found["status"] == ["2xx", "4xx"]
    assert found["endpoint"] == [f"POST {ROUTE}", f"POST {OTHER}"]
    assert "method" not in found
    make_record(3 * DAY, method="PUT", scope="other")
    assert choices(staff)["method"] == ["post", "put"]
    # What is chosen can be seen, and given up.
    assert choices(staff, "?method=delete&status=3xx") == {
        **choices(staff),
        "method": ["post", "put", "delete"],
        "status": ["2xx", "3xx", "4xx"],
    }
    assert choices(staff, "?caller=other").keys() == {"caller", *always}
    monkeypatch.setattr("idempotency.admin.lists.SEARCHED", 3)
    assert "method" not in choices(staff)
    monkeypatch.setattr("idempotency.admin.lists.OFFERED", 1)
    assert choices(staff)["endpoint"] == [f"POST {ROUTE}"]


def test_choices_do_not_tell_of_hidden_records(enter: Enter) -> None:
    """A1: Where single records are hidden, what is offered does not depend on them."""
    client = enter(*EVERYTHING)
    here = place_of(GuardedAdmin)
    make_record(scope=THEIRS, key="theirs", method="PUT", route=OTHER)
    make_record(scope=OURS, key="ours", status_code=402, route=ROUTE)
    specs = client.get(here).context["cl"].filter_specs
    offers = {spec.parameter_name: len(spec.lookup_choices) for spec in specs}
    assert (offers["method"], offers["status"]) == (4, 3)
    assert "endpoint" not in offers
    assert found_by(client, THEIRS, here) == []
    assert offered(client, THEIRS, here) == []
    assert found_by(client, f"PUT {OTHER}", here) == []
    assert found_by(client, OURS, here) == ["ours"]
    assert found_by(client, ROUTE, here) == ["ours"]


def test_a_caller_without_other_limits(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: A caller's and an endpoint's age have an index; other filters look back."""
    monkeypatch.setattr("idempotency.admin.lists.SEARCHED", 3)
    for days in range(6):
        make_record(days * 3 * DAY, key=f"k-{days}", route=ROUTE, status_code=402)
    make_record(key="new", scope="other", route=OTHER)
    make_record(DAY, key="put", method="PUT", route=ROUTE)
    said = "These filters have no index: they cover the newest"
    for place in ("caller=user:auth.user:1", f"endpoint=POST+{ROUTE}"):
        older = listed(staff, f"?{place}&age=older")
        assert older == ["k-3", "k-4", "k-5"]
        assert said not in Page(staff.get(f"{LIST}?{place}&age=older")).text
        refused = f"?{place}&status=4xx"
        assert set(listed(staff, refused)) <= {"k-0", "k-1", "k-2"}
        assert len(listed(staff, refused)) >= 2
        page = Page(staff.get(LIST + refused))
        assert said in page.text
        assert "To look further back, also choose an age." in page.text
        assert "all abandoned records" not in page.text
        assert listed(staff, f"{refused}&age=older") == older
    text = Page(staff.get(f"{LIST}?caller=user:auth.user:1")).text
    assert "Records of user:auth.user:1, the newest first." in text
    text = Page(staff.get(f"{LIST}?endpoint=POST+{ROUTE}")).text
    assert f"Records of POST {ROUTE}, the newest first." in text


def test_both_at_once(staff: Client) -> None:
    """A1: A caller's records of one endpoint, the oldest abandoned first."""
    now = timezone.now()
    for number in range(3):
        make_record(
            number * DAY,
            key=f"k-{number}",
            route=ROUTE,
            state=State.ABANDONED,
            lease_expires_at=now - timedelta(minutes=1) if number else None,
            **NO_ANSWER,
        )
    make_record(key="other", route=OTHER)
    both = f"?caller=user:auth.user:1&endpoint=POST+{ROUTE}"
    assert listed(staff, both) == ["k-0", "k-1", "k-2"]
    assert listed(staff, f"{both}&state=abandoned") == ["k-2", "k-1", "k-0"]
    abandoned = f"?endpoint=POST+{ROUTE}&state=abandoned"
    assert listed(staff, abandoned) == ["k-2", "k-1", "k-0"]


# Times.


def test_times(staff: Client) -> None:
    """A1: Times have seconds, and a run has milliseconds."""
    record = make_record()
    record.completed_at = record.created_at + timedelta(milliseconds=1312, seconds=1)
    record.save()
    created = timezone.localtime(record.created_at)
    page = Page(staff.get(address(record)))
    assert f"{created:%Y-%m-%d %H:%M:%S}" in page.text
    assert "completed after 2,312 ms" in page.text
    assert "after 2,312\xa0ms" in Page(staff.get(LIST)).text


def test_an_answer_without_its_time(staff: Client) -> None:
    """A1: A record that somebody has imported may not know when it was completed."""
    record = make_record(completed_at=None)
    for place in (LIST, address(record)):
        assert not re.search(r"\d\sms", Page(staff.get(place)).text)


def test_times_of_decisions(enter: Enter) -> None:
    """A3: The pages of a decision have seconds, too."""
    client = enter(*EVERYTHING)
    record = make_record()
    created = timezone.localtime(record.created_at)
    text = Page(client.get(address(record, "release"))).text
    assert f"{created:%Y-%m-%d %H:%M:%S}" in text


# What is gone, and what can't be seen.


def test_erased_records(enter: Enter) -> None:
    """A1: An erased record says so, and leads to no caller."""
    client = enter(*EVERYTHING)
    record = make_record(
        scope="",
        key="",
        path="",
        route=OTHER,
        body=None,
        headers=None,
    )
    for place in (
        LIST,
        address(record),
        address(record, "release"),
        address(record, "history"),
        f"{LIST}overview/",
    ):
        page = Page(client.get(place))
        assert ("erased" in page.text) is ("history" not in place)
        assert not page.links("caller=")
    (link,) = [
        attrs
        for tag, attrs in Page(client.get(LIST)).elements
        if attrs.get("class") == "idempotency-record"
    ]
    assert link["href"] == address(record)
    assert f"POST {OTHER}" in Page(client.get(address(record))).text
    assert "idempotency_response_not_kept" in Page(client.get(address(record))).text
    IdempotencyRecord.objects.update(route=None)
    assert "unknown route" in Page(client.get(LIST)).text
    assert "unknown route" in Page(client.get(address(record))).text
    assert "unknown route" in Page(client.get(f"{LIST}overview/")).text


def test_bidirectional_characters(enter: Enter) -> None:
    """A1: What changes the order of characters is shown escaped, on every page."""
    signs = "".join(map(chr, BIDIRECTIONAL))
    assert len(signs) == 12
    evil = f"a{signs}b"
    escaped = "a" + "".join(f"\\u{code:04x}" for code in BIDIRECTIONAL) + "b"
    client = enter(*EVERYTHING, SEE_USERS)
    for name in (evil, f"{evil}c"):
        make_record(scope=user_scope(User.objects.create(username=name)))
    now = timezone.now()
    own: dict[str, Any] = {"scope": evil, "path": f"/{evil}/", "route": f"/{evil}/"}
    ended = new_entry("step", f"s{evil}", now) | {
        "ended": now.isoformat(),
        "result": evil,
    }
    done = make_record(
        **own,
        body=f'["{evil}"]'.encode(),
        headers=[["Content-Type", f"application/json; {evil}"], ["X-Name", evil]],
    )
    stuck, held = (
        make_record(
            **own,
            key=f"k-{number}",
            state=State.ABANDONED,
            lease_expires_at=now - timedelta(minutes=1),
            steps=as_text("", entries),
            **NO_ANSWER,
        )
        for number, entries in enumerate(
            [[ended], [ended, held_entry(f"c{evil}", now)]]
        )
    )
    form = {"token": str(held.token), "outcome": "never", "result": ""}
    settled = client.post(address(held, "call"), form, follow=True)
    held.refresh_from_db()
    pages = [
        settled,
        client.get(address(held, "history")),
        client.get(LIST),
        client.get(LIST, {"caller": evil}),
        client.get(LIST, {"endpoint": f"POST /{evil}/"}),
        client.get(LIST, {"q": "\u202e"}),
        client.get(f"{LIST}overview/"),
        client.get(address(done)),
        client.get(address(done, "release")),
        client.get(address(stuck)),
        client.get(address(stuck, "release")),
        client.get(address(stuck, "resolve")),
    ]
    for number, response in enumerate(pages):
        page = Page(response)
        assert not {*page.text} & {*signs}, number
        assert escaped in page.text, number
    form = {"token": str(done.token), "reason": evil}
    client.post(address(done, "release"), form)
    from django.contrib.admin.models import LogEntry  # noqa: PLC0415  # of this test

    said = LogEntry.objects.order_by("-pk")[0].change_message
    assert escaped in said
    assert not {*said} & {*signs}


def test_unknown_callers(enter: Enter) -> None:
    """A1: Text that is neither a key, a caller nor an endpoint finds nothing."""
    make_record(scope="anonymous")
    client = enter(VIEW, SEE_USERS)
    for term in ("nowhere", "/", "a b c", f"{uuid4()}", "x" * 600, "POST"):
        assert found_by(client, term) == []


def test_own_fields(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A1: A subclass that shows the columns themselves gets them escaped, too."""
    fieldsets = ((None, {"fields": ("scope", "path", "headers")}),)
    monkeypatch.setattr(IdempotencyRecordAdmin, "fieldsets", fieldsets)
    record = make_record(scope="a\u202eb", path="/a\u202eb/", headers=[["X", "\u202e"]])
    page = Page(enter(VIEW, SEE_BODY).get(address(record)))
    assert "\u202e" not in page.text
    assert page.text.count("\\u202e") == 3
