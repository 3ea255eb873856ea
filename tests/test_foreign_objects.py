"""Objects of others around a view: the app reads its own marks, and touches nothing.

Clients of databases and services, proxies and lazy objects stand in classes and in
closures. Some answer to any name, and some act as soon as they are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial, update_wrapper, wraps
from io import StringIO
from types import FunctionType
from typing import Any
from unittest.mock import MagicMock
from xmlrpc.client import ServerProxy

import pytest
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.urls import URLPattern, clear_url_caches, path
from django.urls.resolvers import RoutePattern
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.http import etag
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from rest_framework.decorators import action, api_view
from rest_framework.generics import CreateAPIView
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.audit import audit
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.middleware import IdempotencyMiddleware
from idempotency.mixins import IdempotencyMixin
from idempotency.protection import is_exempt, protection_of
from idempotency.routes import dotted_name
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import key

touched: list[str] = []


def recording(name: str) -> Callable[..., Any]:
    def record(self: Any, *args: Any) -> Any:
        touched.append(f"{name}{args}")
        raise AssertionError(touched)

    return record


WAYS = [
    *("__getattribute__", "__getattr__", "__setattr__", "__dir__", "__repr__"),
    *("__eq__", "__ne__", "__lt__", "__hash__", "__bool__", "__len__", "__index__"),
    *("__iter__", "__next__", "__contains__", "__getitem__", "__call__", "__str__"),
    *("__get__", "__set__", "__instancecheck__", "__enter__", "__await__"),
]
# Whatever is done to it is found in the list, also where somebody hides the error.
Touchy: Any = type("Touchy", (), {way: recording(way) for way in WAYS})


class TouchyClass(type):
    """Answers for what its classes have, their names and bases included."""

    __getattribute__ = recording("class")


class ReadByNobody(metaclass=TouchyClass):
    pass


class Held:
    """Such an object, for a class or a closure."""

    @staticmethod
    def by(handler: Any) -> Any:
        """Put a decorator around a handler that holds one, in sight of nobody."""
        held, unbound = Touchy(), None

        def hidden(*args: Any, **kwargs: Any) -> Any:
            return handler(*args, **kwargs) if unbound is None else held

        def later() -> Any:
            return never

        if unbound is not None:
            never = later
        return hidden

    @staticmethod
    def shown(handler: Any) -> Any:
        """Do the same as decorators should."""
        return wraps(handler)(Held.by(handler))


def everybody(request: Request) -> str:
    return "everybody"


class WithMixin(IdempotencyMixin, APIView):
    """Protected by the mixin."""

    client = Touchy()
    model = ReadByNobody
    instance = object.__new__(ReadByNobody)
    idempotency_scope = everybody

    @Held.by
    def post(self, request: Request) -> Any:
        return create_effect(request)

    @Held.shown
    @idempotent(methods=("PUT",), required=True)
    def put(self, request: Request) -> Any:
        return create_effect(request)


class Leased(WithMixin):
    """Protected in leased mode."""

    another = Touchy()
    idempotency_atomic = False
    idempotency_on_abandoned = "hold"


class Generic(IdempotencyMixin, CreateAPIView[Any]):
    """Protected by the mixin, with a handler of Django REST framework's own."""

    client = Touchy()

    @Held.by
    @idempotency_exempt
    @Held.by
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        return create_effect(request)


class Actions(ViewSet):
    """Protected by decorators."""

    client = Touchy()

    @Held.by
    @idempotent
    @Held.by
    def create(self, request: Request) -> Any:
        return create_effect(request)

    @Held.shown
    @action(detail=False, methods=["post"])
    @idempotent
    def pay(self, request: Request) -> Any:
        return create_effect(request)


class Unprotected(APIView):
    """Not protected."""

    client = Touchy()

    @Held.by
    def post(self, request: Request) -> Any:
        return create_effect(request)


@api_view(["POST"])
@Held.by
@idempotent
@Held.by
def function(request: Request) -> Any:
    return create_effect(request)


@api_view(["POST"])
@Held.by
def bare(request: Request) -> Any:
    return create_effect(request)


class Form(View):
    client = Touchy()

    @Held.by
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


@Held.shown
@etag(lambda request: None)
@Held.by
def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def patterns() -> list[Any]:
    """Return the addresses; their views are made here."""
    # Routers would read whatever a ViewSet has, and so they do without the app.
    return [
        path("mixin", WithMixin.as_view()),
        path("leased", Leased.as_view()),
        path("generic", Generic.as_view()),
        path("unprotected", Unprotected.as_view()),
        path("function", function),
        path("bare", bare),
        path("form", Form.as_view()),
        path("plain", plain),
        path("partial", partial(plain)),
        path("actions/", Actions.as_view({"post": "create"})),
        path("actions/pay/", Actions.as_view({"post": "pay"})),
    ]


@pytest.fixture(autouse=True)
def urlconf(settings: Any) -> Iterator[None]:
    settings.ROOT_URLCONF = tuple(patterns())
    clear_url_caches()
    touched.clear()
    yield
    clear_url_caches()
    assert touched == []


def test_as_view() -> None:
    """X2: To make views touches nothing."""
    assert patterns()


@pytest.mark.usefixtures("database")
def test_checks() -> None:
    """X2: The checks don't, either."""
    call_command("check", tags=["idempotency"], stdout=StringIO())


def test_audit() -> None:
    """X2: The audit doesn't, either, and lists the routes."""
    found = {(each.method, each.route.path): each.via for each in audit()}
    assert found == {
        ("POST", "/mixin"): "mixin",
        ("PUT", "/mixin"): "decorator",
        ("POST", "/leased"): "mixin",
        ("PUT", "/leased"): "decorator",
        ("POST", "/generic"): "mixin",
        ("POST", "/unprotected"): "none",
        ("POST", "/function"): "decorator",
        ("POST", "/bare"): "none",
        ("POST", "/form"): "none",
        ("POST", "/plain"): "none",
        ("POST", "/partial"): "none",
        ("POST", "/actions/"): "decorator",
        ("POST", "/actions/pay/"): "decorator",
    }
    call_command("idempotency_audit", stdout=StringIO(), stderr=StringIO())


def test_schema() -> None:
    """X2: The schema doesn't, either, and has the operations."""
    with GENERATOR_STATS.silence():
        generator = SchemaGenerator(patterns=patterns())  # type: ignore[no-untyped-call]
        found = generator.get_schema(public=True)["paths"]
    shown = {at for at in found if "Idempotency" in str(found[at].get("post"))}
    assert shown == {
        "/mixin",
        "/leased",
        "/generic",
        "/function",
        "/actions/",
        "/actions/pay/",
    }


def test_middleware() -> None:
    """X2, K5: The middleware doesn't, either."""
    middleware = IdempotencyMiddleware(lambda request: HttpResponse())
    for pattern in patterns():
        request = RequestFactory().post("/", **key())
        request.resolver_match = pattern.resolve(pattern.pattern._route)
        response = middleware(request)
        is_warned = "IDEMPOTENCY_KEY_UNSUPPORTED" in response.get(
            "Idempotency-Warning", ""
        )
        assert is_warned is (protection_of(pattern.callback, "POST") is None)


@pytest.mark.parametrize("address", ["mixin", "leased", "function", "actions/pay/"])
@pytest.mark.usefixtures("database")
def test_requests(address: str, client: Any) -> None:
    """E1, E6: Requests don't, either: first, retry or without a key."""
    first, retry = (client.post(f"/{address}", {}, **key()) for _ in range(2))
    assert (first.status_code, retry.status_code) == (201, 201)
    assert retry.content == first.content
    assert Effect.objects.count() == 1
    assert client.post(f"/{address}", {}).status_code == 201


# What answers to any name.


def calling_nowhere(proxy: Any) -> type[APIView]:
    class Holding(IdempotencyMixin, APIView):
        client = proxy

        def post(self, request: Request) -> Any:
            return create_effect(request)

    return Holding


@pytest.mark.parametrize(
    "proxy", [ServerProxy("http://127.0.0.1:9/"), MagicMock()], ids=["rpc", "mock"]
)
def test_an_attribute_that_answers_to_any_name(proxy: Any) -> None:
    """E11: It is no leased handler, and is not asked over the network."""
    view: Any = calling_nowhere(proxy).as_view()
    assert not hasattr(view, "_non_atomic_requests")


def test_an_attribute_that_is_made_when_it_is_read() -> None:
    """X2: Properties of a class, and of its metaclass, are not read."""

    class Lazily:
        def __get__(self, instance: Any, owner: Any) -> Any:
            raise AssertionError

    class Holding(IdempotencyMixin, APIView):
        connection = Lazily()

        @cached_property
        def rows(self) -> Any:
            raise AssertionError

        def post(self, request: Request) -> Any:
            return create_effect(request)

    assert protection_of(Holding.as_view(), "POST") is not None


@pytest.mark.usefixtures("database")
def test_a_handler_that_answers_to_any_name() -> None:
    """E6: It is protected by the mixin like any other, neither exempt nor decorated."""

    class Answering(IdempotencyMixin, APIView):
        post = MagicMock(side_effect=lambda *args, **kwargs: create_effect(args[-1]))

    view = Answering.as_view()
    protection = protection_of(view, "POST")
    assert protection is not None
    assert protection.via == "mixin"
    for _ in range(2):
        request = APIRequestFactory().post("/", {}, HTTP_X_USER="ada", **key())
        assert view(request).status_code == 201
    assert Effect.objects.count() == 1


def test_a_view_that_answers_to_any_name(settings: Any) -> None:
    """X2: What the URLconf calls may be anything; it is a view of Django's own kind."""
    settings.ROOT_URLCONF = (
        path("mock", MagicMock()),
        URLPattern(RoutePattern("touchy"), Touchy()),  # path() would ask its class
    )
    assert [(each.via, each.view) for each in audit()] == [
        ("none", "unittest.mock.MagicMock"),
        ("none", f"{__name__}.Touchy"),
    ]
    assert not is_exempt(Touchy(), "POST")


def test_a_view_that_has_actions_of_its_own(settings: Any) -> None:
    """X2: What decorators leave on a view is read on ViewSets alone."""
    view: Any = WithMixin.as_view()
    view.actions = Touchy()
    settings.ROOT_URLCONF = (path("mixin", view),)
    assert {each.via for each in audit()} == {"mixin", "decorator"}


class Scope:
    """A callable that is not to be compared or tested."""

    def __call__(self, request: Request) -> str:
        return "everybody"

    __eq__ = __ne__ = __bool__ = __len__ = __hash__ = recording("scope")  # type: ignore[assignment]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("where", ["view", "decorator", "settings"])
def test_callables_are_called_alone(where: str, settings: Any) -> None:
    """S1: A function that an option names is called for its scope, and no more."""
    scope: Any = Scope()
    if where == "settings":
        settings.IDEMPOTENCY = {"SCOPE": scope}

    class Pay(IdempotencyMixin, APIView):
        if where == "view":
            idempotency_scope = scope

        def post(self, request: Request) -> Any:
            return create_effect(request)

    class Decorated(APIView):
        post = idempotent(scope=scope)(lambda self, request: create_effect(request))

    view = (Decorated if where == "decorator" else Pay).as_view()
    settings.ROOT_URLCONF = (path("pay", view),)
    (finding,) = audit()
    assert finding.as_row()[4] == f"{__name__}.Scope"
    call_command("check", tags=["idempotency"], stdout=StringIO())
    call_command("idempotency_audit", format="json", stdout=StringIO())
    for user in ("ada", "grace"):
        request = APIRequestFactory().post("/", {}, HTTP_X_USER=user, **key())
        assert view(request).status_code == 201
    assert Effect.objects.count() == 1


# Where marks are looked for.


class FunctionWrapper:
    """A transparent proxy as tracers put it around functions, like wrapt's own."""

    def __init__(self, wrapped: Any) -> None:
        self.__wrapped__ = wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return BoundFunctionWrapper(self.__wrapped__.__get__(instance, owner))


class BoundFunctionWrapper(FunctionWrapper):
    """What such a proxy is as a method."""


@pytest.mark.usefixtures("database")
def test_below_a_tracer() -> None:
    """E6: What a tracer has put around views and handlers is looked through."""

    class Traced(IdempotencyMixin, ViewSet):
        @FunctionWrapper
        @idempotent(required=True)
        def create(self, request: Request) -> Any:
            return create_effect(request)

        @FunctionWrapper
        @idempotency_exempt
        def search(self, request: Request) -> Any:
            return create_effect(request)

    create: Any = FunctionWrapper(Traced.as_view({"post": "create"}))
    search: Any = FunctionWrapper(Traced.as_view({"post": "search"}))
    protection = protection_of(create, "POST")
    assert protection is not None
    assert protection.policy.required
    assert is_exempt(search, "POST")
    for _ in range(2):
        request = APIRequestFactory().post("/", {}, HTTP_X_USER="ada", **key())
        assert search(request).status_code == 201
    assert Effect.objects.count() == 2
    refused = create(APIRequestFactory().post("/", {}, HTTP_X_USER="ada"))
    assert refused.status_code == 400


def test_marks_travel_with_a_functions_attributes() -> None:
    """E6: As wraps(), update_wrapper() and method_decorator() copy them."""

    def post(self: Any, request: Request) -> Any:
        raise AssertionError

    protecting = idempotent(required=True)(post)
    ways: dict[str, Any] = {
        "itself": protecting,
        "wraps": Held.shown(protecting),
        "partial": update_wrapper(partial(protecting), protecting),
        "partial within": partial(protecting),
        "static": staticmethod(protecting),
    }
    for way, handler in ways.items():
        callback = type("View", (APIView,), {"post": handler}).as_view()  # type: ignore[attr-defined]
        protection = protection_of(callback, "POST")
        assert protection is not None, way
        assert protection.policy.required, way
    decorate = method_decorator(idempotent(required=True), name="post")
    decorated: Any = decorate(type("View", (APIView,), {"post": post}))
    protection = protection_of(decorated.as_view(), "POST")
    assert protection is not None
    assert protection.policy.required


def test_an_exemption_that_nobody_would_see() -> None:
    """X2: The mark is left on functions alone; elsewhere it is refused at import."""

    class Searching:
        def __call__(self, request: Request) -> Any:
            raise AssertionError

    with pytest.raises(TypeError, match=r"and tests\.test_foreign_objects\.test_an"):
        idempotency_exempt(Searching())


def test_names_of_callables() -> None:
    """X2: As the audit and messages have them."""
    assert dotted_name(len) == "builtins.len"
    assert dotted_name(Effect) == "tests.app.models.Effect"
    assert dotted_name(partial(Effect)) == "tests.app.models.Effect"
    assert dotted_name(partial(partial(everybody))) == f"{__name__}.everybody"
    assert dotted_name(Touchy()) == f"{__name__}.Touchy"
    assert isinstance(everybody, FunctionType)
