"""The guide for existing projects, line by line, in a shop of some 30 views."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import sqlite3
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.db import connection

from tests.support.processes import PATIENCE, ROOT
from tests.support.readers import Reader, steps
from tests.test_docs import DOCUMENTS

pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="The project brings its own database."
)
for needed in ("dj_rest_auth", "rest_framework_extensions", "rest_framework_simplejwt"):
    pytest.importorskip(needed)

PAGE = DOCUMENTS["docs/existing_project.md"]
SHOP = ROOT / "tests" / "support" / "existing_project"
PASSWORD = "tea-at-five"
# The tests' own environment has what this would install.
NOT_RUN = {"python -m pip install './django-idempotency[celery]'"}


@dataclass(frozen=True)
class Post:
    """A request that acts, and the content that it is sent with."""

    path: str
    content: Any = field(default_factory=dict)
    effects: int = 1
    is_refused: bool = False
    kind: str = "json"


AUTH = {"username": "ada", "password": PASSWORD}
UPLOAD = b"""--b\r
Content-Disposition: form-data; name="file"; filename="a.txt"\r
\r
content\r
--b--\r
"""
NEW = {"new_password1": PASSWORD, "new_password2": PASSWORD}
ONCE = [
    *(
        Post(f"/api/{version}{path}", content)
        for version in ("", "v2/")
        for path, content in (
            ("customers/", {"name": "Grace"}),
            ("customers/merge/", {}),
            ("orders/", {"title": "tea"}),
            ("orders/1/cancel/", {}),
            ("orders/1/items/", {"title": "cup"}),
        )
    ),
    Post("/api/products/", {"title": "milk"}),
    Post("/api/products/1/stock/"),
    Post("/api/tags/"),
    Post("/api/invoices/", {"name": "invoice"}, effects=2),
    Post("/api/shipments/"),
    # A row and a file.
    Post("/api/uploads/", effects=2, kind="upload"),
    Post("/api/quotes/"),
    Post("/api/returns/"),
    # A row and a charge.
    Post("/api/payments/", {"amount": 7}, effects=2),
    Post("/api/close/"),
    Post("/api/refunds/"),
    Post("/api/feedback/"),
    Post("/api/feedback/", kind="anonymous"),
    Post("/api/register/", {"title": "pot"}),
    # Its title is known by now: the database refuses it, and the handler goes on.
    Post("/api/register/", {"title": "pot"}),
    Post("/checkout/", {"address": "Here"}, kind="page"),
    Post("/subscribe/", kind="page"),
]
# With the effects of both attempts.
TWICE = [
    Post("/api/orders/search/", {"text": "t"}, effects=2),
    Post("/api/v2/orders/search/", {"text": "t"}, effects=2),
    Post("/api/products/search/", {"text": "t"}, effects=2),
    Post("/api/export/", effects=2),
    Post("/webhook/", {"id": "1"}, effects=2),
    # Rows for the tokens.
    Post("/api/token/", AUTH, effects=2, kind="anonymous"),
    Post("/api/token/refresh/", effects=0, kind="refresh"),
    # A user has one.
    Post("/api/key/", AUTH, effects=1, kind="anonymous"),
    # Sessions.
    Post("/auth/login/", AUTH, effects=2, kind="anonymous"),
    Post("/auth/password/change/", NEW, effects=2),
    # Mails.
    Post("/auth/password/reset/", {"email": "ada@example.com"}, effects=2),
    Post("/auth/password/reset/confirm/", effects=0, is_refused=True),
    # The user's one token goes.
    Post("/auth/logout/", effects=-1),
]


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Shop:
    """The project, and what its clients see of it."""

    def __init__(self, folder: Path, reader: Reader) -> None:
        self.folder = folder
        self.reader = reader
        self.cookies: dict[str, str] = {}
        self.refresh = ""

    def manage(self, command: str) -> str:
        return self.reader.run(f"python manage.py {command}")

    def effects(self) -> int:
        """Count rows, stock, charges, mails and files."""
        with closing(sqlite3.connect(self.folder / "db.sqlite3")) as database:
            names = database.execute(
                "SELECT name FROM sqlite_master WHERE type='table'"
            )
            tables = [
                n for (n,) in names if not n.startswith(("idempotency", "sqlite"))
            ]
            counts = [f"(SELECT count(*) FROM {name})" for name in tables]
            counts.append("(SELECT coalesce(sum(stock), 0) FROM api_product)")
            (rows,) = database.execute(f"SELECT {' + '.join(counts)}").fetchone()
        log = self.folder / "charges.log"
        charges = len(log.read_text().splitlines()) if log.exists() else 0
        made = [
            path
            for place in ("mails", "media")
            for path in self.folder.glob(f"{place}/**/*.*")
        ]
        return int(rows) + charges + len(made)

    def send(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> Response:
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.reader.port, timeout=PATIENCE)
        ) as to:
            to.request(method, path, body, headers)
            response = to.getresponse()
            for cookie in response.headers.get_all("Set-Cookie") or ():
                name, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name] = value
            return Response(response.status, dict(response.headers), response.read())

    def log_in(self) -> None:
        """Log in to the pages, as a browser does, and get a refresh token."""
        self.send("GET", "/accounts/login/")
        body = urlencode(AUTH).encode()
        done = self.send("POST", "/accounts/login/", body, **self.of_page())
        assert done.status == 302
        told = self.post(Post("/api/token/", AUTH, kind="anonymous"))
        self.refresh = json.loads(told.body)["refresh"]

    def of_page(self) -> dict[str, str]:
        """Return the headers that a browser sends with a form."""
        return {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": "; ".join(f"{n}={v}" for n, v in self.cookies.items()),
            "X-CSRFToken": self.cookies["csrftoken"],
        }

    def post(self, what: Post, key: str = "") -> Response:
        headers = {"Idempotency-Key": key} if key else {}
        headers["Content-Type"] = "application/json"
        body = json.dumps(what.content).encode()
        if what.kind == "page":
            body = urlencode(what.content).encode()
            headers |= self.of_page()
        elif what.kind == "refresh":
            body = json.dumps({"refresh": self.refresh}).encode()
        elif what.kind != "anonymous":
            user = b64encode(f"ada:{PASSWORD}".encode()).decode()
            headers["Authorization"] = f"Basic {user}"
        if what.kind == "upload":
            headers["Content-Type"] = "multipart/form-data; boundary=b"
            body = UPLOAD
        return self.send("POST", what.path, body, **headers)


@pytest.fixture
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """Make the project as it is before its team reads the guide."""
    shutil.copytree(SHOP, tmp_path, dirs_exist_ok=True)
    with ExitStack() as stack:
        variables = {
            "ATOMIC_REQUESTS": request.param,
            "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        }
        reader = Reader(tmp_path, stack, NOT_RUN, **variables)
        found = Shop(tmp_path, reader)
        found.manage("migrate")
        found.manage("createsuperuser --noinput --username ada --email ada@example.com")
        yield found


@pytest.mark.parametrize("shop", ["0", "1"], indirect=True)
def test_every_line(shop: Shop) -> None:
    """E2, S2: A team that follows the guide gets each effect once, and what it says."""
    before, heading, after = PAGE.partition("## 3. ")
    shop.reader.read(before)
    fails = "python manage.py idempotency_audit --fail-unprotected"
    said = shop.reader.run(fails, status=1)
    assert "CommandError: Not protected: /api/customers/, " in said
    shop.reader.read(heading + after)
    checked = shop.manage("check --database default --fail-level INFO")
    assert checked == "System check identified no issues (0 silenced).\n"
    assert_all_are_tried(shop)
    shop.reader.start("python manage.py runserver")
    shop.log_in()
    for what in ONCE:
        assert_acts_once(shop, what)
    for what in TWICE:
        assert_acts_twice(shop, what)
    assert_throttled(shop)


def assert_all_are_tried(shop: Shop) -> None:
    """Each route for POST is among the requests, with the protection that it has."""
    told = shop.manage("idempotency_audit --all --format json --exclude '/admin/*'")
    for route in json.loads(told)["routes"]:
        if not route["path"].startswith("/accounts/") and route["name"] != "home":
            pattern = re.sub("<[^>]+>", "[^/]+", route["path"])
            tried = TWICE if route["via"] in ("none", "exempt") else ONCE
            assert any(re.fullmatch(pattern, what.path) for what in tried), route


def assert_acts_once(shop: Shop, what: Post) -> None:
    key = str(uuid4())
    before = shop.effects()
    first = shop.post(what, key)
    assert first.status < 400, (what.path, first.body)
    done = shop.effects()
    again = shop.post(what, key)
    assert done - before == what.effects, what.path
    assert shop.effects() == done, what.path
    assert again.headers.get("Idempotent-Replayed") == "true", what.path
    assert (again.status, again.body) == (first.status, first.body)


def assert_acts_twice(shop: Shop, what: Post) -> None:
    key = str(uuid4())
    before = shop.effects()
    for _attempt in range(2):
        response = shop.post(what, key)
        assert (response.status == 400) is what.is_refused, (what, response.body)
        assert response.status <= 400, (what, response.body)
        assert "Idempotent-Replayed" not in response.headers
    assert shop.effects() - before == what.effects, what.path


def assert_throttled(shop: Shop) -> None:
    """The fourth attempt at a quote is one too many, two came before."""
    key = str(uuid4())
    statuses = [shop.post(Post("/api/quotes/"), key).status for _attempt in range(2)]
    assert statuses == [201, 429]


def test_length() -> None:
    """Who has twenty minutes can read it, and do what it says."""
    assert len(PAGE.split()) <= 700


def test_what_is_not_run_is_there() -> None:
    """The page has the line that this test leaves out."""
    assert {f"$ {command}" for command in NOT_RUN} <= {what for what, _ in steps(PAGE)}
