"""X1: how many claims a caller may win in a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.urls import path
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State
from idempotency.modes.quotas import Quota
from tests.app.models import Effect
from tests.app.views import behave, create_effect
from tests.conftest import KEY, code_of, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]

HOUR = 3600


class Leased(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned = "rerun"

    def post(self, request: Request) -> Any:
        return behave(request)


def nothing_happened(record: IdempotencyRecord, request: Request) -> None:
    request.idempotency.release()  # type: ignore[attr-defined]


class Asking(Leased):
    idempotency_on_abandoned = staticmethod(nothing_happened)


urlpatterns = [
    *usual_urls,
    path("leased/", Leased.as_view()),
    path("asking/", Asking.as_view()),
]


@pytest.fixture(params=["/mixin-view/", "/function/", "/waiting/", "/leased/"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Clock:
    """The time of the quota."""

    now = 1_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(Quota, "timer", lambda quota: clock.now)
    cache.clear()
    yield clock
    cache.clear()


@pytest.fixture
def allow(settings: Any) -> Any:
    """Return what sets the rate."""

    def allow(rate: str | None) -> None:
        settings.REST_FRAMEWORK = {
            **settings.REST_FRAMEWORK,
            "DEFAULT_THROTTLE_RATES": {"idempotency": rate},
        }

    return allow


def post(client: APIClient, url: str, name: str, content: Any = None) -> Any:
    return client.post(url, content or {}, **key(f"{KEY}-{name}"))


def assert_exceeded(answer: Any, wait: int) -> None:
    assert answer.status_code == 429
    assert code_of(answer) == "idempotency_quota_exceeded"
    assert answer["Retry-After"] == str(wait)
    assert "Idempotency-Expires" not in answer


def keys_kept() -> set[str]:
    found = IdempotencyRecord.objects.values_list("key", flat=True)
    return {value.removeprefix(f"{KEY}-") for value in found}


def test_claims_count(client: Any, url: str, allow: Any, clock: Clock) -> None:
    """X1: One claim too many is undone before its handler runs, and free later."""
    allow("2/h")
    first = post(client, url, "1")
    clock.now += 60
    assert (first.status_code, post(client, url, "2").status_code) == (201, 201)
    for _ in range(2):
        assert_exceeded(post(client, url, "3"), HOUR - 60)
    assert Effect.objects.count() == 2
    assert keys_kept() == {"1", "2"}
    clock.now += HOUR - 60
    assert post(client, url, "3").status_code == 201
    assert_exceeded(post(client, url, "4"), 60)
    assert keys_kept() == {"1", "2", "3"}


def test_what_does_not_count(client: Any, url: str, allow: Any) -> None:
    """X1: Replays and refusals take nothing of a quota, and need none."""
    allow("2/h")
    first = post(client, url, "1")
    for _ in range(3):
        retry = post(client, url, "1")
        assert retry.content == first.content
        assert "Idempotent-Replayed" in retry
        assert post(client, url, "1", {"other": 1}).status_code == 422
        assert post(client, url, "ü").status_code == 400
        assert client.post(url, {}).status_code == 201
    assert post(client, url, "2").status_code == 201
    assert_exceeded(post(client, url, "3"), HOUR)
    assert post(client, url, "1").content == first.content
    assert post(client, url, "1", {"other": 1}).status_code == 422


def test_each_caller(client: Any, url: str, allow: Any) -> None:
    """X1: A quota is a scope's, and the cache does not learn whose."""
    allow("1/h")
    assert post(client, url, "1").status_code == 201
    assert_exceeded(post(client, url, "2"), HOUR)
    client.credentials(HTTP_X_USER="grace")
    assert post(client, url, "1").status_code == 201
    known = [name for name in cache._cache if "throttle_idempotency_" in name]
    assert len(known) == 2
    assert not any("ada" in name or "User" in name for name in known)


def test_runs_that_leave_nothing(
    client: Any, url: str, handle: Any, allow: Any
) -> None:
    """X1: A claim counts whatever becomes of its run."""

    def refuse(request: Request) -> Any:
        raise ValidationError("no")

    allow("1/h")
    handle(refuse)
    assert post(client, url, "1").status_code == 400
    handle(create_effect)
    assert_exceeded(post(client, url, "1"), HOUR)
    assert keys_kept() == set()


def test_no_quota(
    client: Any, url: str, allow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: Without a rate no cache is asked."""
    monkeypatch.setattr(Quota, "cache", None)
    assert post(client, url, "1").status_code == 201
    allow(None)
    assert post(client, url, "2").status_code == 201


@pytest.mark.parametrize(("rate", "wait"), [("1/h", HOUR - 60), ("0/d", 86400)])
def test_lowered(
    client: Any, url: str, allow: Any, clock: Clock, rate: str, wait: int
) -> None:
    """X1: Retry-After is right after the rate was lowered, too."""
    allow("3/h")
    for name in "12":
        post(client, url, name)
    clock.now += 60
    allow(rate)
    assert_exceeded(post(client, url, "3"), wait)


def answer_in_own_format(exc: Exception, context: Any) -> Response:
    return Response({"effects": Effect.objects.count()}, status=429)


def test_own_format(client: Any, url: str, allow: Any, settings: Any) -> None:
    """X1: An EXCEPTION_HANDLER may ask the database, and say nothing of waiting."""
    allow("1/h")
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": f"{__name__}.answer_in_own_format",
    }
    post(client, url, "1")
    answer = post(client, url, "2")
    assert (answer.status_code, answer.data) == (429, {"effects": 1})
    assert answer["Retry-After"] == str(HOUR)
    assert keys_kept() == {"1"}


class BrokenCache:
    def get(self, *args: Any) -> Any:
        raise ConnectionError


def test_a_cache_that_fails(
    client: Any, url: str, allow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: Nothing has run, so the next retry does, in leased mode, too."""
    allow("1/h")
    with monkeypatch.context() as broken:
        broken.setattr(Quota, "cache", BrokenCache())
        assert post(client, url, "1").status_code == 500
    assert IdempotencyRecord.objects.count() == 0
    assert post(client, url, "1").status_code == 201
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("is_broken", [False, True], ids=["quota", "cache"])
def test_abandoned_runs(
    client: Any,
    handle: Any,
    allow: Any,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    is_broken: bool,
) -> None:
    """X1, E9: What an abandoned run did stays unknown until another one has run."""

    def fail(request: Request) -> Any:
        request.idempotency.derive("charge")  # type: ignore[attr-defined]
        raise ZeroDivisionError

    allow("1/h")
    handle(fail)
    assert post(client, "/leased/", "1").status_code == 500
    handle(create_effect)
    with monkeypatch.context() as patch:
        if is_broken:
            patch.setattr(Quota, "cache", BrokenCache())
        answer = post(client, "/leased/", "1")
        assert answer.status_code == (500 if is_broken else 429)
    assert IdempotencyRecord.objects.get().state == State.ABANDONED
    assert Effect.objects.count() == 0
    clock.now += HOUR
    assert post(client, "/leased/", "1").status_code == 201
    assert Effect.objects.count() == 1


def test_released_by_hand(client: Any, handle: Any, allow: Any) -> None:
    """X1, E9: Counting says nothing of what the handler does after it."""

    def act_outside(request: Request) -> Any:
        request.idempotency.derive("charge")  # type: ignore[attr-defined]
        raise ValidationError("no")

    allow("1/h")
    handle(act_outside)
    assert post(client, "/leased/", "1").status_code == 400
    assert IdempotencyRecord.objects.get().state == State.ABANDONED


@pytest.mark.parametrize("rate", [None, "9/h", "1/h"])
def test_released_by_who_was_asked(
    client: Any, handle: Any, allow: Any, rate: str | None
) -> None:
    """X1, E9: What on_abandoned says of an abandoned run holds beside a quota."""

    def fail(request: Request) -> Any:
        request.idempotency.derive("charge")  # type: ignore[attr-defined]
        raise ZeroDivisionError

    allow(rate)
    handle(fail)
    assert post(client, "/asking/", "1").status_code == 500
    handle(create_effect)
    answer = post(client, "/asking/", "1")
    assert answer.status_code == (429 if rate == "1/h" else 201)
    assert keys_kept() == set()
