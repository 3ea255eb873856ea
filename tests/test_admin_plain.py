"""The admin shows records of plain Django views and of ``protected()`` views."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.test import Client
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.routing import protected
from tests.app import views
from tests.conftest import key
from tests.support.admin_pages import (
    EVERYTHING,
    LIST,
    SEE_BODY,
    VIEW,
    Enter,
    Page,
    address,
)
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

MARKUP = "<h1>Paid</h1><script>window.ran = true</script>"


@idempotent
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(MARKUP)


class Redirects(View):
    @method_decorator(idempotent)
    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        return HttpResponseRedirect(f"/paid/{pk}/")


def ask(record: Any, request: HttpRequest) -> HttpResponse | None:
    return HttpResponse("found")


class Fails(IdempotencyMixin, View):
    idempotency_atomic = False
    idempotency_on_abandoned = ask

    def post(self, request: HttpRequest) -> HttpResponse:
        raise RuntimeError


@transaction.non_atomic_requests
@idempotent(atomic=False, on_abandoned="rerun")
def fails(request: HttpRequest) -> HttpResponse:
    raise RuntimeError


LEASED: Any = {"atomic": False, "on_abandoned": "rerun"}
routed = protected([path("fails/", views.PlainView.as_view())], **LEASED)

urlpatterns = [
    path("page/", page),
    path("redirects/<int:pk>/", Redirects.as_view()),
    path("mixin/", Fails.as_view()),
    path("function/", fails),
    path("routed/", include(routed)),
    *usual_urls,
]


def record_of(url: str) -> Any:
    Client(raise_request_exception=False).post(url, **key())
    return IdempotencyRecord.objects.get()


def test_page(enter: Enter) -> None:
    """A1: A page is shown as its source, and nothing in it becomes markup."""
    shown = Page(enter(VIEW, SEE_BODY).get(address(record_of("/page/"))))
    assert shown.is_harmless()
    assert MARKUP in shown.text
    assert "Content-Type: text/html; charset=utf-8" in shown.text
    assert f"{len(MARKUP)} bytes" in shown.text
    assert "POST /page/" in shown.text


def test_redirect(enter: Enter) -> None:
    """A1: A redirect is shown with its address; others see the route alone."""
    record = record_of("/redirects/7/")
    shown = Page(enter(VIEW, SEE_BODY).get(address(record)))
    assert "Location: /paid/7/" in shown.text
    assert "with status 302" in shown.text
    assert "POST /redirects/7/" in shown.text
    shown = Page(enter(VIEW).get(address(record)))
    assert "/paid/7/" not in shown.text
    assert "/redirects/<int:pk>/" in shown.text
    assert "302" in Page(enter(VIEW).get(LIST)).cells[-2]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/mixin/", f"calls {__name__}.ask (on_abandoned)"),
        ("/function/", "runs the handler again (on_abandoned)"),
        ("/routed/fails/", "runs the handler again (on_abandoned)"),
    ],
)
def test_abandoned(enter: Enter, handle: Any, url: str, said: str) -> None:
    """A1, E9: The page says what the next request does, by the endpoint's option."""

    def handler(request: Any) -> Any:
        raise RuntimeError

    handle(handler)
    shown = Page(enter(VIEW, SEE_BODY).get(address(record_of(url))))
    assert said in shown.text


def test_resolved(enter: Enter) -> None:
    """A3: Staff store the response that a plain view's client gets."""
    record = record_of("/function/")
    client = enter(*EVERYTHING)
    form = {
        "status_code": 201,
        "content_type": "text/html",
        "body": "<p>Paid</p>",
        "token": record.token,
    }
    assert client.post(address(record, "resolve"), form).status_code == 302
    again = Client().post("/function/", **key())
    assert (again.status_code, again.content) == (201, b"<p>Paid</p>")
    assert again["Content-Type"] == "text/html"
