"""Whose key it is, by what authentication found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db.models import F
from django.http import HttpRequest
from django.urls import path
from django.utils.functional import SimpleLazyObject
from rest_framework.authentication import BaseAuthentication, BasicAuthentication
from rest_framework.request import Request
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.views import APIView

from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.scopes import (
    authorization_scope,
    default_scope,
    user_scope,
    validate_scope,
)
from tests.app.models import Device, Effect, Tablet
from tests.app.views import create_effect
from tests.conftest import KEY, assert_refused, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]


class Nameless:
    """What some packages make of a caller that has no row."""

    is_authenticated = True
    pk = None


class PasswordOfTheSettings(BasicAuthentication):
    """Basic authentication by something else than users with rows."""

    def authenticate_credentials(self, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        return Nameless(), None


class Guest(BaseAuthentication):
    """A caller who is let in by an address, whatever the headers say."""

    def authenticate(self, request: Request) -> tuple[Any, None]:
        return AnonymousUser(), None


class Basic(IdempotencyMixin, APIView):
    authentication_classes = [PasswordOfTheSettings]

    def post(self, request: Request) -> Any:
        return create_effect(request)


class ForGuests(Basic):
    authentication_classes = [Guest]


urlpatterns = [
    *usual_urls,
    path("basic/", Basic.as_view()),
    path("for-guests/", ForGuests.as_view()),
]


def scopes() -> list[str]:
    return [*IdempotencyRecord.objects.values_list("scope", flat=True).distinct()]


def client_of(user: Any, token: Any = None) -> APIClient:
    client = APIClient()
    client.force_authenticate(user, token)
    return client


def post(client: APIClient, address: str = "/function/", **extra: Any) -> Any:
    return client.post(address, {}, **key(), **extra)


# Users by model and primary key.


def test_a_proxy_is_its_model() -> None:
    """S1: One person has one scope, whichever class of the same table is asked."""
    device = Device()
    tablet = Tablet(pk=device.pk)
    for found in (device, tablet):
        found._state.adding = False  # as read from the database
    first = post(client_of(device))
    retry = post(client_of(tablet))
    assert retry.content == first.content
    assert Effect.objects.count() == 1
    assert scopes() == [f"user:app.device:{device.pk}"]


@pytest.mark.parametrize("pk", [uuid4, lambda: F("pk"), lambda: 7])
def test_users_that_are_not_saved(pk: Any) -> None:
    """S1: An unsaved user's primary key is no scope."""
    for _ in range(2):
        client = client_of(Device(pk=pk()))
        with pytest.raises(ImproperlyConfigured, match="option scope"):
            post(client)
    assert Effect.objects.count() == 0
    # Its token does, whatever becomes of the object.
    answers = [
        post(client_of(Device(pk=pk()), token), HTTP_AUTHORIZATION=f"Bearer {token}")
        for token in ("a", "b", "a")
    ]
    assert answers[0].content == answers[2].content != answers[1].content
    assert Effect.objects.count() == 2


@pytest.mark.parametrize("pk", [F("pk"), Mock(), object(), b"7", (7,), "", None])
def test_keys_that_are_not_plain(pk: Any) -> None:
    """S1: A primary key without one spelling is no scope."""
    with pytest.raises(ImproperlyConfigured, match="option scope"):
        post(client_of(SimpleNamespace(pk=pk)))
    saved = Device(pk=pk)
    saved._state.adding = False
    assert user_scope(saved) is None
    assert Effect.objects.count() == 0


@pytest.mark.parametrize("pk", [7, "7", uuid4()])
def test_users_of_a_token(pk: Any) -> None:
    """S1: A user that a token describes has no row, and its key is in the token."""

    class TokenUser:
        is_authenticated = True

        def __init__(self, token: dict[str, Any]) -> None:
            self.token = token

        @property
        def pk(self) -> Any:
            return self.token["user_id"]

    for lazy in (False, True):
        user: Any = TokenUser({"user_id": pk})
        found = SimpleLazyObject(lambda user=user: user) if lazy else user
        answer = post(client_of(found, str(uuid4())), HTTP_AUTHORIZATION="Bearer new")
        assert ("Idempotent-Replayed" in answer) == lazy
    (scope,) = scopes()
    assert scope.endswith(f"TokenUser:{pk}")


# Callers whom a header names.


def test_a_header_that_nobody_accepted(settings: Any) -> None:
    """S1: A header that no authenticator accepted is no scope."""
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "UNAUTHENTICATED_TOKEN": dict}
    client = APIClient()
    first = post(client, HTTP_AUTHORIZATION="Signature 1")
    retry = post(client, HTTP_AUTHORIZATION="Signature 2")
    assert retry.content == first.content
    assert scopes() == ["anonymous"]
    assert post(client, "/for-guests/", HTTP_AUTHORIZATION="x").status_code == 422
    assert scopes() == ["anonymous"]
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("user", [AnonymousUser(), Nameless(), None])
def test_a_header_that_was_accepted(user: Any) -> None:
    """S1: A caller known by a credential alone is named by it."""
    for token in ("a", "b", "a"):
        post(client_of(user, token), HTTP_AUTHORIZATION=f"Bearer {token}")
    assert Effect.objects.count() == 2
    assert {*scopes()} == {authorization_scope(f"Bearer {token}") for token in "ab"}
    assert all(scope.startswith("authorization:") for scope in scopes())


def test_basic_authentication() -> None:
    """S1: Basic authentication succeeds by the header, and gives no token."""
    for name in ("YTph", "Yjpi", "YTph"):
        post(APIClient(), "/basic/", HTTP_AUTHORIZATION=f"Basic {name}")
    assert len(scopes()) == Effect.objects.count() == 2


def test_a_user_whom_no_header_names() -> None:
    """S1: An unrelated Authorization header does not identify a user."""
    client = client_of(Nameless())
    with pytest.raises(ImproperlyConfigured, match="option scope"):
        post(client, HTTP_AUTHORIZATION="Basic of-the-gateway")
    with pytest.raises(ImproperlyConfigured, match="option scope"):
        post(client_of(Nameless(), "by-another-header"))
    assert Effect.objects.count() == 0


def test_requests_of_django() -> None:
    """S1: default_scope() does without what Django REST framework adds."""
    request: Any = HttpRequest()
    request.user = AnonymousUser()
    request.META["HTTP_AUTHORIZATION"] = "Bearer a"
    assert default_scope(request) == "anonymous"


# Strangers, who share a scope.

NOT_RANDOM = [
    "order-1234567890123",  # 19 characters
    "00000000-0000-0000-0000-000000000000",
    "2026-11-29T10:00:00.000000Z",
]
RANDOM = [
    "6fa459ea-ee8a-4ca4-894e-db77e160355e",
    "6FA459EA-EE8A-7CA4-894E-DB77E160355E",
    "6fa459eaee8a4ca4894edb77e160355e",
    "12345678-1234-4234-8234-123456789012",
    "V1StGXR8_Z5jdHi6B-myT",  # a nanoid
    "order-12345678901234",  # 20 characters
    "907a6547-3b31-8ef9-ae03-17995a63cf1b",  # what derive() gives
]


@pytest.mark.parametrize("value", NOT_RANDOM)
def test_keys_that_do_not_look_random(value: str) -> None:
    """S1: A stranger's key that another stranger may choose is refused."""
    answer = APIClient().post("/function/", {}, **key(value))
    assert_refused(answer, 400, "idempotency_key_weak")
    assert Effect.objects.count() == 0
    # Nobody else has the keys of a caller who is known.
    assert APIClient().post("/function/", {}, HTTP_X_USER="ada", **key(value)).data
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("value", RANDOM)
def test_keys_that_look_random(value: str) -> None:
    """S1: Strangers may use keys that only one of them knows."""
    first, retry = (APIClient().post("/function/", {}, **key(value)) for _ in "12")
    assert first.status_code == 201
    assert retry.content == first.content
    assert Effect.objects.count() == 1


def test_strangers_are_refused(settings: Any) -> None:
    """S1: With ANONYMOUS = "refuse" no stranger's key has an effect."""
    settings.IDEMPOTENCY = {"ANONYMOUS": "refuse"}
    for value in ("weak", KEY):
        answer = APIClient().post("/function/", {}, **key(value))
        assert_refused(answer, 400, "idempotency_caller_unknown")
    assert Effect.objects.count() == 0
    assert APIClient().post("/function/", {}).status_code == 201
    assert APIClient().post("/function/", {}, HTTP_X_USER="ada", **key()).data
    assert Effect.objects.count() == 2


@pytest.mark.parametrize("scope", ["", "a" * 513, "a\0", "a\ud800", 1, None])
def test_scopes_that_no_database_stores(scope: object) -> None:
    """S1: A project's scope that can't be stored raises ImproperlyConfigured."""
    with pytest.raises(ImproperlyConfigured, match="lone surrogates"):
        validate_scope(scope)


def test_longest_scope() -> None:
    """S1: A scope may have 512 characters of any kind."""
    assert validate_scope("\U0001f600" * 512) == "\U0001f600" * 512


def tenant(request: Any) -> str:
    return "tenant:1"


class OfATenant(IdempotencyMixin, APIView):
    """Adds to the scope that it would have without its hook."""

    def post(self, request: Request) -> Any:
        return create_effect(request)

    def get_idempotency_scope(self, request: Request) -> str:
        return f"eu/{super().get_idempotency_scope(request)}"


@pytest.mark.parametrize(
    ("attributes", "settings_scope", "expected"),
    [
        ({"idempotency_scope": tenant}, None, "eu/tenant:1"),
        ({}, tenant, "eu/tenant:1"),
        ({"idempotency_scope": tenant}, default_scope, "eu/tenant:1"),
        ({}, None, "eu/anonymous"),
    ],
)
def test_hook_that_adds_to_the_scope(
    settings: Any, attributes: Any, settings_scope: Any, expected: str
) -> None:
    """S1: A hook can build on the scope of the view's option or of the settings."""
    settings.IDEMPOTENCY = {"SCOPE": settings_scope}
    view = OfATenant.as_view(**attributes)
    request = APIRequestFactory().post("/", {}, **key())
    assert view(request).status_code == 201
    assert scopes() == [expected]
