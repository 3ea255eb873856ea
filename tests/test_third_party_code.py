"""Other people's code around a view, and what it can't do to the promise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import reversion
from django.db import DatabaseError, OperationalError, connection, transaction
from django.http import HttpRequest
from django.test import RequestFactory
from django.urls import path, resolve
from rest_framework.decorators import api_view
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_extensions.etag.decorators import api_etag
from rest_framework_tracking.mixins import LoggingMixin
from rest_framework_tracking.models import APIRequestLog
from reversion.models import Revision
from reversion.views import RevisionMixin

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.app.views import behave, create_effect
from tests.conftest import KEY, assert_refused, code_of, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]

Handle = Callable[[Callable[[Request], Any]], None]


class OutOfOrder(APIException):
    status_code = 503


class Tracked(LoggingMixin, IdempotencyMixin, APIView):
    """drf-api-tracking's mixin clears the mark of a rollback, to write its log."""

    authentication_classes = ()  # its log wants users of the database

    def post(self, request: Request) -> Any:
        return behave(request)


class TrackedMethod(LoggingMixin, APIView):
    authentication_classes = ()

    @idempotent
    def post(self, request: Request) -> Any:
        return behave(request)


class Revised(RevisionMixin, IdempotencyMixin, APIView):
    """django-reversion's mixin opens a transaction around ``dispatch``."""

    def post(self, request: Request) -> Any:
        return behave(request)


def current_etag(**kwargs: Any) -> str:
    return f"{Effect.objects.count()}-effects"


class Conditional(IdempotencyMixin, APIView):
    """drf-extensions asks for a precondition, and answers 428 and 412 without it."""

    @api_etag(etag_func=current_etag, precondition_map={"POST": ["If-Match"]})
    def post(self, request: Request) -> Any:
        return behave(request)


class Forgiving(IdempotencyMixin, APIView):
    """Answers every failure with a success."""

    def post(self, request: Request) -> Any:
        return behave(request)

    def handle_exception(self, exc: Exception) -> Response:
        return Response({"sorry": type(exc).__name__}, status=200)


class Enveloping(IdempotencyMixin, APIView):
    """Says how it went in the body alone."""

    def post(self, request: Request) -> Any:
        return behave(request)

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        response.status_code = 200
        return response


def send_parts(request: Request) -> Response:
    """Dispatch what the body lists, as batch endpoints do, each part with its key."""
    answers = [send_part(request._request, **part) for part in request.data["parts"]]
    return Response([each.status_code for each in answers], status=207)


def send_part(
    parent: HttpRequest, url: str, body: Any, key: str | None, matched: bool = False
) -> Any:
    headers = {"HTTP_X_USER": parent.META["HTTP_X_USER"]}
    key = key or parent.META.get("HTTP_IDEMPOTENCY_KEY")
    if key:
        headers["HTTP_IDEMPOTENCY_KEY"] = key
    part = RequestFactory().post(url, body, "application/json", **headers)
    if matched:  # as a copy of the batch's request has it
        part.resolver_match = parent.resolver_match
    view, args, kwargs = resolve(url)
    try:
        return view(part, *args, **kwargs)
    except Exception as error:  # noqa: BLE001  # a batch goes on
        return Response({"failed": type(error).__name__}, status=500)


@api_view(["POST"])
def batch(request: Request) -> Response:
    return send_parts(request)


@api_view(["POST"])
@idempotent
def keyed_batch(request: Request) -> Response:
    return send_parts(request)


class LeasedBatch(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_lease = timedelta(seconds=30)
    idempotency_on_abandoned = "hold"

    def post(self, request: Request) -> Response:
        return send_parts(request)


urlpatterns = [
    *usual_urls,
    path("tracked/", Tracked.as_view()),
    path("tracked-method/", TrackedMethod.as_view()),
    path("revised/", Revised.as_view()),
    path("conditional/", Conditional.as_view()),
    path("forgiving/", Forgiving.as_view()),
    path("enveloping/", Enveloping.as_view()),
    path("batch/", batch),
    path("keyed-batch/", keyed_batch),
    path("leased-batch/", LeasedBatch.as_view()),
]


@pytest.fixture(autouse=True)
def emptied(database: None) -> Any:
    yield
    for model in (APIRequestLog, Revision):
        model._default_manager.all().delete()


@pytest.fixture(params=["/mixin-view/", "/function/"])
def url(request: pytest.FixtureRequest) -> str:
    """Run a test at a mixin and at a decorator."""
    return str(request.param)


def lose_effects() -> None:
    """Catch a database error without a savepoint: the transaction is lost."""
    with suppress(DatabaseError), transaction.atomic(savepoint=False):
        raise OperationalError("a block that is left by an error")


@pytest.mark.usefixtures("by_statements")
class TestSavepoints:
    """E2, E5: the app's savepoint may be gone at its end."""

    @pytest.mark.parametrize("status_code", [201, 400])
    @pytest.mark.parametrize("is_there", [True, False])
    def test_gone(
        self,
        client: Any,
        url: str,
        handle: Handle,
        monkeypatch: Any,
        status_code: int,
        is_there: bool,
    ) -> None:
        """E2: What was written under it counts if it is still there."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            monkeypatch.setattr(connection, "savepoint_commit", lose)
            return Response({}, status=status_code)

        def lose(sid: str) -> None:
            monkeypatch.undo()
            if is_there:
                commit(sid)
            else:
                connection.savepoint_rollback(sid)
            raise OperationalError("SAVEPOINT does not exist")

        commit = connection.savepoint_commit
        handle(handler)
        with transaction.atomic():
            answer = client.post(url, {}, **key())
        if is_there and connection.vendor == "postgresql":
            # There Django's attempt to roll back to it ends the transaction.
            assert (answer.status_code, Effect.objects.count()) == (500, 0)
            return
        survives = is_there or status_code == 400  # where nothing is left to be seen
        assert answer.status_code == (status_code if survives else 500)
        assert Effect.objects.count() == is_there

    def test_lost_connection(
        self, client: Any, url: str, handle: Handle, monkeypatch: Any
    ) -> None:
        """E1: If the app can't look the record up, the client gets an error."""

        def lose(sid: str) -> None:
            monkeypatch.undo()
            monkeypatch.setattr("idempotency.claims.Claims.look_up", fail)
            monkeypatch.setattr(
                "idempotency.claims.mariadb.MariaDBClaims.look_up", fail
            )
            fail()

        def fail(*args: Any) -> Any:
            raise OperationalError("server closed the connection")

        def handler(request: Request) -> Any:
            monkeypatch.setattr(connection, "savepoint_commit", lose)
            return create_effect(request)

        handle(handler)
        with transaction.atomic():
            assert client.post(url, {}, **key()).status_code == 500
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0


class TestTracking:
    """E2: clearing the mark of a rollback saves no effects."""

    @pytest.fixture(params=["/tracked/", "/tracked-method/"])
    def url(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize("how", ["raised", "returned", "lost"])
    def test_failure(self, client: Any, handle: Handle, url: str, how: str) -> None:
        """E2, O3, R1: A failure leaves neither effect nor claim, but its log."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            if how == "raised":
                raise APIException("out of order")  # 500
            if how == "returned":
                return Response(status=500)
            lose_effects()
            return Response(status=201)

        handle(handler)
        answer = client.post(url, {}, **key())
        assert answer.status_code == (503 if how == "lost" else 500)
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0
        assert APIRequestLog.objects.get().status_code == answer.status_code
        handle(create_effect)
        assert client.post(url, {}, **key()).status_code == 201
        assert client.post(url, {}, **key())["Idempotent-Replayed"] == "true"
        assert Effect.objects.count() == 1

    def test_success(self, client: Any, url: str) -> None:
        """E1: Its row and the effect share the transaction; a replay adds none."""
        first = client.post(url, {}, **key())
        assert client.post(url, {}, **key()).content == first.content
        assert Effect.objects.count() == APIRequestLog.objects.count() == 1

    def test_name_of_the_view(self, client: Any, url: str) -> None:
        """K4: It finds the view by the method that answers, key or no key."""
        for headers in ({}, key()):
            assert client.post(url, {}, **headers).status_code == 201
        name = "Tracked" if url == "/tracked/" else "TrackedMethod"
        found = APIRequestLog.objects.values_list("view", flat=True)
        assert [*found] == [f"{__name__}.{name}"] * 2

    def test_refusal(self, client: Any, handle: Handle, url: str) -> None:
        """O2: What a refused handler wrote is what it is without a key."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            raise NotFound

        handle(handler)
        for headers in ({}, key()):
            Effect.objects.all().delete()
            assert client.post(url, {}, **headers).status_code == 404
            # The mark that it clears is Django REST framework's own.
            assert Effect.objects.count() == 1
        assert IdempotencyRecord.objects.count() == 0


class TestRevisions:
    """E2: django-reversion's transaction around the view holds the record, too."""

    def test_success(self, client: Any, handle: Handle) -> None:
        """E1: One effect, one revision; the replay has none of its own."""

        def handler(request: Request) -> Any:
            reversion.set_comment("created")
            return create_effect(request)

        handle(handler)
        first = client.post("/revised/", {}, **key())
        assert first.status_code == 201
        assert client.post("/revised/", {}, **key()).content == first.content
        assert Effect.objects.count() == 1

    def test_failure(self, client: Any, handle: Handle) -> None:
        """O3: A returned failure undoes its own part of the transaction."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            return Response(status=503)

        handle(handler)
        assert client.post("/revised/", {}, **key()).status_code == 503
        assert Effect.objects.count() == 0
        assert IdempotencyRecord.objects.count() == 0


class TestPreconditions:
    """F1, O2: what drf-extensions answers before the handler frees the key."""

    def test_corrected(self, client: Any, caplog: Any) -> None:
        """O2: The corrected request runs, and its retry gets its answer."""

        def send(**headers: str) -> Any:
            return client.post("/conditional/", {}, **headers, **key())

        assert send().status_code == 428
        assert send(HTTP_IF_MATCH='"another"').status_code == 412
        assert IdempotencyRecord.objects.count() == 0
        right = {"HTTP_IF_MATCH": '"0-effects"'}
        first = send(**right)
        assert first.status_code == 201
        retry = send(**right)
        assert (retry.content, retry["ETag"]) == (first.content, first["ETag"])
        assert retry["Idempotent-Replayed"] == "true"
        assert code_of(send(HTTP_IF_MATCH='"1-effects"')) == "idempotency_key_reused"
        assert Effect.objects.count() == 1


class TestUndoneAnswers:
    """R1, E2: an answer whose effects are undone goes out as without the app."""

    @pytest.fixture
    def send(self, client: Any, handle: Handle, url: str) -> Any:
        def send(status_code: int, doom: Callable[[], None]) -> Any:
            def handler(request: Request) -> Any:
                Effect.objects.create(note="lost")
                doom()
                notes = Effect.objects.values_list("note", flat=True)
                return Response({"notes": notes}, status=status_code)

            handle(handler)
            return client.post(url, {}, **key())

        return send

    @pytest.mark.parametrize("status_code", [200, 402, 404, 500])
    def test_wanted(self, send: Any, status_code: int) -> None:
        """E2: After set_rollback(True) rendering may ask the database."""
        for _ in range(2):
            answer = send(status_code, lambda: transaction.set_rollback(True))
            assert answer.status_code == status_code
            assert answer.json() == {"notes": []}
            assert "Idempotency-Expires" not in answer
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize("status_code", [402, 404, 500])
    @pytest.mark.parametrize("doom", ["marked", "aborted"])
    def test_lost(self, send: Any, status_code: int, doom: str) -> None:
        """E2: The same after a database error that the handler caught."""

        def fail() -> None:
            with suppress(DatabaseError), connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")

        answer = send(status_code, lose_effects if doom == "marked" else fail)
        survives = doom == "aborted" and connection.vendor != "postgresql"
        assert answer.status_code == status_code
        if not survives or status_code == 500:
            assert answer.json() == {"notes": []}
            assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0

    def test_refused(self, client: Any, handle: Handle, url: str) -> None:
        """O2: And so may the words of a refusal, whose effects are lost anyway."""

        def handler(request: Request) -> Any:
            Effect.objects.create(note="lost")
            lose_effects()
            raise ValidationError("no")

        handle(handler)
        assert client.post(url, {}, **key()).status_code == 400
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0

    def test_seen_by_middleware(
        self, client: Any, handle: Handle, url: str, monkeypatch: Any
    ) -> None:
        """R1: Middleware for template responses sees it before it is rendered."""
        seen: list[bool] = []
        monkeypatch.setattr(
            "idempotency.middleware.IdempotencyMiddleware.process_template_response",
            lambda self, request, response: (
                seen.append(response.is_rendered) or response
            ),
        )
        handle(lambda request: Response({}, status=503))
        assert client.post(url, {}, **key()).status_code == 503
        handle(lambda request: Response({}, status=201))
        assert client.post(url, {}, **key()).status_code == 201
        assert seen == [False, True]

    def test_transaction_lost_while_rendering(
        self, client: Any, handle: Handle, url: str
    ) -> None:
        """E2: If rendering loses the effects, the client gets a 503."""

        def handler(request: Request) -> Any:
            response = create_effect(request)
            response.add_post_render_callback(lambda response: lose_effects())
            return response

        handle(handler)
        answer = client.post(url, {}, **key())
        assert_refused(answer, 503, "idempotency_transaction_failed")
        assert Effect.objects.count() == 0


class TestMadeAnswers:
    """O3: no answer below 400 stands for undone effects."""

    @pytest.mark.parametrize("error", [ValueError, APIException, OperationalError])
    def test_of_the_view(
        self, client: Any, handle: Handle, error: type[Exception], caplog: Any
    ) -> None:
        """O3, X1: A success that handle_exception makes of a failure is replaced."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            raise error("out of order")

        handle(handler)
        answer = client.post("/forgiving/", {}, **key())
        assert answer.status_code == 503
        # It answers this one, too, and keeps its words.
        assert answer.data == {"sorry": "TransactionFailed"}
        assert answer["Idempotency-Error"] == "idempotency_transaction_failed"
        assert answer["Retry-After"] == "1"
        assert (
            "to a failure with status 200, but its effects were undone" in caplog.text
        )
        assert KEY not in caplog.text
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0
        handle(create_effect)
        assert client.post("/forgiving/", {}, **key()).status_code == 201

    def test_of_the_project(
        self, client: Any, handle: Handle, url: str, monkeypatch: Any
    ) -> None:
        """O3: A success made by EXCEPTION_HANDLER is replaced, too."""

        def answer_failures(exc: Exception, context: Any) -> Response:
            if isinstance(exc, ValueError):
                return Response({"ok": False}, status=200)
            return Response({"code": exc.get_codes()}, status=exc.status_code)  # type: ignore[attr-defined]

        def handler(request: Request) -> Any:
            Effect.objects.create()
            raise ValueError

        monkeypatch.setattr(
            APIView, "get_exception_handler", lambda self: answer_failures
        )
        handle(handler)
        answer = client.post(url, {}, **key())
        assert answer.status_code == 503
        assert answer.data == {"code": "idempotency_transaction_failed"}
        assert client.post(url, {}).data == {"ok": False}

    def test_refusals(self, client: Any, handle: Handle) -> None:
        """O2, O3: A refusal undoes nothing, so the view may make a success of it."""

        def handler(request: Request) -> Any:
            raise NotFound

        handle(handler)
        assert client.post("/forgiving/", {}, **key()).status_code == 200

    def test_lost_effects(self, client: Any, handle: Handle) -> None:
        """O3: A refusal that has lost its effects is not answered at will."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            lose_effects()
            raise NotFound

        handle(handler)
        assert client.post("/forgiving/", {}, **key()).status_code == 503
        assert Effect.objects.count() == 0

    @pytest.mark.usefixtures("by_statements")
    def test_before_the_handler(
        self, client: Any, handle: Handle, monkeypatch: Any
    ) -> None:
        """O3: A claim that failed does not become a success."""

        def fail(*args: Any) -> Any:
            raise OperationalError("no such host")

        monkeypatch.setattr("idempotency.claims.Claims.claim", fail)
        assert client.post("/forgiving/", {}, **key()).status_code == 503
        assert Effect.objects.count() == 0

    @pytest.mark.parametrize("status_code", [402, 500])
    def test_envelope(self, client: Any, handle: Handle, status_code: int) -> None:
        """O3: An envelope that always says 200 is told apart from what it holds."""

        def handler(request: Request) -> Any:
            Effect.objects.create()
            if status_code == 402:
                lose_effects()
            return Response({"code": status_code}, status=status_code)

        handle(handler)
        answer = client.post("/enveloping/", {}, **key())
        assert (answer.status_code, code_of(answer)) == (
            503,
            "idempotency_transaction_failed",
        )
        assert Effect.objects.count() == 0

    @pytest.mark.parametrize("status_code", [500, 200])
    def test_finalised(
        self, client: Any, handle: Handle, monkeypatch: Any, status_code: int
    ) -> None:
        """E2, O3: What finalize_response makes a failure of, or undoes, is one."""

        def finalize(view: Any, request: Request, response: Any) -> Any:
            if status_code == 200 and response.status_code == 201:
                lose_effects()
            response.status_code = status_code
            return original(view, request, response)

        original = APIView.finalize_response
        monkeypatch.setattr(APIView, "finalize_response", finalize)
        for _ in range(2):
            answer = client.post("/mixin-view/", {}, **key())
            assert answer.status_code == (500 if status_code == 500 else 503)
            assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0


class TestBatches:
    """E2, E6: requests that a handler sends."""

    def send(self, client: Any, url: str, *parts: Any, **headers: str) -> Any:
        return client.post(
            url,
            {
                "parts": [
                    # Not all say whether they have the batch's match.
                    dict(zip(("url", "body", "key", "matched"), part, strict=False))
                    for part in parts
                ]
            },
            **headers,
        )

    @pytest.mark.parametrize("matched", [False, True], ids=["own", "copied"])
    @pytest.mark.parametrize("how", ["returned", "raised", "answered"])
    def test_one_fails(
        self, client: Any, handle: Handle, url: str, how: str, matched: bool
    ) -> None:
        """E2: A part that fails undoes itself, and no other part."""

        def handler(request: Request) -> Any:
            response = create_effect(request)
            if request.data["title"] != "wrong":
                return response
            if how == "raised":
                raise ValueError
            if how == "answered":
                raise OutOfOrder  # Django REST framework marks the transaction
            return Response({}, status=503)

        handle(handler)
        parts = [
            (url, {"title": title}, f"{number}-{KEY}", matched)
            for number, title in enumerate(["right", "wrong", "right"])
        ]
        answer = self.send(client, "/batch/", *parts)
        statuses = [201, 500 if how == "raised" else 503, 201]
        assert answer.data == statuses
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 2
        assert self.send(client, "/batch/", *parts).data == statuses
        assert Effect.objects.count() == 2

    def test_one_is_refused(self, client: Any, url: str) -> None:
        """E2: A part that the app refuses undoes no other part, either."""
        client.post(url, {"title": "another"}, **key("used-" + KEY))
        parts = [
            (url, {"title": "right"}, "first-" + KEY),
            (url, {"title": "wrong"}, "used-" + KEY),
            (url, {"title": "wrong"}, "not a key"),
            (url, {"title": "right"}, "last-" + KEY),
        ]
        answer = self.send(client, "/batch/", *parts)
        assert answer.data == [201, 422, 400, 201]
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 3

    def test_one_finds_nothing(
        self, client: Any, handle: Handle, atomic_requests: bool
    ) -> None:
        """O2: A refusal of the handler's is what it is without a key."""

        def handler(request: Request) -> Any:
            response = create_effect(request)
            if request.data["title"] == "wrong":
                raise NotFound
            return response

        handle(handler)
        for keyed in (True, False):
            parts = [
                ("/mixin-view/", {"title": title}, f"{title}-{KEY}" if keyed else None)
                for title in ("right", "wrong")
            ]
            assert self.send(client, "/batch/", *parts).data == [201, 404]
            assert Effect.objects.count() == (0 if atomic_requests else 2)
            Effect.objects.all().delete()

    @pytest.mark.parametrize("batch", ["/keyed-batch/", "/leased-batch/"])
    def test_copied_headers(
        self, client: Any, handle: Handle, url: str, batch: str
    ) -> None:
        """E6: Parts with the batch's own key run under its claim."""
        derived: list[str] = []

        def handler(request: Request) -> Any:
            derived.append(request.idempotency.derive("charge"))
            return create_effect(request)

        handle(handler)
        parts = [(url, {"title": title}, None) for title in ("one", "two")]
        first = self.send(client, batch, *parts, **key())
        assert first.data == [201, 201]
        replay = self.send(client, batch, *parts, **key())
        assert replay.content == first.content
        assert replay["Idempotent-Replayed"] == "true"
        assert Effect.objects.count() == 2
        assert IdempotencyRecord.objects.count() == 1
        assert len({*derived}) == 2

    def test_part_that_fails_under_the_batch(
        self, client: Any, handle: Handle, url: str
    ) -> None:
        """E6: What becomes of such a part is the batch's to say."""

        def handler(request: Request) -> Any:
            create_effect(request)
            raise ValueError

        handle(handler)
        parts = [(url, {}, None), ("/unprotected/", {}, None)]
        answer = self.send(client, "/keyed-batch/", *parts, **key())
        assert answer.data == [500, 500]
        assert Effect.objects.count() == 2
        replay = self.send(client, "/keyed-batch/", *parts, **key())
        assert replay.content == answer.content
        assert Effect.objects.count() == 2

    def test_afterwards(self, client: Any, handle: Handle, url: str) -> None:
        """E6, F4: When the batch is over, its key is that of its record alone."""
        parts = [(url, {"title": "one"}, None)]
        self.send(client, "/keyed-batch/", *parts, **key())
        answer = client.post(url, {"title": "one"}, **key())
        assert code_of(answer) == "idempotency_key_reused"
