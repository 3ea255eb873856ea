"""The test kit: it passes endpoints that keep their promises, and only those."""

from __future__ import annotations

import inspect
import io
import logging
import os
import re
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from threading import Lock, get_ident
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError
from django.http import StreamingHttpResponse
from django.test import Client, TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from idempotency import testing
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.exceptions import InProgress
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State
from idempotency.testing import (
    IdempotentClient,
    abandon_record,
    age_records,
    assert_idempotent,
    assert_race_safe,
)
from idempotency.testing.effects import usable_databases
from idempotency.testing.sending import SentRequest
from testproject.school.models import Assignment, SchoolClass
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import KEY, once
from tests.support.processes import ROOT
from tests.support.record_factories import make_record
from tests.test_docs import run_case
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]

Handle = Callable[[Callable[[Request], Any]], None]
URLS = [
    "/mixin-view/",
    "/mixin-viewset/",
    "/mixin-viewset/extra/",
    "/mixin-viewset/strict/",
    "/function/",
    "/method/",
    "/action/",
    "/waiting/",
    "/routed/view/",
    "/plain/function/",
    "/plain/view/",
    "/plain/method/",
]
outside: list[str] = []
numbers = count()


@pytest.fixture(autouse=True)
def nothing_outside() -> Iterator[None]:
    """Forget what was done outside the database."""
    outside.clear()
    yield
    outside.clear()


# Endpoints that keep their promises


def create_and_mail_later(request: Request) -> Any:
    transaction.on_commit(lambda: mail.send_mail("s", "b", "a@x.org", ["b@x.org"]))
    return create_effect(request)


class Leased(IdempotencyMixin, APIView):
    """Acts in the database and outside, once for each derived key."""

    idempotency_atomic = False
    idempotency_on_abandoned = "rerun"

    def post(self, request: Request) -> Any:
        charge = request.idempotency.derive("charge")  # type: ignore[attr-defined]
        if charge not in outside:
            outside.append(charge)
        effect, _ = Effect.objects.get_or_create(name=charge)
        return Response({"effect": effect.pk}, 201)


class Held(Leased):
    """Acts each time that it runs, which is once."""

    idempotency_on_abandoned = "hold"

    def post(self, request: Request) -> Any:
        return create_effect(request)


class Rerun(Held):
    """Acts each time that it runs, and may run twice."""

    idempotency_on_abandoned = "rerun"


class Once(Held):
    """Takes each payload once."""

    def post(self, request: Request) -> Any:
        if Effect.objects.filter(note=str(request.data)).exists():
            return Response({"code": "taken"}, 400)
        return create_effect(request)


class Uploading(IdempotencyMixin, APIView):
    parser_classes = (MultiPartParser, FormParser, JSONParser)

    def post(self, request: Request) -> Any:
        Effect.objects.create(note=request.data["file"].read().decode())
        return Response(status=204)


@api_view(["POST"])
@idempotent
def streaming(request: Request) -> Any:
    Effect.objects.create()
    return StreamingHttpResponse([b"a", b"b"])


@api_view(["POST"])
@idempotent
def changing(request: Request) -> Any:
    Effect.objects.update(note=str(uuid4()))
    return Response({})


# Endpoints that do not


class Unprotected(APIView):
    def post(self, request: Request) -> Any:
        mail.send_mail("s", "b", "a@x.org", ["b@x.org"])
        Effect.objects.update(note="x")
        return create_effect(request)


@api_view(["POST"])
def unprotected(request: Request) -> Any:
    return create_effect(request)


class Exempt(IdempotencyMixin, APIView):
    @idempotency_exempt
    def post(self, request: Request) -> Any:
        return create_effect(request)


class Outside(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        outside.append("charged")
        return create_effect(request)


class Mailing(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        mail.send_mail("s", "b", "a@x.org", ["b@x.org"])
        return create_effect(request)


class OtherTransaction(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        Effect.objects.using("other").create()
        return Response({}, 201)


class CommittingItself(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        raw: Any = connection.connection
        raw.commit()
        return Response({}, 201)


class Remembering(IdempotencyMixin, APIView):
    """Remembers outside the database that it has acted."""

    def post(self, request: Request) -> Any:
        if outside:
            return Response({"code": "taken"}, 409)
        outside.append("here")
        return create_effect(request)


class AnyPayload(IdempotencyMixin, APIView):
    """Tells payloads apart by their title alone."""

    def get_idempotency_fingerprint(self, request: Request) -> str:
        return str(request.data.get("title"))

    def post(self, request: Request) -> Any:
        return create_effect(request)


class AnyScope(IdempotencyMixin, APIView):
    def get_idempotency_scope(self, request: Request) -> str:
        return str(uuid4())

    def post(self, request: Request) -> Any:
        return create_effect(request)


class ScopeByPayload(AnyScope):
    """Takes each payload for another caller's."""

    def get_idempotency_scope(self, request: Request) -> str:
        return f"payload:{request.data}"


@api_view(["POST"])
def swallowing(request: Request) -> Any:
    """Catch a database error without a savepoint."""
    Effect.objects.create(name="taken")
    with suppress(IntegrityError):
        Effect.objects.create(name="taken")
    return Response({}, 201)


class Balance(Leased):
    """Takes one off a balance each time that it runs, and may run twice."""

    def post(self, request: Request) -> Any:
        Effect.objects.filter(name="balance").update(
            note=str(int(Effect.objects.get(name="balance").note) - 1)
        )
        return Response({}, 201)


class Often(SimpleRateThrottle):
    """Lets that many requests of all clients through."""

    rate = "100/day"
    # Two at once would count as one.
    lock = Lock()

    def allow_request(self, request: Request, view: APIView) -> bool:
        with self.lock:
            return bool(super().allow_request(request, view))

    def get_cache_key(self, request: Request, view: APIView) -> str:
        return "often"


class Throttled(IdempotencyMixin, APIView):
    throttle_classes = (Often,)

    def post(self, request: Request) -> Any:
        return create_effect(request)


class ThrottledLeased(Held):
    throttle_classes = (Often,)


class Idle(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        return Response({}, 201)


class ActingFirst(IdempotencyMixin, APIView):
    """Acts before the key is looked at."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        outside.append("seen")

    def post(self, request: Request) -> Any:
        return create_effect(request)


class FailingLater(IdempotencyMixin, APIView):
    """Fails for every request but the first."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        outside.append("seen")
        if len(outside) > 1:
            raise ZeroDivisionError("no more")

    def post(self, request: Request) -> Any:
        return create_effect(request)


class SentAway(IdempotencyMixin, APIView):
    """Sends every request but the first away."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        outside.append("seen")
        if len(outside) > 1:
            raise InProgress

    def post(self, request: Request) -> Any:
        return create_effect(request)


class ByNature(IdempotencyMixin, APIView):
    """Acts once for each payload."""

    def post(self, request: Request) -> Any:
        effect, _ = Effect.objects.get_or_create(name=str(request.data))
        return Response({"effect": effect.pk})


class Quarrelling(ScopeByPayload):
    """Acts on another payload, too, and answers it with the app's own status."""

    def post(self, request: Request) -> Any:
        if "another" not in request.data:
            return create_effect(request)
        if request.data.get("title") == "act":
            Effect.objects.create()
        return Response({}, 422)


class Keeping(Quarrelling):
    """Keeps that answer."""

    idempotency_released_statuses = ()


@api_view(["POST"])
def unprotected_by_nature(request: Request) -> Any:
    """Acts once for each payload, without a record."""
    effect, _ = Effect.objects.get_or_create(note=str(request.data))
    return Response({"effect": effect.pk})


@api_view(["POST"])
@idempotent
def failing(request: Request) -> Any:
    raise ZeroDivisionError("the view's own")


@api_view(["POST"])
def refusing(request: Request) -> Any:
    return Response({"title": "is required"}, 400)


urlpatterns = [
    *usual_urls,
    path("leased/", Leased.as_view()),
    path("held/", Held.as_view()),
    path("rerun/", Rerun.as_view()),
    path("once/", Once.as_view()),
    path("uploading/", Uploading.as_view()),
    path("streaming/", streaming),
    path("changing/", changing),
    path("bare/", Unprotected.as_view()),
    path("orders/", unprotected),
    path("exempt/", Exempt.as_view()),
    path("outside/", Outside.as_view()),
    path("mailing/", Mailing.as_view()),
    path("other-transaction/", OtherTransaction.as_view()),
    path("committing-itself/", CommittingItself.as_view()),
    path("remembering/", Remembering.as_view()),
    path("any-payload/", AnyPayload.as_view()),
    path("any-scope/", AnyScope.as_view()),
    path("scope-by-payload/", ScopeByPayload.as_view()),
    path("swallowing/", swallowing),
    path("balance/", Balance.as_view()),
    path("throttled/", Throttled.as_view()),
    path("throttled-leased/", ThrottledLeased.as_view()),
    path("idle/", Idle.as_view()),
    path("acting-first/", ActingFirst.as_view()),
    path("failing-later/", FailingLater.as_view()),
    path("sent-away/", SentAway.as_view()),
    path("by-nature/", ByNature.as_view()),
    path("quarrelling/", Quarrelling.as_view()),
    path("keeping/", Keeping.as_view()),
    path("unprotected-by-nature/", unprotected_by_nature),
    path("failing/", failing),
    path("refusing/", refusing),
]


class LoggingMiddleware:
    """Writes a row for every request."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        Effect.objects.create(note="log")
        return self.get_response(request)


class NumberingMiddleware(LoggingMiddleware):
    """Gives every answer another body."""

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        response.content += b" %d" % next(numbers)
        return response


@pytest.fixture
def ada() -> APIClient:
    """Return a client as most tests have it: the view's errors are raised."""
    client = APIClient()
    client.credentials(HTTP_X_USER="ada")
    return client


@pytest.fixture
def middleware(settings: Any) -> Callable[[type], None]:
    """Let a test put a middleware in."""

    def put_in(kind: type) -> None:
        settings.MIDDLEWARE = [f"{__name__}.{kind.__name__}"]

    return put_in


# assert_idempotent


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("key_in", ["header", "query"])
def test_sound_endpoints_pass(ada: APIClient, url: str, key_in: Any) -> None:
    """E1, R2, F4: Each kind of protected view passes, and has acted once."""
    answer = assert_idempotent(ada, "post", url, {"title": "x"}, key_in=key_in)
    assert answer.status_code == 201
    assert Effect.objects.get().pk == answer.json()["effect"]
    assert IdempotencyRecord.objects.get().state == State.COMPLETED


@pytest.mark.parametrize("url", ["/leased/", "/held/"])
def test_sound_leased_endpoints_pass(ada: APIClient, url: str) -> None:
    """E9: An error and its retry act once, or leave the outcome unknown."""
    assert_idempotent(ada, "post", url, {}, effects=lambda: len(outside))
    assert Effect.objects.count() == 2  # under two keys


def test_what_the_endpoint_takes_once_only(ada: APIClient) -> None:
    """A leased endpoint that refuses the same payload needs another one."""
    with pytest.raises(AssertionError, match=r'400 \{"code":"taken"\}\n.*other_data='):
        assert_idempotent(ada, "post", "/once/", {"title": "a"})
    data, other = {"title": "b"}, {"title": "c"}
    assert_idempotent(ada, "post", "/once/", data, other_data=other)


def test_effects_after_the_commit_pass(
    ada: APIClient, handle: Handle, mailoutbox: list[Any]
) -> None:
    """O5: What waits for the commit is not done by an attempt that failed."""
    handle(create_and_mail_later)
    assert_idempotent(ada, "post", "/function/", {})
    assert len(mailoutbox) == 1
    assert_race_safe(ada, "post", "/function/", {}, duplicates=2)


@pytest.mark.parametrize("url", ["/streaming/", "/changing/"])
def test_answers_that_are_not_kept_and_changes_of_rows_pass(
    ada: APIClient, url: str
) -> None:
    """R4: A retry that is refused acts no more than one that is replayed."""
    assert_idempotent(ada, "post", url, {})


@pytest.mark.parametrize("case", [TestCase, TransactionTestCase])
def test_in_djangos_test_cases(case: type[TestCase], ada: APIClient) -> None:
    """The kit works in the transaction of a TestCase as it does without one."""

    class Case(case):  # type: ignore[misc, valid-type]
        client_class = APIClient

        def test_endpoints(self) -> None:
            self.client.credentials(HTTP_X_USER="ada")
            for url in ("/mixin-view/", "/function/", "/leased/", "/held/"):
                assert_idempotent(self.client, "post", url, {})
            for url, said in (
                ("/bare/", "app.Effect: [+]1 by the first request, [+]1 by the dup"),
                ("/mailing/", "mail.outbox: [+]1 by the retry, [+]1 by the failed"),
                ("/rerun/", "app.Effect: [+]1 by one request, [+]2 by both"),
            ):
                with pytest.raises(AssertionError, match=said):
                    assert_idempotent(self.client, "post", url, {})

    run_case(Case)


@pytest.mark.django_db
def test_in_pytest_django(ada: APIClient) -> None:
    """The kit works in pytest-django's own transaction."""
    assert_idempotent(ada, "post", "/function/", {})
    assert_idempotent(ada, "post", "/held/", {})


def test_djangos_client() -> None:
    """Any client of Django's will do, with what its calls take."""
    client = Client(headers={"X-User": "ada"})
    arguments: dict[str, Any] = {"content_type": "application/json"}
    assert_idempotent(client, "post", "/function/", {"a": 1}, **arguments)
    assert_idempotent(client, "POST", "/function/", b'{"a": 1}', **arguments)
    assert_idempotent(client, "post", "/function/", '{"a": 1}', **arguments)
    assert_idempotent(client, "post", "/function/", [1], **arguments)
    headers = {"X-User": "eve"}
    assert_idempotent(client, "post", "/function/?a=1", headers=headers, key_in="query")
    assert_idempotent(
        client, "post", "/function/", query_params={"a": "1"}, key_in="query"
    )
    scopes = IdempotencyRecord.objects.values_list("scope", flat=True)
    assert {scope.rpartition(":")[2] for scope in scopes} == {"ada", "eve"}


def test_files_are_sent_whole_each_time(ada: APIClient) -> None:
    """A duplicate has the same files, though a client reads them to their end."""
    file = SimpleUploadedFile("a.txt", b"abc")
    data = {"file": file, "tags": ["x", "y"]}
    assert_idempotent(ada, "post", "/uploading/", data, format="multipart")
    assert Effect.objects.get().note == "abc"
    body = io.BytesIO(b"abc")
    with pytest.raises(AssertionError, match="Unsupported media type"):
        assert_idempotent(ada, "post", "/uploading/", body, content_type="x/y")


def test_a_setting_that_lets_no_key_in(ada: APIClient, settings: Any) -> None:
    """A key in a place that the settings switch off is refused."""
    settings.IDEMPOTENCY = {"HEADER": None}
    with pytest.raises(ValueError, match="allow no key in the header"):
        assert_idempotent(ada, "post", "/function/", {})
    assert_idempotent(ada, "post", "/function/", {}, key_in="query")


def refused(client: APIClient, url: str, data: Any = None, **arguments: Any) -> str:
    """Return what the kit says against an endpoint."""
    with pytest.raises(AssertionError) as caught:
        assert_idempotent(client, "post", url, data or {}, **arguments)
    return str(caught.value)


def test_unprotected(ada: APIClient, mailoutbox: list[Any]) -> None:
    """What doubled is named: rows, mails and statements; and why."""
    Effect.objects.create()
    message = refused(ada, "/bare/")
    assert message.startswith(
        'POST /bare/: a duplicate with the same key got no replay, but 201 {"effect":'
    )
    for line in (
        "app.Effect: +1 by the first request, +1 by the duplicate",
        "mail.outbox: +1 by the first request, +1 by the duplicate",
        "UPDATE app_effect: +1 by the first request, +1 by the duplicate",
        "INSERT app_effect: +1 by the first request, +1 by the duplicate",
    ):
        assert f"\n    {line}\n" in message
    assert message.endswith(
        "No protected handler stored a response. Does the view lack IdempotencyMixin "
        "and the handler @idempotent, or do their methods lack POST?"
    )


def test_message_of_the_page(ada: APIClient) -> None:
    """A failure reads as docs/testing.md prints it."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    printed = page.partition("```text\n")[2].partition("\n```")[0]
    message = refused(ada, "/orders/")
    message = message.replace("app.Effect", "orders.Order")
    message = message.replace("app_effect", "orders_order")
    assert re.sub(r'"effect":\d+', '"id":2', message) == printed


def test_exempt(ada: APIClient) -> None:
    """An endpoint that is left alone is not taken for a forgotten one."""
    assert "by @idempotency_exempt" in refused(ada, "/exempt/")
    assert "by @idempotency_exempt" in refused(ada, "/mixin-viewset/search/")


def test_switched_off(ada: APIClient, settings: Any) -> None:
    """A protected endpoint does nothing for its clients while the app is off."""
    settings.IDEMPOTENCY = {"ENABLED": False}
    assert "ENABLED is False" in refused(ada, "/function/")


def test_another_scope_each_time(ada: APIClient) -> None:
    """A scope that differs for each request is named as the likely cause."""
    message = refused(ada, "/any-scope/")
    assert "app.Effect: +1 by the first request, +1 by the duplicate" in message
    assert "does the scope change with each request?" in message


def test_effects_outside(ada: APIClient) -> None:
    """An effect that a rollback does not reach is named, where the test counts it."""
    assert_idempotent(ada, "post", "/outside/", {})  # nobody has looked
    effects = {"charges": lambda: len(outside), "rows": Effect.objects}
    message = refused(ada, "/outside/", effects=effects)
    line = "charges: +1 by the retry, +1 by the failed attempt"
    assert f"did not undo all its effects:\n    {line}\n" in message
    assert "rows" not in message.partition("What is done")[0]
    message = refused(ada, "/outside/", effects=lambda: len(outside))
    assert "effects: +1 by the retry, +1 by the failed attempt" in message


def test_mails_before_the_commit(ada: APIClient, mailoutbox: list[Any]) -> None:
    """A mail that is sent by an attempt that fails is seen without being named."""
    line = "mail.outbox: +1 by the retry, +1 by the failed attempt"
    assert f"\n    {line}\n" in refused(ada, "/mailing/")


@pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one transaction that writes"
)
def test_rows_of_another_transaction(ada: APIClient) -> None:
    """A handler that writes through a connection of its own is found out."""
    line = "app.Effect: +1 by the retry, +1 by the failed attempt"
    assert f"\n    {line}\n" in refused(ada, "/other-transaction/")


@pytest.mark.usefixtures("by_statements")
def test_a_handler_that_commits(ada: APIClient, atomic_requests: bool) -> None:
    """E5: A record that an error leaves is found out."""
    message = refused(ada, "/committing-itself/")
    assert "an error after the handler left a record" in message


def test_a_handler_that_remembers(ada: APIClient) -> None:
    """A retry that is refused because of what the failed attempt left is found out."""
    message = refused(ada, "/remembering/")
    assert 'the retry got 409 {"code":"taken"}' in message


def test_a_fingerprint_of_little(ada: APIClient) -> None:
    """F4: Another payload that is replayed is found out, unless it is the same."""
    message = refused(ada, "/any-payload/", {"title": "a"})
    assert "got 201" in message
    assert "instead of 422 idempotency_key_reused" in message
    assert_idempotent(
        ada, "post", "/any-payload/", {"title": "a"}, other_data={"title": "b"}
    )


def test_leased_handlers_that_run_again(ada: APIClient) -> None:
    """E9: What a second run doubles is named."""
    message = refused(ada, "/rerun/")
    assert "app.Effect: +1 by one request, +2 by both together" in message
    assert "on_abandoned" in message


def test_leased_handlers_that_change_rows(ada: APIClient) -> None:
    """E9: What no number of rows shows has to be named, and doubles then, too."""
    Effect.objects.create(name="balance", note="10")
    assert "changes of existing rows: effects=<a queryset" in refused(ada, "/balance/")

    def balance() -> int:
        return int(Effect.objects.get(name="balance").note)

    with pytest.raises(AssertionError, match="-1 by one request, -2 by both"):
        assert_idempotent(ada, "post", "/balance/", {}, effects={"balance": balance})


@pytest.mark.parametrize(
    ("url", "rate"), [("/throttled/", 3), ("/throttled-leased/", 4)]
)
def test_throttled_endpoints(
    ada: APIClient, url: str, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A throttled request is reported, whichever it is."""
    monkeypatch.setattr(Often, "rate", f"{rate}/day")
    cache.clear()
    message = refused(ada, url)
    assert message.startswith(f"POST {url} got 429 ")
    assert "'throttle_classes', []" in message
    monkeypatch.setattr(Often, "rate", f"{rate + 1}/day")
    cache.clear()
    assert_idempotent(ada, "post", url, {})


def test_something_else_that_acts(
    ada: APIClient, middleware: Callable[[type], None]
) -> None:
    """What a middleware writes counts, unless the test says that it is meant."""
    middleware(LoggingMiddleware)
    message = refused(ada, "/outside/")
    assert "app.Effect: +2 by the retry, +1 by the failed attempt" in message
    message = refused(ada, "/leased/")
    assert "app.Effect: +2 by the first request, +1 by the duplicate" in message
    assert "ignore=[<its model>]" in message
    own = Effect.objects.exclude(note="log")
    assert_idempotent(ada, "post", "/leased/", {}, ignore=[Effect], effects=own)


def test_other_bytes(ada: APIClient, middleware: Callable[[type], None]) -> None:
    """R2: A duplicate that gets other bytes is found out."""
    middleware(NumberingMiddleware)
    assert "the duplicate got another response:\n    first: 201" in refused(
        ada, "/function/"
    )


def test_another_payload_acts(ada: APIClient) -> None:
    """F4: What another payload did under the same key is named."""
    message = refused(ada, "/scope-by-payload/", {"a": 1})
    assert "another payload with the same key got 201" in message
    assert "app.Effect: +1 by the other payload" in message


@pytest.mark.parametrize(
    ("url", "title"), [("/quarrelling/", "act"), ("/keeping/", "idle")]
)
def test_a_status_is_no_refusal(ada: APIClient, url: str, title: str) -> None:
    """F4: A handler's own 422 is not taken for the app's."""
    assert "instead of 422" in refused(ada, url, {"title": title})


def test_marks_of_database_errors_stay(
    ada: APIClient, settings: Any, atomic_requests: bool
) -> None:
    """A TestCase's transaction that an error has ended is not brought to life."""
    if atomic_requests:
        pytest.skip("There the error ends the view's own transaction.")

    class Case(TestCase):
        def test_endpoint(self) -> None:
            with pytest.raises(TransactionManagementError):
                assert_idempotent(ada, "post", "/swallowing/", {})

    run_case(Case)


def test_a_refusal_leaves_a_test_its_transaction(
    own_client: IdempotentClient,
) -> None:
    """E11: Also of a leased view, which has no transaction of its own."""

    class Case(TestCase):
        def test_endpoint(self) -> None:
            own_client.post("/held/", {})
            abandon_record(own_client.last_key or "")
            assert own_client.retry().status_code == 409
            assert Effect.objects.count() == 1

    run_case(Case)


def test_databases_that_are_out_of_bounds() -> None:
    """What a TestCase may not ask is left alone."""
    other = connections["other"].settings_dict["TEST"]

    class Case(TestCase):
        def test_endpoint(self) -> None:
            with patch.dict(other, MIRROR=None):
                assert usable_databases() == ["default"]

    run_case(Case)


def test_page() -> None:
    """The page's test cases pass, in Django's TestCase and with real commits."""
    page = (ROOT / "docs" / "testing.md").read_text()
    space: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, space)  # the page's own code
    cases = [
        value
        for value in space.values()
        if isinstance(value, type)
        and issubclass(value, TransactionTestCase)
        and value.__module__ == "page"
    ]
    assert len(cases) == 3
    for case in cases:
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        assert result.wasSuccessful(), result.errors + result.failures
    fixtures = {name for name in space if name.startswith("test_")}
    assert fixtures == {"test_expiry", "test_outcome_unknown"}
    try:
        for name in fixtures:
            given = {
                "db": None,
                "idempotent_client": space["logged_in"](IdempotentClient()),
                "age_records": age_records,
                "abandoned_record": abandon_record,
            }
            # "db" is what lets a test of pytest-django's at the database.
            asked = inspect.signature(space[name]).parameters
            assert "db" in asked
            space[name](**{fixture: given[fixture] for fixture in asked})
    finally:
        for model in (Assignment, SchoolClass, User):
            model.objects.all().delete()


def test_nothing_happened(ada: APIClient, settings: Any) -> None:
    """A test that could not have failed does not pass."""
    assert "effects=<a queryset" in refused(ada, "/idle/")
    # Outside Django's own test environment there may be no outbox.
    outbox = mail.outbox
    del mail.outbox
    try:
        assert "effects=<a queryset" in refused(ada, "/idle/")
    finally:
        mail.outbox = outbox


def test_a_request_that_is_not_taken(ada: APIClient) -> None:
    """A refusal is no proof."""
    message = refused(ada, "/refusing/")
    assert message.startswith('POST /refusing/ got 400 {"title":"is required"')


def test_the_views_own_error_is_raised(ada: APIClient) -> None:
    """A view that fails by itself is not taken for one that the kit lets fail."""
    with pytest.raises(ZeroDivisionError, match="the view's own"):
        assert_idempotent(ada, "post", "/failing/", {})


def test_a_client_that_sees_errors_as_answers(
    client: APIClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The provoked error is not logged, the view's own is."""

    def errors() -> list[logging.LogRecord]:
        return [r for r in caplog.records if r.levelno >= logging.ERROR]

    assert_idempotent(client, "post", "/function/", {})
    assert not errors()
    assert "got 500" in refused(client, "/failing/")
    assert errors()


def test_effects_that_are_no_numbers(ada: APIClient) -> None:
    """A wrong effect is refused with its name."""
    effects: Any = {"model": Effect}
    with pytest.raises(TypeError, match="The effect 'model' must be a queryset"):
        assert_idempotent(ada, "post", "/function/", {}, effects=effects)


def test_long_answers_are_cut(ada: APIClient, handle: Handle) -> None:
    """A failure shows no more of an answer than people read."""
    handle(lambda request: Response({"a": "x" * 1000}, 400))
    message = refused(ada, "/function/")
    assert "xxx..." in message
    assert len(message) < 600


# assert_race_safe


@pytest.mark.parametrize("url", ["/mixin-view/", "/function/", "/waiting/", "/leased/"])
@pytest.mark.parametrize("key_in", ["header", "query"])
def test_sound_endpoints_win_races(ada: APIClient, url: str, key_in: Any) -> None:
    """E3: Of duplicates at once one acts."""
    answer = assert_race_safe(ada, "post", url, {"title": "x"}, key_in=key_in)
    assert answer.status_code == 201
    assert Effect.objects.count() == 2  # one of them was sent alone
    assert Effect.objects.filter(pk=answer.json()["effect"]).exists()


@pytest.mark.django_db(transaction=True)
def test_races_in_pytest_django(ada: APIClient) -> None:
    """Real commits are what transactional_db is for."""
    assert_race_safe(ada, "post", "/function/", {}, duplicates=3)


def test_races_of_a_logged_in_client() -> None:
    """Each thread's client is the test's own: credentials, cookies, files."""
    client = APIClient()
    client.credentials(HTTP_X_USER="ada")
    client.cookies["a"] = "b"
    data = {"file": SimpleUploadedFile("a.txt", b"abc")}
    assert_race_safe(
        client, "post", "/uploading/", data, format="multipart", duplicates=3
    )
    assert {*Effect.objects.values_list("note", flat=True)} == {"abc"}
    assert client.raise_request_exception


def lost(client: APIClient, url: str, data: Any = None, **arguments: Any) -> str:
    """Return what the kit says against an endpoint."""
    with pytest.raises(AssertionError) as caught:
        assert_race_safe(client, "post", url, data or {}, duplicates=4, **arguments)
    return str(caught.value)


def test_unprotected_endpoints_lose(ada: APIClient) -> None:
    """What doubled is named."""
    message = lost(ada, "/bare/")
    assert "of 4 duplicates at once and a last one, 5 acted" in message
    assert "app.Effect: +1 by one request, +5 by all of them" in message


def test_unprotected_endpoints_that_add_nothing_lose(ada: APIClient) -> None:
    """An endpoint whose handler ran each time loses, however few its rows."""
    data, other = {"a": 1}, {"a": 2}
    Effect.objects.create(note=str(data))
    message = lost(ada, "/unprotected-by-nature/", data, other_data=other)
    assert "a last one, 5 acted" in message


def test_threads_leave_no_connection(ada: APIClient) -> None:
    """What a thread has opened is closed, so the test database can be dropped."""
    opened: list[Any] = []

    def note(connection: Any, **kwargs: Any) -> None:
        opened.append((get_ident(), connection))

    connection.ensure_connection()
    connection_created.connect(note)
    assert_race_safe(ada, "post", "/function/", {}, duplicates=3)
    connection_created.disconnect(note)
    of_threads = [made for thread, made in opened if thread != get_ident()]
    assert len(of_threads) >= 3
    assert [made for made in of_threads if made.connection is not None] == []


def test_threads_share_nothing() -> None:
    """Each thread has its own cookies, and files to read to their end."""
    client, file = Client(), io.BytesIO(b"abc")
    request = SentRequest(
        client=client,
        method="post",
        url="/",
        data={"file": file},
        key_in="header",
        extra={},
    )
    own = request.for_thread()
    assert own.data["file"].read() == file.getvalue()
    assert file.tell() == 0
    own.client.cookies["a"] = "b"
    assert not client.cookies
    assert own.client.handler is not client.handler


def test_effects_outside_lose(ada: APIClient) -> None:
    """One that acted in the database is not enough."""
    message = lost(ada, "/acting-first/", effects=lambda: len(outside))
    assert "effects: +1 by one request, +5 by all of them" in message


def test_answers_that_are_none_of_a_duplicates(ada: APIClient) -> None:
    """An error in a thread is told with its cause."""
    message = lost(ada, "/failing-later/")
    assert message.count("500 ") == 4
    assert message.count("ZeroDivisionError('no more')") == 4


@pytest.mark.parametrize("rate", [1, 5])
def test_throttled_endpoints_lose(
    ada: APIClient, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A throttled request is reported, among the threads and as the last."""
    monkeypatch.setattr(Often, "rate", f"{rate}/day")
    cache.clear()
    assert "'throttle_classes', []" in lost(ada, "/throttled/")


def test_nobody_acted(ada: APIClient) -> None:
    """All were sent away, and the last one, too."""
    assert "no duplicate acted. The last one got 409" in lost(ada, "/sent-away/")


def test_the_last_one_may_act(ada: APIClient) -> None:
    """If all were sent away, the retry acts."""
    seen = count()
    initial = APIView.initial

    def send_away(self: Any, request: Request, *args: Any, **kwargs: Any) -> None:
        initial(self, request, *args, **kwargs)
        if 1 <= next(seen) <= 2:
            raise InProgress

    with patch.object(APIView, "initial", send_away):
        assert_race_safe(ada, "post", "/mixin-view/", {}, duplicates=2)
    assert Effect.objects.count() == 2


def test_other_bytes_lose(ada: APIClient, middleware: Callable[[type], None]) -> None:
    """R2: Duplicates that get other bytes are found out."""
    middleware(NumberingMiddleware)
    assert "a duplicate got another response:\n    first: 201" in lost(
        ada, "/function/"
    )


def test_a_race_for_nothing(ada: APIClient) -> None:
    """A race in which nothing could happen twice does not pass."""
    assert "other_data=" in lost(ada, "/by-nature/")
    assert_race_safe(ada, "post", "/by-nature/", {"a": 1}, other_data={"a": 2})
    assert "effects=<a queryset" in lost(ada, "/idle/")
    assert "got 400" in lost(ada, "/refusing/")


def test_answers_that_are_not_kept_win(ada: APIClient) -> None:
    """R4: Those who come too late for an answer that was not kept are sent away."""
    assert_race_safe(ada, "post", "/streaming/", {}, duplicates=2)


def test_no_race_in_a_transaction(ada: APIClient) -> None:
    """Where nothing is committed the kit says what a race needs."""

    class Case(TestCase):
        def test_race(self) -> None:
            with pytest.raises(RuntimeError, match="TransactionTestCase"):
                assert_race_safe(ada, "post", "/function/", {})

    run_case(Case)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="is about SQLite")
def test_no_race_in_memory(ada: APIClient) -> None:
    """SQLite in memory is refused with a way out."""
    with (
        patch.object(connection, "is_in_memory_db", lambda: True),
        pytest.raises(RuntimeError, match=r"\['default'\]\[\"TEST\"\]\[\"NAME\"\]"),
    ):
        assert_race_safe(ada, "post", "/function/", {})


def test_a_thread_without_a_connection(ada: APIClient) -> None:
    """A thread that can't take part does not block the others."""
    kind: Any = type(connections["default"])
    left = count()
    ensure = kind.ensure_connection

    def ensure_few(self: Any) -> None:
        if self.connection is None and next(left) > 1:
            raise ZeroDivisionError("too many clients")
        ensure(self)

    connection.ensure_connection()
    with patch.object(kind, "ensure_connection", ensure_few), pytest.raises(Exception):  # noqa: B017, PT011  # whichever thread is first
        assert_race_safe(ada, "post", "/function/", {}, duplicates=4)


# IdempotentClient


@pytest.fixture
def own_client() -> IdempotentClient:
    client = IdempotentClient()
    client.credentials(HTTP_X_USER="ada")
    return client


def test_a_key_for_each_post(own_client: IdempotentClient) -> None:
    """Each POST is an action of its own, and a retry is none."""
    first = own_client.post("/function/", {"a": 1})
    key = own_client.last_key
    retry = own_client.retry()
    assert (retry.content, retry["Idempotent-Replayed"]) == (first.content, "true")
    assert own_client.last_key == key
    second = own_client.post("/function/", {"a": 1})
    assert second.json() != first.json()
    assert own_client.last_key not in (key, None)
    assert Effect.objects.count() == 2


def test_files_are_retried(own_client: IdempotentClient) -> None:
    data = {"file": SimpleUploadedFile("a.txt", b"abc")}
    own_client.post("/uploading/", data, format="multipart")
    assert own_client.retry()["Idempotent-Replayed"] == "true"
    assert Effect.objects.get().note == "abc"


def test_no_key_for_other_methods(own_client: IdempotentClient) -> None:
    answer = own_client.get("/function/")
    assert "Idempotency-Warning" not in answer
    assert own_client.last_key is None
    with pytest.raises(ValueError, match="nothing to retry"):
        own_client.retry()
    with pytest.raises(ValueError, match="nothing to retry"):
        IdempotentClient().retry()


def test_a_key_that_is_given(own_client: IdempotentClient) -> None:
    """Wherever it is given, it stays alone, and a retry has it, too."""
    calls: list[Callable[[], Any]] = [
        lambda: own_client.post("/function/", {}, HTTP_IDEMPOTENCY_KEY=KEY),
        lambda: own_client.post("/function/", {}, headers={"Idempotency-Key": KEY}),
    ]
    for call in calls:
        assert call().status_code == 201
        assert own_client.last_key == KEY
    own_client.post(f"/function/?$idempotency={KEY}x", {})
    assert own_client.last_key == f"{KEY}x"
    assert own_client.retry()["Idempotent-Replayed"] == "true"
    own_client.credentials(HTTP_X_USER="ada", HTTP_IDEMPOTENCY_KEY=f"{KEY}y")
    own_client.post("/function/", {})
    assert own_client.last_key == f"{KEY}y"
    assert Effect.objects.count() == 3


@pytest.mark.parametrize("url", ["/function/", "/function/?a=1"])
def test_a_key_in_the_query(
    own_client: IdempotentClient, settings: Any, url: str
) -> None:
    """Where the settings let no header in, keys go into the query."""
    settings.IDEMPOTENCY = {"HEADER": None}
    own_client.post(url, {})
    assert own_client.retry()["Idempotent-Replayed"] == "true"
    assert IdempotencyRecord.objects.get().key == own_client.last_key


def test_a_retry_by_somebody_else(own_client: IdempotentClient) -> None:
    """S1: A retry has today's credentials, and another caller's key is another key."""
    own_client.post("/function/", {})
    own_client.credentials(HTTP_X_USER="eve")
    assert "Idempotent-Replayed" not in own_client.retry()
    assert Effect.objects.count() == 2


# Records


def test_records_age(own_client: IdempotentClient) -> None:
    """P1: A record that is made older than its retention is a new key's."""
    own_client.post("/function/", {})
    assert age_records(timedelta(days=29)) == 1
    assert own_client.retry()["Idempotent-Replayed"] == "true"
    assert age_records(timedelta(days=1, seconds=1)) == 1
    assert IdempotencyRecord.objects.expired().count() == 1
    assert "Idempotent-Replayed" not in own_client.retry()
    assert Effect.objects.count() == 2


def test_chosen_records_age(own_client: IdempotentClient) -> None:
    own_client.post("/function/", {})
    own_client.post("/function/", {})
    record = IdempotencyRecord.objects.get(key=own_client.last_key)
    chosen = IdempotencyRecord.objects.filter(pk=record.pk)
    assert age_records(timedelta(days=1), chosen) == 1
    aged = chosen.get()
    for name in ("created_at", "completed_at", "expires_at"):
        assert getattr(record, name) - getattr(aged, name) == timedelta(days=1)
    assert aged.lease_expires_at is None
    others = IdempotencyRecord.objects.exclude(pk=record.pk)
    assert others.get().created_at > aged.created_at + timedelta(hours=23)


def test_leases_age(own_client: IdempotentClient, handle: Handle) -> None:
    """E7: A lease runs out as time goes by."""
    own_client.post("/held/", {})
    abandon_record(str(own_client.last_key))
    chosen = IdempotencyRecord.objects.filter(key=own_client.last_key)
    chosen.update(state=State.IN_PROGRESS)
    age_records(timedelta(hours=-1))
    assert not IdempotencyRecord.objects.abandoned().exists()
    age_records(timedelta(hours=2))
    assert IdempotencyRecord.objects.abandoned().exists()


@pytest.mark.parametrize("using", [None, "default"])
def test_an_abandoned_record(own_client: IdempotentClient, using: str | None) -> None:
    """E9: The next request finds what a worker leaves that died after it acted."""
    for url, status in (("/held/", 409), ("/leased/", 201)):
        first = own_client.post(url, {})
        assert first.status_code == 201
        record = abandon_record(str(own_client.last_key), using=using)
        assert (record.state, record.status_code) == (State.ABANDONED, None)
        assert [*IdempotencyRecord.objects.abandoned()] == [record]
        retry = own_client.retry()
        assert retry.status_code == status
        assert "Idempotent-Replayed" not in retry
        IdempotencyRecord.objects.all().delete()
    assert Effect.objects.count() == 2
    with pytest.raises(IdempotencyRecord.DoesNotExist):
        abandon_record(KEY)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_records_of_the_settings(settings: Any) -> None:
    """They are those of the database that records are kept in, as USING says."""
    settings.IDEMPOTENCY = {"USING": "other"}
    make_record(key=KEY)
    assert abandon_record(KEY)._state.db == "other"
    with CaptureQueriesContext(connections["other"]) as queries:
        assert age_records(timedelta(days=1)) == 1
    assert len(queries) == 1


# Its fixtures, and what it needs to be imported


def test_fixtures(
    idempotency_key: str,
    idempotent_client: IdempotentClient,
    age_records: Callable[..., int],
    abandoned_record: Callable[..., IdempotencyRecord],
) -> None:
    """Named as a plugin in conftest.py, the fixtures are there."""
    idempotent_client.credentials(HTTP_X_USER="ada")
    headers = {"Idempotency-Key": idempotency_key}
    idempotent_client.post("/held/", {}, headers=headers)
    assert age_records(timedelta(hours=1)) == 1
    assert abandoned_record(idempotency_key).state == State.ABANDONED
    assert idempotent_client.retry().status_code == 409


def in_python(source: str) -> None:
    command = [sys.executable, "-W", "error", "-c", source]
    known = {**os.environ}
    known.pop("DJANGO_SETTINGS_MODULE", None)
    subprocess.run(command, cwd=ROOT, check=True, env=known)


@once
def test_the_plugin_needs_no_settings() -> None:
    """pytest may load the fixtures before Django is set up."""
    in_python(
        "import idempotency.testing.fixtures, sys\n"
        "assert 'rest_framework' not in sys.modules"
    )


@once
def test_the_kit_needs_no_pytest() -> None:
    """A project whose tests are unittest's can use it."""
    in_python(
        "import sys; sys.modules['pytest'] = None\n"
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'\n"
        "import django; django.setup()\n"
        "from idempotency.testing import *\n"
        "assert assert_idempotent and assert_race_safe and assert_resumable\n"
        "assert IdempotentClient"
    )


def test_public_names() -> None:
    """What the kit says that it has, it has, and nothing else."""
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'assert_idempotant'"):
        testing.assert_idempotant  # noqa: B018
