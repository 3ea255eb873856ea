"""How a handler is protected, as the app sees it without a request."""

from __future__ import annotations

from datetime import timedelta
from functools import wraps
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import generics
from rest_framework.decorators import action, api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.conf.policy import Policy
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.handlers import parts_of
from idempotency.mixins import IdempotencyMixin
from idempotency.protection import is_exempt, protection_of
from idempotency.routing import protected
from tests.app import views


def everybody(request: Request) -> str:
    return "everybody"


def nobody(request: Request) -> str:
    return "nobody"


@extend_schema_view(post=extend_schema(summary="Mine."))
@api_view(["POST"])
@idempotent
def described(request: Request) -> Response:
    return Response()


def routed(view: Any) -> Any:
    (pattern,) = protected([path("", view)])
    return pattern.callback


VIEW_SET = views.MixinViewSet
WAYS: dict[str, tuple[Any, str]] = {
    "mixin on a view": (views.MixinView.as_view(), "mixin"),
    "mixin on a view set": (VIEW_SET.as_view({"post": "create"}), "mixin"),
    "mixin, extra action": (VIEW_SET.as_view({"post": "extra"}), "mixin"),
    "decorated beside the mixin": (VIEW_SET.as_view({"post": "strict"}), "decorator"),
    "function": (views.function, "decorator"),
    "method": (views.MethodView.as_view(), "decorator"),
    "action": (views.ActionViewSet.as_view({"post": "act"}), "decorator"),
    "view of a protected URLconf": (routed(views.PlainView.as_view()), "routing"),
    "function of a protected URLconf": (routed(views.unprotected), "routing"),
    "decorated function of a protected URLconf": (routed(views.function), "decorator"),
    "function below a decorator": (csrf_exempt(views.function), "decorator"),
    "function below its description": (described, "decorator"),
}


@pytest.mark.parametrize(("callback", "via"), WAYS.values(), ids=WAYS)
def test_every_way(callback: Any, via: str) -> None:
    protection = protection_of(callback, "POST")
    assert protection is not None
    assert protection.via == via
    assert protection.policy.atomic
    assert protection.policy.scope is None
    assert not is_exempt(callback, "POST")
    for method in ("GET", "PUT"):
        assert protection_of(callback, method) is None


@extend_schema_view(post=extend_schema(summary="Mine."))
@api_view(["POST"])
@idempotency_exempt
def described_alone(request: Request) -> Response:
    return Response()


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@api_view(["POST"])
@idempotency_exempt
def left_alone(request: Request) -> Response:
    return Response()


UNPROTECTED: dict[str, tuple[Any, bool]] = {
    "Django's own": (plain, False),
    "function": (views.unprotected, False),
    "action of the mixin": (VIEW_SET.as_view({"post": "search"}), True),
    "function, on purpose": (left_alone, True),
    "function below its description, on purpose": (described_alone, True),
    "no handler": (VIEW_SET.as_view({"get": "list"}), False),
}


@pytest.mark.parametrize(("callback", "exempt"), UNPROTECTED.values(), ids=UNPROTECTED)
def test_unprotected(callback: Any, exempt: bool) -> None:
    assert protection_of(callback, "POST") is None
    assert is_exempt(callback, "POST") is exempt


def test_a_decorator_is_stronger_than_an_exemption() -> None:
    """A handler with a decorator and an exemption is protected."""

    @api_view(["POST"])
    @idempotency_exempt
    @idempotent
    def both(request: Request) -> Response:
        return Response()

    assert protection_of(both, "POST") is not None
    assert not is_exempt(both, "POST")


class Generic(generics.ListCreateAPIView, generics.RetrieveUpdateDestroyAPIView):
    """Its handlers are Django REST framework's own; what they call, a project's."""

    @idempotent(retention=timedelta(days=2))
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return Response()

    @idempotent(methods=("PUT", "PATCH"))
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return Response()

    @idempotency_exempt
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return Response()


class GenericWithMixin(IdempotencyMixin, Generic):
    idempotency_required = True


@pytest.mark.parametrize("view", [Generic, GenericWithMixin])
def test_generic_views(view: type[Generic]) -> None:
    """E6: What a generic view's handler hands on to is what is protected."""
    callback = view.as_view()
    for method in ("POST", "PUT", "PATCH"):
        protection = protection_of(callback, method)
        assert protection is not None
        assert protection.via == "decorator"
        assert protection.policy.required == (view is GenericWithMixin)
    assert policy_of(callback).retention == timedelta(days=2)
    assert protection_of(callback, "DELETE") is None
    assert is_exempt(callback, "DELETE")
    assert not is_exempt(callback, "GET")


def policy_of(callback: Any, method: str = "POST") -> Policy:
    protection = protection_of(callback, method)
    assert protection is not None
    return protection.policy


class Options(IdempotencyMixin, ViewSet):
    idempotency_required = True
    idempotency_retention = timedelta(days=1)
    idempotency_scope = everybody

    def create(self, request: Request) -> Response:
        return Response()

    @action(detail=False, methods=["post"], idempotency_required=False)
    def lenient(self, request: Request) -> Response:
        return Response()

    @action(detail=False, methods=["post", "put"])
    @idempotent(methods=("PUT",), retention=timedelta(days=2), scope=nobody)
    def put(self, request: Request) -> Response:
        return Response()


def test_nearest_option_wins(settings: Any) -> None:
    """Settings, then the view, as_view() and @action, then the decorator."""
    settings.IDEMPOTENCY = {"ON_CONCURRENT": "wait", "RETENTION": timedelta(days=3)}
    router = SimpleRouter()
    router.register("options", Options, basename="options")
    routes = {pattern.name: pattern.callback for pattern in router.urls}
    create, lenient, put = (
        routes[f"options-{name}"] for name in ("list", "lenient", "put")
    )
    assert policy_of(views.function).retention == timedelta(days=3)
    assert policy_of(create).on_concurrent == "wait"
    assert policy_of(create).retention == timedelta(days=1)
    assert policy_of(create).required
    assert not policy_of(lenient).required
    assert protection_of(put, "POST") is None
    assert policy_of(put, "PUT").retention == timedelta(days=2)
    assert policy_of(put, "PUT").required


def test_methods_are_those_of_the_view() -> None:
    view = views.MixinView.as_view(idempotency_methods=("GET",))
    assert protection_of(view, "POST") is None
    assert policy_of(view, "GET").methods == ("GET",)


class OwnScope(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Response:
        return Response()

    def get_idempotency_scope(self, request: Request) -> str:
        return "own"


def test_scope(settings: Any) -> None:
    settings.IDEMPOTENCY = {"SCOPE": "tests.test_protection.everybody"}
    create = Options.as_view({"post": "create"})
    put = Options.as_view({"put": "put"})
    view = views.MixinView.as_view(idempotency_scope=nobody)
    expected = [
        (views.function, "POST", "tests.test_protection.everybody"),
        (create, "POST", everybody),
        (put, "PUT", nobody),
        (view, "POST", nobody),
    ]
    for callback, method, scope in expected:
        protection = protection_of(callback, method)
        assert protection is not None
        assert protection.policy.scope == scope
    own = protection_of(OwnScope.as_view(), "POST")
    assert own is not None
    assert getattr(own.policy.scope, "__func__", None) is OwnScope.get_idempotency_scope


def hiding(handler: Any) -> Any:
    """Hide whatever another decorator has left on a handler."""

    def hidden(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return hidden


def showing(handler: Any) -> Any:
    @wraps(handler)
    def shown(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return shown


@pytest.mark.parametrize("decorator", [hiding, showing])
def test_below_another_decorator(decorator: Any) -> None:
    class Decorated(APIView):
        @decorator
        @idempotent(required=True)
        def post(self, request: Request) -> Response:
            return Response()

    assert policy_of(Decorated.as_view()).required


def test_below_many_decorators() -> None:
    """The outermost of several is the one that protects, as when a request comes."""

    class Decorated(APIView):
        @hiding
        @hiding
        @idempotent(required=True)
        @hiding
        @idempotent
        def post(self, request: Request) -> Response:
            return Response()

    assert policy_of(Decorated.as_view()).required


def test_functions_that_hold_each_other() -> None:
    """A handler that calls itself, or holds a name without a value, is looked into."""

    class Recursive(APIView):
        def post(self, request: Request) -> Response:
            return recurse(request) if request.data else later(request)

    def recurse(request: Request) -> Response:
        return recurse(request) if request.data else later(request)

    assert protection_of(Recursive.as_view(), "POST") is None

    def later(request: Request) -> Response:
        return recurse(request)

    assert protection_of(Recursive.as_view(), "POST") is None


def test_the_mixin_does_not_see_what_is_hidden() -> None:
    """E6: Protected once, by the outer one."""

    class Decorated(IdempotencyMixin, APIView):
        @hiding
        @idempotent(required=True)
        def post(self, request: Request) -> Response:
            return Response()

    assert not policy_of(Decorated.as_view()).required


def test_an_exemption_hides_nothing_from_a_decorator() -> None:
    """E6: Where the mixin steps aside, what is hidden protects itself."""

    class Decorated(IdempotencyMixin, APIView):
        @idempotency_exempt
        @hiding
        @idempotent(required=True)
        def post(self, request: Request) -> Response:
            return Response()

    assert policy_of(Decorated.as_view()).required
    assert not is_exempt(Decorated.as_view(), "POST")


def test_options_of_an_action() -> None:
    """An override may look at what the view is made for."""

    class ByAction(IdempotencyMixin, ViewSet):
        def create(self, request: Request) -> Response:
            return Response()

        extra = create

        def get_idempotency_options(self) -> dict[str, Any]:
            return {"required": self.action == "extra" and self.request is None}

    assert not policy_of(ByAction.as_view({"post": "create"})).required
    assert policy_of(ByAction.as_view({"post": "extra"})).required


class Methods(list[str]):
    """A list of the project's own, whose content nobody should ask for early."""


class AnyMethod(APIView):
    http_method_names = Methods(["post"])

    def post(self, request: Request) -> Response:
        return Response()


def test_methods_of_unknown_lists() -> None:
    """K5: Where only a request could tell, a method with a handler is allowed."""
    parts = parts_of(AnyMethod.as_view())
    assert parts is not None
    assert parts.answers("POST")
    assert not parts.answers("PUT")
