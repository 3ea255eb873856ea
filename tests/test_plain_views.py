"""Plain Django views: what differs from those of Django REST framework."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

import pytest
from django.contrib.auth.decorators import login_required, permission_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import (
    BadRequest,
    ImproperlyConfigured,
    PermissionDenied,
    SuspiciousOperation,
)
from django.db import connection, transaction
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client, RequestFactory, SimpleTestCase
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.generic import UpdateView
from rest_framework.exceptions import NotAuthenticated, ValidationError
from rest_framework.views import APIView

from idempotency.audit import audit, news
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.exceptions import IdempotencyError
from idempotency.keyed_request import PlainView
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State
from idempotency.protection import is_exempt, protection_of
from idempotency.routing import protected
from idempotency.signals import response_stored
from tests.app.authentication import NamedUser
from tests.app.models import Effect
from tests.conftest import KEY, key

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

Work = Callable[[HttpRequest], Any]


class Desk:
    """What the views do."""

    work: Work


def act(request: HttpRequest) -> HttpResponse:
    effect = Effect.objects.create(note=request.POST.get("note", ""))
    return HttpResponse(f"<p>{effect.pk}</p>", status=201)


@idempotent
def function(request: HttpRequest, pk: int = 0) -> Any:
    return Desk.work(request)


@idempotent(required=True)
def required(request: HttpRequest) -> Any:
    return Desk.work(request)


@idempotent(atomic=False, lease=timedelta(seconds=60), on_abandoned="hold")
def leased(request: HttpRequest) -> Any:
    return Desk.work(request)


class Mixed(IdempotencyMixin, View):
    idempotency_required = True

    def post(self, request: HttpRequest, pk: int = 0) -> Any:
        return Desk.work(request)

    def get(self, request: HttpRequest) -> Any:
        return Desk.work(request)

    @idempotency_exempt
    def put(self, request: HttpRequest) -> Any:
        return Desk.work(request)

    def get_idempotency_scope(self, request: Any) -> str:
        return f"desk:{request.META.get('HTTP_X_DESK', 'one')}"


class MixedPut(Mixed):
    idempotency_methods = ("PUT", "POST")


class Members(IdempotencyMixin, LoginRequiredMixin, View):
    def post(self, request: HttpRequest) -> Any:
        return Desk.work(request)


class Decorated(View):
    @method_decorator(idempotent(required=True))
    def post(self, request: HttpRequest) -> Any:
        return Desk.work(request)


@csrf_exempt
@transaction.non_atomic_requests
@idempotent(atomic=False, on_abandoned="hold")
def leased_out(request: HttpRequest) -> Any:
    return Desk.work(request)


@method_decorator(idempotent(atomic=False, on_abandoned="hold"), name="post")
class Leased(View):
    def post(self, request: HttpRequest) -> Any:
        return Desk.work(request)


@method_decorator(transaction.non_atomic_requests, name="dispatch")
class LeasedOut(Leased):
    pass


class LeasedMixed(IdempotencyMixin, View):
    idempotency_atomic = False
    idempotency_on_abandoned = "hold"

    def post(self, request: HttpRequest) -> Any:
        return Desk.work(request)


@login_required
@idempotent
def members(request: HttpRequest) -> Any:
    return Desk.work(request)


def as_nobody(view: Any) -> Any:
    @wraps(view)
    def nobody(request: HttpRequest) -> Any:
        request.user = AnonymousUser()
        return view(request)

    return nobody


urlpatterns = [
    path("function/", function),
    path("function/<int:pk>/", function),
    path("required/", required),
    path("leased/", leased),
    path("leased-out/", leased_out),
    path("leased-method/", Leased.as_view()),
    path("leased-method-out/", LeasedOut.as_view()),
    path("leased-mixed/", LeasedMixed.as_view()),
    path("mixed/", Mixed.as_view()),
    path("mixed/<int:pk>/", Mixed.as_view()),
    path("put/", MixedPut.as_view()),
    path("decorated/", Decorated.as_view()),
    path("members/", as_nobody(members)),
    path("members-view/", as_nobody(Members.as_view())),
]


@pytest.fixture(autouse=True)
def work() -> Callable[[Work], None]:
    """Let a test choose what the views do."""

    def set_work(work: Work) -> None:
        Desk.work = staticmethod(work)  # type: ignore[assignment]

    set_work(act)
    return set_work


@pytest.fixture
def client() -> Client:
    return Client(raise_request_exception=False)


@pytest.mark.parametrize("url", ["/function/", "/mixed/", "/decorated/", "/leased/"])
def test_form(client: Client, url: str) -> None:
    """E1, R2b: A form that is sent twice acts once; the replay has the same bytes."""
    first, again = (client.post(url, {"note": "a"}, **key()) for _time in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again["Content-Type"] == first["Content-Type"]
    assert again["Idempotent-Replayed"] == "true"
    assert again["Idempotency-Expires"] == first["Idempotency-Expires"]
    assert [*Effect.objects.values_list("note", flat=True)] == ["a"]
    other = client.post(url, {"note": "b"}, **key())
    assert other.status_code == 422


def test_redirect(client: Client, work: Any) -> None:
    """R2b: Django's own tests follow a replayed redirect as the first one."""
    work(lambda request: HttpResponseRedirect("/done/?a=1", status=303))
    for _time in range(2):
        response = client.post("/function/", **key())
        SimpleTestCase().assertRedirects(
            response, "/done/?a=1", status_code=303, fetch_redirect_response=False
        )
        followed = client.post("/function/", **key(), follow=True)
        assert followed.redirect_chain == [("/done/?a=1", 303)]
    assert response["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("url", ["/leased/", "/leased-mixed/"])
def test_resolved(client: Client, work: Any, url: str) -> None:
    """R2b: What a person stored is an HttpResponse for a plain view."""

    def fail(request: HttpRequest) -> Any:
        raise RuntimeError

    work(fail)
    assert client.post(url, **key()).status_code == 500
    stored = HttpResponseRedirect("/done/")
    IdempotencyRecord.objects.with_lease_state().get().resolve(stored)
    again = client.post(url, **key())
    assert (again.status_code, again.content) == (302, b"")
    assert type(again) is HttpResponse
    assert again["Location"] == again.url  # type: ignore[attr-defined]
    assert again["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("url", ["/required/", "/mixed/", "/decorated/"])
def test_refusal(client: Client, url: str) -> None:
    """X1: Refusals are JSON with ``detail`` and ``code``."""
    response = client.post(url)
    assert response.status_code == 400
    assert response["Content-Type"] == "application/json"
    assert response["Idempotency-Error"] == "idempotency_key_required"
    assert response.json()["code"] == "idempotency_key_required"
    assert response.json()["detail"].startswith("This request needs")
    assert Effect.objects.count() == 0


def own_refusal(request: HttpRequest, refusal: IdempotencyError) -> HttpResponse:
    page = f"<h1>{request.path}: {refusal.detail}</h1>"
    return HttpResponse(page, status=refusal.status_code)


def test_own_refusal(client: Client, settings: Any) -> None:
    """X1: A project renders refusals as its own pages."""
    settings.IDEMPOTENCY = {"REFUSAL_RESPONSE": f"{__name__}.own_refusal"}
    response = client.post("/required/")
    assert response.content.startswith(b"<h1>/required/: This request needs")
    assert response["Idempotency-Error"] == "idempotency_key_required"


@pytest.mark.parametrize("url", ["/leased/", "/leased-method/"])
def test_leased_in_a_transaction(url: str, atomic_requests: bool) -> None:
    """E11: Under ATOMIC_REQUESTS a leased view fails at once, with what to write."""
    if not atomic_requests:
        assert Client().post(url, **key()).status_code == 201
        return
    with pytest.raises(ImproperlyConfigured) as error:
        Client().post(url, **key())
    for place in (
        "    @transaction.non_atomic_requests\n    @idempotent",
        '    @method_decorator(transaction.non_atomic_requests, name="dispatch")\n',
    ):
        assert place in str(error.value)
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0


@pytest.mark.parametrize("url", ["/leased-out/", "/leased-method-out/"])
def test_leased_and_opted_out(client: Client, url: str, atomic_requests: bool) -> None:
    """E11: What the error says to write lets the view run."""
    for _time in range(2):
        response = client.post(url, **key())
        assert response.status_code == 201
    assert response["Idempotent-Replayed"] == "true"
    assert Effect.objects.count() == 1


def test_leased_mixin(client: Client, work: Any, atomic_requests: bool) -> None:
    """E11: The mixin opts out its leased requests, and no others."""
    seen: list[bool] = []

    def look(request: HttpRequest) -> HttpResponse:
        seen.append(connection.in_atomic_block)
        return act(request)

    work(look)
    for headers in ({}, key(), key()):
        assert client.post("/leased-mixed/", **headers).status_code == 201
    assert seen == [atomic_requests, False]
    assert Effect.objects.count() == 2


def test_retry_after(client: Client, work: Any) -> None:
    """E3: A request whose key is in progress is refused with Retry-After."""
    inner: list[Any] = []

    def again(request: HttpRequest) -> HttpResponse:
        inner.append(client.post("/leased/", **key()))
        return act(request)

    work(again)
    assert client.post("/leased/", **key()).status_code == 201
    assert inner[0].status_code == 409
    assert int(inner[0]["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("error", "status_code"),
    [
        (Http404, 404),
        (PermissionDenied, 403),
        (BadRequest, 400),
        (SuspiciousOperation, 400),
    ],
)
@pytest.mark.parametrize("url", ["/function/", "/leased/"])
def test_raised_refusal(
    client: Client, work: Any, url: str, error: type[Exception], status_code: int
) -> None:
    """O2: What Django turns into a response frees the key and keeps the writes."""

    def refuse(request: HttpRequest) -> HttpResponse:
        act(request)
        raise error

    work(refuse)
    for count in (1, 2):
        assert client.post(url, **key()).status_code == status_code
        assert Effect.objects.count() == count
    assert IdempotencyRecord.objects.count() == 0


@pytest.mark.parametrize("error", [RuntimeError, ValidationError])
def test_failure(client: Client, work: Any, error: type[Exception]) -> None:
    """O3: Other errors are Django's 500 and undo all, those of DRF included."""

    def fail(request: HttpRequest) -> HttpResponse:
        act(request)
        raise error("no")

    work(fail)
    assert client.post("/function/", **key()).status_code == 500
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0
    work(act)
    assert client.post("/function/", **key()).status_code == 201


def test_no_response(client: Client, work: Any) -> None:
    """O3: A view that returns no response fails, and leaves nothing."""

    def forget(request: HttpRequest) -> Any:
        act(request)

    work(forget)
    with pytest.raises(ImproperlyConfigured, match=r"function must return an HttpResp"):
        Client().post("/function/", **key())
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0


def test_template(client: Client, work: Any) -> None:
    """E1: A TemplateResponse is rendered inside of the transaction."""
    seen: list[bool] = []

    def value() -> str:
        seen.append(connection.in_atomic_block)
        return "shown"

    def render(request: HttpRequest) -> TemplateResponse:
        template: Any = engines["django"].from_string("<b>{{ value }}</b>")
        return TemplateResponse(request, template, {"value": value})

    work(render)
    first, again = (client.post("/function/", **key()) for _time in range(2))
    assert first.content == again.content == b"<b>shown</b>"
    assert seen == [True]


def test_stream(client: Client, work: Any) -> None:
    """R4: A streamed response is not kept; its retry is refused."""
    work(lambda request: StreamingHttpResponse(["a"], status=201))
    assert client.post("/function/", **key()).status_code == 201
    again = client.post("/function/", **key())
    assert (again.status_code, again["Idempotency-Error"]) == (
        409,
        "idempotency_response_not_kept",
    )


def test_weak_key(client: Client, work: Any) -> None:
    """K6: The warning is in the header; there is no data to put it into."""

    def as_ada(request: HttpRequest) -> HttpResponse:
        return act(request)

    work(as_ada)
    user: Any = NamedUser("ada")
    request = RequestFactory().post("/function/?$idempotency=weak")
    request.user = user
    response = function(request)
    assert response["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_WEAK;")
    assert IdempotencyRecord.objects.get().scope.endswith("NamedUser:ada")


def test_other_methods(client: Client) -> None:
    """K5: On other methods a key is ignored, with a warning."""
    for url in ("/function/", "/mixed/"):
        response = client.get(url, **key())
        assert response.status_code == 201
        assert response["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_IGNORED;")
    assert "Idempotency-Warning" not in client.get("/function/")
    assert client.delete("/mixed/", **key()).status_code == 405
    assert IdempotencyRecord.objects.count() == 0


def test_methods(client: Client) -> None:
    """The mixin's options, hooks and exempt handlers work as in views of DRF."""
    for _time in range(2):
        assert client.put("/mixed/", **key()).status_code == 201
        assert client.put("/put/", **key()).status_code == 201
    assert Effect.objects.count() == 4
    assert IdempotencyRecord.objects.count() == 0
    for desk in ("one", "two"):
        response = client.post("/mixed/", **key(), HTTP_X_DESK=desk)
        assert "Idempotent-Replayed" not in response
    scopes = IdempotencyRecord.objects.values_list("scope", flat=True)
    assert {*scopes} == {"desk:one", "desk:two"}


@pytest.mark.parametrize("url", ["/function/7/", "/mixed/7/"])
def test_arguments(client: Client, url: str) -> None:
    assert client.post(url, **key()).status_code == 201
    assert client.post(url, **key())["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("url", ["/members/", "/members-view/"])
def test_login(client: Client, url: str) -> None:
    """S2, K5: The login is checked before the key is used, without a warning."""
    response = client.post(url, **key())
    assert response.status_code == 302
    assert "Idempotency-Warning" not in response
    assert IdempotencyRecord.objects.count() == 0


@pytest.mark.parametrize(
    ("decorator", "name"),
    [(login_required, "login_required"), (csrf_protect, "csrf_protect")],
)
def test_order(decorator: Any, name: str) -> None:
    """S2: A check of the request below the decorator is refused at import."""
    with pytest.raises(TypeError, match=f"must be below {name}"):
        idempotent(decorator(act))
    assert decorator(idempotent(act))


@pytest.mark.parametrize("decorate", [lambda view: view, csrf_protect])
@pytest.mark.parametrize("decorator", [idempotent, idempotency_exempt])
def test_whole_class(decorator: Any, decorate: Any) -> None:
    """X2: A class-based view in the decorator is refused at import.

    Its dispatch() checks the request, so the key would come before these checks (S2),
    and the audit and the middleware would take it for unprotected.
    """
    with pytest.raises(TypeError, match=r"Decorated\.as_view\(\) is not one.*Mixin"):
        decorator(decorate(Decorated.as_view()))


def test_coroutine() -> None:
    """X2: Coroutines are refused at import."""

    async def later(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    with pytest.raises(TypeError, match="coroutine"):
        idempotent(later)


def test_nested(client: Client, work: Any) -> None:
    """E6: A protected view that calls another is protected once."""
    seen: list[str] = []

    def outer(request: Any) -> Any:
        seen.append(request.idempotency.key)
        work(act)
        return required(request)

    work(outer)
    first = client.post("/function/", **key())
    work(outer)
    assert client.post("/function/", **key()).content == first.content
    assert (seen, Effect.objects.count()) == ([KEY], 1)


def test_derived_key(client: Client, work: Any) -> None:
    """E10: Derived keys are the same in every run."""
    derived: list[str] = []

    def call(request: Any) -> Any:
        derived.append(request.idempotency.derive("charge"))
        raise RuntimeError

    work(call)
    assert client.post("/leased/", **key()).status_code == 500
    assert IdempotencyRecord.objects.get().state == State.ABANDONED
    assert client.post("/leased/", **key()).status_code == 409
    IdempotencyRecord.objects.all().delete()
    assert client.post("/leased/", **key()).status_code == 500
    assert derived[0] == derived[1]


def test_audit() -> None:
    """The audit shows plain views that are protected, each by its way."""
    found = {each.route.path: each for each in audit() if each.method == "POST"}
    assert found["/function/"].via == found["/decorated/"].via == "decorator"
    assert found["/mixed/"].via == "mixin"
    assert found["/leased/"].as_row()[3] == "leased"
    listed = {each.route.path for each in news(audit(), all_kinds=False)}
    assert "/function/" in listed
    assert is_exempt(Mixed.as_view(), "PUT")
    assert protection_of(function, "GET") is None


@pytest.mark.parametrize(
    ("place", "sender"),
    [("/function/", PlainView), ("/mixed/", Mixed), ("/decorated/", Decorated)],
)
def test_sender(client: Client, place: str, sender: type) -> None:
    """The sender of signals is the view's class, or PlainView for a function."""
    senders: list[type] = []

    def listen(sender: type, **kwargs: Any) -> None:
        senders.append(sender)

    response_stored.connect(listen)
    try:
        client.post(place, **key())
    finally:
        response_stored.disconnect(listen)
    assert senders == [sender]


class Update(IdempotencyMixin, UpdateView):  # type: ignore[type-arg]  # of the stubs
    """A generic view whose ``get_object()`` can refuse."""

    model = Effect
    fields = ("note",)
    success_url = "/done/"
    idempotency_check_replay = "object"
    is_open = True

    def get_object(self, queryset: Any = None) -> Any:
        if not Update.is_open:
            raise PermissionDenied
        return super().get_object(queryset)


def refuse(request: Any, record: Any) -> None:
    raise NotAuthenticated


def refuse_scope(request: Any) -> str:
    raise ValidationError(["no caller"])


@idempotent(check_replay=refuse)
def checked(request: HttpRequest) -> Any:
    return Desk.work(request)


@idempotent(scope=refuse_scope)
def scoped(request: HttpRequest) -> Any:
    return Desk.work(request)


urlpatterns += [
    path("update/<int:pk>/", Update.as_view()),
    path("checked/", checked),
    path("scoped/", scoped),
]


def test_object_of_a_generic_view(client: Client) -> None:
    """S2: ``check_replay="object"`` also calls Django's own ``get_object()``."""
    place = f"/update/{Effect.objects.create(name='it').pk}/"
    assert client.post(place, {"note": "a"}, **key()).status_code == 302
    assert client.post(place, {"note": "a"}, **key())["Idempotent-Replayed"] == "true"
    Update.is_open = False
    try:
        again = client.post(place, {"note": "a"}, **key())
    finally:
        Update.is_open = True
    assert again.status_code == 403
    assert "Idempotent-Replayed" not in again


def test_hooks_that_refuse(client: Client, work: Any) -> None:
    """S2: A hook's APIException is a refusal; the handler's is Django's error."""
    assert client.post("/checked/", **key()).status_code == 201
    refused = client.post("/checked/", **key())
    assert (refused.status_code, refused.json()["code"]) == (401, "not_authenticated")
    refused = client.post("/scoped/", **key())
    assert (refused.status_code, refused.json()) == (
        400,
        {"detail": ["no caller"], "code": "invalid"},
    )

    def fail(request: HttpRequest) -> Any:
        raise NotAuthenticated

    work(fail)
    assert client.post("/function/", **key("another" + KEY)).status_code == 500


@pytest.mark.parametrize(
    "decorator",
    [
        method_decorator(login_required),
        method_decorator([csrf_exempt, permission_required("a.b")]),
        method_decorator(csrf_protect),
    ],
)
@pytest.mark.parametrize("base", [View, APIView])
def test_late_checks(decorator: Any, base: Any) -> None:
    """S2: What checks a request must come before its key, so it is not on a handler."""

    def post(self: Any, request: Any) -> Any:
        return HttpResponse()

    def get(self: Any, request: Any) -> Any:
        return HttpResponse()

    def view(**handlers: Any) -> Any:
        return type("Late", (IdempotencyMixin, base), handlers).as_view()  # type: ignore[attr-defined]

    with pytest.raises(TypeError, match=r"must be on dispatch\(\)"):
        view(post=decorator(post))
    if base is APIView:
        plain = type("Third", (base,), {"post": decorator(post)}).as_view()  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match=r"must be on dispatch\(\)"):
            protected([path("", plain)])
    view(post=post, get=decorator(get))
    view(post=idempotency_exempt(decorator(post)))
