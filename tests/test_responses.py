"""Stored responses and their replays."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.http import (
    FileResponse,
    HttpResponse,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.middleware.locale import LocaleMiddleware
from django.template import engines
from django.template.response import SimpleTemplateResponse
from django.urls import path
from django.utils.translation import activate, deactivate_all, gettext, override
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.responses import StoredResponse
from tests.app.models import Effect
from tests.app.views import MixinView, behave, create_effect
from tests.conftest import code_of, key
from tests.support.processes import ROOT
from tests.urls import urlpatterns as usual_urls

pytestmark = pytest.mark.usefixtures("atomic_requests")

URLS = ["/mixin-view/", "/function/"]


class CSVRenderer(BaseRenderer):
    """Rows of text."""

    media_type = "text/csv"
    format = "csv"

    def render(self, data: Any, *args: Any) -> str:
        return "\n".join(map(str, data))


class EnvelopeRenderer(JSONRenderer):
    """An envelope made while rendering, its warnings read from the request."""

    rendered = 0

    def render(self, data: Any, media_type: Any = None, context: Any = None) -> Any:
        type(self).rendered += 1
        warnings = [w.code for w in context["request"].idempotency.warnings]
        data = {"number": self.rendered, "data": data, "warned": warnings}
        return super().render(data, media_type, context)


class EnvelopeInRenderer(IdempotencyMixin, APIView):
    renderer_classes = [EnvelopeRenderer]

    def post(self, request: Request) -> Any:
        return behave(request)


class EnvelopeInFinalize(IdempotencyMixin, APIView):
    """An envelope made in finalize_response, which must run once an answer."""

    finalized = 0

    def post(self, request: Request) -> Any:
        return behave(request)

    def finalize_response(self, request: Any, response: Any, *a: Any, **k: Any) -> Any:
        type(self).finalized += 1
        response = super().finalize_response(request, response, *a, **k)
        response.data = {"number": self.finalized, "data": response.data}
        response["X-Finalized"] = str(self.finalized)
        return response


class CSVView(IdempotencyMixin, APIView):
    renderer_classes = [JSONRenderer, CSVRenderer]

    def post(self, request: Request) -> Any:
        return behave(request)


urlpatterns = [
    *usual_urls,
    path("envelope-in-renderer/", EnvelopeInRenderer.as_view()),
    path("envelope-in-finalize/", EnvelopeInFinalize.as_view()),
    path("csv/", CSVView.as_view()),
]


def every_byte() -> bytes:
    return bytes(range(256))


def own_headers() -> Response:
    response = Response({"a": 1}, status=201)
    response["Location"] = "/assignments/1"
    response["ETag"] = '"abc"'
    response["Link"] = '</a>; rel="next"'
    response["X-Latin"] = "é"
    response["X-Emoji"] = "\N{WHITE SMILING FACE}"
    return response


def without_type() -> HttpResponse:
    response = HttpResponse(b"?")
    del response["Content-Type"]
    return response


KEPT: dict[str, Callable[[], Any]] = {
    "object": lambda: Response({"a": 1, "b": [None, True, "x"]}),
    "list": lambda: Response([1, 2]),
    "text": lambda: Response("text"),
    "nothing": Response,
    "204": lambda: Response(status=204),
    "decimal and date": lambda: Response(
        {"d": Decimal("1.10"), "t": date(2026, 11, 24)}
    ),
    "any alphabet": lambda: Response({"名": "Ünïcödé \N{GRINNING FACE} \u2028"}),
    "headers": own_headers,
    "HttpResponse": lambda: HttpResponse(b"plain", content_type="text/plain"),
    "JsonResponse": lambda: JsonResponse({"a": 1}, status=202),
    "binary": lambda: HttpResponse(every_byte(), content_type="image/png"),
    "redirect": lambda: HttpResponseRedirect("/elsewhere/?a=1"),
    "permanent redirect": lambda: HttpResponsePermanentRedirect("https://e.example/"),
    "template": lambda: SimpleTemplateResponse(
        engines["django"].from_string("<p>{{ a }}</p>"), {"a": "<b>"}
    ),
    "content encoding of its own": lambda: HttpResponse(
        gzip.compress(b"x" * 500, mtime=0), headers={"Content-Encoding": "gzip"}
    ),
    "empty": lambda: HttpResponse(b""),
    "other charset": lambda: HttpResponse(
        "é".encode("latin-1"), content_type="text/plain; charset=latin-1"
    ),
    "no content type": without_type,
    "several chunks": lambda: HttpResponse(iter([b"a", b"b"])),
}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", KEPT)
def test_kept(client: Any, handle: Callable[..., None], url: str, kind: str) -> None:
    """R1, R2, R5: First answers are as without a key, replays repeat their bytes."""
    calls = []

    def handler(request: Request) -> Any:
        calls.append(request.method)
        return KEPT[kind]()

    handle(handler)
    bare = client.post(url, {})
    first = client.post(url, {}, **key())
    retry = client.post(url, {}, **key())
    assert len(calls) == 2
    assert first.status_code == retry.status_code == bare.status_code
    assert first.content == retry.content == bare.content
    headers = {name: value for name, value in bare.items() if name != "Content-Length"}
    for answer in (first, retry):
        own = {n: v for n, v in answer.items() if not n.lower().startswith("idempoten")}
        assert own == headers


@pytest.mark.urls(__name__)
def test_the_first_representation(client: Any, handle: Callable[..., None]) -> None:
    """F1, R2: Whatever a retry accepts, it gets the representation of the first."""
    handle(lambda request: Response(["a", "b"]))
    first = client.post("/csv/", {}, HTTP_ACCEPT="text/csv", **key())
    retry = client.post("/csv/", {}, HTTP_ACCEPT="application/json", **key())
    assert first.content == retry.content == b"a\nb"
    assert retry["Content-Type"] == first["Content-Type"] == "text/csv; charset=utf-8"


@pytest.mark.urls(__name__)
def test_envelope_in_renderer(client: Any) -> None:
    """R6, K7: A renderer runs once, and can read the warnings."""
    EnvelopeRenderer.rendered = 0
    first = client.post("/envelope-in-renderer/?$idempotency=weak", {})
    retry = client.post("/envelope-in-renderer/?$idempotency=weak", {})
    assert first.content == retry.content
    assert first.json()["number"] == EnvelopeRenderer.rendered == 1
    assert first.json()["warned"] == ["IDEMPOTENCY_KEY_WEAK"]


@pytest.mark.urls(__name__)
def test_envelope_in_finalize(client: Any, handle: Callable[..., None]) -> None:
    """R1, R6: finalize_response runs once for a first answer, and not for a replay."""
    EnvelopeInFinalize.finalized = 0
    first = client.post("/envelope-in-finalize/?$idempotency=weak", {})
    retry = client.post("/envelope-in-finalize/?$idempotency=weak", {})
    assert EnvelopeInFinalize.finalized == 1
    assert first.content == retry.content
    assert retry["X-Finalized"] == "1"
    assert [*first.json()] == ["number", "data", "$warnings"]
    handle(lambda request: Response(status=400))
    client.post("/envelope-in-finalize/", {}, **key())
    assert EnvelopeInFinalize.finalized == 2


def test_warnings_on_a_copy(client: Any, handle: Callable[..., None]) -> None:
    """K7: The handler's own data stays as it was, and so do its own warnings."""
    data = {"a": 1, "$warnings": [{"code": "OWN", "message": "."}]}
    handle(lambda request: Response(data))
    response = client.post("/function/?$idempotency=weak", {})
    codes = [w["code"] for w in response.json()["$warnings"]]
    assert codes == ["OWN", "IDEMPOTENCY_KEY_WEAK"]
    assert [w["code"] for w in data["$warnings"]] == ["OWN"]


@pytest.mark.parametrize("data", [[1], "text", None, {"$warnings": "taken"}])
def test_no_place_for_warnings(
    client: Any, handle: Callable[..., None], data: Any
) -> None:
    """K7: Where the data is no JSON object, the header alone warns."""
    handle(lambda request: Response(data))
    response = client.post("/function/?$idempotency=weak", {})
    assert response.status_code == 200
    assert response["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_WEAK;message=")
    assert response.data == data


def test_warnings_for_strict_clients(client: Any, settings: Any) -> None:
    """K7: As the page says, the body can do without them, and the header has them."""
    page = (ROOT / "docs" / "codes.md").read_text(encoding="utf-8")
    (sample,) = re.findall(
        r"```python\n(# settings.py\nIDEMPOTENCY.*?)```", page, re.DOTALL
    )
    said: dict[str, Any] = {}
    exec(compile(sample, "docs/codes.md", "exec"), said)
    assert "$warnings" in client.post("/mixin-view/?$idempotency=weak", {}).json()
    settings.IDEMPOTENCY = said["IDEMPOTENCY"]
    answer = client.post("/mixin-view/?$idempotency=other", {})
    assert "$warnings" not in answer.json()
    assert answer["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_WEAK;")


def test_warnings_of_a_header(client: Any) -> None:
    """K7: A client that speaks the header dialect finds the warning there alone."""
    response = client.post("/function/", {}, **key("weak"))
    assert "$warnings" not in response.json()
    assert response["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_WEAK;")


def test_ignored_key_of_a_header(client: Any) -> None:
    """K5, K7: The header alone warns of an ignored key, too."""
    response = client.get("/mixin-view/", **key())
    assert "$warnings" not in response.json()
    assert response["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_IGNORED;")


@pytest.mark.usefixtures("by_statements")
def test_second_answer(
    client: Any, handle: Callable[..., None], monkeypatch: Any
) -> None:
    """R1: An answer in another one's place has the view's headers, too."""

    def lose(request: Request) -> Response:
        IdempotencyRecord.objects.all()._raw_delete("default")
        return Response({})

    monkeypatch.setattr(MixinView, "renderer_classes", [JSONRenderer, CSVRenderer])
    first = client.post("/mixin-view/", {}, **key())
    handle(lose)
    second = client.post("/mixin-view/", {}, **key("another-key"))
    assert (first.status_code, second.status_code) == (201, 503)
    assert second["Vary"] == first["Vary"] == "Accept"


def test_warnings_of_refusals(client: Any, handle: Callable[..., None]) -> None:
    """K7: Refusals carry the warnings, too."""
    handle(lambda request: Response({"why": "not"}, status=400))
    response = client.post("/function/?$idempotency=weak", {})
    assert response.json()["$warnings"][0]["code"] == "IDEMPOTENCY_KEY_WEAK"
    handle(create_effect)
    client.post("/function/?$idempotency=weak", {})
    refused = client.post("/function/?$idempotency=weak", {"other": 1})
    assert refused.status_code == 422
    assert refused.json()["$warnings"][0]["code"] == "IDEMPOTENCY_KEY_WEAK"


@pytest.mark.parametrize(
    ("places", "in_body", "in_header"),
    [((), False, False), (("body",), True, False), (("header",), False, True)],
)
def test_places_of_warnings(
    client: Any,
    settings: Any,
    places: tuple[str, ...],
    in_body: bool,
    in_header: bool,
) -> None:
    """K7: WARNINGS names the places that a project wants."""
    settings.IDEMPOTENCY = {"WARNINGS": places}
    response = client.post("/function/?$idempotency=weak", {})
    assert ("$warnings" in response.json()) is in_body
    assert ("Idempotency-Warning" in response) is in_header


# RFC 9110 section 7.6.1 with RFC 2616 section 13.5.1.
HOP_BY_HOP = (
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)


def test_headers_that_are_not_kept(
    client: Any, handle: Callable[..., None], settings: Any
) -> None:
    """R2: Cookies, hop-by-hop headers and those of the project's list stay behind."""
    settings.IDEMPOTENCY = {"UNSTORED_HEADERS": ("X-Trace",)}
    dropped = ["Date", "Server", "X-Hop", "X-Trace", *HOP_BY_HOP]

    def handler(request: Request) -> Response:
        response = Response({"a": 1})
        response.set_cookie("session", "secret")
        response["Connection"] = "X-Hop, close"
        for name in (*dropped, "X-Kept"):
            response[name] = "value"
        response["Idempotent-Replayed"] = "from elsewhere"
        return response

    handle(handler)
    first = client.post("/function/", {}, **key())
    assert first.cookies["session"].value == "secret"
    client.cookies.clear()
    retry = client.post("/function/", {}, **key())
    assert not retry.cookies
    kept = {name for name, _value in IdempotencyRecord.objects.get().headers}
    assert kept == {"Content-Type", "Allow", "X-Kept"}
    assert retry["X-Kept"] == "value"
    for name in ("Connection", *dropped):
        assert name in first
        assert name not in retry


def stream() -> StreamingHttpResponse:
    def chunks() -> Iterator[bytes]:
        yield from (b"a", b"b")

    return StreamingHttpResponse(chunks(), status=201)


NOT_KEPT: dict[str, Callable[[], Any]] = {
    "stream": stream,
    "file": lambda: FileResponse(io.BytesIO(b"ab"), status=201),
    "large": lambda: HttpResponse(b"ab" * 6, status=201),
    "NUL": lambda: HttpResponse(b"ab", status=201, headers={"X-Name": "a\0b"}),
}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", NOT_KEPT)
def test_not_kept(
    client: Any, handle: Callable[..., None], settings: Any, url: str, kind: str
) -> None:
    """R4: A response that can't be kept goes out unchanged; the retry gets a 409."""
    settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 11}

    def handler(request: Request) -> Any:
        Effect.objects.create()
        response = NOT_KEPT[kind]()
        response["Location"] = "/reports/1"
        return response

    handle(handler)
    first = client.post(url, {}, **key())
    assert first.status_code == 201
    assert first.getvalue().startswith(b"ab")
    assert "Idempotency-Expires" in first
    for _ in range(2):
        retry = client.post(url, {}, **key())
        assert (retry.status_code, code_of(retry)) == (
            409,
            "idempotency_response_not_kept",
        )
        assert "201" in retry.data["detail"]
        assert retry["Location"] == "/reports/1"
        assert "Idempotency-Expires" in retry
        assert "Idempotent-Replayed" not in retry
    assert client.post(url, {"other": 1}, **key()).status_code == 422
    assert Effect.objects.count() == 1
    record = IdempotencyRecord.objects.get()
    assert (record.body, record.body_size, record.status_code) == (None, None, 201)
    assert record.headers == [["Location", "/reports/1"]]


@pytest.mark.skipif(connection.vendor != "mysql", reason="MariaDB's own")
@pytest.mark.parametrize(
    ("content", "is_kept"),
    [(b"a" * 9, True), (b'"' * 7, True), (b'"' * 9, False), (b"\0" * 9, False)],
)
def test_larger_than_a_statement(
    client: Any,
    handle: Callable[..., None],
    content: bytes,
    is_kept: bool,
) -> None:
    """R4: What the database takes in no statement is not kept, and the effect stays."""

    def handler(request: Request) -> Any:
        Effect.objects.create()
        return HttpResponse(content * 1024 * 1024, status=201)

    handle(handler)
    first = client.post("/function/", {}, **key())
    assert (first.status_code, len(first.content)) == (201, len(content) * 1024 * 1024)
    retry = client.post("/function/", {}, **key())
    if is_kept:
        assert retry.content == first.content
    else:
        assert code_of(retry) == "idempotency_response_not_kept"
    assert Effect.objects.count() == 1


def test_as_large_as_allowed(
    client: Any, handle: Callable[..., None], settings: Any
) -> None:
    """R4: MAX_RESPONSE_BYTES itself is kept."""
    settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 12}
    handle(lambda request: HttpResponse(b"ab" * 6))
    client.post("/function/", {}, **key())
    assert client.post("/function/", {}, **key()).content == b"ab" * 6


def test_large_answer(client: Any, handle: Callable[..., None]) -> None:
    """R5: An answer of a megabyte comes back whole."""
    body = every_byte() * 4096
    handle(lambda request: HttpResponse(body, content_type="x/bytes"))
    client.post("/function/", {}, **key())
    assert client.post("/function/", {}, **key()).content == body
    assert IdempotencyRecord.objects.get().body_size == 1024 * 1024


def test_gzip(client: Any, handle: Callable[..., None], settings: Any) -> None:
    """R2: Bytes are those before content encoding: each client gets what it accepts."""
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware"]
    handle(lambda request: Response({"text": "x" * 1000}))
    first = client.post("/function/", {}, HTTP_ACCEPT_ENCODING="gzip", **key())
    plain = client.post("/function/", {}, **key())
    zipped = client.post("/function/", {}, HTTP_ACCEPT_ENCODING="gzip", **key())
    assert first["Content-Encoding"] == zipped["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain
    assert gzip.decompress(first.content) == plain.content
    assert gzip.decompress(zipped.content) == plain.content


class OwnLocaleMiddleware(LocaleMiddleware):
    """As a project derives one, to take the language from elsewhere."""


def no_class(get_response: Any) -> Any:
    """Do nothing, as a middleware that is a function."""
    return get_response


LOCALE = "django.middleware.locale.LocaleMiddleware"


@pytest.fixture
def language() -> Iterator[None]:
    """Put back the language, which the middleware leaves behind."""
    with override("en"):
        yield


@pytest.mark.usefixtures("language")
@pytest.mark.parametrize("locale", [LOCALE, f"{__name__}.OwnLocaleMiddleware"])
@pytest.mark.parametrize("url", URLS)
def test_locale(
    client: Any, handle: Callable[..., None], settings: Any, url: str, locale: str
) -> None:
    """F1, R2: The language of the first answer is that of the replay, which says so."""
    settings.MIDDLEWARE = [f"{__name__}.no_class", locale]
    handle(lambda request: Response({"text": gettext("Monday")}))
    first = client.post(url, {}, HTTP_ACCEPT_LANGUAGE="de", **key())
    retry = client.post(url, {}, HTTP_ACCEPT_LANGUAGE="fr", **key())
    with override("de"):
        assert first.json() == retry.json() == {"text": gettext("Monday")}
    assert first.content == retry.content
    assert first["Content-Language"] == retry["Content-Language"] == "de"
    assert first["Vary"] == retry["Vary"]
    assert "Accept-Language" in retry["Vary"]


@pytest.mark.usefixtures("language")
def test_language_of_the_view(
    client: Any, handle: Callable[..., None], settings: Any
) -> None:
    """R2: What the view says of the language stays as it is."""
    settings.MIDDLEWARE = [LOCALE]
    handle(lambda request: Response({}, headers={"content-language": "gsw"}))
    first = client.post("/function/", {}, HTTP_ACCEPT_LANGUAGE="de", **key())
    retry = client.post("/function/", {}, HTTP_ACCEPT_LANGUAGE="fr", **key())
    assert first["Content-Language"] == retry["Content-Language"] == "gsw"


@pytest.mark.usefixtures("language")
def test_without_locale_middleware(client: Any, handle: Callable[..., None]) -> None:
    """R2: No language is named where the project names none."""

    def answer(request: Request) -> Response:
        activate("de")
        return Response({})

    handle(answer)
    for _ in range(2):
        assert "Content-Language" not in client.post("/function/", {}, **key())


@pytest.mark.usefixtures("language")
def test_language_that_is_not_kept(client: Any, settings: Any) -> None:
    """R2: A project may leave the language to the middleware."""
    settings.MIDDLEWARE = [LOCALE]
    settings.IDEMPOTENCY = {"UNSTORED_HEADERS": ("Content-Language",)}
    for spoken in ("de", "fr"):
        answer = client.post("/function/", {}, HTTP_ACCEPT_LANGUAGE=spoken, **key())
        assert answer["Content-Language"] == spoken


@pytest.mark.usefixtures("language")
def test_without_any_language(
    client: Any, handle: Callable[..., None], settings: Any
) -> None:
    """R2: A handler that switches translations off leaves nothing to name."""
    settings.MIDDLEWARE = [LOCALE]

    def answer(request: Request) -> Response:
        deactivate_all()
        return Response({})

    handle(answer)
    client.post("/function/", {}, HTTP_ACCEPT_LANGUAGE="de", **key())
    kept = [name for name, _value in IdempotencyRecord.objects.get().headers]
    assert "Content-Language" not in kept


@pytest.mark.usefixtures("language")
def test_language_of_refusals(
    client: Any, handle: Callable[..., None], settings: Any
) -> None:
    """R2, R4: A refusal, that of a tombstone included, speaks its own caller's."""
    settings.MIDDLEWARE = [LOCALE]
    handle(lambda request: stream())
    client.post("/function/", {}, HTTP_ACCEPT_LANGUAGE="de", **key())
    refused = client.post("/function/", {}, HTTP_ACCEPT_LANGUAGE="fr", **key())
    assert code_of(refused) == "idempotency_response_not_kept"
    assert refused["Content-Language"] == "fr"


@pytest.mark.usefixtures("language")
def test_language_of_a_persons_answer(client: Any, settings: Any) -> None:
    """R2, E9: A resolved record does not get the language of the person."""
    settings.MIDDLEWARE = [LOCALE]
    client.post("/function/", {}, HTTP_ACCEPT_LANGUAGE="de", **key())
    IdempotencyRecord.objects.update(
        state="in_progress", status_code=None, headers=None, body=None, body_size=None
    )
    IdempotencyRecord.objects.get().resolve(HttpResponse("Ja"))
    assert IdempotencyRecord.objects.get().headers == [
        ["Content-Type", "text/html; charset=utf-8"]
    ]


class RenderedAlready:
    """Template-response middleware that notes what it saw."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_template_response(self, request: Any, response: Any) -> Any:
        response["X-Rendered"] = str(response.is_rendered)
        return response


def test_template_response_middleware(client: Any, settings: Any) -> None:
    """R1, R2b: Template-response middleware sees answers to keys rendered already."""
    settings.MIDDLEWARE = [f"{__name__}.RenderedAlready"]
    assert client.post("/function/", {})["X-Rendered"] == "False"
    assert client.post("/function/", {}, **key())["X-Rendered"] == "True"
    retry = client.post("/function/", {}, **key())
    assert (retry["X-Rendered"], retry["Idempotent-Replayed"]) == ("True", "true")


def test_secrets_are_not_stored(client: Any) -> None:
    """F5: Neither the body of a request nor its credentials are in the record."""
    client.credentials(HTTP_AUTHORIZATION="Bearer s3cr3t-token")
    client.force_authenticate(token="s3cr3t-token")
    client.post("/function/", {"card": "visa-card"}, **key())
    record = IdempotencyRecord.objects.values().get()
    assert Effect.objects.get().note == "{'card': 'visa-card'}"
    assert record["scope"].startswith("authorization:")
    assert "s3cr3t" not in str(record)
    assert "visa" not in str(record)


def test_round_trip_of_a_tombstone() -> None:
    """R4: A tombstone has no body; an empty body is a response."""
    empty = StoredResponse.from_http(HttpResponse(b"", status=201), keep=True)
    assert empty.body == b""
    answer = HttpResponse(b"a", status=201, headers={"Location": "/a\0b"})
    tombstone = StoredResponse.from_http(answer, keep=True)
    assert (tombstone.body, tombstone.headers) == (None, [])
