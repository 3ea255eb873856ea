"""No warning of a retry that would act where no handler could: in a project's stack."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import path
from django.views import View
from django.views.decorators.http import require_safe
from rest_framework.decorators import action, api_view
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from tests.conftest import KEY, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("database")]

OWN = "idempotency.middleware.IdempotencyMiddleware"
STACK = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
]
UNSUPPORTED = "IDEMPOTENCY_KEY_UNSUPPORTED"


class WithMixin(IdempotencyMixin, APIView):
    idempotency_methods = ("POST", "PUT")

    def put(self, request: Request) -> Response:
        raise AssertionError


class WithMixinOnViewSet(IdempotencyMixin, ViewSet):
    def list(self, request: Request) -> Response:
        raise AssertionError


class WithMethod(APIView):
    @idempotent(methods=("PUT",))
    def put(self, request: Request) -> Response:
        raise AssertionError


class WithAction(ViewSet):
    @action(detail=False, methods=["put"])
    @idempotent(methods=("PUT",))
    def act(self, request: Request) -> Response:
        raise AssertionError


@api_view(["PUT"])
@idempotent(methods=("PUT",))
def function(request: Request) -> Response:
    raise AssertionError


class Plain(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError


@require_safe
def safe(request: HttpRequest) -> HttpResponse:
    raise AssertionError


@api_view(["POST"])
def turned_off(request: Request) -> Response:
    raise MethodNotAllowed("POST")


def found(request: HttpRequest) -> HttpResponse:
    return redirect("/elsewhere/")


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


NOT_ALLOWED: dict[str, Any] = {
    "mixin": WithMixin.as_view(),
    "mixin-viewset": WithMixinOnViewSet.as_view({"get": "list"}),
    "method": WithMethod.as_view(),
    "action": WithAction.as_view({"put": "act"}),
    "function": function,
    # What nobody protects and does not answer a POST either.
    "plain": Plain.as_view(),
    "safe": safe,
    "turned-off": turned_off,
}

urlpatterns = [
    *usual_urls,
    *[path(f"405/{name}/", view) for name, view in NOT_ALLOWED.items()],
    path("found/", found),
    path("missing/", missing),
    *i18n_patterns(path("localized/", found)),
]


@pytest.fixture(params=["first", "last"], autouse=True)
def stack(request: pytest.FixtureRequest, settings: Any) -> None:
    """Put the middleware before all others, or behind them."""
    settings.MIDDLEWARE = [OWN, *STACK] if request.param == "first" else [*STACK, OWN]
    settings.ALLOWED_HOSTS = ["*"]


def answers(client: Any, where: str, method: str = "post") -> Any:
    """Send a key in the query and in the header, one after the other."""
    send = getattr(client, method)
    yield send(f"{where}?$idempotency={KEY}", {"a": 1})
    yield send(where, {"a": 1}, **key())


def assert_not_warned(response: Any) -> None:
    assert "Idempotency-Warning" not in response.headers
    assert b"IDEMPOTENCY_" not in response.content


@pytest.mark.parametrize("name", NOT_ALLOWED)
def test_method_not_allowed(client: Any, name: str) -> None:
    """K5: A 405 acts on nothing, however often the request comes."""
    for response in answers(client, f"/405/{name}/"):
        assert response.status_code == 405
        assert_not_warned(response)


@pytest.mark.parametrize("where", ["/nowhere/", "/nowhere", "/405/"])
def test_not_found(client: Any, where: str) -> None:
    """K5: Neither does an address that leads nowhere."""
    for response in answers(client, where):
        assert response.status_code == 404
        assert_not_warned(response)


@pytest.mark.parametrize("where", ["/function", "/unprotected", "/405/function"])
def test_append_slash(client: Any, where: str) -> None:
    """K5: Neither does a redirect to the address with its slash."""
    for response in answers(client, where):
        assert response.status_code == 301
        assert response["Location"].partition("?")[0] == f"{where}/"
        assert_not_warned(response)


def test_append_slash_while_debugging(client: Any, settings: Any) -> None:
    """K5: Nor what Django raises in its place."""
    settings.DEBUG = True
    for response in answers(client, "/unprotected"):
        assert response.status_code == 500
        # Its page has the settings, and with them the names of warnings.
        assert "Idempotency-Warning" not in response.headers


@pytest.mark.parametrize("where", ["/function/", "/unprotected/", "/unprotected"])
def test_prepend_www(client: Any, settings: Any, where: str) -> None:
    """K5: Neither does a redirect to the other host."""
    settings.PREPEND_WWW = True
    for response in answers(client, where):
        assert response.status_code == 301
        assert response["Location"].startswith("http://www.testserver/")
        assert_not_warned(response)


def test_localized(client: Any) -> None:
    """K5: Neither does a redirect to the address in the client's language."""
    for response in answers(client, "/localized/"):
        assert response.status_code == 302
        assert_not_warned(response)


@pytest.mark.parametrize("where", ["/unprotected/", "/405/mixin/", "/405/plain/"])
def test_options(client: Any, where: str) -> None:
    """K5: OPTIONS is a method that keys mean nothing on, and acts on nothing."""
    for response in answers(client, where, "options"):
        assert response.status_code == 200
        warning = response["Idempotency-Warning"]
        assert warning.startswith("IDEMPOTENCY_KEY_IGNORED;")


@pytest.mark.parametrize(
    ("where", "status"),
    [("/unprotected/", 201), ("/found/", 302), ("/missing/", 404)],
)
def test_a_handler_that_ran(client: Any, where: str, status: int) -> None:
    """K5: Whatever a handler answers, a retry of its POST can act again."""
    for response in answers(client, where):
        assert response.status_code == status
        assert response["Idempotency-Warning"].startswith(f"{UNSUPPORTED};")
