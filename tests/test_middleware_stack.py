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
from rest_framework.exceptions import MethodNotAllowed, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from tests.conftest import KEY, key
from tests.test_middleware import IGNORED, UNSUPPORTED, warned
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


@api_view(["POST", "GET"])
def turned_off(request: Request) -> Response:
    raise MethodNotAllowed(request.method or "")


@api_view(["PUT", "GET"])
@idempotent(methods=("PUT",))
def turned_off_for_get(request: Request) -> Response:
    raise MethodNotAllowed(request.method or "")


@api_view(["OPTIONS"])
@idempotent
def own_options(request: Request) -> Response:
    return Response({"key": request.idempotency.key})  # type: ignore[attr-defined]  # by this app


@api_view(["POST", "GET", "PUT"])
def failing(request: Request) -> Response:
    raise ValidationError


class Failing(APIView):
    def get(self, request: Request) -> Response:
        raise ValidationError


class TurnedOff(IdempotencyMixin, ViewSet):
    def create(self, request: Request) -> Response:
        raise AssertionError

    def list(self, request: Request) -> Response:
        raise MethodNotAllowed("GET")


class NotListed(IdempotencyMixin, APIView):
    http_method_names = ["post", "options"]

    def get(self, request: Request) -> Response:
        raise AssertionError


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

# What answers no GET, whatever it does with a POST.
NO_GET: dict[str, Any] = {
    **{name: NOT_ALLOWED[name] for name in ("mixin", "method", "action", "function")},
    "turned-off": turned_off,
    "turned-off-for-get": turned_off_for_get,
    "turned-off-viewset": TurnedOff.as_view({"post": "create", "get": "list"}),
    "not-listed": NotListed.as_view(),
}


def found_instead(exc: Exception, context: dict[str, Any]) -> Response:
    """Answer errors as some APIs do: with a status that says nothing."""
    return Response({"error": str(exc)}, status=200)


urlpatterns = [
    *usual_urls,
    *[path(f"405/{name}/", view) for name, view in (NOT_ALLOWED | NO_GET).items()],
    path("own-options/", own_options),
    path("failing/", failing),
    path("failing-class/", Failing.as_view()),
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
    # A test client makes a query of what a GET sends.
    data = [] if method in ("get", "head") else [{"a": 1}]
    yield send(f"{where}?$idempotency={KEY}", *data)
    yield send(where, *data, **key())


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
    """K5: No warning on a URL that does not exist."""
    for response in answers(client, where):
        assert response.status_code == 404
        assert_not_warned(response)


@pytest.mark.parametrize("where", ["/function", "/unprotected", "/405/function"])
def test_append_slash(client: Any, where: str) -> None:
    """K5: No warning on APPEND_SLASH's redirect."""
    for response in answers(client, where):
        assert response.status_code == 301
        assert response["Location"].partition("?")[0] == f"{where}/"
        assert_not_warned(response)


def test_append_slash_while_debugging(client: Any, settings: Any) -> None:
    """K5: No warning on the error that Django raises instead, either."""
    settings.DEBUG = True
    for response in answers(client, "/unprotected"):
        assert response.status_code == 500
        # Its page has the settings, and with them the names of warnings.
        assert "Idempotency-Warning" not in response.headers


@pytest.mark.parametrize("where", ["/function/", "/unprotected/", "/unprotected"])
def test_prepend_www(client: Any, settings: Any, where: str) -> None:
    """K5: No warning on PREPEND_WWW's redirect."""
    settings.PREPEND_WWW = True
    for response in answers(client, where):
        assert response.status_code == 301
        assert response["Location"].startswith("http://www.testserver/")
        assert_not_warned(response)


def test_localized(client: Any) -> None:
    """K5: No warning on a redirect to the URL in the client's language."""
    for response in answers(client, "/localized/"):
        assert response.status_code == 302
        assert_not_warned(response)


@pytest.mark.parametrize(
    "where",
    [
        "/unprotected/",
        "/405/plain/",
        "/function/",
        "/mixin-view/",
        "/mixin-viewset/",
        "/method/",
        "/action/",
    ],
)
def test_options(client: Any, where: str) -> None:
    """K5: OPTIONS asks what there is, and acts on nothing."""
    for response in answers(client, where, "options"):
        assert response.status_code == 200
        assert_not_warned(response)


def test_options_of_a_decorated_function(client: Any) -> None:
    """K5: No warning on OPTIONS that a protected function handles itself."""
    for response in answers(client, "/own-options/", "options"):
        assert response.json() == {"key": None}
        assert_not_warned(response)


@pytest.mark.parametrize("name", NO_GET)
def test_method_not_allowed_but_post(client: Any, name: str) -> None:
    """K5: A 405 to another method acts on nothing either."""
    for response in answers(client, f"/405/{name}/", "get"):
        assert response.status_code == 405
        assert_not_warned(response)


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *[("post", f"/405/{name}/") for name in ("mixin", "mixin-viewset")],
        *[("post", f"/405/{name}/") for name in ("method", "action", "function")],
        *[("get", f"/405/{name}/") for name in ("mixin", "method", "action")],
        *[("get", f"/405/{name}/") for name in ("function", "not-listed")],
    ],
)
def test_method_not_allowed_in_other_words(
    client: Any, settings: Any, method: str, where: str
) -> None:
    """K5: No warning on a 405 to which EXCEPTION_HANDLER gives another status."""
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": f"{__name__}.found_instead",
    }
    for response in answers(client, where, method):
        assert response.status_code == 200
        assert "not allowed" in response.json()["error"]
        assert_not_warned(response)


@pytest.mark.parametrize(
    ("method", "where", "code"),
    [
        ("post", "/failing/", UNSUPPORTED),
        ("get", "/failing/", IGNORED),
        ("put", "/failing/", IGNORED),
        ("get", "/failing-class/", IGNORED),
        ("head", "/failing-class/", IGNORED),
    ],
)
def test_errors_in_other_words(
    client: Any, settings: Any, method: str, where: str, code: str
) -> None:
    """K5: What a handler ran into is warned about in any words."""
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": f"{__name__}.found_instead",
    }
    for response in answers(client, where, method):
        assert response.status_code == 200
        assert warned(response) == code


@pytest.mark.parametrize(
    ("where", "status"),
    [("/unprotected/", 201), ("/found/", 302), ("/missing/", 404)],
)
def test_a_handler_that_ran(client: Any, where: str, status: int) -> None:
    """K5: Whatever a handler answers, a retry of its POST can act again."""
    for response in answers(client, where):
        assert response.status_code == status
        assert response["Idempotency-Warning"].startswith(f"{UNSUPPORTED};")
