"""Views that can't be protected: ``check`` finds them before a client does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction, sync_to_async
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.urls import clear_url_caches, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view
from rest_framework.generics import CreateAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from idempotency.checks import check_decorators
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.mixins import IdempotencyMixin

ID = "idempotency.E013"


@idempotent
def pay(request: Any) -> Any:
    return {"paid": True}


@idempotency_exempt
def search(request: Any) -> Any:
    return HttpResponse()


def hiding(handler: Any) -> Any:
    def hidden(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return hidden


def showing(handler: Any) -> Any:
    return wraps(handler)(hiding(handler))


class Plain(View):
    @hiding
    @idempotent
    def post(self, request: HttpRequest) -> Any:
        return HttpResponse()


@method_decorator(idempotent, name="dispatch")
class PlainDispatched(View):
    def post(self, request: HttpRequest) -> Any:
        raise AssertionError


class Paying:
    @idempotent
    def __call__(self, request: HttpRequest) -> Any:
        return HttpResponse()


@method_decorator(idempotent, name="dispatch")
class Dispatched(APIView):
    def post(self, request: Request) -> Response:
        raise AssertionError


class Performing(IdempotencyMixin, CreateAPIView[Any]):
    @idempotent
    def perform_create(self, serializer: Any) -> None:
        raise AssertionError

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        return self.perform_create(None)


# As Django Ninja has them: a view of today's is a function that holds a PathView, and
# one of earlier releases a method of it.


class Operation:
    def __init__(self, view_func: Any) -> None:
        self.view_func = view_func

    def run(self, request: HttpRequest) -> Any:
        return self.view_func(request)


class PathView:
    def __init__(self, *functions: Any) -> None:
        self.operations = [Operation(function) for function in functions]

    def _sync_view(self, request: HttpRequest) -> Any:
        return self.operations[-1].run(request)

    def get_view(self) -> Any:
        def sync_view_wrapper(request: HttpRequest) -> Any:
            return self._sync_view(request)

        return sync_view_wrapper


PathView.__module__ = Operation.__module__ = "ninja.operation"

PAY = "test_unprotectable_views.pay"
WRONG: dict[str, tuple[Any, str, str]] = {
    "dispatch of a view of Django's": (
        PlainDispatched.as_view(),
        "PlainDispatched.dispatch",
        "not a handler",
    ),
    "dispatch": (Dispatched.as_view(), "Dispatched.dispatch", "not a handler"),
    "no handler": (Performing.as_view(), "Performing.perform_create", "not a handler"),
    "Ninja": (PathView(search, pay).get_view(), PAY, "Django Ninja"),
    "Ninja before 1.3": (PathView(search, pay)._sync_view, PAY, "Ninja"),
}


@pytest.fixture(autouse=True)
def urlconf(settings: Any) -> Iterator[Callable[..., None]]:
    """Give the project the addresses of a test."""

    def route(*views: Any) -> None:
        settings.ROOT_URLCONF = tuple(
            path(f"{number}/", view) for number, view in enumerate(views)
        )
        clear_url_caches()

    yield route
    clear_url_caches()


@pytest.mark.parametrize(("callback", "name", "said"), WRONG.values(), ids=WRONG)
def test_wrong_views(urlconf: Any, callback: Any, name: str, said: str) -> None:
    """X2: E013, what would fail with each request, once for each function."""
    urlconf(callback, callback)
    (message,) = check_decorators()
    assert (message.id, message.level) == (ID, checks.ERROR)
    assert f"{name}, which is" in message.msg
    assert said in f"{message.msg} {message.hint}"
    with pytest.raises(ImproperlyConfigured):
        callback(APIRequestFactory().post("/", {}))


def called(request: Request) -> Response:
    return Response()


class Right(IdempotencyMixin, APIView):
    @idempotent
    def post(self, request: Request) -> Response:
        return self.helper(request)

    @idempotent
    def helper(self, request: Request) -> Response:
        return Response()


@idempotent
def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


RIGHT: dict[str, Any] = {
    "plain function": plain,
    "plain function below a decorator": csrf_exempt(plain),
    "plain function that is hidden": hiding(plain),
    "plain function with arguments": partial(plain),
    "method of a view of Django's": Plain.as_view(),
    "object that is called": Paying(),
    "function": api_view(["POST"])(idempotent(called)),
    "function below its decorators": hiding(
        api_view(["POST"])(showing(idempotent(called)))
    ),
    "method, and one that it calls": Right.as_view(),
    "not decorated": api_view(["POST"])(called),
    "left alone": search,
    "Ninja's own": PathView(search, called).get_view(),
}


@pytest.mark.parametrize("callback", RIGHT.values(), ids=RIGHT)
def test_right_views(urlconf: Any, callback: Any) -> None:
    """X2: What works, or is not decorated, is no mistake."""
    urlconf(callback)
    assert check_decorators() == []
    assert callback(APIRequestFactory().post("/", {})).status_code == 200


def test_without_addresses(settings: Any) -> None:
    """X2: Where nothing is routed, nothing is wrong."""
    settings.ROOT_URLCONF = None
    assert check_decorators() == []


class Awaited:
    async def __call__(self, request: Request) -> Response:
        raise AssertionError


@pytest.mark.parametrize(
    "handler",
    [sync_to_async(called), markcoroutinefunction(hiding(called)), Awaited()],
    ids=["sync_to_async", "marked", "callable"],
)
@pytest.mark.parametrize("decorator", [idempotent, idempotency_exempt])
def test_coroutines_in_disguise(decorator: Any, handler: Any) -> None:
    """X2: What is awaited without ``async def`` is refused at import, too."""
    with pytest.raises(TypeError, match="it is a coroutine"):
        decorator(handler)
    view = type("View", (IdempotencyMixin, APIView), {"post": handler})
    with pytest.raises(TypeError, match="it is a coroutine"):
        view.as_view()  # type: ignore[attr-defined]
