"""What a view says by its ``dispatch`` holds with the mixin as it does without."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
from django.contrib.auth.decorators import login_not_required, login_required
from django.db import connection, transaction
from django.test import Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_control
from django.views.decorators.common import no_append_slash
from django.views.decorators.csrf import csrf_exempt
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import key

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("atomic_requests")]


def custom(function: Any) -> Any:
    """Leave what some middleware of a project looks for."""
    function.audited = True
    return function


DECORATORS: dict[str, Callable[..., Any]] = {
    "non_atomic_requests": transaction.non_atomic_requests,
    "non_atomic_requests elsewhere": transaction.non_atomic_requests(using="other"),
    "no_append_slash": no_append_slash,
    "csrf_exempt": csrf_exempt,
    "login_required": login_required(login_url="/login"),
    "login_not_required": login_not_required,
    "cache_control": cache_control(private=True),
    "custom": custom,
}
LEASED = {"idempotency_atomic": False, "idempotency_on_abandoned": "hold"}


class Durable(APIView):
    """Acts in a transaction of its own, unless a key has opened one."""

    def post(self, request: Request) -> Any:
        with transaction.atomic(durable=not request.headers.get("Idempotency-Key")):
            return create_effect(request)

    def get(self, request: Request) -> Response:
        return Response({"in transaction": connection.in_atomic_block})


class Base(Durable):
    """A project's base class, opted out of ATOMIC_REQUESTS as a whole."""

    @method_decorator(transaction.non_atomic_requests)
    @method_decorator(no_append_slash)
    def dispatch(self, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(*args, **kwargs)


class Protected(IdempotencyMixin, Base):
    pass


class Leased(Protected):
    idempotency_atomic = False
    idempotency_on_abandoned = "hold"


class Looking(IdempotencyMixin, Durable):
    """Leased; its own dispatch looks whether it is in a transaction."""

    idempotency_atomic = False
    idempotency_on_abandoned = "hold"
    seen: list[bool] = []

    def dispatch(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(connection.in_atomic_block)
        return super().dispatch(*args, **kwargs)


class ByKind(IdempotencyMixin, ViewSet):
    """Leased for some requests, as an override of the hook says."""

    asked: list[Any] = []

    def create(self, request: Request, kind: str) -> Any:
        in_transaction = connection.in_atomic_block
        create_effect(request)
        return Response({"in transaction": in_transaction})

    @idempotent(atomic=False, on_abandoned="hold")
    def destroy(self, request: Request, kind: str) -> Any:
        raise AssertionError

    def get_idempotency_options(self) -> dict[str, Any]:
        self.asked.append((self.request.method, self.args, self.action))
        if self.kwargs["kind"] != "outside":
            return {}
        return {"atomic": False, "on_abandoned": "hold"}


opted_out_in_the_urlconf = transaction.non_atomic_requests(
    type("Later", (IdempotencyMixin, Durable), LEASED).as_view()  # type: ignore[attr-defined]
)
urlpatterns = [
    path("base/", Base.as_view()),
    path("protected/", Protected.as_view()),
    path("leased/", Leased.as_view()),
    path("later/", opted_out_in_the_urlconf),
    path("looking/", Looking.as_view()),
    path("by-kind/<kind>/", ByKind.as_view({"post": "create"})),
]


def view_of(*bases: type, **attributes: Any) -> Any:
    return type("View", bases, attributes)


@pytest.mark.parametrize("mode", [{}, LEASED], ids=["atomic", "leased"])
@pytest.mark.parametrize("kind", [APIView, ViewSet])
@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
def test_marks_of_dispatch(decorate: Any, kind: type, mode: dict[str, Any]) -> None:
    """K4: Django, middleware and others find on the view what dispatch says."""

    def dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    base = view_of(kind, dispatch=method_decorator(decorate)(dispatch), post=dispatch)
    actions = ({"post": "post"},) if kind is ViewSet else ()
    without = vars(base.as_view(*actions))
    view = view_of(IdempotencyMixin, base, **mode).as_view(*actions)
    own = {"cls", "view_class", "initkwargs", "view_initkwargs", "__wrapped__"}
    if mode:
        own.add("_non_atomic_requests")
        assert view._non_atomic_requests >= without.get("_non_atomic_requests", set())
    assert {*vars(view)} | own == {*without} | own
    for name in {*without} - own:
        assert vars(view)[name] is without[name]


def test_what_the_mixin_overrides() -> None:
    """K4: Of what others read of a view there is nothing that it hides."""
    of_views = {name for name in dir(ViewSet) if not name.startswith("__")}
    assert {*dir(IdempotencyMixin)} & of_views == {
        *("as_view", "initialize_request", "setup")
    }


@pytest.mark.parametrize("name", ["base", "protected", "leased", "later"])
@pytest.mark.parametrize("headers", [{}, key()], ids=["no key", "key"])
def test_a_durable_block(client: Any, name: str, headers: dict[str, str]) -> None:
    """K4, E11: A view that refuses Django's transaction runs without it."""
    assert client.get(f"/{name}/").json() == {"in transaction": False}
    for _ in range(2):
        assert client.post(f"/{name}/", {}, **headers).status_code == 201
    is_replayed = bool(headers) and name != "base"
    assert Effect.objects.count() == (1 if is_replayed else 2)


@override_settings(MIDDLEWARE=["django.middleware.common.CommonMiddleware"])
@pytest.mark.parametrize("name", ["base", "protected", "leased"])
def test_no_append_slash(name: str) -> None:
    """K4: no_append_slash on a view still holds."""
    for headers in ({}, key()):
        assert Client().get(f"/{name}", **headers).status_code == 404
    assert Client().get("/looking").status_code == 301


def test_around_a_dispatch(client: Any, atomic_requests: bool) -> None:
    """E11: Whatever is not leased has its transaction where Django puts it."""
    Looking.seen.clear()
    client.post("/looking/", {}, **key())
    client.post("/looking/", {}, **key("a, b"))
    client.get("/looking/")
    assert Looking.seen == [False, atomic_requests, atomic_requests]


def test_options_of_a_request(client: Any, atomic_requests: bool) -> None:
    """E11: An override of the hook may look at the request, as it may elsewhere."""
    ByKind.asked.clear()
    inside = client.post("/by-kind/inside/", {}, **key("a" * 8 + "-inside"))
    outside = client.post("/by-kind/outside/", {}, **key("a" * 8 + "-outside"))
    assert inside.json() == {"in transaction": True}
    assert outside.json() == {"in transaction": False}
    assert {*ByKind.asked} == {("POST", (), "create")}


def test_a_handler_is_a_method() -> None:
    """K4: A view's handler stays its method, with signature and attributes."""
    seen = []

    def post(self: Any, request: Request, *, pk: int = 0) -> Response:
        return Response()

    def initial(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((self.post.__self__ is self, signature(self.post), self.post.limit))

    post.limit = 5  # type: ignore[attr-defined]
    base = view_of(APIView, post=post, initial=initial)
    for view in (base, view_of(IdempotencyMixin, base)):
        assert view.as_view()(APIRequestFactory().post("/")).status_code == 200
    assert seen[0] == seen[1]


def test_as_view_of_an_instance() -> None:
    """K4: Where Django REST framework's own can be called, this one can, too."""
    for view in (Durable().as_view(), Protected().as_view(), Leased().as_view()):
        assert view(APIRequestFactory().get("/")).status_code == 200


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("name", ["owner", "name", "hooks"])
def test_attributes_of_its_own(name: str) -> None:
    """S2: A view keeps its hooks, whatever other attributes it has."""

    class Own(IdempotencyMixin, APIView):
        authentication_classes: list[Any] = []

        def post(self, request: Request) -> Response:
            return Response({}, status=201)

        def check_replay(self, request: Request, record: IdempotencyRecord) -> None:
            raise PermissionDenied

    setattr(Own, name, "a project's own")
    statuses = [
        Own.as_view()(APIRequestFactory().post("/", {}, **key())).status_code
        for _time in range(2)
    ]
    assert statuses == [201, 403]
