"""Warnings of keys that no handler saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template import engines
from django.template.response import TemplateResponse
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.views import View
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import (
    action,
    api_view,
    renderer_classes,
)
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from tests.conftest import KEY, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("database")]

IGNORED = "IDEMPOTENCY_KEY_IGNORED"
UNSUPPORTED = "IDEMPOTENCY_KEY_UNSUPPORTED"
QUERY = f"?$idempotency={KEY}"


# Views that the app does not protect.


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def plain_json(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"a": 1})


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


def broken(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"a", b"b"]), content_type="application/json")


def template(request: HttpRequest) -> TemplateResponse:
    source = engines["django"].from_string("{{ a }}")
    return TemplateResponse(request, source, {"a": 1})  # type: ignore[arg-type]


class ClassView(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("class")

    post = get


ANSWERS: dict[str, Any] = {
    "object": {"a": 1},
    "list": [1],
    "text": "a",
    "nothing": None,
    "own warnings": {"$warnings": [{"code": "MINE", "message": "First."}]},
    "own something": {"$warnings": "mine"},
}


@api_view(["GET", "POST"])
def answer(request: Request, name: str) -> Response:
    return Response(ANSWERS[name])


@api_view(["POST"])
def raw(request: Request) -> HttpResponse:
    return HttpResponse('{"a": 1}', content_type="application/json")


class Envelope(JSONRenderer):
    """Reads the warnings, as the demo's envelope does."""

    def render(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        context = kwargs.get("renderer_context") or args[1]
        idempotency = getattr(context["request"], "idempotency", None)
        codes = (
            [warning.code for warning in idempotency.warnings] if idempotency else []
        )
        return json.dumps({"data": data, "codes": codes}).encode()


@api_view(["POST"])
@renderer_classes([Envelope])
def enveloped(request: Request) -> Response:
    return Response({"a": 1})


# Protected views that refuse before their handler is reached.


class Strict(BaseAuthentication):
    def authenticate(self, request: Request) -> None:
        raise AuthenticationFailed

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class Nobody(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return False


class Always(BaseThrottle):
    def allow_request(self, request: Request, view: Any) -> bool:
        return False


def refusing(**attributes: Any) -> dict[str, Any]:
    """Return a view for each way to protect one, with these attributes."""

    class ProtectedView(IdempotencyMixin, APIView):
        def post(self, request: Request) -> Response:
            return Response()

    class ProtectedViewSet(IdempotencyMixin, ViewSet):
        @action(detail=False, methods=["post"])
        def act(self, request: Request) -> Response:
            return Response()

    class WithMethod(APIView):
        @idempotent
        def post(self, request: Request) -> Response:
            return Response()

    class WithAction(ViewSet):
        @action(detail=False, methods=["post"])
        @idempotent
        def act(self, request: Request) -> Response:
            return Response()

    @api_view(["POST"])
    @idempotent
    def function(request: Request) -> Response:
        return Response()

    classes = (ProtectedView, ProtectedViewSet, WithMethod, WithAction, function.cls)
    for view in classes:
        for name, value in attributes.items():
            setattr(view, name, value)
    return {
        "mixin": ProtectedView.as_view(),
        "mixin-action": ProtectedViewSet.as_view({"post": "act"}),
        "method": WithMethod.as_view(),
        "action": WithAction.as_view({"post": "act"}),
        "function": function,
    }


REFUSALS = {
    401: {"authentication_classes": [Strict]},
    403: {"permission_classes": [Nobody]},
    429: {"throttle_classes": [Always]},
}
VIAS = ("mixin", "mixin-action", "method", "action", "function")


class TurnsAllAway(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return False


class ForbiddenPut(APIView):
    permission_classes = [TurnsAllAway]

    @idempotent(methods=("PUT",))
    def put(self, request: Request) -> Response:
        raise AssertionError


urlpatterns = [
    *usual_urls,
    path("forbidden-put/", ForbiddenPut.as_view()),
    path("plain/", plain),
    path("plain-json/", plain_json),
    path("missing/", missing),
    path("broken/", broken),
    path("stream/", stream),
    path("template/", template),
    path("class/", ClassView.as_view()),
    path("answer/<name>/", answer),
    path("raw/", raw),
    path("enveloped/", enveloped),
    *[
        path(f"refusing/{status}/{via}/", view)
        for status, attributes in REFUSALS.items()
        for via, view in refusing(**attributes).items()
    ],
]


def warned(response: Any) -> str | None:
    """Return the code in the header, of which there is one, or None."""
    value = response.get("Idempotency-Warning")
    if value is None:
        return None
    code, _semicolon, message = value.partition(";")
    assert message.startswith('message="')
    assert value.count("IDEMPOTENCY_") == 1
    return str(code)


UNPROTECTED = [
    "/unprotected/",
    "/mixin-viewset/search/",
    "/plain/",
    "/class/",
    "/missing/",
    "/broken/",
    "/stream/",
    "/template/",
    "/answer/list/",
    "/enveloped/",
]


@pytest.mark.parametrize("where", UNPROTECTED)
@pytest.mark.parametrize("sent", ["header", "query"])
def test_unsupported(client: Any, where: str, sent: str) -> None:
    """K5: A POST with a key to what the app does not protect is warned about."""
    bare = client.post(where, {})
    assert warned(bare) is None
    response = client.post(where + QUERY, {}) if sent == "query" else None
    response = response or client.post(where, {}, **key())
    assert warned(response) == UNSUPPORTED
    assert response.status_code == bare.status_code


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("get", "/unprotected/"),
        ("head", "/plain/"),
        ("get", "/plain/"),
        ("delete", "/plain/"),
        ("get", "/stream/"),
        ("get", "/template/"),
        ("get", "/missing/"),
        ("get", "/api/v2/user/classes"),
        # The decorator sees the method that it stands on, and no other.
        ("get", "/method/"),
        # The mixin and a decorated function see every method.
        ("get", "/mixin-view/"),
        ("get", "/mixin-viewset/"),
        ("get", "/function/"),
        ("get", "/routed/view/"),
        ("get", "/routed/function/"),
        ("get", "/plain/function/"),
        ("head", "/plain/function/"),
        ("get", "/plain/view/"),
        ("head", "/plain/view/"),
    ],
)
@pytest.mark.parametrize("sent", ["header", "query"])
def test_ignored(client: Any, method: str, where: str, sent: str) -> None:
    """K5: A key on another method than POST is warned about, once."""
    send: Callable[..., Any] = getattr(client, method)
    bare = send(where)
    response = send(where + QUERY) if sent == "query" else send(where, **key())
    assert warned(bare) is None
    assert warned(response) == IGNORED
    assert response.status_code == bare.status_code


@pytest.mark.parametrize("sent", [{"$idempotency": ""}, {"$idempotency": "é"}])
def test_not_judged(client: Any, sent: dict[str, str]) -> None:
    """K5: An invalid key is no error where keys have no effect."""
    response = client.get("/plain/", sent)
    assert response.status_code == 200
    assert warned(response) == IGNORED


def closed_for_today(get_response: Any) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware that answers by itself."""
    return lambda request: HttpResponse("closed", status=503)


def test_answered_by_another_middleware(client: Any, settings: Any) -> None:
    """K5: No warning if a middleware responds before the URL is resolved."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.closed_for_today"]
    answer = client.post("/function/" + QUERY, {})
    assert answer.status_code == 503
    assert "Idempotency-Warning" not in answer


def test_methods_of_a_decorator(client: Any) -> None:
    """K5: A key that the decorator's own methods name is not called ignored."""
    answer = client.put("/forbidden-put/" + QUERY, {})
    assert answer.status_code == 403
    assert "Idempotency-Warning" not in answer


# Protected endpoints.


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("status", REFUSALS)
def test_protected_but_refused(client: Any, via: str, status: int) -> None:
    """K5, S2: A refusal by a protected view has no warning."""
    for response in (
        client.post(f"/refusing/{status}/{via}/", {}, **key()),
        client.post(f"/refusing/{status}/{via}/{QUERY}", {}),
    ):
        assert response.status_code == status
        assert warned(response) is None
        assert "$warnings" not in response.data


@pytest.mark.parametrize("url", ["/mixin-view/", "/function/", "/method/", "/action/"])
def test_protected_but_not_acceptable(client: Any, url: str) -> None:
    """K5, S2: What a protected view can't answer in is refused as without a key."""
    response = client.post(url, {}, HTTP_ACCEPT="text/csv", **key())
    assert response.status_code == 406
    assert warned(response) is None


@pytest.mark.parametrize(
    "url",
    [
        *("/mixin-view/", "/mixin-viewset/", "/function/", "/method/", "/action/"),
        *("/routed/view/", "/routed/viewset/", "/routed/function/"),
        *("/plain/function/", "/plain/view/", "/plain/method/"),
    ],
)
def test_protected(client: Any, url: str) -> None:
    """K5: First answers, replays and refusals of protected views carry no warning."""
    for data in ({"a": 1}, {"a": 1}, {"a": 2}):
        response = client.post(url + QUERY, data)
        assert warned(response) is None
        assert b"$warnings" not in response.content


# The body.


@pytest.mark.parametrize("method", ["post", "get"])
def test_body(client: Any, method: str) -> None:
    """K7: With the key in the query, the warning is in the body, too."""
    code = UNSUPPORTED if method == "post" else IGNORED
    response = getattr(client, method)("/answer/object/" + QUERY)
    (warning,) = response.json()["$warnings"]
    assert warning["code"] == code
    assert warning["message"].endswith(".")
    assert response.json()["a"] == 1
    assert warning["message"] in response["Idempotency-Warning"]
    # On a copy: the view goes on using its own.
    assert ANSWERS["object"] == {"a": 1}
    assert getattr(client, method)("/answer/object/", **key()).json() == {"a": 1}
    assert getattr(client, method)("/answer/object/").json() == {"a": 1}


def test_body_has_warnings(client: Any) -> None:
    """K7: Warnings of the view's own come first and stay."""
    response = client.post("/answer/own warnings/" + QUERY)
    codes = [warning["code"] for warning in response.json()["$warnings"]]
    assert codes == ["MINE", UNSUPPORTED]
    assert len(ANSWERS["own warnings"]["$warnings"]) == 1


@pytest.mark.parametrize(
    "where",
    [
        "/answer/list/",
        "/answer/text/",
        "/answer/nothing/",
        "/answer/own something/",
        "/plain/",
        "/plain-json/",
        "/raw/",
        "/template/",
    ],
)
def test_body_stays(client: Any, where: str) -> None:
    """K7: A body that is no JSON object of the view's data stays what it is."""
    response = client.post(where + QUERY)
    assert response.content == client.post(where).content
    assert warned(response) == UNSUPPORTED


def test_streaming(client: Any) -> None:
    """K5: A stream is not read for the sake of a warning."""
    response = client.post("/stream/" + QUERY)
    assert warned(response) == UNSUPPORTED
    assert response.streaming
    assert b"".join(response.streaming_content) == b"ab"


def test_envelope(client: Any) -> None:
    """K7: A project's renderer finds the warnings where protected views have them."""
    assert client.post("/enveloped/" + QUERY).json()["codes"] == [UNSUPPORTED]
    assert client.post("/enveloped/", **key()).json()["codes"] == [UNSUPPORTED]


# The settings.


def test_disabled(client: Any, settings: Any) -> None:
    """K5: With ENABLED = False there is no warning."""
    settings.IDEMPOTENCY = {"ENABLED": False}
    for where in ("/unprotected/", "/answer/object/", "/method/", "/plain/"):
        for response in (client.get(where + QUERY), client.get(where, **key())):
            assert warned(response) is None
            assert b"$warnings" not in response.content


@pytest.mark.parametrize("places", [(), ("body",), ("header",), ("body", "header")])
def test_places(client: Any, settings: Any, places: tuple[str, ...]) -> None:
    """K7: WARNINGS says where warnings go."""
    settings.IDEMPOTENCY = {"WARNINGS": places}
    response = client.get("/answer/object/" + QUERY)
    assert (warned(response) is not None) is ("header" in places)
    assert ("$warnings" in response.json()) is ("body" in places)


def test_names(client: Any, settings: Any) -> None:
    """K1, K5: What carries no key by the settings is not warned about."""
    settings.IDEMPOTENCY = {"QUERY_PARAM": "key", "HEADER": None}
    assert warned(client.get("/plain/?key=a")) == IGNORED
    assert warned(client.get("/plain/" + QUERY)) is None
    assert warned(client.get("/plain/", **key())) is None
    settings.IDEMPOTENCY = {"QUERY_PARAM": None, "HEADER": "X-Key"}
    assert warned(client.get("/plain/", HTTP_X_KEY="a")) == IGNORED
    assert warned(client.get("/plain/" + QUERY)) is None


@pytest.mark.parametrize("comes_first", [True, False])
def test_place_in_the_settings(client: Any, settings: Any, comes_first: bool) -> None:
    """K5: The middleware may stand anywhere, and asks the database for nothing."""
    own = ["idempotency.middleware.IdempotencyMiddleware"]
    others = [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.locale.LocaleMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        "django.middleware.common.CommonMiddleware",
    ]
    settings.MIDDLEWARE = own + others if comes_first else others + own
    with CaptureQueriesContext(connection) as queries:
        response = client.post("/answer/object/" + QUERY)
    assert len(queries) == 0
    assert warned(response) == UNSUPPORTED
    assert response.json()["$warnings"]


def test_without_the_middleware(client: Any, settings: Any) -> None:
    """K5: Without the middleware these get no warning."""
    settings.MIDDLEWARE = []
    assert warned(client.post("/unprotected/", {}, **key())) is None
    assert warned(client.get("/mixin-view/", **key())) == IGNORED
