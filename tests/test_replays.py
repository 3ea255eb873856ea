"""A replay as code around the view finds it: like the first answer."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.http import HttpResponse, JsonResponse
from django.test import Client
from django.urls import path, reverse
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.testing import assert_idempotent
from testproject import settings as demo
from tests.app.models import Effect
from tests.app.views import behave
from tests.conftest import key
from tests.urls import urlpatterns as usual_urls

pytestmark = [
    pytest.mark.usefixtures("atomic_requests", "each_way"),
    pytest.mark.urls(__name__),
]

Handle = Callable[[Callable[[Request], Any]], None]


def look(response: Any) -> dict[str, Any]:
    """Touch all of a response that code around a view may touch."""
    if not response.is_rendered:  # a refusal, which nobody has to store
        return {"data": response.data, "status": (response.status_code,)}
    called: list[Any] = []
    response.add_post_render_callback(called.append)
    again = pickle.loads(pickle.dumps(response))
    return {
        "is a Response": isinstance(response, Response),
        "data": response.data,
        "content": response.content,
        "rendered_content": response.rendered_content,
        "is rendered": (response.is_rendered, response.render() is response),
        "called back": [each is response for each in called],
        "accepted_renderer": type(response.accepted_renderer),
        "accepted_media_type": response.accepted_media_type,
        "renderer_context": sorted(response.renderer_context),
        "status": (response.status_code, response.status_text, response.reason_phrase),
        "exception": response.exception,
        "content_type": (response.content_type, response["Content-Type"]),
        "template": (response.template_name, response.context_data),
        "charset": response.charset,
        "streaming": response.streaming,
        "closed": response.closed,
        "unpickled": (again.status_code, again.data, again.content, again.is_rendered),
        "unpickled renderer": hasattr(again, "accepted_renderer"),
    }


SEEN: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    yield
    SEEN.clear()


class Middleware:
    """A middleware that logs what was answered, on both of its ways to see it."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        if isinstance(response, Response):  # Django's own 500 is none
            SEEN.append(("middleware", look(response)))
        return response

    def process_template_response(self, request: Any, response: Any) -> Any:
        SEEN.append(("template-response middleware", look(response)))
        return response


class OwnResponse(Response):
    """How a project answers."""

    def __init__(self, result: Any) -> None:
        super().__init__({"ok": True, "result": result}, status=201)
        self.result = result


class ForeignBase(APIView):
    """A project's base class, older than its use of this app."""

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().dispatch(request, *args, **kwargs)
        SEEN.append(("dispatch", look(response)))
        SEEN.append(("view.response", self.response is response))
        return response

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        SEEN.append(("finalize_response", response.data))
        return response


class ForeignView(IdempotencyMixin, ForeignBase):
    def post(self, request: Request) -> Any:
        return behave(request)


class ForeignMethod(ForeignBase):
    @idempotent
    def post(self, request: Request) -> Any:
        return behave(request)


class ForeignLeased(ForeignView):
    idempotency_atomic = False
    idempotency_on_abandoned = "hold"


class Audited(ForeignView):
    """Leaves a row of each success that it finalises."""

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        if response.status_code < 400:
            Group.objects.create(name=f"{response.status_code}: {response.data}")
        return response


class TextRenderer(BaseRenderer):
    """Text that calls itself what a test wants."""

    media_type = "text/csv"
    format = "csv"

    def render(self, data: Any, *args: Any) -> Any:
        return data


class Representations(IdempotencyMixin, APIView):
    renderer_classes = [JSONRenderer, TextRenderer]

    def post(self, request: Request) -> Any:
        return behave(request)


class CountsOnTheHandler(IdempotencyMixin, APIView):
    """A view whose renderer is told what the handler has found."""

    def post(self, request: Request) -> Any:
        self.total = 1
        return behave(request)

    def get_renderer_context(self) -> Any:
        return {**super().get_renderer_context(), "total": self.total}


urlpatterns = [
    *usual_urls,
    path("foreign-view/", ForeignView.as_view()),
    path("foreign-method/", ForeignMethod.as_view()),
    path("foreign-leased/", ForeignLeased.as_view()),
    path("audited/", Audited.as_view()),
    path("representations/", Representations.as_view()),
    path("counts/", CountsOnTheHandler.as_view()),
]


def create(request: Request) -> Response:
    return OwnResponse({"effect": Effect.objects.create().pk})


@pytest.mark.parametrize("url", ["/foreign-view/", "/foreign-method/"])
def test_foreign_style(client: Any, handle: Handle, settings: Any, url: str) -> None:
    """R2b: A project's base class and middleware see the first answer again."""
    settings.MIDDLEWARE = [f"{__name__}.Middleware"]
    handle(create)
    first = client.post(url, {}, **key())
    seen_first = SEEN.copy()
    SEEN.clear()
    retry = client.post(url, {}, **key())
    assert [name for name, _seen in seen_first] == [
        "finalize_response",
        "dispatch",
        "view.response",
        "template-response middleware",
        "middleware",
    ]
    assert seen_first[1][1]["data"] == {"ok": True, "result": {"effect": first_pk()}}
    assert seen_first[1:] == SEEN  # R6: finalize_response does not run again
    assert first.content == retry.content
    assert retry["Idempotent-Replayed"] == "true"
    assert Effect.objects.count() == 1


@pytest.mark.parametrize(
    "url", ["/foreign-view/", "/foreign-method/", "/foreign-leased/"]
)
def test_the_test_kit_in_foreign_style(
    client: Any, handle: Handle, settings: Any, url: str
) -> None:
    """R2b, R6: The kit proves such endpoints, too: all see the same answer twice."""
    settings.MIDDLEWARE = [f"{__name__}.Middleware"]
    handle(create)
    acted = assert_idempotent(client, "post", url, {"a": 1})
    assert type(acted) is OwnResponse
    is_leased = url == "/foreign-leased/"
    for place in ("dispatch", "template-response middleware", "middleware"):
        seen = [each for name, each in SEEN if name == place]
        created = [each for each in seen if each["status"][0] == 201]
        assert len(created) == 2
        assert created[0] == created[1]
        refused = [each["data"]["code"] for each in seen if each not in created]
        # Its error comes last, and leaves a run whose outcome nobody knows.
        unknown = ["idempotency_outcome_unknown"] * is_leased
        assert refused == ["idempotency_key_reused", *unknown]
    assert all(seen for name, seen in SEEN if name == "view.response")
    finalized = [data for name, data in SEEN if name == "finalize_response"]
    # In place of the replay's it has that of the run that was made to fail.
    assert len([data for data in finalized if "ok" in data]) == 2


@pytest.fixture
def no_groups(database: None) -> Iterator[None]:
    yield
    Group.objects.all().delete()


@pytest.mark.usefixtures("no_groups")
def test_the_test_kit_and_an_audit(client: Any, handle: Handle) -> None:
    """E1, R6: Its rows are effects like others: gone with an error, and left once."""
    handle(create)
    assert_idempotent(
        client, "post", "/audited/", {"a": 1}, effects=Group.objects.all()
    )
    (audited,) = Group.objects.all()
    assert audited.name == f"201: {{'ok': True, 'result': {{'effect': {first_pk()}}}}}"


def first_pk() -> int:
    return Effect.objects.get().pk


def json_of(content: Any, content_type: str | None = None) -> Callable[[], Response]:
    """Return what makes a Response whose body is that text, whatever its type says."""

    def make() -> Response:
        return Response(content, content_type=content_type)

    return make


@pytest.mark.parametrize(
    ("make", "accept", "expected"),
    [
        (json_of({"a": [1, None, "é"]}), "*/*", {"a": [1, None, "é"]}),
        (json_of("text"), "*/*", "text"),
        (json_of(None), "*/*", None),
        (json_of({"t": date(2026, 11, 24)}), "*/*", {"t": "2026-11-24"}),
        (json_of([1], "application/vnd.api+json; x=1"), "*/*", [1]),
        (json_of("a\nb"), "text/csv", None),
        (json_of("[1]"), "text/csv", None),
        (json_of("not JSON", "application/json"), "text/csv", None),
        (json_of("[" * 200_000, "application/json"), "text/csv", None),
        (json_of('["é"]', "application/json; charset=utf-8"), "text/csv", ["é"]),
        (json_of(b'["\xe9"]', 'a/b+json;charset="latin-1"'), "text/csv", ["é"]),
        (json_of(b'["\xe9"]', "application/json"), "text/csv", None),
        (json_of("[1]", "application/json; charset=klingon"), "text/csv", None),
    ],
)
def test_data(
    client: Any, handle: Handle, make: Any, accept: str, expected: Any
) -> None:
    """R2b: Its data are what its JSON body says, and None for any other body."""
    handle(lambda request: make())
    first = client.post("/representations/", {}, HTTP_ACCEPT=accept, **key())
    retry = client.post("/representations/", {}, HTTP_ACCEPT=accept, **key())
    assert "data" not in vars(retry)  # nobody has asked
    assert retry.data == expected
    assert retry.data is retry.data
    assert retry.content == first.content == retry.rendered_content


def test_without_body(client: Any, handle: Handle) -> None:
    """R2b: Nothing is None, as it is on the first answer."""
    handle(lambda request: Response(status=204))
    first = client.post("/mixin-view/", {}, **key())
    retry = client.post("/mixin-view/", {}, **key())
    assert (retry.status_code, retry.data) == (first.status_code, first.data)
    assert (retry.status_code, retry.data, retry.content) == (204, None, b"")


def test_a_view_that_counts_on_its_handler(client: Any) -> None:
    """R2b, R6: renderer_context is made only on demand."""
    assert client.post("/counts/", {}, **key()).status_code == 201
    retry = client.post("/counts/", {}, **key())
    assert retry.status_code == 201
    with pytest.raises(AttributeError, match="total"):
        _ = retry.renderer_context


@pytest.mark.parametrize(
    ("first_accept", "accept", "renderer", "media_type"),
    [
        ("application/json", "text/csv", JSONRenderer, "application/json"),
        ("text/csv", "application/json", TextRenderer, "text/csv"),
        (
            "application/json",
            "application/json; indent=4",
            JSONRenderer,
            "application/json; indent=4",
        ),
    ],
)
def test_renderer(
    client: Any,
    handle: Handle,
    first_accept: str,
    accept: str,
    renderer: Any,
    media_type: str,
) -> None:
    """R2b: It names the renderer of its body, whatever the retry would accept."""
    handle(lambda request: Response("[1]"))
    client.post("/representations/", {}, HTTP_ACCEPT=first_accept, **key())
    retry = client.post("/representations/", {}, HTTP_ACCEPT=accept, **key())
    assert type(retry.accepted_renderer) is renderer
    assert retry.accepted_media_type == media_type
    assert retry.renderer_context["request"].accepted_media_type == accept


def test_a_renderer_that_the_view_has_not(client: Any, handle: Handle) -> None:
    """R2b: Where the view has no such renderer, it names the retry's own."""
    handle(lambda request: Response([1], content_type="application/vnd.api+json"))
    client.post("/representations/", {}, **key())
    retry = client.post("/representations/", {}, HTTP_ACCEPT="text/csv", **key())
    assert type(retry.accepted_renderer) is TextRenderer
    assert retry.accepted_media_type == "text/csv"


def envelope_by_assignment(response: Any) -> None:
    response.data = {"wrapped": response.data}


def envelope_in_place(response: Any) -> None:
    response.data["seen"] = True


ENVELOPES: dict[str, Callable[[Any], None]] = {
    "assigned": envelope_by_assignment,
    "in place": envelope_in_place,
}


class Enveloping:
    """Middleware that changes a Response's data and renders it again."""

    change = staticmethod(envelope_by_assignment)

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        if isinstance(response, Response):
            self.change(response)
            response.content = response.rendered_content
        return response


@pytest.mark.parametrize("how", ENVELOPES)
def test_enveloping_middleware(
    client: Any, handle: Handle, settings: Any, monkeypatch: Any, how: str
) -> None:
    """R2b: Middleware that renders data of its own does so for both answers."""
    settings.MIDDLEWARE = [f"{__name__}.Enveloping"]
    monkeypatch.setattr(Enveloping, "change", staticmethod(ENVELOPES[how]))
    first = client.post("/mixin-view/", {}, **key())
    retry = client.post("/mixin-view/", {}, **key())
    assert "wrapped" in first.json() or first.json()["seen"] is True
    assert first.content == retry.content
    assert first["Content-Type"] == retry["Content-Type"]


def test_equal_to_python_alone(client: Any, handle: Handle) -> None:
    """R2b: What is rendered again is what was changed, be it 1 for True."""
    handle(lambda request: Response({"a": 1}))
    client.post("/mixin-view/", {}, **key())
    retry = client.post("/mixin-view/", {}, **key())
    retry.data["a"] = True
    assert (retry.content, retry.rendered_content) == (b'{"a":1}', b'{"a":true}')


PLAIN: dict[str, Callable[[], HttpResponse]] = {
    "HttpResponse": lambda: HttpResponse("a;b", content_type="text/csv", status=201),
    "JsonResponse": lambda: JsonResponse({"a": 1}, status=201),
}


@pytest.mark.parametrize("url", ["/mixin-view/", "/function/"])
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_answers(
    client: Any, handle: Handle, settings: Any, url: str, kind: str
) -> None:
    """R2b: What was no Response is none again, so nobody takes it for one."""
    settings.MIDDLEWARE = [f"{__name__}.Enveloping"]
    handle(lambda request: PLAIN[kind]())
    first = client.post(url, {}, **key())
    retry = client.post(url, {}, **key())
    assert type(retry) is HttpResponse
    assert not hasattr(retry, "data")
    assert retry.content == first.content == PLAIN[kind]().content
    assert retry["Idempotent-Replayed"] == "true"


def test_in_the_admin(
    client: Any, handle: Handle, settings: Any, admin_client: Client
) -> None:
    """A1, R2b: People are shown the headers that clients get."""
    settings.MIDDLEWARE = demo.MIDDLEWARE
    handle(lambda request: PLAIN["HttpResponse"]())
    client.post("/mixin-view/", {}, **key())
    record = IdempotencyRecord.objects.get()
    page = admin_client.get(
        reverse("admin:idempotency_idempotencyrecord_change", args=[record.pk])
    )
    assert "Content-Type: text/csv" in page.content.decode()
    assert "Idempotent-Replayed" not in page.content.decode()


def test_plain_answers_of_earlier_versions(client: Any, handle: Handle) -> None:
    """R2b: Records that do not say what they are of are taken for Responses."""
    handle(lambda request: PLAIN["JsonResponse"]())
    client.post("/mixin-view/", {}, **key())
    record = IdempotencyRecord.objects.get()
    headers = [pair for pair in record.headers if pair[0] != "Idempotent-Replayed"]
    assert len(headers) == len(record.headers) - 1
    IdempotencyRecord.objects.update(headers=headers)
    assert client.post("/mixin-view/", {}, **key()).data == {"a": 1}


def test_a_persons_answer(client: Any) -> None:
    """R2b, E9: What a person resolves a record with is the endpoint's Response."""
    client.post("/mixin-view/", {}, **key())
    IdempotencyRecord.objects.update(
        state="in_progress", status_code=None, headers=None, body=None, body_size=None
    )
    record = IdempotencyRecord.objects.get()
    record.resolve(JsonResponse({"found": "out"}))
    retry = client.post("/mixin-view/", {}, **key())
    assert (retry.status_code, retry.data) == (200, {"found": "out"})
