"""System checks know plain Django views, and those of ``protected()``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.checks import (
    check_callers,
    check_databases,
    check_endpoints,
    check_leased_views,
    check_methods,
    check_reading,
    check_views_without_the_mixin,
)
from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.routing import protected
from tests.conftest import once
from tests.test_project_checks import HasApiKey, NoTable, Project, project, urlconf

__all__ = ["project", "urlconf"]
pytestmark = once

LEASED: Any = {"atomic": False, "on_abandoned": "hold"}
HOUR = timedelta(hours=1)
NOWHERE = f"{__name__}.nowhere"
OPT_OUT = transaction.non_atomic_requests


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


class Form(View):
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


class Mixed(IdempotencyMixin, Form):
    idempotency_store = NOWHERE


class WithOption(Form):
    idempotency_required = True


class Put(View):
    @method_decorator(idempotent)
    def put(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


@method_decorator(idempotent, name="post")
class WithHook(Form):
    def should_store_response(self, response: HttpResponse) -> bool:
        return False


class OfPackage(APIView):
    authentication_classes = ()
    permission_classes = (HasApiKey,)

    def get(self, request: Request) -> Response:
        return Response()

    def post(self, request: Request) -> Response:
        return Response()


def form(**options: Any) -> Any:
    """Return a class-based view with a decorated method."""
    cls: Any = type("Decorated", (Form,), {"__module__": __name__})
    cls.post = method_decorator(idempotent(**options))(Form.post)
    return cls


def routed(**options: Any) -> Any:
    return protected([path("", OfPackage.as_view())], **options)[0].callback


put = require_http_methods(["PUT"])
MISTAKES: list[tuple[str, Any, Any]] = [
    ("E005", check_leased_views, csrf_exempt(idempotent(**LEASED)(page))),
    ("E005", check_leased_views, form(**LEASED).as_view()),
    ("E007", check_endpoints, idempotent(**LEASED, retention=HOUR)(page)),
    ("E007", check_endpoints, form(**LEASED, retention=HOUR).as_view()),
    ("E007", check_endpoints, routed(**LEASED, retention=HOUR)),
    ("E008", check_endpoints, idempotent(scope=NOWHERE)(page)),
    ("E008", check_endpoints, form(check_replay=NOWHERE).as_view()),
    ("E008", check_endpoints, Mixed.as_view()),
    ("E008", check_endpoints, routed(scope=NOWHERE)),
    ("E009", check_databases, idempotent(using="other")(page)),
    ("E009", check_databases, routed(using="other")),
    ("E011", check_views_without_the_mixin, WithOption.as_view()),
    ("E011", check_views_without_the_mixin, WithHook.as_view()),
    ("W008", check_methods, put(idempotent(page))),
    ("W008", check_methods, csrf_exempt(idempotent(put(page)))),
    ("W008", check_methods, Put.as_view()),
    ("W010", check_callers, routed()),
    ("W011", check_reading, require_GET(idempotent(methods=("GET",))(page))),
    ("W011", check_reading, routed(methods=("GET",), scope=NOWHERE)),
]


@pytest.fixture
def at_work(project: Project) -> Project:
    """A project under ATOMIC_REQUESTS, whose leases are long."""
    project.atomic_requests()
    project.settings.DATABASE_ROUTERS = [NoTable()]
    project.settings.IDEMPOTENCY = {"LEASE": 2 * HOUR}
    return project


@pytest.mark.parametrize(("check_id", "check", "callback"), MISTAKES)
def test_mistakes(at_work: Project, check_id: str, check: Any, callback: Any) -> None:
    """X2: Each mistake is found once, however many routes the view has."""
    at_work.urls(callback)
    (message,) = (each for each in check() if each.id == f"idempotency.{check_id}")
    # E009 names the database.
    assert f"{__name__}." in message.msg or check_id == "E009"
    assert "@api_view" not in message.hint


@pytest.mark.parametrize(
    "callback",
    [
        csrf_exempt(OPT_OUT(idempotent(**LEASED)(page))),
        method_decorator(OPT_OUT, name="dispatch")(form(**LEASED)).as_view(),
        routed(**LEASED),
        require_http_methods(["POST", "PUT"])(idempotent(page)),
    ],
)
def test_no_mistake(at_work: Project, callback: Any) -> None:
    """X2: A leased view that is opted out is right, and so is one that answers POST."""
    at_work.urls(callback)
    assert check_leased_views() == check_methods() == []
