"""Every refusal says its code to programs, in a header and in DRF's own format."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test import override_settings
from django.urls import path
from django.utils import timezone
from rest_framework import views as drf_views
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency import exceptions
from idempotency.context import context_of
from idempotency.decorators import idempotent
from idempotency.exceptions import IdempotencyError, TransactionFailed
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State
from tests.app import views
from tests.app.views import behave
from tests.conftest import KEY, key
from tests.support.read_only_sessions import end_writes
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]

Handle = Callable[[Callable[[Request], Any]], None]
HEADER = "Idempotency-Error"


def own_format(error: Exception, context: Any) -> Response:
    """Answer in a format that has neither codes nor headers."""
    status = getattr(error, "status_code", 500)
    return Response({"problem": str(error)}, status=status)


def amended_format(error: Exception, context: Any) -> Any:
    """Answer as DRF does, and a little more."""
    response: Any = drf_views.exception_handler(error, context)
    response.data["status"] = response.status_code
    return response


class Leased(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_lease = timedelta(seconds=30)
    idempotency_on_abandoned = "hold"

    def post(self, request: Request) -> Any:
        return behave(request)


class OwnFormat(IdempotencyMixin, APIView):
    """A view whose format is not the project's."""

    def post(self, request: Request) -> Any:
        return behave(request)

    def get_exception_handler(self) -> Any:
        return own_format


class Enveloping(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        return behave(request)

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        response.data = {"answer": response.data}
        return response


class TakesItsOwn(APIView):
    """A handler that catches what the app says."""

    def post(self, request: Request) -> Any:
        try:
            return self.act(request)
        except IdempotencyError:
            return Response({"later": True}, status=202)

    @idempotent
    def act(self, request: Request) -> Any:
        return behave(request)


urlpatterns = [
    *usual_urls,
    path("leased/", Leased.as_view()),
    path("required-view/", views.MixinView.as_view(idempotency_required=True)),
    path("own-format/", OwnFormat.as_view()),
    path("enveloping/", Enveloping.as_view()),
    path("takes-its-own/", TakesItsOwn.as_view()),
]


def fail_in_handler(request: Request) -> Any:
    raise TransactionFailed


def lose_claim(request: Request) -> Any:
    IdempotencyRecord.objects.all()._raw_delete("default")
    context_of(request).renew()


def store_and_change(client: Any, url: str, **fields: Any) -> None:
    assert client.post(url, {}, **key()).status_code == 201
    IdempotencyRecord.objects.update(**fields)


NO_ANSWER = {"status_code": None, "headers": None, "body": None, "body_size": None}
IN_PROGRESS = {**NO_ANSWER, "state": State.IN_PROGRESS}


def key_required(client: Any, handle: Handle, url: str) -> Any:
    strict = {"/mixin-view/": "/required-view/", "/function/": "/required/"}
    return client.post(strict.get(url, "/mixin-viewset/strict/"), {})


def key_invalid(client: Any, handle: Handle, url: str) -> Any:
    return client.post(url, {}, **key(""))


def key_ambiguous(client: Any, handle: Handle, url: str) -> Any:
    return client.post(f"{url}?$idempotency=another-key-of-mine", {}, **key())


def key_weak(client: Any, handle: Handle, url: str) -> Any:
    client.credentials()
    return client.post(url, {}, **key("weak"))


def caller_unknown(client: Any, handle: Handle, url: str) -> Any:
    client.credentials()
    with override_settings(IDEMPOTENCY={"ANONYMOUS": "refuse"}):
        return client.post(url, {}, **key())


def length_required(client: Any, handle: Handle, url: str) -> Any:
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    return client.post(url, {}, **key(), **chunked)


def quota_exceeded(client: Any, handle: Handle, url: str) -> Any:
    rates = {"DEFAULT_THROTTLE_RATES": {"idempotency": "0/day"}}
    with override_settings(REST_FRAMEWORK={**django_settings.REST_FRAMEWORK, **rates}):
        return client.post(url, {}, **key())


def key_reused(client: Any, handle: Handle, url: str) -> Any:
    client.post(url, {}, **key())
    return client.post(url, {"other": 1}, **key())


def in_progress(client: Any, handle: Handle, url: str) -> Any:
    lease = timezone.now() + timedelta(hours=1)
    store_and_change(client, url, **IN_PROGRESS, lease_expires_at=lease)
    return client.post(url, {}, **key())


def response_not_kept(client: Any, handle: Handle, url: str) -> Any:
    store_and_change(client, url, body=None, body_size=None)
    return client.post(url, {}, **key())


def outcome_unknown(client: Any, handle: Handle, url: str) -> Any:
    store_and_change(client, url, **IN_PROGRESS)
    return client.post(url, {}, **key())


def transaction_failed(client: Any, handle: Handle, url: str) -> Any:
    handle(fail_in_handler)
    return client.post(url, {}, **key())


def database_unavailable(client: Any, handle: Handle, url: str) -> Any:
    end_writes()
    try:
        return client.post(url, {}, **key())
    finally:
        connection.close()


def claim_lost(client: Any, handle: Handle, url: str) -> Any:
    handle(lose_claim)
    return client.post("/leased/", {}, **key())


PROVOKED: list[Callable[[Any, Handle, str], Any]] = [
    key_required,
    key_invalid,
    key_ambiguous,
    key_weak,
    caller_unknown,
    length_required,
    quota_exceeded,
    key_reused,
    in_progress,
    response_not_kept,
    outcome_unknown,
    transaction_failed,
    database_unavailable,
    claim_lost,
]
URLS = [
    "/mixin-view/",
    "/mixin-viewset/",
    "/mixin-viewset/extra/",
    "/function/",
    "/method/",
    "/action/",
]


def test_all_are_provoked() -> None:
    """X1: The list has every refusal."""
    known = {each.default_code for each in IdempotencyError.__subclasses__()}
    assert known == {f"idempotency_{each.__name__}" for each in PROVOKED}


def retry_after(code: str) -> str | None:
    (refusal,) = (
        each
        for each in vars(exceptions).values()
        if getattr(each, "default_code", "") == code
    )
    if refusal is exceptions.QuotaExceeded:
        return str(24 * 60 * 60)  # that of the rate
    return None if refusal.wait is None else str(refusal.wait)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("provoke", PROVOKED)
def test_drf_format(client: Any, handle: Handle, url: str, provoke: Any) -> None:
    """X1: The header names the code, and so does the body, beside the detail."""
    answer = provoke(client, handle, url)
    code = f"idempotency_{provoke.__name__}"
    assert answer[HEADER] == code
    assert [*answer.json()] == ["detail", "code"]
    assert answer.json()["code"] == code
    assert answer.get("Retry-After") == retry_after(code)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("provoke", PROVOKED)
def test_own_format(
    client: Any, handle: Handle, settings: Any, url: str, provoke: Any
) -> None:
    """X1: In a format of the project's own the header says it, and when to retry."""
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": f"{__name__}.own_format",
    }
    answer = provoke(client, handle, url)
    code = f"idempotency_{provoke.__name__}"
    assert answer[HEADER] == code
    assert [*answer.json()] == ["problem"]
    assert answer.get("Retry-After") == retry_after(code)


def test_amended_format(client: Any, settings: Any) -> None:
    """X1: What a project makes of DRF's format is its own."""
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": f"{__name__}.amended_format",
    }
    answer = client.post("/function/", {}, **key(""))
    assert [*answer.json()] == ["detail", "status"]
    assert answer[HEADER] == "idempotency_key_invalid"


def test_format_of_a_view(client: Any) -> None:
    """X1: What a view makes of DRF's format is its own, too."""
    answer = client.post("/own-format/", {}, **key(""))
    assert [*answer.json()] == ["problem"]
    assert answer[HEADER] == "idempotency_key_invalid"


def test_envelope(client: Any) -> None:
    """X1: An envelope is put around code and detail."""
    answer = client.post("/enveloping/", {}, **key(""))
    assert answer.json()["answer"]["code"] == answer[HEADER]


def test_answers_that_are_no_refusals(client: Any, handle: Handle) -> None:
    """X1, K4: Answers of handlers, replays and errors of DRF's have no such header."""

    def refuse(request: Request) -> Any:
        raise ValidationError({"detail": "no"})

    for extra in ({}, key(), key()):
        assert HEADER not in client.post("/function/", {}, **extra)
    handle(refuse)
    for extra in ({}, key("another-key")):
        answer = client.post("/function/", {}, **extra)
        assert (answer.status_code, answer.json()) == (400, {"detail": "no"})
        assert HEADER not in answer


def test_raised_by_a_handler_without_a_key(client: Any, handle: Handle) -> None:
    """X1: A handler may refuse in the app's words; other details stay as they are."""

    def require(request: Request) -> Any:
        raise exceptions.KeyRequired({"detail": "no", "why": ["large"]})

    handle(require)
    answer = client.post("/function/", {})
    assert answer.json() == {"detail": "no", "why": ["large"]}
    assert answer[HEADER] == "idempotency_key_required"


def test_caught_by_the_view(client: Any) -> None:
    """X1: A view that answers a refusal in its own way has it named all the same."""
    client.post("/takes-its-own/", {}, **key())
    answer = client.post("/takes-its-own/", {"other": 1}, **key())
    assert (answer.status_code, answer.json()) == (202, {"later": True})
    assert answer[HEADER] == "idempotency_key_reused"


def test_headers_of_another_service(client: Any, handle: Handle) -> None:
    """X1, R2: A handler that hands on such a header does not have it stored."""
    handle(lambda request: Response({}, headers={HEADER: "of_another_service"}))
    assert HEADER in client.post("/function/", {}, **key())
    assert HEADER not in client.post("/function/", {}, **key())
    assert IdempotencyRecord.objects.get().key == KEY
