"""``idempotency_audit``: every POST route of a project, and how it is protected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.http import HttpRequest, HttpResponse
from django.urls import clear_url_caches, include, path, re_path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from rest_framework.authtoken.views import ObtainAuthToken
from rest_framework.decorators import action, api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.viewsets import ViewSet

from idempotency.audit import Finding, audit, news
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.routes import find_routes
from idempotency.routing import protected
from tests.conftest import once
from tests.support.processes import ROOT, run_python

PAGE = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
HERE = __name__


def tenant(request: Request) -> str:
    return "tenant"


def ask(record: Any, request: Request) -> Response | None:
    return None


class Orders(IdempotencyMixin, ViewSet):
    idempotency_required = True

    def list(self, request: Request) -> Response:
        return Response()

    def create(self, request: Request) -> Response:
        return Response()

    @action(detail=True, methods=["post", "delete"])
    @idempotent(
        methods=("POST", "DELETE"),
        scope=tenant,
        using="other",
        retention=timedelta(hours=36),
        on_concurrent="wait",
        wait_timeout=timedelta(milliseconds=1500),
    )
    def pay(self, request: Request, pk: str) -> Response:
        return Response()

    @action(detail=False, methods=["post"])
    @idempotency_exempt
    def search(self, request: Request) -> Response:
        return Response()


@api_view(["POST"])
@idempotent(
    atomic=False,
    on_abandoned=ask,
    lease=timedelta(seconds=90),
    scope="tests.test_audit.tenant",
)
def charge(request: Request) -> Response:
    return Response()


@api_view(["GET"])
def drf_get(request: Request) -> Response:
    return Response()


@api_view(["POST"])
def bare(request: Request) -> Response:
    return Response()


def django_function(request: HttpRequest, **kwargs: Any) -> HttpResponse:
    return HttpResponse()


class Answering:
    def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


class Form(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


router = DefaultRouter()
router.register("orders", Orders, basename="order")
shop = ([path("v1/", include(router.urls)), path("charge", charge, name="charge")], "s")
urlpatterns = [
    path("shop/", include(shop, namespace="shop")),
    re_path(r"^archive/(?P<year>[0-9]{4})/$", django_function),
    path("get", drf_get),
    path("partial", partial(partial(django_function, a=1), b=2)),
    path("called", Answering()),
    path("form", Form.as_view()),
    path("bare", bare),
    path("form/get", Form.as_view(http_method_names=["get"])),
    path("require/get", csrf_exempt(require_GET(django_function))),
    path("require/post", csrf_exempt(require_POST(django_function))),
    path("require/both", require_GET(require_http_methods(["POST"])(django_function))),
]


@pytest.fixture(autouse=True)
def urlconf(settings: Any) -> Iterator[None]:
    settings.ROOT_URLCONF = __name__
    clear_url_caches()
    yield
    clear_url_caches()


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command("idempotency_audit", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def found() -> dict[tuple[str, str], Finding]:
    return {(each.method, each.route.path): each for each in audit()}


def test_every_post_route_once() -> None:
    """Includes, routers, actions and Django's own views, as the URLconf goes."""
    assert list(found()) == [
        ("POST", "/shop/v1/orders/"),
        ("POST", "/shop/v1/orders/search/"),
        ("POST", "/shop/v1/orders/<pk>/pay/"),
        ("DELETE", "/shop/v1/orders/<pk>/pay/"),
        ("POST", "/shop/charge"),
        ("POST", "/archive/<year>/"),
        ("POST", "/partial"),
        ("POST", "/called"),
        ("POST", "/form"),
        ("POST", "/bare"),
        ("POST", "/require/post"),
    ]
    assert len(audit()) == len(found())


def test_one_view_at_two_addresses(settings: Any) -> None:
    """Only the suffix for a format makes no route of its own."""
    view = Form.as_view()
    settings.ROOT_URLCONF = (path("old", view), path("new", view))
    assert list(found()) == [("POST", "/old"), ("POST", "/new")]


def test_views_and_names() -> None:
    """The dotted name of what answers, and the route's with its namespaces."""
    told = {path: (each.route.name, each.view) for (_, path), each in found().items()}
    assert told == {
        "/shop/v1/orders/": ("shop:order-list", f"{HERE}.Orders.create"),
        "/shop/v1/orders/search/": ("shop:order-search", f"{HERE}.Orders.search"),
        "/shop/v1/orders/<pk>/pay/": ("shop:order-pay", f"{HERE}.Orders.pay"),
        "/shop/charge": ("shop:charge", f"{HERE}.charge"),
        "/archive/<year>/": (None, f"{HERE}.django_function"),
        "/partial": (None, f"{HERE}.django_function"),
        "/called": (None, f"{HERE}.Answering"),
        "/form": (None, f"{HERE}.Form"),
        "/bare": (None, f"{HERE}.bare"),
        "/require/post": (None, f"{HERE}.django_function"),
    }


ROWS = {
    "/shop/v1/orders/": ("mixin", "atomic", "default", "key required, kept 30d"),
    "/shop/v1/orders/search/": ("exempt", "-", "-", "-"),
    "/shop/v1/orders/<pk>/pay/": (
        "decorator",
        "atomic",
        f"{HERE}.tenant",
        "key required, kept 36h, in other, waits 1.5s",
    ),
    "/shop/charge": (
        "decorator",
        "leased",
        f"{HERE}.tenant",
        f"key optional, kept 30d, lease 90s, abandoned: {HERE}.ask",
    ),
    "/form": ("none", "-", "-", "-"),
}


@pytest.mark.parametrize(("address", "row"), ROWS.items(), ids=ROWS)
def test_how_it_is_protected(address: str, row: tuple[str, ...]) -> None:
    """Protection, mode, scope and policy, each in its column."""
    assert found()["POST", address].as_row()[2:-1] == row


@pytest.mark.parametrize("is_protected", [False, True])
def test_credentials(settings: Any, is_protected: bool) -> None:
    """Logins of well-known packages are marked, protected or not."""

    class Login(ObtainAuthToken):
        """One of the project's own."""

    if is_protected:
        Login.post = idempotent(Login.post)  # type: ignore[method-assign]  # as a project does
    policy = "key optional, kept 30d, leave out: credentials"
    settings.ROOT_URLCONF = (path("in", Login.as_view()), path("form", Form.as_view()))
    login, form = audit()
    assert login.as_row()[-2] == (policy if is_protected else "leave out: credentials")
    assert form.as_row()[-2] == "-"
    assert [each.as_json()["credentials"] for each in (login, form)] == [True, False]


# What is listed: undecided, decided, and of other kinds.
UNDECIDED = ["/bare"]
DECIDED = [
    "/shop/v1/orders/",
    "/shop/v1/orders/search/",
    "/shop/v1/orders/<pk>/pay/",
    "/shop/v1/orders/<pk>/pay/",
    "/shop/charge",
]
OTHERS = ["/archive/<year>/", "/partial", "/called", "/form", "/require/post"]


def test_table() -> None:
    """Columns below their heads, and how many there are of each kind."""
    head, *rows, summary, more = run()[0].splitlines()
    assert summary == "4 protected, 1 exempt, 1 not protected"
    assert more == "--all lists 5 more, of other kinds"
    listed = news(audit(), all_kinds=False)
    assert [each.route.path for each in listed] == [*UNDECIDED, *DECIDED]
    for row, finding in zip(rows, listed, strict=True):
        cells = (row[head.index(name) :].split("  ")[0] for name in head.split())
        assert tuple(cells) == finding.as_row()


def test_all() -> None:
    """The admin and the like come last, where they are asked for."""
    head, *rows, summary = run("--all")[0].splitlines()
    assert summary == "4 protected, 1 exempt, 6 not protected"
    paths = [row[head.index("PATH") :].split("  ")[0] for row in rows]
    assert paths == [*UNDECIDED, *DECIDED, *OTHERS]
    told = json.loads(run("--all", "--format", "json")[0])["routes"]
    assert [each["path"] for each in told] == paths


class DecoratedForm(Form):
    @method_decorator(idempotent(required=True))
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


class MixedForm(IdempotencyMixin, Form):
    idempotency_atomic = False
    idempotency_on_abandoned = "hold"
    idempotency_scope = tenant


def complete(steps: Any) -> HttpResponse:
    return HttpResponse()


class ResumedForm(IdempotencyMixin, Form):
    idempotency_atomic = False
    idempotency_on_abandoned = "resume"
    idempotency_completer = complete


class ExemptForm(Form):
    @idempotency_exempt
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


RESUMED: dict[str, Any] = {"atomic": False, "on_abandoned": "resume"}
OPTIONAL, REQUIRED = ("key optional, kept 30d", "key required, kept 30d")
LEASED = f"{OPTIONAL}, lease 1m, abandoned: hold"
EACH_WAY: dict[str, tuple[Any, tuple[str, ...]]] = {
    "function": (
        require_POST(idempotent(django_function)),
        ("decorator", "atomic", "default", OPTIONAL, f"{HERE}.django_function"),
    ),
    "method": (
        DecoratedForm.as_view(),
        ("decorator", "atomic", "default", REQUIRED, f"{HERE}.DecoratedForm"),
    ),
    "mixin": (
        MixedForm.as_view(),
        ("mixin", "leased", f"{HERE}.tenant", LEASED, f"{HERE}.MixedForm"),
    ),
    "resumed": (
        ResumedForm.as_view(),
        (
            *("mixin", "leased", "default"),
            f"{OPTIONAL}, lease 1m, abandoned: resume, completer: {HERE}.complete",
            f"{HERE}.ResumedForm",
        ),
    ),
    "routed": (
        protected([path("", bare)], required=True)[0].callback,
        ("routing", "atomic", "default", REQUIRED, f"{HERE}.bare"),
    ),
    "exempt": (
        ExemptForm.as_view(),
        ("exempt", "-", "-", "-", f"{HERE}.ExemptForm"),
    ),
}


def test_plain_views(settings: Any) -> None:
    """Plain Django views are listed if they are protected, others with --all."""
    settings.ROOT_URLCONF = (
        path("form", Form.as_view()),
        path("page", django_function),
        *(path(where, view) for where, (view, _row) in EACH_WAY.items()),
    )
    listed = news(audit(), all_kinds=False)
    assert {each.route.path[1:]: each.as_row()[2:] for each in listed} == {
        where: row for where, (_view, row) in EACH_WAY.items()
    }
    assert run("--fail-unprotected")[0].splitlines()[-2:] == [
        "5 protected, 1 exempt, 0 not protected",
        "--all lists 2 more, of other kinds",
    ]
    with pytest.raises(CommandError, match=r"^Not protected: /form, /page$"):
        run("--fail-unprotected", "--all")


def test_json() -> None:
    """Each line as an object, durations in seconds, without what means nothing."""
    told = json.loads(run("--format", "json")[0])
    assert told["enabled"] is True
    assert [each["path"] for each in told["routes"]] == [*UNDECIDED, *DECIDED]
    routes = {(each["method"], each["path"]): each for each in told["routes"]}
    assert routes["DELETE", "/shop/v1/orders/<pk>/pay/"]["policy"] == {
        "required": True,
        "retention": 129600.0,
        "using": "other",
        "released_statuses": [
            *(400, 401, 403, 404, 409, 412, 422, 423, 425, 428, 429),
        ],
        "store": True,
        "check_replay": None,
        "on_concurrent": "wait",
        "wait_timeout": 1.5,
    }
    charged = routes["POST", "/shop/charge"]
    assert charged["mode"] == "leased"
    assert charged["scope"] == f"{HERE}.tenant"
    assert charged["policy"]["lease"] == 90.0
    assert charged["policy"]["on_abandoned"] == f"{HERE}.ask"
    assert charged["policy"]["completer"] is None
    assert routes["POST", "/bare"] == {
        "method": "POST",
        "path": "/bare",
        "name": None,
        "view": f"{HERE}.bare",
        "via": "none",
        "credentials": False,
    }


def test_completer_as_json(settings: Any) -> None:
    """E17: Programs also see which function completes an endpoint's requests."""
    by_path = {**RESUMED, "completer": "tests.test_audit.complete"}
    settings.ROOT_URLCONF = (
        path("by-path", idempotent(**by_path)(django_function)),
        path("by-class", ResumedForm.as_view()),
    )
    for each in json.loads(run("--format", "json")[0])["routes"]:
        assert each["policy"]["completer"] == f"{HERE}.complete"


@pytest.mark.parametrize(
    ("pattern", "excluded"),
    [
        ("/form", 1),
        ("/shop/*", 5),
        ("shop:order-*", 4),
        (f"{HERE}.Orders.*", 4),
        ("/shop/v1/orders/<[!q]k>/pay?", 2),
        ("*", 11),
        # Not the whole of it, or other capitals.
        ("form", 0),
        ("order-*", 0),
        ("/Form", 0),
    ],
)
def test_exclude(pattern: str, excluded: int) -> None:
    """A shell pattern that fits the whole of path, name or view."""
    told, note = run("--all", "--exclude", pattern, "--format", "json")
    assert 11 - len(json.loads(told)["routes"]) == excluded
    assert note == (
        "" if excluded else f"Note: --exclude {pattern!r} matches no route.\n"
    )


def test_a_pattern_that_fits_nothing_is_a_note() -> None:
    """It is no error: no colour, and the command succeeds."""
    err = StringIO()
    arguments = ["--exclude", "/gone/*", "--exclude", "/bare", "--exclude", "/form"]
    call_command(
        *("idempotency_audit", "--fail-unprotected", *arguments),
        stdout=StringIO(),
        stderr=err,
        force_color=True,
    )
    # What is not listed without --all is known all the same.
    assert err.getvalue() == "Note: --exclude '/gone/*' matches no route.\n"


def test_fail_unprotected() -> None:
    """Fail while one is left that is neither protected nor exempt, naming it."""
    excludes = ["--exclude", "/archive/*", "--exclude", "/[pcr]*"]
    with pytest.raises(CommandError, match=r"^Not protected: /bare$") as refusal:
        run("--fail-unprotected")
    assert refusal.value.returncode == 1
    with pytest.raises(CommandError, match=r"^Not protected: /bare, /form$"):
        run("--fail-unprotected", "--all", *excludes)
    told, _ = run("--fail-unprotected", "--exclude", "/bare")
    assert "\n4 protected, 1 exempt, 0 not protected\n" in told


def test_not_enabled(settings: Any) -> None:
    """With the app switched off nothing is protected, and the command fails."""
    settings.IDEMPOTENCY = {"ENABLED": False}
    told, complaint = run("--format", "json")
    assert json.loads(told)["enabled"] is False
    assert complaint == "ENABLED is False: keys have no effect.\n"
    with pytest.raises(CommandError, match="ENABLED"):
        run("--fail-unprotected", "--exclude", "*")


def test_a_project_without_addresses(settings: Any) -> None:
    """Nothing to list is no error."""
    settings.ROOT_URLCONF = None
    assert find_routes() == []
    assert run()[0].endswith("\n0 protected, 0 exempt, 0 not protected\n")


@pytest.mark.usefixtures("database")
@once
def test_the_example_of_the_page() -> None:
    """docs/audit.md shows what the demo project says."""
    (example,) = re.findall(r"```console\n\$ python (.*)\n((?:.+\n)+)```", PAGE)
    command, output = example
    own = {"DJANGO_SETTINGS_MODULE": "testproject.settings"}
    done = run_python(*command.replace("'", "").split(), **own)
    # How many the admin has is Django's to say.
    told, shown = (
        re.sub(r"\d+ more", "N more", each) for each in (done.stdout, output)
    )
    assert told == shown


def test_the_columns_of_the_page() -> None:
    """Each column is explained."""
    head = run()[0].split("\n", 1)[0].split()
    assert re.findall(r"^\| `([A-Z]+)` \|", PAGE, re.MULTILINE) == head
