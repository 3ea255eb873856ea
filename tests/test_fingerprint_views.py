"""What was sent counts, however the view is protected."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.exceptions import RequestDataTooBig
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import LimitedStream
from django.test import RequestFactory
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.http import condition
from rest_framework import parsers, versioning
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.fingerprints import default_fingerprint
from idempotency.fingerprints.bodies import Recording, record_body
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.test_golden_fingerprints import StreamParser

pytestmark = [pytest.mark.urls(__name__), pytest.mark.usefixtures("database")]

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = encode_multipart(BOUNDARY, {"a": "1"}).decode()
USUAL = [parsers.JSONParser, parsers.FormParser, parsers.MultiPartParser]


class Around:
    """What stands around the handler, and the handler's answer."""

    before: Callable[[Any, Request], Any]
    answer: Callable[[Any, Request], Response]


def act(view: Any, request: Request) -> Response:
    """Act once, and say what the handler has found."""
    Effect.objects.create()
    return Response({"data": request.data, "n": Effect.objects.count()}, status=201)


class Permission(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return Around.before(view, request) is not False


class Sealed(APIView):
    parser_classes: list[Any] = USUAL
    permission_classes = [Permission]

    def answer(self, request: Request) -> Response:
        return Around.answer(self, request)


class MixinView(IdempotencyMixin, Sealed):
    def post(self, request: Request) -> Response:
        return self.answer(request)


class StreamView(MixinView):
    parser_classes = [StreamParser]


class InitialView(StreamView):
    permission_classes = []

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        Around.before(self, request)


class DecoratedWithMixin(IdempotencyMixin, Sealed):
    parser_classes = [StreamParser]

    @idempotent
    def post(self, request: Request) -> Response:
        return self.answer(request)


class ExemptView(IdempotencyMixin, Sealed):
    @idempotency_exempt
    def post(self, request: Request) -> Response:
        return self.answer(request)


class DecoratedView(Sealed):
    @idempotent
    def post(self, request: Request) -> Response:
        return self.answer(request)


class DecoratedStream(DecoratedView):
    parser_classes = [StreamParser]


class FileView(MixinView):
    parser_classes = [parsers.FileUploadParser]


class VersionedView(MixinView):
    versioning_class = versioning.AcceptHeaderVersioning


class Hosts(versioning.HostNameVersioning):
    hostname_regex = re.compile(r"^(v[0-9]+)\.")


class HostView(MixinView):
    versioning_class = Hosts


def etag(request: Any) -> str:
    return f'"{Effect.objects.count()}"'


@method_decorator(condition(etag_func=etag), name="dispatch")
class ConditionalView(MixinView):
    """What docs/guarantees.md warns of."""


class ConditionalHandler(DecoratedView):
    """What it recommends."""

    @idempotent
    @method_decorator(condition(etag_func=etag))
    def post(self, request: Request) -> Response:
        return self.answer(request)


urlpatterns = [
    path("mixin/", MixinView.as_view()),
    path("stream/", StreamView.as_view()),
    path("initial/", InitialView.as_view()),
    path("both/", DecoratedWithMixin.as_view()),
    path("exempt/", ExemptView.as_view()),
    path("decorated/", DecoratedView.as_view()),
    path("decorated-stream/", DecoratedStream.as_view()),
    path("file/", FileView.as_view()),
    path("versioned/", VersionedView.as_view()),
    path("hosts/", HostView.as_view()),
    path("conditional/", ConditionalView.as_view()),
    path("conditional-handler/", ConditionalHandler.as_view()),
]


@pytest.fixture(autouse=True)
def _around() -> None:
    Around.before = staticmethod(lambda view, request: None)  # type: ignore[assignment]
    Around.answer = staticmethod(act)  # type: ignore[assignment]


def before(function: Callable[[Request], Any]) -> None:
    """Let that happen before the handler."""
    Around.before = staticmethod(lambda view, request: function(request))  # type: ignore[assignment]


def stamp_json(request: Request) -> None:
    """Write into the data, as a permission or ``initial()`` may."""
    request.data["at"] = str(uuid4())


def send(
    client: Any,
    url: str,
    body: str | bytes = '{"a": "1"}',
    kind: str = JSON,
    **headers: Any,
) -> Any:
    """POST the body with a key."""
    return client.generic("POST", url, body, content_type=kind, **key(), **headers)


def replayed(first: Any, retry: Any) -> None:
    """Check that the retry got the first one's answer."""
    assert first.status_code == 201, first.content
    assert (retry.status_code, retry.content) == (201, first.content)
    assert retry["Idempotent-Replayed"] == "true"
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 1


class TestWhatWasSent:
    """F3, where the app sees the request first."""

    @pytest.mark.parametrize("url", ["/mixin/", "/stream/", "/initial/", "/both/"])
    def test_stamped_json(self, client: Any, url: str) -> None:
        """F3: What a permission or initial() writes into the data is not content."""
        before(stamp_json)
        first, retry = send(client, url), send(client, url, '{ "a":"1" }')
        replayed(first, retry)
        assert {*first.json()["data"]} == {"a", "at"}
        other = send(client, url, '{"a": "2"}')
        assert (other.status_code, code_of(other)) == (422, "idempotency_key_reused")

    @pytest.mark.parametrize(
        ("body", "kind", "other"),
        [
            ("a=1&b=2", FORM, "a=1&b=3"),
            (MULTIPART, MULTIPART_CONTENT, MULTIPART.replace("1\r\n", "2\r\n")),
        ],
    )
    def test_stamped_forms(self, client: Any, body: str, kind: str, other: str) -> None:
        """F3: What a permission adds to a form does not count."""

        def stamp(request: Request) -> None:
            data: Any = request.data
            data._mutable = True
            data["at"] = str(uuid4())

        before(stamp)
        first, retry = (send(client, "/mixin/", body, kind) for _ in range(2))
        replayed(first, retry)
        assert "at" in first.json()["data"]
        assert send(client, "/mixin/", other, kind).status_code == 422

    def test_read_as_bytes(self, client: Any) -> None:
        """F3: A permission that checks a signature over request.body may do so."""
        before(lambda request: request._request.body)
        replayed(send(client, "/mixin/"), send(client, "/mixin/"))

    @pytest.mark.parametrize("line", [False, True])
    def test_read_in_part(self, client: Any, line: bool) -> None:
        """F3: The handler reads on where a permission stopped; all of it counts."""
        first_line, second = b'{"a":\n', b"1}"

        def answer(view: Any, request: Request) -> Response:
            http_request: Any = request._request
            Effect.objects.create()
            rest = http_request.readline() if line else http_request.read()
            return Response({"rest": rest.decode()}, status=201)

        def read(request: Request) -> None:
            http_request: Any = request._request
            found = http_request.readline() if line else http_request.read(6)
            assert len(found) == 6

        before(read)
        Around.answer = staticmethod(answer)  # type: ignore[assignment]
        first, retry = (send(client, "/mixin/", first_line + second) for _ in range(2))
        replayed(first, retry)
        assert first.json() == {"rest": "1}"}
        changed = send(client, "/mixin/", b'{"b":\n' + second)
        assert changed.status_code == 422

    def test_refused_is_not_read(self, client: Any) -> None:
        """F3, S2: The body of a refused request is not read."""
        for url in ("/mixin/", "/stream/", "/both/", "/decorated/"):
            before(lambda request: False)
            answer = send(client, url, **unreadable())
            assert answer.status_code == 403
        assert not IdempotencyRecord.objects.exists()

    def test_only_with_a_key(self, client: Any, settings: Any) -> None:
        """K4, F3: Without a key, exempt or switched off, the stream is Django's own."""
        seen = []
        before(lambda request: seen.append(type(request._request._stream)))
        client.post("/mixin/", {})
        send(client, "/exempt/")
        send(client, "/decorated/")
        settings.IDEMPOTENCY = {"ENABLED": False}
        send(client, "/mixin/")
        assert {*seen} == {LimitedStream}
        settings.IDEMPOTENCY = {}
        send(client, "/mixin/")
        assert seen[-1] is Recording

    def test_without_a_length(self) -> None:
        """F3: Under ASGI the recorded body may come without its length."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"content-type", JSON.encode())],
        }
        digests = set()
        for body, early in ((b'{"a":1}', 0), (b'{"a": 1}', 3), (b'{"a": 2}', 0)):
            http_request = ASGIRequest(scope, BytesIO(body))
            recording = record_body(http_request)
            assert record_body(http_request) is recording
            if early:
                http_request.read(early)
            request = Request(http_request, parsers=[parsers.JSONParser()])
            digests.add(default_fingerprint(request).digest)
            assert http_request.read() == body[early:]
        assert len(digests) == 2

    @pytest.mark.parametrize("recorded", [False, True])
    def test_body_beyond_memory(self, settings: Any, recorded: bool) -> None:
        """F3: request.body takes no more than it would without a key."""
        settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"content-type", b"text/plain")],
        }
        http_request = ASGIRequest(scope, BytesIO(b"x" * 101))
        request = Request(http_request, parsers=[parsers.JSONParser()])
        if recorded:
            record_body(http_request)
            default_fingerprint(request)
        with pytest.raises(RequestDataTooBig):
            _ = http_request.body

    def test_body_after_all(self) -> None:
        """F3: A multipart body can still be read as bytes."""
        http_request = RequestFactory().post("/", {"a": "1"})
        recording = record_body(http_request)
        assert recording is not None
        default_fingerprint(Request(http_request, parsers=[parsers.MultiPartParser()]))
        assert http_request.body == MULTIPART.encode()
        http_request = RequestFactory().post("/", {"a": "1"})
        recording = record_body(http_request)
        assert recording is not None
        http_request.read(1)
        assert not recording.seekable()


class TestWhatIsLeft:
    """F3, where the app sees the request after permissions."""

    def test_read_before(self, client: Any) -> None:
        """F3: A permission may read the data, whatever parser it has."""
        before(lambda request: request.data)
        for url in ("/decorated-stream/", "/decorated/"):
            Effect.objects.all().delete()
            IdempotencyRecord.objects.all().delete()
            replayed(send(client, url), send(client, url))

    def test_stamped(self, client: Any) -> None:
        """F3: Where only the parsed data is left, what was written into it counts."""
        before(stamp_json)
        assert send(client, "/decorated-stream/").status_code == 201
        retry = send(client, "/decorated-stream/")
        assert (retry.status_code, code_of(retry)) == (422, "idempotency_key_reused")
        assert Effect.objects.count() == 1

    def test_stamped_json(self, client: Any) -> None:
        """F3: Newer DRF parses request.body where it can, and that stays as it came."""
        http_request = RequestFactory().post("/", "{}", content_type=JSON)
        assert Request(http_request, parsers=[parsers.JSONParser()]).data == {}
        keeps_body = hasattr(http_request, "_body")
        before(stamp_json)
        assert send(client, "/decorated/").status_code == 201
        assert send(client, "/decorated/").status_code == (201 if keeps_body else 422)
        assert Effect.objects.count() == 1


class Unreadable:
    """A body that nobody may read."""

    def read(self, *args: Any) -> bytes:
        raise AssertionError("was read")

    readline = read


def unreadable(length: str = "200000000") -> dict[str, Any]:
    """Return what makes the request's body such a one."""
    return {"wsgi.input": Unreadable(), "CONTENT_LENGTH": length}


class TestNotTaken:
    """F3: a body that none of the view's parsers takes."""

    @pytest.mark.parametrize("url", ["/mixin/", "/decorated/"])
    def test_not_read(self, client: Any, url: str) -> None:
        """F3: It is not read; its type and length stand for it."""

        def answer(view: Any, request: Request) -> Response:
            Effect.objects.create()
            return Response({"n": Effect.objects.count()}, status=201)

        Around.answer = staticmethod(answer)  # type: ignore[assignment]
        xml = "application/xml"
        first, retry = (send(client, url, "<", xml, **unreadable()) for _ in range(2))
        replayed(first, retry)
        assert send(client, url, "<", xml, **unreadable("7")).status_code == 422
        assert send(client, url, "<", "x/y", **unreadable()).status_code == 422

    @pytest.mark.parametrize("url", ["/mixin/", "/decorated/"])
    def test_unsupported(self, client: Any, url: str) -> None:
        """F3: If the handler wants its data, the answer is 415, as without a key."""
        for headers in (key(), {}):
            kind = {"content_type": "application/xml"}
            answer = client.generic("POST", url, "<", **kind, **headers, **unreadable())
            assert answer.status_code == 415
        assert not IdempotencyRecord.objects.exists()


class Picky(DefaultContentNegotiation):
    """Takes no body at all, whatever the view's parsers are for."""

    def select_parser(self, request: Any, parsers: Any) -> None:
        return None


def test_negotiation_of_a_project(client: Any, monkeypatch: Any) -> None:
    """F3: The project's content negotiation decides whether a parser reads the body."""
    monkeypatch.setattr(MixinView, "content_negotiation_class", Picky)
    answer = send(client, "/mixin/", **unreadable())
    assert answer.status_code == 415
    assert not IdempotencyRecord.objects.exists()


class TestWhatChoosesTheEffect:
    """F1, in a view."""

    def test_accept_header_versioning(self, client: Any) -> None:
        """F1: Another version of the API is another request."""
        accept = {"HTTP_ACCEPT": "application/json; version=1.0"}
        first = send(client, "/versioned/", **accept)
        replayed(first, send(client, "/versioned/", **accept))
        accept = {"HTTP_ACCEPT": "application/json; version=2.0"}
        other = send(client, "/versioned/", **accept)
        assert (other.status_code, code_of(other)) == (422, "idempotency_key_reused")

    def test_host_name_versioning(self, client: Any, settings: Any) -> None:
        """F1: The same where the version stands in the host's name."""
        settings.ALLOWED_HOSTS = ["*"]
        hosts = [{"HTTP_HOST": f"v{n}.example.org"} for n in (1, 2)]
        replayed(*(send(client, "/hosts/", **hosts[0]) for _ in range(2)))
        assert send(client, "/hosts/", **hosts[1]).status_code == 422

    def test_name_of_a_file(self, client: Any) -> None:
        """F1: FileUploadParser takes a file's name from Content-Disposition."""

        def answer(view: Any, request: Request) -> Response:
            Effect.objects.create()
            return Response({"name": request.data["file"].name}, status=201)

        Around.answer = staticmethod(answer)  # type: ignore[assignment]
        names = [
            {"HTTP_CONTENT_DISPOSITION": f'attachment; filename="{name}.png"'}
            for name in "ab"
        ]
        sent = [send(client, "/file/", "PNG", "image/png", **names[0]) for _ in "12"]
        replayed(*sent)
        assert sent[0].json() == {"name": "a.png"}
        other = send(client, "/file/", "PNG", "image/png", **names[1])
        assert other.status_code == 422

    def test_corrected_condition(self, client: Any) -> None:
        """F1, O2: A handler's 412 is not the answer to the corrected request."""

        def answer(view: Any, request: Request) -> Response:
            if request.META["HTTP_IF_MATCH"] != '"2"':
                return Response(status=412)
            return act(view, request)

        Around.answer = staticmethod(answer)  # type: ignore[assignment]
        first = send(client, "/mixin/", HTTP_IF_MATCH='"1"')
        assert first.status_code == 412
        replayed(*(send(client, "/mixin/", HTTP_IF_MATCH='"2"') for _ in range(2)))
        assert send(client, "/mixin/", HTTP_IF_MATCH='"3"').status_code == 422

    def test_condition_on_dispatch(self, client: Any) -> None:
        """F1, S2: What refuses before the key also refuses the retry of a success."""
        assert send(client, "/conditional/", HTTP_IF_MATCH='"0"').status_code == 201
        assert send(client, "/conditional/", HTTP_IF_MATCH='"0"').status_code == 412
        assert Effect.objects.count() == 1

    def test_condition_below(self, client: Any) -> None:
        """F1, S2: What refuses within the handler does not refuse the retry."""
        url = "/conditional-handler/"
        assert send(client, url, HTTP_IF_MATCH='"7"').status_code == 412
        replayed(*(send(client, url, HTTP_IF_MATCH='"0"') for _ in range(2)))
