"""Which database has the record: ``using``, routers, and replicas that lag behind."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]


def act_elsewhere(request: Request) -> Response:
    """Act in the other database, and say which transactions are open."""
    Effect.objects.using("other").create()
    if request.data.get("fail"):
        raise RuntimeError
    inside = {alias: connections[alias].in_atomic_block for alias in connections}
    return Response(inside, status=201)


class Elsewhere(IdempotencyMixin, APIView):
    idempotency_using = "other"

    def post(self, request: Request) -> Response:
        return act_elsewhere(request)


class ElsewhereByMethod(APIView):
    @idempotent(using="other")
    def post(self, request: Request) -> Response:
        return act_elsewhere(request)


class Anywhere(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Response:
        return act_elsewhere(request)


urlpatterns = [
    *usual_urls,
    path("elsewhere/", Elsewhere.as_view()),
    path("elsewhere-by-method/", ElsewhereByMethod.as_view()),
    path("anywhere/", Anywhere.as_view()),
]


class WritesToOther:
    """A router that writes records to the other database."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "other" if model is IdempotencyRecord else None


class ReadsFromReplica:
    """A router that reads everything from a replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "other"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.parametrize(
    ("url", "settings_value", "routers"),
    [
        ("/elsewhere/", {}, []),
        ("/elsewhere-by-method/", {}, []),
        ("/anywhere/", {"USING": "other"}, []),
        ("/anywhere/", {}, [f"{__name__}.WritesToOther"]),
    ],
)
def test_the_chosen_database(
    client: Any,
    settings: Any,
    url: str,
    settings_value: dict[str, str],
    routers: list[str],
) -> None:
    """E1: using, USING and the routers decide which database holds all of it."""
    settings.IDEMPOTENCY = settings_value
    settings.DATABASE_ROUTERS = routers
    with CaptureQueriesContext(connections["default"]) as elsewhere:
        assert client.post(url, {"fail": 1}, **key()).status_code == 500
        first = client.post(url, {}, **key())
        retry = client.post(url, {}, **key())
    assert first.data == {"default": False, "other": True}
    assert retry.content == first.content
    assert elsewhere.captured_queries == []
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 1


def test_replicas_are_never_asked(client: Any, settings: Any) -> None:
    """E1: The app never reads from a replica, which may lag."""
    settings.DATABASE_ROUTERS = [f"{__name__}.ReadsFromReplica"]
    with CaptureQueriesContext(connections["other"]) as replica:
        first = client.post("/function/", {}, **key())
        retry = client.post("/function/", {}, **key())
        IdempotencyRecord.objects.purge()
    assert retry.content == first.content
    assert replica.captured_queries == []
