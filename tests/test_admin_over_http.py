"""What members of staff try in the admin, through a real server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape
from http.cookies import SimpleCookie
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session

from idempotency.admin import IdempotencyRecordAdmin
from idempotency.models import IdempotencyRecord, State
from idempotency.steps import as_text, held_entry
from tests.support.admin_pages import (
    EVERYTHING,
    LIST,
    SEE_BODY,
    VIEW,
)
from tests.support.http_servers import Server, UnixConnection, serving
from tests.support.record_admins import (
    OURS,
    THEIRS,
    GuardedAdmin,
    TenantAdmin,
    place_of,
)
from tests.support.record_factories import make_record
from tests.test_admin_actions import make_abandoned

pytestmark = pytest.mark.usefixtures("database")

PASSWORD = "a password of nobody's"
FINGERPRINT = "ab" * 32
SECRET = "c3VwcG9ydCBtdXN0IG5vdCBzZWUgdGhpcw"


class Visitor:
    """A browser: it keeps cookies, and sends forms with what Django wants in them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookies: SimpleCookie = SimpleCookie()

    def ask(
        self, method: str, address: str, body: str | None = None
    ) -> tuple[int, str, str]:
        """Return status, address to go to and text of an answer."""
        connection = UnixConnection(self.server.address)
        sent = "; ".join(f"{name}={c.value}" for name, c in self.cookies.items())
        headers = {"Cookie": sent, "Content-Type": "application/x-www-form-urlencoded"}
        connection.request(method, address, body, headers)
        response = connection.getresponse()
        for line in response.headers.get_all("Set-Cookie", []):
            self.cookies.load(line)
        text = response.read().decode()
        connection.close()
        return response.status, response.headers.get("Location", ""), text

    def status(self, address: str) -> int:
        return self.ask("GET", address)[0]

    def read(self, address: str) -> str:
        """Return the text of a page that is there."""
        status, _location, text = self.ask("GET", address)
        assert status == 200
        return text

    def post(self, address: str, **fields: str) -> tuple[int, str, str]:
        """Send a form with the token of the cookie."""
        own = {"csrfmiddlewaretoken": self.cookies["csrftoken"].value}
        return self.ask("POST", address, urlencode({**own, **fields}))


Enter = Callable[..., Visitor]


@pytest.fixture(scope="module")
def admin_server(django_db_setup: None, django_db_blocker: Any) -> Iterator[Server]:
    settings = {"DJANGO_SETTINGS_MODULE": "tests.support.admin_settings"}
    with (
        TemporaryDirectory(prefix="idem") as directory,
        serving(Path(directory), workers=1, **settings) as server,
    ):
        yield server


@pytest.fixture
def enter(admin_server: Server, database: None) -> Iterator[Enter]:
    """Return a way in for a member of staff: by the form, with name and password."""

    def log_in(*permissions: str, site: str = "admin") -> Visitor:
        name = str(uuid4())
        user = User.objects.create_user(name, password=PASSWORD, is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        visitor = Visitor(admin_server)
        place = f"/{site}/login/?next=/{site}/"
        visitor.read(place)
        status, location, _text = visitor.post(place, username=name, password=PASSWORD)
        assert (status, location) == (302, f"/{site}/")
        assert "sessionid" in visitor.cookies
        return visitor

    yield log_in
    for model in (LogEntry, Session):
        model.objects.all().delete()
    User.objects.all().delete()


def form_for(record: IdempotencyRecord) -> dict[str, str]:
    return {
        "token": str(record.token),
        "status_code": "204",
        "content_type": "a/b",
        "reason": "lost",
    }


def rows() -> list[Any]:
    return [*IdempotencyRecord.objects.order_by("pk").values()]


def figures(page: str) -> dict[str, str]:
    """Return the overview's figures by their names."""
    found = re.findall(r"<dt>([^<]+)</dt><dd>(.*?)</dd>", page)
    return {name: unescape(re.sub("<[^>]+>", "", value)) for name, value in found}


@pytest.mark.parametrize(("kind", "status"), [(TenantAdmin, 404), (GuardedAdmin, 403)])
def test_records_of_others(
    enter: Enter, kind: type[IdempotencyRecordAdmin], status: int
) -> None:
    """A1, A3: Nobody reads or decides about a record that the admin keeps from them."""
    visitor = enter(*EVERYTHING, site=kind.__name__)
    own: dict[str, Any] = {"scope": THEIRS, "path": f"/reset/{SECRET}/"}
    done, stuck = make_record(body=b'{"to": "them"}', **own), make_abandoned(**own)
    entry = held_entry("charge", stuck.created_at)
    in_doubt = make_abandoned(**own, steps=as_text("", [entry]))
    before = rows()
    for record in (done, stuck, in_doubt):
        place = f"{place_of(kind)}{record.pk}"
        answers = [
            visitor.ask("GET", f"{place}/{page}/")
            for page in ("body", "release", "resolve", "call", "complete")
        ]
        answers += [
            visitor.post(f"{place}/{page}/", **form_for(record))
            for page in ("release", "resolve", "call", "complete")
        ]
        for found, _location, text in answers:
            assert found == status
            for secret in (SECRET, THEIRS, record.key, "them"):
                assert secret not in text
        assert visitor.status(f"{place}/change/") == (302 if status == 404 else 403)
    assert rows() == before
    assert not LogEntry.objects.exists()


def test_pages_of_a_tenant(enter: Enter) -> None:
    """A1, A4: List, overview, figures and filters have nothing of other tenants."""
    for scope, place, number in ((OURS, "/function/", 1), (THEIRS, "/method/", 3)):
        for each in range(number):
            make_record(scope=scope, key=f"{scope}-{each}", path=place)
            make_abandoned(scope=scope, path=place)
    theirs = [*IdempotencyRecord.objects.filter(scope=THEIRS)]
    here = place_of(TenantAdmin)
    visitor = enter(*EVERYTHING, site="TenantAdmin")
    queries = ("", "?state=abandoned", "?all=", f"?caller={THEIRS}", f"?q={THEIRS}-1")
    for query, number in zip(queries, (2, 1, 2, 0, 0), strict=True):
        page = visitor.read(here + query)
        # A search is repeated in its field.
        for record in theirs:
            assert str(record.pk) not in page
        assert "/method/" not in page
        assert re.findall(r"(\d+) idempotency records?\b", page) == [str(number)]
    overview = visitor.read(f"{here}overview/")
    assert figures(overview)["Records"] == "2"
    assert figures(overview)["Abandoned now"] == "1"
    assert "/function/" in overview
    assert THEIRS not in overview
    assert "/method/" not in overview
    # Who may see all sees all, by the same server.
    everything = enter(*EVERYTHING).read(f"{LIST}overview/")
    assert figures(everything)["Records"] == "8"


def test_reading_is_logged(enter: Enter) -> None:
    """A1: The log names who read or downloaded an answer, and the record by its id."""
    visitor = enter(VIEW, SEE_BODY)
    record = make_record(path=f"/reset/{SECRET}/", key="the-key", scope="the-scope")
    assert "&quot;id&quot;: 1" in visitor.read(f"{LIST}{record.pk}/change/")
    assert visitor.read(f"{LIST}{record.pk}/body/") == '{"id": 1}'
    entries = [*LogEntry.objects.order_by("pk")]
    assert [entry.change_message for entry in entries] == [
        "Viewed the response.",
        "Downloaded the response.",
    ]
    for entry in entries:
        assert entry.object_id == entry.object_repr == str(record.pk)
        assert entry.user == User.objects.get()


def test_without_the_permission_to_read(enter: Enter) -> None:
    """A1: Neither a path that is a secret nor the fingerprint is on any page."""
    own = {"path": f"/reset/{SECRET}/", "fingerprint": FINGERPRINT}
    done, stuck = make_record(**own), make_abandoned(**own)
    places = [
        LIST,
        f"{LIST}?q={done.key}",
        f"{LIST}?state=abandoned",
        f"{LIST}overview/",
        *(
            f"{LIST}{record.pk}/{page}/"
            for record in (done, stuck)
            for page in ("change", "history", "release")
        ),
        f"{LIST}{stuck.pk}/resolve/",
    ]
    visitor = enter(*{*EVERYTHING} - {SEE_BODY})
    for place in places:
        text = visitor.read(place)
        assert SECRET not in text
        assert FINGERPRINT not in text
    assert visitor.status(f"{LIST}{done.pk}/body/") == 403
    assert "/reset/&lt;token&gt;/" in unescape_breaks(visitor.read(LIST))
    reader = enter(*EVERYTHING)
    page = reader.read(f"{LIST}{done.pk}/change/")
    assert SECRET in page
    assert FINGERPRINT in page


def unescape_breaks(page: str) -> str:
    return page.replace("<wbr>", "")


def test_forged_forms(enter: Enter, admin_server: Server) -> None:
    """A3: A form from another site, or without a login, changes nothing."""
    visitor = enter(*EVERYTHING)
    done, stuck = make_record(), make_abandoned()
    entry = held_entry("charge", stuck.created_at)
    in_doubt = make_abandoned(steps=as_text("", [entry]))
    before = rows()
    pages = {
        f"{LIST}purge/": {},
        f"{LIST}{done.pk}/release/": form_for(done),
        f"{LIST}{stuck.pk}/resolve/": form_for(stuck),
        f"{LIST}{in_doubt.pk}/call/": {**form_for(in_doubt), "outcome": "never"},
        f"{LIST}{in_doubt.pk}/complete/": form_for(in_doubt),
    }
    for place, form in pages.items():
        assert visitor.ask("POST", place, urlencode(form))[0] == 403
        forged = {**form, "csrfmiddlewaretoken": "a" * 64}
        assert visitor.ask("POST", place, urlencode(forged))[0] == 403
        status, location, _text = Visitor(admin_server).ask("GET", place)
        assert (status, location.partition("?")[0]) == (302, "/admin/login/")
    assert rows() == before
    # With the token of its own it does.
    assert visitor.post(f"{LIST}{stuck.pk}/resolve/", **form_for(stuck))[0] == 302
    assert visitor.post(f"{LIST}{done.pk}/release/", **form_for(done))[0] == 302
    place = f"{LIST}{in_doubt.pk}/call/"
    assert visitor.post(place, **form_for(in_doubt), outcome="never")[0] == 302
    in_doubt.refresh_from_db()
    assert in_doubt.entries == []
    (left,) = IdempotencyRecord.objects.exclude(pk=in_doubt.pk)
    assert (left.pk, left.state, left.status_code) == (stuck.pk, State.COMPLETED, 204)
