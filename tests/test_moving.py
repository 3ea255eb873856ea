"""docs/moving.md: its code runs, and clients of other packages get what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.core.checks import run_checks
from django.test import Client
from django.urls import path
from django.utils import timezone
from rest_framework.response import Response
from rest_framework.views import APIView

from benchmarks.studies.moving import (
    AFTER,
    BEFORE,
    BOTH,
    blocks,
    module,
    packages,
    sections,
)
from benchmarks.studies.peers_network import cases
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.test_docs import DOCUMENTS, README, table

pytestmark = pytest.mark.usefixtures("database")

MODULES = ("settings", "urls", "views", "api", "orders", "compat", "old")
# What clients of each package send, and what its view has been asked for.
ALL = ("POST", "PUT", "PATCH", "DELETE")
METHODS = {
    "django-idempotency-key": ALL,
    "djangorestframework-idempotency-key": ("POST",),
    "drf-idem": ALL,
    "drf-idempotency": ALL[:3],
    "drf-idempotencykey": ALL[:3],
    "idemkit": ("POST", "PATCH"),
}
NEEDS_NO_KEY = {"drf-idem", "idemkit"}
# What the page restores of a replay; the study asks the packages for all of it.
REPLAYS: dict[str, tuple[int, str | None]] = {
    "django-idempotency-key": (409, None),
    "drf-idempotencykey": (201, "Cached-From-Idempotency-Key"),
    "idemkit": (201, "Idempotency-Replayed"),
}
each_package = pytest.mark.parametrize("name", METHODS)
each_way = pytest.mark.parametrize("restores", [False, True], ids=["", "restores"])


class Project:
    """A project that has moved, and its clients."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = Client(raise_request_exception=False)
        self.status = 201
        self.errors: dict[str, Any] = {}

    def create_order(self, request: Any) -> Response:
        order = Effect.objects.create(note=request.data["item"])
        return Response({"id": order.pk}, status=self.status)

    def send(
        self,
        key: str | None,
        item: str = "tea",
        user: str = "ada",
        method: str = "POST",
    ) -> Any:
        """Send an order as the old package's clients do."""
        header = "X-Request-ID" if self.name == "drf-idem" else "Idempotency-Key"
        headers = {"X-User": user, **({header: key} if key is not None else {})}
        body = json.dumps({"item": item})
        return self.client.generic(
            method, "/orders/", body, "application/json", headers=headers
        )

    def assert_refused(self, response: Any, code: str, status: int) -> None:
        """Check a refusal: as the page restores it, or the app's own."""
        assert response["Idempotency-Error"] == code
        if code in self.errors:
            assert (response.status_code, response.json()) == self.errors[code]
            assert response["Content-Type"] == "application/json"
        else:
            assert (response.status_code, response.json()["code"]) == (status, code)


Move = Callable[[str, bool], Project]


@pytest.fixture
def move(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Move:
    """Make a project of the page's code."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # so that it goes again

    def move(name: str, restores: bool) -> Project:
        project = Project(name)
        code = blocks(packages()[name])

        def handle(view: Any, request: Any) -> Any:
            return project.create_order(request)

        handlers = {method.lower(): handle for method in ALL}
        view: Any = type("BaseOrderView", (APIView,), handlers)
        create_order = project.create_order
        module("orders", create_order=create_order, BaseOrderView=view)
        module("api", router=SimpleNamespace(urls=[path("orders/", view.as_view())]))
        before = {"INSTALLED_APPS": [], "MIDDLEWARE": []}
        own = module("settings", code["settings.py"].code(), **before)
        assert own.INSTALLED_APPS == own.MIDDLEWARE == []
        settings.IDEMPOTENCY = own.IDEMPOTENCY
        if restores and "old.py" in code:
            project.errors = module("old", code["old.py"].code()).ERRORS
            module("compat", blocks("What always changes")["compat.py"].code())
            keep = "compat.keep_old_responses"
            settings.MIDDLEWARE = [*settings.MIDDLEWARE, keep]
        if "views.py" in code:
            found = module("views", code["views.py"].code()).OrderView
            urls = module("urls", urlpatterns=[path("orders/", found.as_view())])
        else:
            urls = module("urls", blocks("Middleware")["urls.py"].code())
        settings.ROOT_URLCONF = urls
        return project

    return move


class TestPage:
    def test_packages(self) -> None:
        """The page has each package of the comparison, and that of its costs."""
        rows = table("package", "version", document=DOCUMENTS["docs/comparison.md"])
        compared = {
            row["package"]: f"{row['package']} {row['version']}" for row in rows
        }
        idemkit = cases()["idemkit"]["package"].replace("[postgres]==", " ")
        assert packages() == {**compared, "idemkit": idemkit}
        assert list(packages()) == list(METHODS)

    def test_code(self) -> None:
        """Each block of code is for a file that the tests run, in all its phases."""
        fences = 0
        for heading in sections():
            for block in blocks(heading).values():
                assert block.file.removesuffix(".py") in MODULES, heading
                for phase in (BEFORE, BOTH, AFTER):
                    compile(block.code(phase), block.file, "exec")
                fences += 2
        assert DOCUMENTS["docs/moving.md"].count("```") == fences

    def test_both_packages(self) -> None:
        """In between the old package is outside."""
        both = blocks(packages()["idemkit"])["views.py"].code(BOTH)
        assert "class OrderView(OldMixin, IdempotencyMixin, BaseOrderView):" in both
        decorated = blocks(packages()["djangorestframework-idempotency-key"])
        lines = decorated["views.py"].code(BOTH).split()
        old, new = "@simple_idempotency_key_method", "@idempotent(required=True)"
        assert lines.index(new) == lines.index(old) + 1

    def test_links(self) -> None:
        """Readers find the page."""
        assert "(docs/moving.md)" in README
        assert "(moving.md)" in DOCUMENTS["docs/comparison.md"]


@each_package
@each_way
class TestClients:
    def test_settings(self, move: Move, name: str, restores: bool) -> None:
        """X2: The checks have nothing to say about the project."""
        move(name, restores)
        assert run_checks(tags=["idempotency"]) == []

    def test_retries(self, move: Move, name: str, restores: bool) -> None:
        """R2, K1: A first request acts, and a retry gets its response, marked."""
        project = move(name, restores)
        for method in METHODS[name]:
            key, before = str(uuid4()), Effect.objects.count()
            first = project.send(key, method=method)
            again = project.send(key, method=method)
            status, header = REPLAYS.get(name, (201, None)) if restores else (201, None)
            assert (first.status_code, again.status_code) == (201, status)
            assert first.content == again.content
            assert again["Idempotent-Replayed"] == "true"
            assert header is None or (header in again and header not in first)
            if header == "Cached-From-Idempotency-Key":
                assert again[header] == key
            assert Effect.objects.count() == before + 1

    def test_no_key(self, move: Move, name: str, restores: bool) -> None:
        """K4: Without a key a request is refused where the old package refused it."""
        project = move(name, restores)
        answers = [project.send(None) for _attempt in range(2)]
        if name in NEEDS_NO_KEY:
            assert [answer.status_code for answer in answers] == [201, 201]
        else:
            for answer in answers:
                project.assert_refused(answer, "idempotency_key_required", 400)
        assert Effect.objects.count() == 2 * (name in NEEDS_NO_KEY)

    def test_reused_key(self, move: Move, name: str, restores: bool) -> None:
        """F4: Another body is refused, as before where that is restored."""
        project, key = move(name, restores), str(uuid4())
        project.send(key)
        project.assert_refused(
            project.send(key, "coffee"), "idempotency_key_reused", 422
        )
        assert [*Effect.objects.values_list("note", flat=True)] == ["tea"]

    def test_invalid_key(self, move: Move, name: str, restores: bool) -> None:
        """K3: A key with spaces is refused."""
        project = move(name, restores)
        project.assert_refused(project.send("a key"), "idempotency_key_invalid", 400)
        assert Effect.objects.count() == 0

    def test_running_request(
        self, move: Move, name: str, restores: bool, settings: Any
    ) -> None:
        """E3: A duplicate is refused, and may retry."""
        project, key = move(name, restores), str(uuid4())
        assert (settings.IDEMPOTENCY.get("ON_CONCURRENT") == "wait") is (
            name == "idemkit"
        )
        settings.IDEMPOTENCY = {**settings.IDEMPOTENCY, "ON_CONCURRENT": "refuse"}
        project.send(key)
        IdempotencyRecord.objects.update(
            state=State.IN_PROGRESS,
            lease_expires_at=timezone.now() + timedelta(minutes=1),
        )
        answer = project.send(key)
        project.assert_refused(answer, "idempotency_in_progress", 409)
        assert answer["Retry-After"] == "1"
        assert Effect.objects.count() == 1

    def test_users(self, move: Move, name: str, restores: bool) -> None:
        """S1: A key belongs to a user."""
        project, key = move(name, restores), str(uuid4())
        answers = [project.send(key, user=user) for user in ("ada", "grace")]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert Effect.objects.count() == 2


@pytest.mark.parametrize(
    ("name", "freeing", "stored"),
    [
        ("django-idempotency-key", [302, 402, 404], [200, 204]),
        ("djangorestframework-idempotency-key", [400], [302, 402, 404, 409, 422]),
        ("drf-idempotencykey", [302, 402, 404], [200, 204]),
    ],
)
def test_released_statuses(
    move: Move, name: str, freeing: list[int], stored: list[int]
) -> None:
    """O1, O2: The statuses that freed the key still do."""
    project = move(name, False)
    for status in (*freeing, *stored):
        key, before, project.status = str(uuid4()), Effect.objects.count(), status
        answers = [project.send(key).status_code for _attempt in range(2)]
        assert answers == [status, status]
        assert Effect.objects.count() - before == 1 + (status in freeing)


def test_other_packages_tables() -> None:
    """P3: No index has the name of another package's table: they share a namespace."""
    tables = {"idempotency_key", "drf_idempotency_idempotencyrecord"}
    tables.add("drf_idempotencykey_idempotencykey")
    meta = IdempotencyRecord._meta
    assert not tables & {meta.db_table, *(index.name for index in meta.indexes)}
