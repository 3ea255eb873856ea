"""The decision table: what the database and the handler can do to each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    transaction,
)
from django.http import Http404
from django.shortcuts import get_object_or_404
from django.urls import path
from django.utils.functional import SimpleLazyObject
from rest_framework import exceptions, generics, serializers, throttling, viewsets
from rest_framework.decorators import api_view
from rest_framework.permissions import BasePermission
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from idempotency import claims
from idempotency.claims import claims_in
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.fingerprints import VERSIONS
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.app.views import MixinView, behave, create_effect
from tests.conftest import KEY, assert_refused, code_of, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [
    pytest.mark.usefixtures("atomic_requests", "each_way"),
    pytest.mark.urls(__name__),
]

Handle = Callable[[Callable[[Request], Any]], None]


class Gate(BasePermission):
    """A permission that a test opens and closes."""

    is_open = True

    def has_permission(self, request: Request, view: Any) -> bool:
        return self.is_open


class Budget(throttling.BaseThrottle):
    """A throttle that a test opens and closes."""

    is_open = True

    def allow_request(self, request: Request, view: Any) -> bool:
        return self.is_open


class Guarded(IdempotencyMixin, APIView):
    permission_classes = [Gate]
    throttle_classes = [Budget]

    def post(self, request: Request) -> Any:
        return behave(request)


class Hooked(IdempotencyMixin, APIView):
    """Most hooks, in one view."""

    replay_allowed = True

    def post(self, request: Request) -> Any:
        return behave(request)

    def get_idempotency_scope(self, request: Request) -> str:
        return request.META.get("HTTP_X_TENANT", "nobody")

    def get_idempotency_fingerprint(self, request: Request) -> str:
        return str(request.data.get("order"))

    def check_replay(self, request: Request, record: IdempotencyRecord) -> None:
        if not self.replay_allowed:
            raise exceptions.PermissionDenied(f"not {record.key}")

    def add_idempotency_warnings(self, response: Any, warnings: Any) -> None:
        response.data = {"told": [w.code for w in warnings], **response.data}


class WithOptions(IdempotencyMixin, APIView):
    """Options of the view, and nearer ones of a method."""

    idempotency_required = True
    idempotency_retention = timedelta(days=1)
    idempotency_methods = ("POST", "PATCH")
    idempotency_released_statuses = (418,)
    idempotency_scope = "tests.test_execution.shared_scope"

    def post(self, request: Request) -> Any:
        return behave(request)

    def patch(self, request: Request) -> Any:
        return behave(request)

    @idempotent(retention=timedelta(days=2), methods=("PUT",), scope=lambda r: "mine")
    def put(self, request: Request) -> Any:
        return behave(request)


class FunctionScope(IdempotencyMixin, APIView):
    def own_scope(request: Request) -> str:  # noqa: N805  # a function, not a method
        return f"host:{request.get_host()}"

    idempotency_scope = own_scope

    def post(self, request: Request) -> Any:
        return behave(request)


class GetOnly(IdempotencyMixin, APIView):
    def get(self, request: Request) -> Any:
        return behave(request)


class AnyName(IdempotencyMixin, APIView):
    def post(self, request: Request, name: str) -> Any:
        return behave(request)


class Worded(IdempotencyMixin, APIView):
    def post(self, request: Request, **kwargs: str) -> Response:
        return Response(kwargs)


class Bulk(APIView):
    """Calls a protected handler twice, from one that is protected and one not."""

    @idempotent(methods=("POST", "PUT"))
    def create(self, request: Request) -> Any:
        return create_effect(request)

    def put(self, request: Request) -> Response:
        return Response({"all": [self.create(request).data for _ in range(2)]})

    @idempotent
    def post(self, request: Request) -> Response:
        return self.put(request)


class Generic(IdempotencyMixin, generics.CreateAPIView, generics.UpdateAPIView):
    """The handlers are Django REST framework's own, and hand on to these."""

    idempotency_required = True

    @idempotent(required=False, retention=timedelta(days=2))
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        return behave(request)

    @idempotency_exempt
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        return behave(request)


class LeasedGeneric(generics.CreateAPIView):
    """The same in leased mode, with the mixin's way out of ATOMIC_REQUESTS."""

    @idempotent(atomic=False, on_abandoned="hold")
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        return behave(request)


class LeasedGenericWithMixin(IdempotencyMixin, LeasedGeneric):
    pass


def shared_scope(request: Request) -> str:
    return "shared"


def is_small(response: Any) -> bool:
    return len(response.content) < 20


def refuse_replay(request: Request, record: IdempotencyRecord) -> None:
    assert (request.idempotency.key, record.key) == (KEY, KEY)  # type: ignore[attr-defined]
    raise exceptions.PermissionDenied("not any more")


class KeepsSmall(IdempotencyMixin, APIView):
    idempotency_store = is_small
    idempotency_check_replay = refuse_replay

    def post(self, request: Request) -> Any:
        return behave(request)


@api_view(["POST"])
@idempotent(store=f"{__name__}.is_small", check_replay=f"{__name__}.refuse_replay")
def keeps_small(request: Request) -> Any:
    return behave(request)


class OnObjects(IdempotencyMixin, generics.GenericAPIView):
    queryset = Effect.objects.exclude(note="hidden")
    serializer_class = serializers.Serializer
    idempotency_check_replay = "object"

    def post(self, request: Request, pk: int | None = None) -> Any:
        if pk is not None:
            self.get_object()
        return behave(request)


class OnInvoices(IdempotencyMixin, viewsets.GenericViewSet[Effect]):
    """Looks for its object by another name than ``lookup_field`` says."""

    queryset = Effect.objects.exclude(note="hidden")
    idempotency_check_replay = "object"

    def get_object(self) -> Effect:
        return get_object_or_404(self.get_queryset(), pk=self.kwargs["number"])

    def pay(self, request: Request, number: int) -> Any:
        self.get_object()
        return behave(request)

    def add(self, request: Request, pk: int) -> Any:
        return behave(request)


urlpatterns = [
    *usual_urls,
    path("get-only/", GetOnly.as_view()),
    path("any/<str:name>/", AnyName.as_view()),
    path("guarded/", Guarded.as_view()),
    path("hooked/", Hooked.as_view()),
    path("with-options/", WithOptions.as_view()),
    path("optional/", WithOptions.as_view(idempotency_required=False)),
    path("keeps-small/", KeepsSmall.as_view()),
    path("keeps-small-function/", keeps_small),
    path("objects/", OnObjects.as_view()),
    path("objects/<int:pk>/", OnObjects.as_view()),
    path("routed/<int:number>/", OnInvoices.as_view({"post": "pay"}, detail=True)),
    path("invoices/<int:number>/", OnInvoices.as_view({"post": "pay"})),
    path("of/<int:pk>/", OnInvoices.as_view({"post": "add"}, detail=False)),
    path("function-scope/", FunctionScope.as_view()),
    path("bulk/", Bulk.as_view()),
    path(
        "generic/",
        Generic.as_view(idempotency_methods=("POST", "PUT", "PATCH")),
    ),
    path("leased-generic/", LeasedGenericWithMixin.as_view()),
]


@pytest.fixture(params=["/mixin-view/", "/function/"])
def url(request: pytest.FixtureRequest) -> str:
    """Run a test at a mixin and at a decorator."""
    return str(request.param)


class TestOrder:
    """S2: authentication, permissions, throttles, then the key."""

    @pytest.mark.parametrize(
        ("gate", "status_code"), [(Gate, 403), (Budget, 429)], ids=["gate", "budget"]
    )
    def test_refused_today(
        self, client: Any, monkeypatch: Any, gate: Any, status_code: int
    ) -> None:
        """S2: Nothing is replayed to a caller whom the view would refuse today."""
        assert client.post("/guarded/", {}, **key()).status_code == 201
        monkeypatch.setattr(gate, "is_open", False)
        refused = client.post("/guarded/", {}, **key())
        assert refused.status_code == status_code
        assert "Idempotent-Replayed" not in refused
        monkeypatch.setattr(gate, "is_open", True)
        assert "Idempotent-Replayed" in client.post("/guarded/", {}, **key())

    @pytest.mark.parametrize("gate", [Gate, Budget])
    def test_refused_first(self, client: Any, monkeypatch: Any, gate: Any) -> None:
        """S2: A refusal before the handler leaves no record, even for a bad key."""
        monkeypatch.setattr(gate, "is_open", False)
        for headers in (key(), key("not a key")):
            assert client.post("/guarded/", {}, **headers).status_code in (403, 429)
        assert IdempotencyRecord.objects.count() == 0

    def test_other_refusals(self, client: Any, url: str) -> None:
        """S2: 405, 406 and 415 leave no record either."""
        assert client.delete(url, {}, **key()).status_code == 405
        answer = client.post(url, {}, HTTP_ACCEPT="image/png", **key())
        assert answer.status_code == 406
        answer = client.generic("POST", url, b"<a/>", "application/xml", **key())
        assert answer.status_code == 415
        assert IdempotencyRecord.objects.count() == 0

    def test_no_such_handler(self, client: Any) -> None:
        """S2: A POST that the view has no handler for is 405, key or not."""
        answer = client.post("/get-only/", {}, **key())
        assert (answer.status_code, answer["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert IdempotencyRecord.objects.count() == 0

    def test_check_replay(self, client: Any, monkeypatch: Any) -> None:
        """S2: check_replay refuses a replay, and the record stays."""
        client.post("/hooked/", {}, **key())
        monkeypatch.setattr(Hooked, "replay_allowed", False)
        refused = client.post("/hooked/", {}, **key())
        assert refused.status_code == 403
        assert KEY in refused.data["detail"]
        assert "Idempotency-Expires" not in refused
        assert IdempotencyRecord.objects.count() == 1


class TestScope:
    """S1: whose key it is."""

    def test_anonymous(self, client: Any, url: str) -> None:
        """S1, K6: Strangers share a scope, where weak keys are refused."""
        client.credentials()
        assert_refused(client.post(url, {}, **key("weak")), 400, "idempotency_key_weak")
        assert client.post(url, {}, **key()).status_code == 201
        assert IdempotencyRecord.objects.get().scope == "anonymous"

    def test_authorization(self, client: Any, url: str, settings: Any) -> None:
        """S1: A caller known by a credential alone is named by its keyed digest."""
        scopes = set()
        for token, secret in (("a", None), ("b", None), ("a", "other")):
            settings.IDEMPOTENCY = {"DERIVATION_SECRET": secret}
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}\udcff")
            client.force_authenticate(token=token)
            assert client.post(url, {}, **key()).status_code == 201
            scopes = {*IdempotencyRecord.objects.values_list("scope", flat=True)}
        assert len(scopes) == 3
        assert Effect.objects.count() == 3

    def test_users(self, client: Any, django_user_model: Any) -> None:
        """S1: A user of a model is named by its label and primary key, not a token."""
        user = django_user_model(pk=7, username="ada")
        user._state.adding = False  # as read from the database
        client.force_authenticate(user)
        first = client.post("/function/", {}, HTTP_AUTHORIZATION="Bearer 1", **key())
        retry = client.post("/function/", {}, HTTP_AUTHORIZATION="Bearer 2", **key())
        assert retry.content == first.content
        assert IdempotencyRecord.objects.get().scope == "user:auth.user:7"

    def test_lazy_users(self, client: Any) -> None:
        """S1: A user that is found when needed is what it is, not how it is found."""
        for kind in ("Customer", "Staff"):
            user = type(kind, (), {"pk": 1})()
            for found in (user, SimpleLazyObject(lambda user=user: user)):
                client.force_authenticate(found)
                answer = client.post("/function/", {}, **key())
                assert ("Idempotent-Replayed" in answer) == (found is not user)
        assert Effect.objects.count() == 2

    @pytest.mark.parametrize("attributes", [{}, {"pk": None}, {"known": None}])
    def test_users_without_a_primary_key(
        self, client: Any, attributes: dict[str, Any]
    ) -> None:
        """S1: No user is taken for a stranger, whose answers all strangers get."""
        user = SimpleNamespace(name="ada", **attributes)
        client.force_authenticate(user)
        client.raise_request_exception = True
        with pytest.raises(ImproperlyConfigured, match="option scope"):
            client.post("/function/", {}, **key())
        assert Effect.objects.count() == 0
        client.force_authenticate(user, "by the header")
        first = client.post("/function/", {}, HTTP_AUTHORIZATION="Key 1", **key())
        other = client.post("/function/", {}, HTTP_AUTHORIZATION="Key 2", **key())
        assert (first.status_code, other.status_code) == (201, 201)
        assert Effect.objects.count() == 2

    def test_a_projects_own(self, client: Any, settings: Any) -> None:
        """S1: The nearest scope wins: decorator, hook, attribute, settings."""
        settings.IDEMPOTENCY = {"SCOPE": "tests.test_execution.shared_scope"}
        client.put("/with-options/", {}, **key())
        client.post("/with-options/", {}, **key())
        client.post("/hooked/", {}, HTTP_X_TENANT="Müller", **key())
        client.post("/function/", {}, **key("another-key"))
        client.post("/function-scope/", {}, **key())
        found = {*IdempotencyRecord.objects.values_list("scope", flat=True)}
        assert found == {"mine", "shared", "Müller", "host:testserver"}

    @pytest.mark.parametrize("scope", ["", "x" * 513, "a\0b"])
    def test_that_can_not_be_stored(self, scope: str) -> None:
        """S1: A scope that the column can't hold is an error of the project."""
        view = Hooked.as_view()
        request = APIRequestFactory().post("/", {}, HTTP_X_TENANT=scope, **key())
        with pytest.raises(ImproperlyConfigured, match="scope must be"):
            view(request)
        assert Effect.objects.count() == 0


class TestOptions:
    """Options: the nearest wins."""

    def test_of_the_view_and_the_method(self, client: Any, handle: Handle) -> None:
        """A decorator's options win over the view's, and those over the settings."""
        refused = client.post("/with-options/", {})
        assert_refused(refused, 400, "idempotency_key_required")
        assert client.patch("/with-options/", {}).status_code == 400
        assert client.put("/with-options/", {}).status_code == 400
        client.put("/with-options/", {}, **key())
        record = IdempotencyRecord.objects.get()
        assert record.expires_at - record.created_at == timedelta(days=2)
        client.patch("/with-options/", {}, **key("by-patch"))
        record = IdempotencyRecord.objects.get(method="PATCH")
        assert record.expires_at - record.created_at == timedelta(days=1)
        handle(lambda request: Response(status=418))
        client.post("/with-options/", {}, **key("teapot-key"))
        assert not IdempotencyRecord.objects.filter(key="teapot-key").exists()
        handle(lambda request: Response(status=400))
        client.post("/with-options/", {}, **key("stored-key"))
        assert IdempotencyRecord.objects.filter(key="stored-key").exists()

    def test_of_as_view(self, client: Any) -> None:
        """An option of as_view() wins over the class."""
        assert client.post("/optional/", {}).status_code == 201

    def test_of_the_settings(self, client: Any, settings: Any, url: str) -> None:
        """Settings are read live."""
        settings.IDEMPOTENCY = {"REQUIRED": True, "RETENTION": timedelta(hours=1)}
        assert client.post(url, {}).status_code == 400
        client.post(url, {}, **key())
        record = IdempotencyRecord.objects.get()
        assert record.expires_at - record.created_at == timedelta(hours=1)

    def test_disabled(
        self, client: Any, settings: Any, handle: Handle, url: str
    ) -> None:
        """ENABLED = False makes the app step aside, and handlers still work."""
        settings.IDEMPOTENCY = {"ENABLED": False, "REQUIRED": True}
        seen = []

        def handler(request: Request) -> Any:
            seen.append(request.idempotency.key)
            return create_effect(request)

        handle(handler)
        for _ in range(2):
            answer = client.post(url, {}, **key())
            assert answer.status_code == 201
            assert "Idempotency-Expires" not in answer
        assert client.get("/mixin-view/", **key()).status_code == 500
        assert seen == [None, None]
        assert Effect.objects.count() == 2
        assert IdempotencyRecord.objects.count() == 0


class TestGenericViews:
    """What handlers of Django REST framework's own hand on to."""

    def test_decorated(self, client: Any) -> None:
        """E6: Its options are the nearest, beside the mixin, too."""
        assert client.post("/generic/", {}).status_code == 201
        first = client.post("/generic/", {}, **key())
        assert client.post("/generic/", {}, **key()).content == first.content
        assert Effect.objects.count() == 2
        record = IdempotencyRecord.objects.get()
        assert record.expires_at - record.created_at == timedelta(days=2)

    @pytest.mark.parametrize("method", ["put", "patch"])
    def test_left_alone(self, client: Any, method: str) -> None:
        """K4: An exemption there holds, too."""
        for _ in range(2):
            answer = getattr(client, method)("/generic/", {}, **key())
            assert answer.status_code == 201
            assert "Idempotency-Expires" not in answer
        assert Effect.objects.count() == 2

    def test_leased(self, client: Any, handle: Handle, atomic_requests: bool) -> None:
        """E11: The mixin sees that it is leased, and what has no key is not."""
        seen: list[bool] = []

        def handler(request: Request) -> Any:
            seen.append(connection.in_atomic_block)
            return create_effect(request)

        handle(handler)
        for headers in (key(), key(), {}):
            answer = client.post("/leased-generic/", {}, **headers)
            assert answer.status_code == 201
        assert seen == [False, atomic_requests]
        assert Effect.objects.count() == 2


class TestContext:
    """request.idempotency, in every protected handler."""

    def test_in_the_handler(self, client: Any, handle: Handle, url: str) -> None:
        """A handler sees its key, scope, record and attempt."""
        seen: list[Any] = []

        def handler(request: Request) -> Any:
            context = request.idempotency
            seen.append(
                (context.key, context.scope, context.record_id, context.attempt)
            )
            return create_effect(request)

        handle(handler)
        client.post(url, {}, **key())
        client.post(url, {})
        record = IdempotencyRecord.objects.get()
        scope = "user:tests.app.authentication.NamedUser:ada"
        assert seen == [(KEY, scope, record.pk, 1), (None, None, None, None)]
        assert record.scope == scope

    def test_a_request_that_is_used_twice(self) -> None:
        """E6: A test that sends one request object twice is protected twice."""
        from tests.app.views import MixinView, function  # noqa: PLC0415  # views

        for at, view in {"/a/": function, "/b/": MixinView.as_view()}.items():
            request = APIRequestFactory().post(at, {}, HTTP_X_USER=at, **key())
            first, retry = view(request), view(request)
            assert retry.content == first.content
        assert Effect.objects.count() == 2

    def test_words_of_the_address(self) -> None:
        """K4: A view's own arguments may have any name."""
        kwargs = dict.fromkeys(("handler", "options", "view", "policy", "key"), "x")
        view = Worded.as_view()
        for headers in ({}, key()):
            request = APIRequestFactory().post("/", {}, HTTP_X_USER="ada", **headers)
            assert view(request, **kwargs).data == kwargs

    def test_one_after_another(self, client: Any) -> None:
        """E6: Two protected handlers that share one key are an error."""
        client.raise_request_exception = True
        with pytest.raises(ImproperlyConfigured, match="calls both"):
            client.put("/bulk/", {}, **key())
        Effect.objects.all().delete()
        client.put("/bulk/", {})
        assert Effect.objects.count() == 2
        first = client.post("/bulk/", {}, **key("another-key"))
        assert client.post("/bulk/", {}, **key("another-key")).content == first.content
        assert Effect.objects.count() == 4

    def test_one_after_another_without_a_key(self, client: Any) -> None:
        """E6, K1: Two protected handlers of one view warn of a near miss once."""
        response = client.put(f"/bulk/?idempotency={KEY}", {})
        (warning,) = response.json()["$warnings"]
        assert warning["code"] == "IDEMPOTENCY_KEY_MISSPELLED"
        assert response["Idempotency-Warning"].count("IDEMPOTENCY_") == 1
        assert Effect.objects.count() == 2

    def test_view_within(self, client: Any, handle: Handle) -> None:
        """E6, E10: What a handler calls does not take its key away from it."""
        seen = []

        def handler(request: Request) -> Any:
            MixinView.as_view()(request._request)
            context: Any = request.idempotency
            seen.append((context.key, context.derive("a")))
            return Response({}, status=418)

        handle(handler)
        for _ in range(2):
            assert client.put("/with-options/", {}, **key()).status_code == 418
        assert seen[0] == seen[1]
        assert seen[0][0] == KEY


class TestHooks:
    """The hooks of the mixin."""

    def test_fingerprint(self, client: Any) -> None:
        """F1: A project's own fingerprint decides what is the same request."""
        first = client.post("/hooked/", {"order": 1, "noise": 1}, **key())
        retry = client.post("/hooked/", {"order": 1, "noise": 2}, **key())
        assert retry.content == first.content
        assert client.post("/hooked/", {"order": 2}, **key()).status_code == 422
        assert IdempotencyRecord.objects.get().fingerprint_version == 0

    def test_fingerprint_of_a_wrong_type(self, client: Any, monkeypatch: Any) -> None:
        """F1, F5: A hook's mistake is told, without the payload; nothing runs."""
        monkeypatch.setattr(
            Hooked, "get_idempotency_fingerprint", lambda self, request: request.data
        )
        client.raise_request_exception = True
        with pytest.raises(ImproperlyConfigured, match=r"a string .* not dict\.$"):
            client.post("/hooked/", {"card": "4242"}, **key())
        assert Effect.objects.count() == 0

    def test_fingerprint_setting(self, client: Any, settings: Any) -> None:
        """F1: The fingerprint function of the settings decides, too."""
        settings.IDEMPOTENCY = {"FINGERPRINT": "tests.test_execution.shared_scope"}
        first = client.post("/function/", {"a": 1}, **key())
        assert client.post("/function/", {"a": 2}, **key()).content == first.content

    def test_warnings(self, client: Any) -> None:
        """K7: A project with another body overrides where the warnings go."""
        answer = client.post("/hooked/?$idempotency=weak", {})
        assert answer.json()["told"] == ["IDEMPOTENCY_KEY_WEAK"]


class TestReplayOptions:
    """S2, O4: what the mixin's hooks do, options do for every view."""

    @pytest.mark.parametrize("url", ["/keeps-small/", "/keeps-small-function/"])
    def test_of_an_endpoint(self, client: Any, handle: Handle, url: str) -> None:
        """O4, S2: A function may say what is kept, and who gets a replay."""
        handle(lambda request: Response({"long": "x" * 30}, status=201))
        assert client.post(url, {}, **key()).status_code == 201
        assert IdempotencyRecord.objects.get().body is None
        # Asked before tombstones are told of.
        assert client.post(url, {}, **key()).data["detail"] == "not any more"
        handle(lambda request: Response({}, status=201))
        client.post(url, {}, **key("another-random-key"))
        assert IdempotencyRecord.objects.get(key="another-random-key").body == b"{}"

    def test_of_the_settings(self, client: Any, url: str, settings: Any) -> None:
        """O4, S2: So may the project, for every endpoint."""
        settings.IDEMPOTENCY = {"STORE": False}
        assert client.post(url, {}, **key()).status_code == 201
        answer = client.post(url, {}, **key())
        assert code_of(answer) == "idempotency_response_not_kept"
        settings.IDEMPOTENCY = {"CHECK_REPLAY": refuse_replay}
        assert client.post(url, {}, **key()).status_code == 403
        assert Effect.objects.count() == 1

    @pytest.mark.parametrize("route", ["objects", "routed", "invoices"])
    def test_object(self, client: Any, route: str) -> None:
        """S2: A caller who can't get the object any more gets no replay."""
        effect = Effect.objects.create()
        url = f"/{route}/{effect.pk}/"
        first = client.post(url, {}, **key())
        assert client.post(url, {}, **key()).content == first.content
        Effect.objects.filter(pk=effect.pk).update(note="hidden")
        assert client.post(url, {}, **key()).status_code == 404
        assert Effect.objects.count() == 2

    def test_no_object(self, client: Any, settings: Any, url: str) -> None:
        """S2: Where no object is named, there is none to get again."""
        settings.IDEMPOTENCY = {"CHECK_REPLAY": "object"}
        for each in ("/objects/", "/of/1/", url):
            own_key = key(f"{each[1:-1]}-has-this-key")
            first = client.post(each, {}, **own_key)
            again = client.post(each, {}, **own_key)
            assert again.content == first.content


class TestVersions:
    """F4: a record is compared in its own fingerprint version."""

    def test_an_older_version(self, client: Any, monkeypatch: Any) -> None:
        """F4: After an upgrade, older records are compared in their version."""
        first = client.post("/function/", {"a": 1}, **key())
        monkeypatch.setitem(VERSIONS, 2, lambda request: "2" * 64)
        assert client.post("/function/", {"a": 1}, **key()).content == first.content
        assert client.post("/function/", {"a": 2}, **key()).status_code == 422
        client.post("/function/", {"a": 1}, **key("a-new-record"))
        newer = IdempotencyRecord.objects.get(key="a-new-record")
        assert (newer.fingerprint_version, newer.fingerprint) == (2, "2" * 64)

    def test_an_unknown_version(self, client: Any) -> None:
        """F4: After a downgrade, newer records can't be compared: nothing runs."""
        client.post("/function/", {"a": 1}, **key())
        IdempotencyRecord.objects.update(fingerprint_version=99)
        assert client.post("/function/", {"a": 1}, **key()).status_code == 422
        assert Effect.objects.count() == 1

    @pytest.mark.parametrize("field", ["scope", "key"])
    def test_a_collision_of_ids(self, client: Any, field: str) -> None:
        """F4, S1: Scope and key of a hit are compared as they are."""
        client.post("/function/", {}, **key())
        IdempotencyRecord.objects.update(**{field: "another"})
        assert client.post("/function/", {}, **key()).status_code == 422


class TestRollback:
    """E2: a keyed handler behaves as the same handler under ATOMIC_REQUESTS."""

    def test_set_rollback(self, client: Any, handle: Handle, url: str) -> None:
        """E2: A handler that marks the transaction gets its answer through."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            transaction.set_rollback(True)
            return Response({"dry": "run"}, status=200)

        handle(handler)
        for _ in range(2):
            answer = client.post(url, {}, **key())
            assert (answer.status_code, answer.data) == (200, {"dry": "run"})
            assert "Idempotency-Expires" not in answer
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0

    def test_set_rollback_and_raise(
        self, client: Any, handle: Handle, url: str
    ) -> None:
        """E2, O2: A handler that marks the transaction and raises is undone, too."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            transaction.set_rollback(True)
            raise Http404

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 404
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize("error", ["in a savepoint", "without one"])
    def test_set_rollback_after_an_error(
        self, client: Any, handle: Handle, url: str, error: str
    ) -> None:
        """E2: A dry run that met a database error is a dry run all the same."""
        Effect.objects.create(name="taken")

        def handler(request: Request) -> Any:
            with suppress(IntegrityError):
                if error == "in a savepoint":
                    with transaction.atomic():
                        Effect.objects.create(name="taken")
                else:
                    Effect.objects.create(name="taken")
            transaction.set_rollback(True)
            return Response({"dry": "run"}, status=200)

        handle(handler)
        for _ in range(2):
            answer = client.post(url, {}, **key())
            assert (answer.status_code, answer.data) == (200, {"dry": "run"})
        assert Effect.objects.count() == 1
        assert IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize("is_taken_back", [True, False])
    def test_set_rollback_in_vain(
        self, client: Any, handle: Handle, url: str, is_taken_back: bool
    ) -> None:
        """E2: Only a wish that concerns the whole transaction, and lasts, counts."""
        Effect.objects.create(name="taken")

        def handler(request: Request) -> Any:
            with transaction.atomic():
                transaction.set_rollback(True)
            if is_taken_back:
                transaction.set_rollback(True)
                transaction.set_rollback(False)
            Effect.objects.create(name="lost")
            with suppress(IntegrityError), transaction.atomic(savepoint=False):
                collide(raw=True)
            return Response({}, status=200)

        handle(handler)
        answer = client.post(url, {}, **key())
        assert_refused(answer, 503, "idempotency_transaction_failed")
        assert Effect.objects.count() == 1

    def test_set_rollback_in_a_block(
        self, client: Any, handle: Handle, url: str
    ) -> None:
        """E2: A block without a savepoint hands the wish on to the transaction."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            with transaction.atomic(savepoint=False):
                transaction.set_rollback(True)
            return Response({"dry": "run"}, status=200)

        handle(handler)
        answer = client.post(url, {}, **key())
        assert (answer.status_code, answer.data) == (200, {"dry": "run"})
        assert Effect.objects.count() == 0
        assert "set_rollback" not in vars(connection)

    def test_set_rollback_of_another_request(
        self, client: Any, handle: Handle, url: str
    ) -> None:
        """E2: A request that a handler sends wants nothing for the one around it."""
        calls: list[Request] = []

        def handler(request: Request) -> Any:
            calls.append(request)
            Effect.objects.create()
            if len(calls) == 1:
                inner = client.post(url, {}, **key("another-key"))
                assert inner.data == {"dry": "run"}
                return Response({}, status=201)
            with transaction.atomic():
                transaction.set_rollback(True)
            transaction.set_rollback(True)
            return Response({"dry": "run"}, status=200)

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 201
        assert Effect.objects.count() == 1
        assert IdempotencyRecord.objects.get().key == KEY

    @pytest.mark.parametrize("how", ["connection", "transaction", "block"])
    def test_lost(self, client: Any, handle: Handle, url: str, how: str) -> None:
        """E2, E4: A success whose effects were lost unnoticed is not acknowledged."""

        def handler(request: Request) -> Any:
            response = create_effect(request)
            if how == "connection":
                connection.close()
            elif how == "block":
                # Django marks the transaction, and does not say why.
                with suppress(IntegrityError), transaction.atomic(savepoint=False):
                    collide(raw=True)
            else:
                with connection.cursor() as cursor:
                    cursor.execute("ROLLBACK")
                connection.needs_rollback = True  # as a savepoint that is gone does
            return response

        Effect.objects.create(name="taken")
        handle(handler)
        answer = client.post(url, {}, **key())
        assert_refused(answer, 503, "idempotency_transaction_failed")
        assert Effect.objects.count() == 1

    def test_savepoint(self, client: Any, handle: Handle, url: str) -> None:
        """E2: A database error in a savepoint of the handler's is its own affair."""
        Effect.objects.create(name="taken")

        def handler(request: Request) -> Any:
            try:
                with transaction.atomic():
                    Effect.objects.create(name="taken")
            except IntegrityError:
                return create_effect(request)
            raise AssertionError

        handle(handler)
        first = client.post(url, {}, **key())
        assert first.status_code == 201
        assert client.post(url, {}, **key()).content == first.content
        assert Effect.objects.count() == 2

    def test_durable(self, client: Any, handle: Handle, url: str) -> None:
        """E2: atomic(durable=True) inside a keyed handler is refused."""

        def handler(request: Request) -> Any:
            with transaction.atomic(durable=True):
                return create_effect(request)

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 500
        assert Effect.objects.count() == 0

    @pytest.mark.parametrize("raw", [False, True], ids=["orm", "cursor"])
    @pytest.mark.parametrize("raised", [False, True], ids=["returned", "raised"])
    def test_error_made_a_refusal(
        self, client: Any, handle: Handle, url: str, raw: bool, raised: bool
    ) -> None:
        """O2: A database error that the handler makes a refusal of frees the key."""
        Effect.objects.create(name="taken")

        def handler(request: Request) -> Any:
            try:
                collide(raw)
            except IntegrityError:
                if raised:
                    raise exceptions.ValidationError("taken") from None
                return Response({"why": "taken"}, status=409)

        handle(handler)
        for _ in range(2):
            answer = client.post(url, {}, **key())
            assert answer.status_code == (400 if raised else 409)
        assert Effect.objects.count() == 1
        assert IdempotencyRecord.objects.count() == 0

    def test_error_answered(self, client: Any, handle: Handle, url: str) -> None:
        """E2: A 410 after a caught database error goes out, stored if possible."""

        def handler(request: Request) -> Any:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT * FROM no_such_table")
            except DatabaseError:
                return Response({"gone": True}, status=410)

        handle(handler)
        survives = connection.vendor != "postgresql"
        for attempt in range(2):
            answer = client.post(url, {}, **key())
            assert answer.status_code == 410
            assert ("Idempotency-Expires" in answer) == survives
            assert ("Idempotent-Replayed" in answer) == (survives and attempt == 1)
        assert IdempotencyRecord.objects.count() == survives

    @pytest.mark.parametrize("raw", [False, True], ids=["orm", "cursor"])
    def test_error_swallowed(
        self, client: Any, handle: Handle, url: str, raw: bool, caplog: Any
    ) -> None:
        """E5: A success whose effects are lost is answered 503, never stored."""
        Effect.objects.create(name="taken")

        def handler(request: Request) -> Any:
            Effect.objects.create(name="lost")
            with suppress(IntegrityError):
                collide(raw)
            return Response(status=201)

        handle(handler)
        answer = client.post(url, {}, **key())
        survives = raw and connection.vendor != "postgresql"
        if survives:  # the statement alone failed, and nothing was lost
            assert answer.status_code == 201
            assert Effect.objects.filter(name="lost").exists()
            return
        assert (answer.status_code, code_of(answer)) == (
            503,
            "idempotency_transaction_failed",
        )
        assert answer["Retry-After"] == "1"
        assert [*Effect.objects.values_list("name", flat=True)] == ["taken"]
        assert IdempotencyRecord.objects.count() == 0
        assert "needs a savepoint" in caplog.text
        assert KEY not in caplog.text
        handle(create_effect)
        assert client.post(url, {}, **key()).status_code == 201


def collide(raw: bool) -> None:
    """Violate a unique constraint, through the ORM or beside it."""
    if not raw:
        Effect.objects.create(name="taken")
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO app_effect (name, note) VALUES ('taken', '')")


class TestFailedTransactions:
    """E4, E5: what the database undoes."""

    @pytest.fixture
    def transient(self, monkeypatch: Any) -> DatabaseError:
        """Return an error that this database's claims know as transient."""
        for vendor in (
            claims.PostgreSQLClaims,
            claims.MariaDBClaims,
            claims.SQLiteClaims,
        ):
            monkeypatch.setattr(
                vendor, "is_transient", lambda self, error: "deadlock" in str(error)
            )
        return OperationalError("deadlock detected")

    def test_at_a_statement(
        self, client: Any, handle: Handle, url: str, transient: DatabaseError
    ) -> None:
        """E4: A deadlock in the handler is 503 with Retry-After, and nothing stays."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            raise transient

        handle(handler)
        answer = client.post(url, {}, **key())
        assert (answer.status_code, code_of(answer)) == (
            503,
            "idempotency_transaction_failed",
        )
        assert answer["Retry-After"] == "1"
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0

    def test_while_rendering(
        self, client: Any, handle: Handle, url: str, transient: DatabaseError
    ) -> None:
        """E4: A deadlock while rendering is a 503, too."""

        def fail(response: Any) -> None:
            raise transient

        def handler(request: Request) -> Any:
            response = create_effect(request)
            response.add_post_render_callback(fail)
            return response

        handle(handler)
        answer = client.post(url, {}, **key())
        assert_refused(answer, 503, "idempotency_transaction_failed")
        assert answer["Retry-After"] == "1"
        assert Effect.objects.count() == 0

    def test_at_the_commit(
        self,
        client: Any,
        url: str,
        transient: DatabaseError,
        monkeypatch: Any,
        atomic_requests: bool,
        by_statements: None,
    ) -> None:
        """E4: A COMMIT that fails is 503, Django's under ATOMIC_REQUESTS, too."""

        def commit() -> None:
            raise transient

        with monkeypatch.context() as patch:
            patch.setattr(connection, "_commit", commit)
            answer = client.post(url, {}, **key())
        assert answer.status_code == 503
        assert "Idempotency-Expires" not in answer
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0
        assert client.post(url, {}, **key()).status_code == 201

    def test_other_database_errors(self, client: Any, handle: Handle, url: str) -> None:
        """O3: Other database errors are the project's own 500."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            raise OperationalError("disk full")

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 500
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize("raised", [False, True], ids=["returned", "raised"])
    @pytest.mark.usefixtures("by_statements")
    def test_release_that_fails(
        self, client: Any, handle: Handle, url: str, monkeypatch: Any, raised: bool
    ) -> None:
        """O2, E1: A refusal whose effects are lost with the connection is no answer."""

        def fail(*args: Any) -> None:
            raise OperationalError("server closed the connection")

        def handler(request: Request) -> Any:
            Effect.objects.create()
            monkeypatch.setattr(claims_in("default"), "release", fail, raising=False)
            if raised:
                raise exceptions.ValidationError("wrong")
            return Response(status=400)

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 500
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize("status_code", [201, 400])
    @pytest.mark.parametrize("loss", ["token", "row"])
    @pytest.mark.usefixtures("by_statements")
    def test_claim_that_vanished(
        self, client: Any, handle: Handle, url: str, status_code: int, loss: str
    ) -> None:
        """E5: A later write that does not hit its row rolls everything back: 503."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            record = IdempotencyRecord.objects.filter(pk=request.idempotency.record_id)
            if loss == "row":
                record._raw_delete("default")
            else:
                record.update(token="00000000-0000-0000-0000-000000000000")
            return Response(status=status_code)

        handle(handler)
        answer = client.post(url, {}, **key())
        assert (answer.status_code, code_of(answer)) == (
            503,
            "idempotency_transaction_failed",
        )
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0


class TestOutcomes:
    """O2 to O5, beside what tests/test_contract.py shows for every view."""

    @pytest.mark.parametrize(
        ("error", "status_code"),
        [
            (exceptions.APIException("own"), 500),
            (exceptions.ParseError(), 400),
            (exceptions.NotAuthenticated(), 403),
            (exceptions.Throttled(wait=7), 429),
            (Http404(), 404),
        ],
    )
    def test_raised(
        self,
        client: Any,
        handle: Handle,
        url: str,
        error: Exception,
        status_code: int,
    ) -> None:
        """O2, O3, O4: Raised exceptions get the answers that they get without a key."""

        def handler(request: Request) -> Any:
            raise error

        handle(handler)
        bare = client.post(url, {})
        keyed = client.post(url, {}, **key())
        assert keyed.status_code == bare.status_code == status_code
        assert keyed.content == bare.content
        assert keyed.headers == bare.headers
        assert IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize("error", [ValueError, IntegrityError])
    def test_exception_handler_that_asks(
        self, client: Any, handle: Handle, monkeypatch: Any, error: type[Exception]
    ) -> None:
        """O3, O4: It can use the database, and what it writes stays; effects go."""

        def answer(exc: Any, context: Any) -> Response:
            Effect.objects.create(note="audit")
            return Response({"why": str(exc), "kept": Effect.objects.count()}, 409)

        def handler(request: Request) -> Any:
            Effect.objects.create(note="effect")
            if error is ValueError:
                raise ValueError("wrong")
            collide(raw=False)

        Effect.objects.create(name="taken")
        monkeypatch.setattr(APIView, "get_exception_handler", lambda self: answer)
        handle(handler)
        for attempt in (1, 2):
            answered = client.post("/function/", {}, **key())
            assert (answered.status_code, answered.data["kept"]) == (409, 1 + attempt)
        assert not Effect.objects.filter(note="effect").exists()
        assert IdempotencyRecord.objects.count() == 0

    def test_rendering_fails(self, client: Any, handle: Handle, url: str) -> None:
        """E1, O3: An answer that can't be rendered undoes its effects."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            return Response({"a": object()})

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 500
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize(
        "error", [Http404, PermissionDenied, exceptions.ParseError]
    )
    @pytest.mark.parametrize("where", ["finalize_response", "renderer", "callback"])
    def test_rendering_refuses(
        self, client: Any, handle: Handle, monkeypatch: Any, where: str, error: Any
    ) -> None:
        """O3, R1: What looks like a refusal of the handler's is none after it."""

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise error

        def handler(request: Request) -> Any:
            Effect.objects.create()
            response = Response({})
            if where == "callback":
                response.add_post_render_callback(refuse)
            return response

        handle(handler)
        if where == "finalize_response":
            monkeypatch.setattr(MixinView, "finalize_response", refuse)
        if where == "renderer":
            renderer = type("Refusing", (JSONRenderer,), {"render": refuse})
            monkeypatch.setattr(MixinView, "renderer_classes", [renderer])
        bare = client.post("/mixin-view/", {})
        Effect.objects.all().delete()
        for _ in range(2):
            keyed = client.post("/mixin-view/", {}, **key())
            assert (keyed.status_code, keyed.content) == (
                bare.status_code,
                bare.content,
            )
            assert Effect.objects.count() == 0
            assert IdempotencyRecord.objects.count() == 0

    def test_on_commit(self, client: Any, handle: Handle, url: str) -> None:
        """O5: on_commit hooks run once, for the run that committed."""
        ran: list[str] = []

        def handler(request: Request) -> Any:
            transaction.on_commit(lambda: ran.append(request.data["run"]))
            if request.data["run"] == "lost":
                raise RuntimeError
            return create_effect(request)

        handle(handler)
        assert client.post(url, {"run": "lost"}, **key()).status_code == 500
        for _ in range(2):
            assert client.post(url, {"run": "kept"}, **key()).status_code == 201
        assert ran == ["kept"]

    def test_on_commit_that_fails(self, client: Any, handle: Handle, url: str) -> None:
        """O5: A hook that fails after the commit undoes nothing: the retry replays."""

        def fail() -> None:
            raise RuntimeError

        def handler(request: Request) -> Any:
            transaction.on_commit(fail)
            return create_effect(request)

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 500
        assert client.post(url, {}, **key())["Idempotent-Replayed"] == "true"
        assert Effect.objects.count() == 1

    @pytest.mark.parametrize("transient", [True, False])
    @pytest.mark.parametrize("status_code", [201, 400])
    def test_on_commit_that_meets_a_deadlock(
        self,
        client: Any,
        handle: Handle,
        url: str,
        monkeypatch: Any,
        status_code: int,
        transient: bool,
    ) -> None:
        """O5, E4: An error of a hook is not taken for one of the transaction."""

        def fail() -> None:
            raise OperationalError("deadlock")

        def handler(request: Request) -> Any:
            transaction.on_commit(fail)
            Effect.objects.create()
            return Response({}, status=status_code)

        for vendor in ("PostgreSQLClaims", "MariaDBClaims", "SQLiteClaims"):
            monkeypatch.setattr(
                getattr(claims, vendor), "is_transient", lambda self, error: transient
            )
        handle(handler)
        assert client.post(url, {}, **key()).status_code == 500
        assert Effect.objects.count() == 1
        retry = client.post(url, {}, **key())
        if status_code == 201:
            assert retry["Idempotent-Replayed"] == "true"


def test_states_are_what_they_say(client: Any) -> None:
    """E5: What a record is, the record says, not today's options of the endpoint."""
    client.post("/function/", {}, **key())
    IdempotencyRecord.objects.update(state=State.ABANDONED, status_code=None)
    answer = client.post("/function/", {}, **key())
    assert code_of(answer) == "idempotency_outcome_unknown"
    assert Effect.objects.count() == 1


def test_nul_in_the_path(client: Any) -> None:
    """K3: A path that not every database can store makes no error."""
    for _ in range(2):
        assert client.post("/any/a%00b/", {}, **key()).status_code == 201
    assert IdempotencyRecord.objects.get().path == "/any/a%00b/"
    assert Effect.objects.count() == 1


def test_claims_know_their_database() -> None:
    """E3: Each database has the claims that it is best at."""
    names = {
        "postgresql": "PostgreSQLClaims",
        "sqlite": "SQLiteClaims",
        "mysql": "MariaDBClaims",
    }
    assert type(claims_in("default")).__name__ == names[connection.vendor]
