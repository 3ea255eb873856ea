"""The test kit and plain Django views: forms, redirects and CSRF tokens."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.testing import IdempotentClient, assert_idempotent, assert_race_safe
from tests.app.models import Effect

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]


def act(request: HttpRequest) -> HttpResponse:
    """Respond as the client asks."""
    effect = Effect.objects.create(note=request.POST.get("note", ""))
    kind = request.GET.get("kind")
    if kind == "json":
        return JsonResponse({"effect": effect.pk}, status=201)
    if kind == "page":
        return HttpResponse(f"<p>{effect.pk}</p>")
    return HttpResponseRedirect(f"/done/{effect.pk}/")


@idempotent
def function(request: HttpRequest) -> Any:
    return act(request)


@transaction.non_atomic_requests
@idempotent(atomic=False, on_abandoned="hold")
def leased(request: HttpRequest) -> Any:
    return act(request)


class Method(View):
    @method_decorator(idempotent)
    def post(self, request: HttpRequest) -> Any:
        return act(request)


class Mixed(IdempotencyMixin, View):
    def post(self, request: HttpRequest) -> Any:
        return act(request)


def unprotected(request: HttpRequest) -> Any:
    return act(request)


def done(request: HttpRequest, pk: int) -> HttpResponse:
    return HttpResponse("done")


urlpatterns = [
    path("function/", function),
    path("leased/", leased),
    path("method/", Method.as_view()),
    path("mixed/", Mixed.as_view()),
    path("unprotected/", unprotected),
    path("done/<int:pk>/", done),
]
WAYS = ["function", "leased", "method", "mixed"]


@pytest.fixture(params=[False, True], ids=["without CSRF checks", "with CSRF checks"])
def browser(request: Any, settings: Any) -> Client:
    """Return a client that has the CSRF cookie, as after a GET."""
    csrf = "django.middleware.csrf.CsrfViewMiddleware"
    settings.MIDDLEWARE = [csrf, *settings.MIDDLEWARE]
    client = Client(enforce_csrf_checks=request.param)
    client.cookies[settings.CSRF_COOKIE_NAME] = TOKEN
    return client


TOKEN = "a" * 32
FORM = {"note": "a", "csrfmiddlewaretoken": TOKEN}


@pytest.mark.parametrize("kind", ["redirect", "page", "json"])
@pytest.mark.parametrize("way", WAYS)
def test_forms(browser: Client, way: str, kind: str) -> None:
    """R2: A form acts once, whatever it gets; its CSRF token is no other content."""
    response = assert_idempotent(browser, "post", f"/{way}/?kind={kind}", FORM)
    assert response.status_code == {"redirect": 302, "page": 200, "json": 201}[kind]
    # In leased mode there is one of the attempt that failed, too.
    assert Effect.objects.count() == 1 + (way == "leased")


@pytest.mark.parametrize("way", WAYS)
def test_races(browser: Client, way: str) -> None:
    """E3: Forms that are sent at once act once; only the tests have two effects."""
    response = assert_race_safe(browser, "post", f"/{way}/", FORM, duplicates=3)
    assert response.status_code == 302
    assert Effect.objects.count() == 2


def test_unprotected(browser: Client) -> None:
    with pytest.raises(AssertionError, match=r"got no replay, but 302"):
        assert_idempotent(browser, "post", "/unprotected/", FORM)


@pytest.mark.parametrize("check", [assert_idempotent, assert_race_safe])
def test_followed_redirects(browser: Client, check: Any) -> None:
    """The page behind the redirect would hide what the duplicate got."""
    with pytest.raises(ValueError, match=r"Leave out follow=True"):
        check(browser, "post", "/function/", FORM, follow=True)
    assert Effect.objects.count() == 0
    assert check(browser, "post", "/function/", FORM, follow=False).url


@pytest.mark.parametrize("way", WAYS)
def test_client(way: str) -> None:
    """The client sends forms and repeats them, with their files."""
    client = IdempotentClient()
    first = client.post(f"/{way}/", {"note": "a"}, format="multipart")
    assert client.retry().url == first.url
    assert [*Effect.objects.values_list("note", flat=True)] == ["a"]
    assert IdempotencyRecord.objects.get().key == client.last_key
