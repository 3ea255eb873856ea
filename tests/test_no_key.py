"""What a request without a key costs at each way to protect a view: nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection, connections
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.routing import protected
from tests.app.models import Effect

pytestmark = pytest.mark.usefixtures("atomic_requests")

# Python functions of the app, and those that it calls.
MOST_CALLS = 70
# Django applies a decorator anew for each request.
MOST_CALLS_OF_METHOD_DECORATOR = 90
LEASED: Any = {"atomic": False, "on_abandoned": "hold"}


class Desk:
    """What all views do."""

    work: Callable[[], Any]
    seen: list[Any] = []


def work(request: Any) -> Any:
    django_request = getattr(request, "_request", request)
    Desk.seen.append(
        (
            len(connection.atomic_blocks),
            connection.connection is not None,
            django_request._read_started,
        )
    )
    return Desk.work()


def function(request: Any) -> Any:
    return work(request)


class OfDRF(APIView):
    def post(self, request: Any) -> Any:
        return work(request)


class ActionOfDRF(ViewSet):
    def create(self, request: Any) -> Any:
        return work(request)


class OfDjango(View):
    def post(self, request: HttpRequest) -> Any:
        return work(request)


def mixed(view: type, **options: Any) -> Any:
    own = {f"idempotency_{name}": value for name, value in options.items()}
    return type("Mixed", (IdempotencyMixin, view), own)


def decorated(view: Any) -> Any:
    return type("Decorated", (view,), {"post": idempotent(view.post)})


def routed(view: Any) -> Any:
    return protected([path("", view)])[0].callback


POST = {"post": "create"}
# Each protected view, and the same one without the app.
WAYS: dict[str, tuple[Any, Any]] = {
    "mixin": (mixed(OfDRF).as_view(), OfDRF.as_view()),
    "mixin on a ViewSet": (mixed(ActionOfDRF).as_view(POST), ActionOfDRF.as_view(POST)),
    "mixin, leased": (mixed(OfDRF, **LEASED).as_view(), OfDRF.as_view()),
    "function": (
        api_view(["POST"])(idempotent(function)),
        api_view(["POST"])(function),
    ),
    "method": (decorated(OfDRF).as_view(), OfDRF.as_view()),
    "protected()": (routed(OfDRF.as_view()), OfDRF.as_view()),
    "protected() function": (
        routed(api_view(["POST"])(function)),
        api_view(["POST"])(function),
    ),
    "plain function": (idempotent(function), function),
    "plain method": (decorated(OfDjango).as_view(), OfDjango.as_view()),
    "plain method, method_decorator": (
        method_decorator(idempotent, name="post")(
            type("Decorated", (OfDjango,), {})
        ).as_view(),
        OfDjango.as_view(),
    ),
    "plain mixin": (mixed(OfDjango).as_view(), OfDjango.as_view()),
    "plain mixin, leased": (mixed(OfDjango, **LEASED).as_view(), OfDjango.as_view()),
}


@dataclass
class Cost:
    """What one request did."""

    statements: list[str] = field(default_factory=list)
    connections: int = 0
    calls: int = 0


@contextmanager
def counted() -> Iterator[Cost]:
    """Count connections, statements with transaction control, and Python calls."""
    cost = Cost()

    def opened(**kwargs: Any) -> None:
        cost.connections += 1

    def on_event(frame: Any, event: str, argument: Any) -> None:
        cost.calls += event == "call"

    connections.close_all()
    connection.queries_log.clear()
    connection.force_debug_cursor = True
    connection_created.connect(opened)
    sys.setprofile(on_event)
    try:
        yield cost
    finally:
        sys.setprofile(None)
        connection_created.disconnect(opened)
        connection.force_debug_cursor = False
        cost.statements = [each["sql"] for each in connection.queries_log]


def send(settings: Any, view: Any) -> tuple[Any, Cost]:
    """Send the request, and count the calls that are no first-time work."""
    settings.ROOT_URLCONF = (path("", view),)
    calls = []
    for _time in range(5):
        Desk.seen.clear()
        with counted() as cost:
            response = Client().post("/?a=1", "{}", content_type="application/json")
        calls.append(cost.calls)
    cost.calls = min(calls)
    return response, cost


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("acts", [False, True])
def test_cost(settings: Any, atomic_requests: bool, way: str, acts: bool) -> None:
    """K4: Statements, connections, transactions and headers are those of the view."""

    def respond() -> Any:
        if acts:
            Effect.objects.create(note="a")
        kind = HttpResponse if way.startswith("plain") else Response
        return kind("made", status=201)

    Desk.work = staticmethod(respond)
    with_app, without = WAYS[way]
    response, cost = send(settings, with_app)
    seen = [*Desk.seen]
    bare, bare_cost = send(settings, without)
    assert seen == Desk.seen == [(int(atomic_requests), atomic_requests, False)]
    assert cost.connections == bare_cost.connections == int(acts or atomic_requests)
    assert [sql.split()[0] for sql in cost.statements] == [
        sql.split()[0] for sql in bare_cost.statements
    ]
    assert bool(cost.statements) is (acts or atomic_requests)
    decorates = way.endswith("method_decorator")
    most = MOST_CALLS_OF_METHOD_DECORATOR if decorates else MOST_CALLS
    assert cost.calls - bare_cost.calls < most
    assert response.items() == bare.items()
    assert (response.status_code, response.content) == (201, bare.content)
    assert not response.wsgi_request._read_started


@pytest.mark.parametrize("way", WAYS)
def test_response(way: str) -> None:
    """K4: The response is the object that the handler has made, not a wrapper."""
    made = HttpResponse("made")
    Desk.work = staticmethod(lambda: made)
    with_app, _without = WAYS[way]
    assert with_app(RequestFactory().post("/")) is made
