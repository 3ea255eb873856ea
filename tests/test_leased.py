"""Leased mode: the claim commits first, and a run that ends badly is abandoned."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections, transaction
from django.http import Http404, HttpResponse
from django.test import TestCase, override_settings
from django.urls import path, resolve
from django.utils import timezone
from django.utils.decorators import method_decorator
from rest_framework import exceptions
from rest_framework.decorators import action, api_view
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.claims import claims_in
from idempotency.database import UTCNow
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, RecordChanged, State
from tests.app.models import Effect
from tests.app.views import behave, create_effect
from tests.conftest import KEY, code_of, key
from tests.test_docs import run_case
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]

Handle = Callable[[Callable[[Request], Any]], None]
UNKNOWN = "idempotency_outcome_unknown"


class Leased(IdempotencyMixin, APIView):
    """Leased by the mixin, which looks after ATOMIC_REQUESTS."""

    idempotency_atomic = False
    idempotency_lease = timedelta(seconds=30)
    idempotency_on_abandoned = "hold"

    def post(self, request: Request) -> Any:
        return behave(request)

    def get(self, request: Request) -> Any:
        return behave(request)


class Rerun(Leased):
    idempotency_on_abandoned = "rerun"


class Resuming(Leased):
    idempotency_on_abandoned = "resume"


class Enquiry:
    """What the policy's callable does."""

    answer: Callable[[IdempotencyRecord, Request], Any]


def enquire(record: IdempotencyRecord, request: Request) -> Any:
    return Enquiry.answer(record, request)


class Asking(Leased):
    idempotency_on_abandoned = enquire


class LeasedViewSet(IdempotencyMixin, ViewSet):
    @idempotent(atomic=False, on_abandoned="hold")
    def create(self, request: Request) -> Any:
        return behave(request)

    @idempotency_exempt
    def search(self, request: Request) -> Any:
        return behave(request)

    @action(
        detail=False,
        methods=["post"],
        idempotency_atomic=False,
        idempotency_on_abandoned="hold",
    )
    def extra(self, request: Request) -> Any:
        return behave(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="hold")
def function(request: Request) -> Any:
    return behave(request)


@method_decorator(transaction.non_atomic_requests, name="dispatch")
class Method(APIView):
    @idempotent(atomic=False, on_abandoned="hold")
    def post(self, request: Request) -> Any:
        return behave(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="hold", using="other")
def elsewhere(request: Request) -> Any:
    return behave(request)


@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="hold")
def inside(request: Request) -> Any:
    """Not opted out of ATOMIC_REQUESTS."""
    return behave(request)


@method_decorator(transaction.non_atomic_requests, name="dispatch")
class NeverAtomic(Leased):
    """Opted out by the project, for all of its requests."""


class Choosy(Leased):
    stores = True

    def should_store_response(self, response: Any) -> bool:
        if self.stores is None:
            raise LookupError
        return self.stores


class Settled(Exception):
    """A handler's own failure."""


URLS = [
    "/leased/",
    "/leased-viewset/",
    "/leased-viewset/extra/",
    "/leased-function/",
    "/leased-method/",
]
urlpatterns = [
    path("leased/", Leased.as_view()),
    path("rerun/", Rerun.as_view()),
    path("resuming/", Resuming.as_view()),
    path("asking/", Asking.as_view()),
    path("choosy/", Choosy.as_view()),
    path("never-atomic/", NeverAtomic.as_view()),
    path("leased-viewset/", LeasedViewSet.as_view({"post": "create"})),
    path("leased-viewset/search/", LeasedViewSet.as_view({"post": "search"})),
    path(
        "leased-viewset/extra/",
        LeasedViewSet.as_view({"post": "extra"}, **LeasedViewSet.extra.kwargs),
    ),
    path("leased-function/", function),
    path("leased-method/", Method.as_view()),
    path("leased-elsewhere/", elsewhere),
    path("inside/", inside),
    *usual_urls,
]


def the_record() -> IdempotencyRecord:
    return IdempotencyRecord.objects.get()


def end_lease(**values: Any) -> None:
    """Let the time of every lease be over."""
    past = UTCNow() - timedelta(seconds=1)
    IdempotencyRecord.objects.update(lease_expires_at=past, **values)


def abandon(client: Any, handle: Handle, url: str) -> None:
    """Let a run act and fail."""

    def handler(request: Request) -> Any:
        create_effect(request)
        raise Settled

    handle(handler)
    assert client.post(url, {"a": 1}, **key()).status_code == 500
    handle(create_effect)


def is_abandoned() -> bool:
    """Return whether the one record is abandoned, as the QuerySet and its state say."""
    (record,) = IdempotencyRecord.objects.all()
    found: bool = IdempotencyRecord.objects.abandoned().exists()
    assert found is (record.state == State.ABANDONED)
    return found


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    """Return each way to a leased handler."""
    path: str = request.param
    return path


class TestRun:
    """E7, O1, R1: a run that ends well."""

    def test_stored_and_replayed(self, client: Any, url: str) -> None:
        """E7, O1, R2, R3: The first answer is stored, and replayed."""
        first = client.post(url, {"a": 1}, **key())
        retry = client.post(url, {"a": 1}, **key())
        assert (first.status_code, retry.status_code) == (201, 201)
        assert (retry.content, retry["Location"]) == (first.content, first["Location"])
        assert retry["Idempotent-Replayed"] == "true"
        assert first["Idempotency-Expires"] == retry["Idempotency-Expires"]
        assert Effect.objects.count() == 1
        record = the_record()
        assert (record.state, record.lease_expires_at) == (State.COMPLETED, None)

    def test_claim_is_committed(self, client: Any, handle: Handle, url: str) -> None:
        """E7: While the handler runs, others see its claim; no transaction is open."""
        others: list[Any] = []

        def send_others() -> None:
            for address, title in ((url, 1), (url, 2), ("/function/", 1)):
                others.append(client.post(address, {"a": title}, **key()))
            connections.close_all()

        def handler(request: Request) -> Any:
            assert not connection.in_atomic_block
            if not others:
                # On a connection of their own: on this one they would be parts (E6).
                elsewhere = Thread(target=send_others)
                elsewhere.start()
                elsewhere.join()
            return create_effect(request)

        handle(handler)
        assert client.post(url, {"a": 1}, **key()).status_code == 201
        assert [code_of(answer) for answer in others] == [
            "idempotency_in_progress",
            "idempotency_key_reused",
            "idempotency_key_reused",
        ]
        assert others[0]["Retry-After"] == "1"
        assert Effect.objects.count() == 1

    def test_context(self, client: Any, handle: Handle) -> None:
        """E7: The handler knows its attempt; a lease is as long as the policy says."""

        def handler(request: Request) -> Any:
            context: Any = request.idempotency  # type: ignore[attr-defined]
            assert (context.key, context.attempt) == (KEY, 1)
            assert context.record_id == the_record().pk
            assert abs(lease_left() - 30) < 5
            return create_effect(request)

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 201

    def test_tombstone(self, client: Any, monkeypatch: Any) -> None:
        """O4, R4: An answer that is not to be kept leaves a tombstone."""
        monkeypatch.setattr(Choosy, "stores", False)
        assert client.post("/choosy/", {}, **key()).status_code == 201
        retry = client.post("/choosy/", {}, **key())
        assert code_of(retry) == "idempotency_response_not_kept"

    def test_without_a_key(self, client: Any, handle: Handle, url: str) -> None:
        """K4, E8, E9, E10: The same handler runs without a key, too."""

        def handler(request: Request) -> Any:
            context: Any = request.idempotency  # type: ignore[attr-defined]
            assert context.derive("charge") == context.derive("charge")
            context.renew()
            context.release()
            return create_effect(request)

        handle(handler)
        assert client.post(url, {}).status_code == 201
        assert IdempotencyRecord.objects.count() == 0


def lease_left() -> float:
    """Return the seconds for which the one record's lease holds."""
    found = IdempotencyRecord.objects.annotate(clock=UTCNow()).get()
    assert found.lease_expires_at is not None
    left: timedelta = found.lease_expires_at - found.clock
    return left.total_seconds()


def refuse(how: str) -> Any:
    """Refuse as handlers do."""
    if how == "returned":
        return Response({"no": 1}, status=404)
    raise {
        "Http404": Http404(),
        "ValidationError": exceptions.ValidationError("no"),
    }[how]


REFUSALS = ["returned", "Http404", "ValidationError"]


class TestErrors:
    """O2, O3, E9: what becomes of the key when a run ends in an error."""

    @pytest.mark.parametrize("how", REFUSALS)
    def test_refused(self, client: Any, handle: Handle, url: str, how: str) -> None:
        """O2: A handler that refuses before it acts outside frees the key."""

        def handler(request: Request) -> Any:
            create_effect(request)
            return refuse(how)

        handle(handler)
        for count in (1, 2):
            assert 400 <= client.post(url, {}, **key()).status_code < 500
            assert IdempotencyRecord.objects.count() == 0
            assert Effect.objects.count() == count

    @pytest.mark.parametrize("how", REFUSALS)
    @pytest.mark.parametrize("sign", ["derive", "renew"])
    def test_charged_and_refused(
        self, client: Any, handle: Handle, url: str, sign: str, how: str
    ) -> None:
        """E9: A handler that charges and then refuses abandons the key."""

        def handler(request: Request) -> Any:
            context: Any = request.idempotency  # type: ignore[attr-defined]
            if sign == "derive":
                context.derive("charge")
            else:
                context.renew()
            create_effect(request)
            return refuse(how)

        handle(handler)
        first = client.post(url, {}, **key())
        assert first.status_code in (400, 404)
        assert "Idempotency-Expires" not in first
        assert is_abandoned()
        for _ in range(2):
            assert code_of(client.post(url, {}, **key())) == UNKNOWN
        assert Effect.objects.count() == 1

    @pytest.mark.parametrize("how", ["exception", "returned", "raised"])
    def test_failed(self, client: Any, handle: Handle, url: str, how: str) -> None:
        """O3, E9: A failure leaves the outcome unknown, whenever it comes."""

        def handler(request: Request) -> Any:
            create_effect(request)
            if how == "exception":
                raise Settled
            if how == "raised":
                raise exceptions.APIException
            return Response(status=503)

        handle(handler)
        assert client.post(url, {}, **key()).status_code in (500, 503)
        assert is_abandoned()
        assert client.post(url, {}, **key()).status_code == 409
        # Another payload is told so first (F4).
        assert client.post(url, {"a": 2}, **key()).status_code == 422
        assert Effect.objects.count() == 1

    def test_failed_hook(self, client: Any, monkeypatch: Any) -> None:
        """E9: A failure after the handler leaves the outcome unknown, too."""
        monkeypatch.setattr(Choosy, "stores", None)
        assert client.post("/choosy/", {}, **key()).status_code == 500
        assert is_abandoned()

    def test_rendering_refuses(self, client: Any, handle: Handle) -> None:
        """E9: A refusal that comes after the handler is no word of the handler's."""

        def refuse(response: Any) -> Any:
            raise Http404

        def handler(request: Request) -> Any:
            response = create_effect(request)
            response.add_post_render_callback(refuse)
            return response

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 404
        assert is_abandoned()
        assert code_of(client.post("/leased/", {}, **key())) == UNKNOWN
        assert Effect.objects.count() == 1

    def test_process_ends(self, client: Any, handle: Handle) -> None:
        """E9: A server that ends its worker leaves the outcome unknown, too."""

        def handler(request: Request) -> Any:
            raise SystemExit

        handle(handler)
        with pytest.raises(SystemExit):
            client.post("/leased/", {}, **key())
        assert is_abandoned()

    @pytest.mark.parametrize("how", [*REFUSALS, "success", "exception", "503"])
    def test_released(self, client: Any, handle: Handle, url: str, how: str) -> None:
        """E9: release() frees the key, whatever the handler responds."""

        def handler(request: Request) -> Any:
            context: Any = request.idempotency  # type: ignore[attr-defined]
            context.derive("charge")
            context.release()
            response = create_effect(request)
            if how == "exception":
                raise Settled
            if how == "503":
                return Response(status=503)
            return response if how == "success" else refuse(how)

        handle(handler)
        for count in (1, 2):
            answer = client.post(url, {}, **key())
            assert "Idempotency-Expires" not in answer
            assert IdempotencyRecord.objects.count() == 0
            assert Effect.objects.count() == count

    def test_lease_ended(self, client: Any, handle: Handle) -> None:
        """E9: A worker that died leaves a lease, and when that ends, the unknown."""
        client.post("/leased/", {}, **key())
        fields = {"state": State.IN_PROGRESS, "status_code": None, "body": None}
        alive = UTCNow() + timedelta(seconds=30)
        IdempotencyRecord.objects.update(lease_expires_at=alive, **fields)
        assert client.post("/leased/", {}, **key())["Retry-After"] == "1"
        assert not IdempotencyRecord.objects.abandoned().exists()
        end_lease()
        assert IdempotencyRecord.objects.abandoned().exists()
        retry = client.post("/leased/", {}, **key())
        assert (retry.status_code, code_of(retry)) == (409, UNKNOWN)
        assert "Retry-After" not in retry

    def test_atomic_endpoint(self, client: Any, handle: Handle) -> None:
        """E5: What a record is, the record says, not the endpoint's options."""
        abandon(client, handle, "/leased/")
        IdempotencyRecord.objects.update(path="/function/")
        fingerprints_agree = {"FINGERPRINT": "tests.test_derivation.same"}
        with override_settings(IDEMPOTENCY=fingerprints_agree):
            client.post("/function/", {}, **key("another-key"))
            digest = IdempotencyRecord.objects.get(key="another-key").fingerprint
            IdempotencyRecord.objects.update(fingerprint=digest, fingerprint_version=0)
            assert code_of(client.post("/function/", {}, **key())) == UNKNOWN
        assert Effect.objects.count() == 2


class TestRerun:
    """E9: on_abandoned="rerun"."""

    def test_takes_over(self, client: Any, handle: Handle) -> None:
        """E9: The retry runs again, and its answer is the one that stays."""
        abandon(client, handle, "/rerun/")
        before = the_record()
        attempts: list[Any] = []

        def handler(request: Request) -> Any:
            attempts.append(request.idempotency.attempt)  # type: ignore[attr-defined]
            return create_effect(request)

        handle(handler)
        again = client.post("/rerun/", {"a": 1}, **key())
        retry = client.post("/rerun/", {"a": 1}, **key())
        assert (again.status_code, retry.content) == (201, again.content)
        assert retry["Idempotent-Replayed"] == "true"
        after = the_record()
        assert (attempts, after.attempt) == ([2], 2)
        assert after.created_at == before.created_at
        assert after.expires_at > before.expires_at
        assert Effect.objects.count() == 2

    def test_after_the_lease(self, client: Any) -> None:
        """E7, E9: Not before the lease has ended."""
        client.post("/rerun/", {}, **key())
        fields = {"state": State.IN_PROGRESS, "status_code": None, "body": None}
        alive = UTCNow() + timedelta(seconds=30)
        IdempotencyRecord.objects.update(lease_expires_at=alive, **fields)
        assert client.post("/rerun/", {}, **key()).status_code == 409
        end_lease()
        assert client.post("/rerun/", {}, **key()).status_code == 201
        assert Effect.objects.count() == 2

    @pytest.mark.parametrize("how", REFUSALS)
    def test_refused(self, client: Any, handle: Handle, how: str) -> None:
        """E9: A rerun that refuses knows nothing of the first run: still unknown."""
        abandon(client, handle, "/rerun/")
        handle(lambda request: refuse(how))
        for attempt in (2, 3):
            assert client.post("/rerun/", {"a": 1}, **key()).status_code in (400, 404)
            assert is_abandoned()
            assert the_record().attempt == attempt

    def test_another_was_faster(self, client: Any, handle: Handle) -> None:
        """E7: Of many that retry, one takes over."""
        abandon(client, handle, "/rerun/")
        others = []

        def handler(request: Request) -> Any:
            others.append(client.post("/rerun/", {"a": 1}, **key()))
            return create_effect(request)

        handle(handler)
        assert client.post("/rerun/", {"a": 1}, **key()).status_code == 201
        assert code_of(others[0]) == "idempotency_in_progress"

    def test_taken_between(self, client: Any, handle: Handle, monkeypatch: Any) -> None:
        """E7: A retry that finds the record taken since it looked does not run."""
        abandon(client, handle, "/rerun/")
        monkeypatch.setattr(claims_in("default"), "take_over", lambda *args: False)
        answer = client.post("/rerun/", {"a": 1}, **key())
        assert code_of(answer) == "idempotency_in_progress"
        assert Effect.objects.count() == 1


class TestEnquiry:
    """E9: on_abandoned=callable."""

    @pytest.fixture(autouse=True)
    def _abandoned(self, atomic_requests: bool, client: Any, handle: Handle) -> None:
        abandon(client, handle, "/asking/")

    def ask(self, answer: Callable[..., Any]) -> None:
        Enquiry.answer = staticmethod(answer)

    @pytest.mark.parametrize("status", [201, 404])
    def test_found_out(self, client: Any, status: int) -> None:
        """E9: Its response is stored, whatever its status, and the handler not run."""
        asked: list[Any] = []

        def answer(record: IdempotencyRecord, request: Request) -> Any:
            context: Any = request.idempotency  # type: ignore[attr-defined]
            asked.append((record.attempt, context.attempt, context.derive("charge")))
            # It runs under a claim of its own.
            assert client.post("/asking/", {"a": 1}, **key()).status_code == 409
            return Response({"found": "out"}, status=status)

        self.ask(answer)
        first = client.post("/asking/", {"a": 1}, **key())
        retry = client.post("/asking/", {"a": 1}, **key())
        assert (first.status_code, first.data) == (status, {"found": "out"})
        assert (retry.status_code, retry.content) == (status, first.content)
        assert retry["Idempotent-Replayed"] == "true"
        assert [(before, now) for before, now, _key in asked] == [(1, 2)]
        assert Effect.objects.count() == 1

    def test_nothing_found(self, client: Any) -> None:
        """E9: None means that the handler is to run."""
        self.ask(lambda record, request: None)
        assert client.post("/asking/", {"a": 1}, **key()).status_code == 201
        assert Effect.objects.count() == 2

    @pytest.mark.parametrize("how", ["exception", "404", "503"])
    def test_could_not_find_out(self, client: Any, how: str) -> None:
        """E9: Where it fails, the outcome is as unknown as before."""

        def answer(record: IdempotencyRecord, request: Request) -> Any:
            if how == "exception":
                raise Settled
            if how == "404":
                raise Http404
            return Response(status=503)

        self.ask(answer)
        status = client.post("/asking/", {"a": 1}, **key()).status_code
        assert status == {"exception": 500, "404": 404, "503": 503}[how]
        assert is_abandoned()
        assert Effect.objects.count() == 1


class TestLostClaims:
    """E7: a handler that lost its claim."""

    @pytest.mark.parametrize("ending", ["success", "refusal"])
    @pytest.mark.parametrize("gone", [False, True], ids=["taken over", "released"])
    def test_its_answer_is_not_stored(
        self, client: Any, handle: Handle, caplog: Any, gone: bool, ending: str
    ) -> None:
        """E7: It gets 409, the new owner's record stays, the log names both."""
        token = uuid.uuid4()

        def handler(request: Request) -> Any:
            rows = IdempotencyRecord.objects.all()
            if gone:
                rows._raw_delete("default")
            else:
                rows.update(token=token, attempt=2)
            return create_effect(request) if ending == "success" else refuse("Http404")

        handle(handler)
        with caplog.at_level(logging.WARNING, logger="idempotency"):
            answer = client.post("/leased/", {}, **key())
        assert (answer.status_code, code_of(answer)) == (409, "idempotency_claim_lost")
        assert answer["Retry-After"] == "1"
        assert "Idempotency-Expires" not in answer
        (entry,) = [r for r in caplog.records if r.name == "idempotency"]
        assert entry.levelname == "WARNING"
        told = "attempt 1, current attempt " + ("None" if gone else "2")
        assert told in entry.getMessage()
        if not gone:
            record = the_record()
            assert (record.token, record.state) == (token, State.IN_PROGRESS)

    @pytest.mark.parametrize("caught", [False, True])
    def test_renew(self, client: Any, handle: Handle, caught: bool) -> None:
        """E8: renew() of a lost claim raises; catching that changes nothing."""
        effects = []

        def handler(request: Request) -> Any:
            IdempotencyRecord.objects.update(token=uuid.uuid4())
            try:
                request.idempotency.renew()  # type: ignore[attr-defined]
            except exceptions.APIException:
                if not caught:
                    raise
            effects.append(1)
            return Response(status=201)

        handle(handler)
        answer = client.post("/leased/", {}, **key())
        assert code_of(answer) == "idempotency_claim_lost"
        assert effects == ([1] if caught else [])

    def test_failure(self, client: Any, handle: Handle, caplog: Any) -> None:
        """E7: A failure's answer is its own; the record is the new owner's."""

        def handler(request: Request) -> Any:
            IdempotencyRecord.objects.update(token=uuid.uuid4(), attempt=2)
            raise Settled

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 500
        assert the_record().state == State.IN_PROGRESS
        (told,) = [r.getMessage() for r in caplog.records if r.name == "idempotency"]
        assert "attempt 1, current attempt 2" in told
        assert "key_abandoned" not in caplog.text


class TestRenew:
    """E8: renew()."""

    def test_lease(self, client: Any, handle: Handle) -> None:
        """E8: From now on, as long as the policy or the handler says."""

        def handler(request: Request) -> Any:
            context: Any = request.idempotency  # type: ignore[attr-defined]
            end_lease()
            context.renew()
            assert abs(lease_left() - 30) < 5
            context.renew(timedelta(minutes=10))
            assert abs(lease_left() - 600) < 5
            context.renew(timedelta(milliseconds=1500))
            assert 0 < lease_left() < 2
            return create_effect(request)

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 201

    def test_wrong_lease(self, client: Any, handle: Handle) -> None:
        """E8: A lease that is none is an error of the handler's."""
        errors = []

        def handler(request: Request) -> Any:
            with pytest.raises(ValueError, match="must be positive") as error:
                request.idempotency.renew(timedelta(0))  # type: ignore[attr-defined]
            errors.append(error)
            return create_effect(request)

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 201
        assert errors

    @pytest.mark.parametrize("how", ["atomic", "autocommit"])
    def test_inside_a_transaction(
        self, client: Any, handle: Handle, monkeypatch: Any, how: str
    ) -> None:
        """E8: In a transaction renew() raises, and nothing is written."""
        errors = []

        def handler(request: Request) -> Any:
            before = the_record().lease_expires_at
            if how == "autocommit":
                transaction.set_autocommit(False)
            try:
                with transaction.atomic() if how == "atomic" else nullcontext():
                    with pytest.raises(RuntimeError, match="End it before") as error:
                        request.idempotency.renew(timedelta(hours=1))  # type: ignore[attr-defined]
                    errors.append(error)
                    assert the_record().lease_expires_at == before
            finally:
                if how == "autocommit":
                    transaction.rollback()
                    transaction.set_autocommit(True)
            return create_effect(request)

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 201
        assert errors

    @pytest.mark.parametrize("method", ["renew", "release"])
    def test_atomic_mode(self, client: Any, handle: Handle, method: str) -> None:
        """E8, E9: In atomic mode there is nothing to renew, or to release."""
        errors = []

        def handler(request: Request) -> Any:
            with pytest.raises(RuntimeError, match=rf"{method}\(\) needs leased mode"):
                getattr(request.idempotency, method)()  # type: ignore[attr-defined]
            errors.append(method)
            return create_effect(request)

        handle(handler)
        assert client.post("/function/", {}, **key()).status_code == 201
        assert errors == [method]


class TestTransactions:
    """E11: leased mode and the transactions of others."""

    def test_open_transaction(self, client: Any, handle: Handle) -> None:
        """E11: Inside one it is refused at once, with what to write."""
        client.raise_request_exception = True
        with (
            pytest.raises(
                ImproperlyConfigured, match=r"@transaction\.non_atomic_requests"
            ),
            transaction.atomic(),
        ):
            client.post("/leased-function/", {}, **key())
        assert Effect.objects.count() == IdempotencyRecord.objects.count() == 0

    def test_without_autocommit(self, client: Any) -> None:
        """E11: Without autocommit it is refused, too."""
        transaction.set_autocommit(False)
        try:
            assert client.post("/leased-function/", {}, **key()).status_code == 500
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)
        assert Effect.objects.count() == 0

    def test_not_opted_out(self, client: Any, atomic_requests: bool) -> None:
        """E11: A function under ATOMIC_REQUESTS has to be opted out."""
        expected = 500 if atomic_requests else 201
        assert client.post("/inside/", {}, **key()).status_code == expected
        assert Effect.objects.count() == (not atomic_requests)

    @pytest.mark.parametrize(
        ("url", "method", "headers"),
        [
            ("/leased/", "get", {}),
            ("/leased/", "get", key()),
            ("/leased/", "post", {}),
            ("/leased/", "post", {"HTTP_IDEMPOTENCY_KEY": ""}),
            ("/leased-viewset/", "post", {}),
            ("/leased-viewset/search/", "post", key()),
        ],
    )
    @pytest.mark.parametrize("fails", [False, True])
    def test_other_requests(
        self,
        client: Any,
        handle: Handle,
        atomic_requests: bool,
        url: str,
        method: str,
        headers: dict[str, str],
        fails: bool,
    ) -> None:
        """E11: Whatever is not leased has the transaction that it had."""
        seen = []

        def handler(request: Request) -> Any:
            seen.append(connection.in_atomic_block)
            create_effect(request)
            if fails:
                raise Http404
            return Response(status=200)

        handle(handler)
        status = getattr(client, method)(url, {}, **headers).status_code
        if headers.get("HTTP_IDEMPOTENCY_KEY") == "":
            assert (status, seen) == (400, [])
        else:
            assert (status, seen) == (404 if fails else 200, [atomic_requests])
            assert Effect.objects.count() == (0 if fails and atomic_requests else 1)

    def test_switched_off(
        self, client: Any, handle: Handle, atomic_requests: bool
    ) -> None:
        """E11, X2: With the app switched off, requests keep their transaction."""
        seen = []

        def handler(request: Request) -> Any:
            seen.append(connection.in_atomic_block)
            return create_effect(request)

        handle(handler)
        with override_settings(IDEMPOTENCY={"ENABLED": False}):
            assert client.post("/leased/", {}, **key()).status_code == 201
        assert seen == [atomic_requests]

    def test_refused_keys(
        self, client: Any, atomic_requests: bool, monkeypatch: Any
    ) -> None:
        """E11: A request whose key is refused has the transaction that it had, too."""
        seen = []

        class Look(BasePermission):
            def has_permission(self, request: Request, view: Any) -> bool:
                seen.append(connection.in_atomic_block)
                return True

        view = resolve("/leased/").func.cls
        monkeypatch.setattr(view, "permission_classes", [Look])
        for header in ("a,b", "", "a b"):
            assert client.post("/leased/", {}, **key(header)).status_code == 400
        assert client.post("/leased/", {}, **key()).status_code == 201
        assert seen == [*[atomic_requests] * 3, False]

    def test_methods_that_nobody_handles(self, client: Any) -> None:
        """E11: A method that the view does not have is refused as ever."""
        assert client.put("/leased/", {}, **key()).status_code == 405

    def test_opted_out_by_the_project(self, client: Any, handle: Handle) -> None:
        """E11: What the project has opted out stays out."""
        seen = []

        def handler(request: Request) -> Any:
            seen.append(connection.in_atomic_block)
            return create_effect(request)

        handle(handler)
        assert client.post("/never-atomic/", {}).status_code == 201
        assert seen == [False]

    def test_siblings(self) -> None:
        """E11: What a base class has opted out grows by no sibling that is leased."""

        class Base(IdempotencyMixin, APIView):
            @method_decorator(transaction.non_atomic_requests(using="other"))
            def dispatch(self, *args: Any, **kwargs: Any) -> Any:
                raise AssertionError

        class LeasedSibling(Base):
            idempotency_atomic = False
            idempotency_on_abandoned = "hold"

        leased: Any = LeasedSibling.as_view()
        assert leased._non_atomic_requests >= {"default", "other"}
        opted_out: Any = Base.as_view()
        assert opted_out._non_atomic_requests == {"other"}
        assert opted_out._non_atomic_requests is Base.dispatch._non_atomic_requests  # type: ignore[attr-defined]

    def test_another_database(self, client: Any, monkeypatch: Any) -> None:
        """E11: The error names the decorator for the database that it is about."""
        client.raise_request_exception = True
        wanted = r'@transaction\.non_atomic_requests\(using="other"\)\n'
        with (
            pytest.raises(ImproperlyConfigured, match=wanted),
            transaction.atomic(using="other"),
        ):
            client.post("/leased-elsewhere/", {}, **key())

    def test_attributes_of_the_instance(self) -> None:
        """E11: A mode that as_view() is given counts like one of the class."""

        class Late(IdempotencyMixin, APIView):
            def post(self, request: Request) -> Any:
                return behave(request)

        view = Late.as_view(idempotency_atomic=False, idempotency_on_abandoned="hold")
        request = APIRequestFactory().post("/", {}, **key(), HTTP_X_USER="ada")
        assert view(request).status_code == 201
        assert view._non_atomic_requests >= {"default"}
        assert not hasattr(Late.as_view(), "_non_atomic_requests")


class TestLostConnections:
    """E5, E7: the database, when the handler has acted."""

    def test_answer_is_stored(self, client: Any, handle: Handle, url: str) -> None:
        """E7: A connection that was lost meanwhile does not lose the answer."""

        def handler(request: Request) -> Any:
            response = create_effect(request)
            connection.connection.close()
            return response

        handle(handler)
        first = client.post(url, {}, **key())
        assert first.status_code == 201
        assert client.post(url, {}, **key()).content == first.content
        assert Effect.objects.count() == 1

    @pytest.mark.parametrize("how", ["fails", "says that nothing happened"])
    def test_failure_is_given_up(
        self, client: Any, handle: Handle, caplog: Any, how: str
    ) -> None:
        """E9: A lost connection does not keep the key of a handler that fails."""

        def handler(request: Request) -> Any:
            if how != "fails":
                request.idempotency.release()  # type: ignore[attr-defined]
            connection.connection.close()
            raise Settled

        handle(handler)
        assert client.post("/rerun/", {}, **key()).status_code == 500
        if how == "fails":
            assert is_abandoned()
        else:
            assert IdempotencyRecord.objects.count() == 0
        assert "could not be updated" not in caplog.text
        handle(create_effect)
        assert client.post("/rerun/", {}, **key()).status_code == 201

    def test_reply_is_lost_and_the_key_claimed(
        self, client: Any, handle: Handle, monkeypatch: Any
    ) -> None:
        """E7: A key that another run has claimed by then stays that run's."""

        def claim_again() -> None:
            handle(create_effect)
            assert client.post("/leased/", {}, **key()).status_code == 201

        lost = lose_reply(monkeypatch, "DELETE", then=claim_again)
        handle(lambda request: refuse("Http404"))
        answer = client.post("/leased/", {}, **key())
        assert (lost, code_of(answer)) == ([1], "idempotency_claim_lost")
        assert the_record().state == State.COMPLETED

    def test_reply_is_lost_and_record_purged(
        self, client: Any, handle: Handle, monkeypatch: Any
    ) -> None:
        """E7: If the record is gone by then, the client gets a refusal."""

        def purge() -> None:
            IdempotencyRecord.objects.all()._raw_delete("default")

        handle(create_effect)
        lost = lose_reply(monkeypatch, "completed_at", then=purge)
        answer = client.post("/leased/", {}, **key())
        assert (lost, code_of(answer)) == ([1], "idempotency_claim_lost")

    def test_left_open(self, client: Any, handle: Handle, caplog: Any) -> None:
        """E7: A handler that leaves a transaction open gets a 500."""

        def handler(request: Request) -> Any:
            transaction.set_autocommit(False)
            return create_effect(request)

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 500
        assert "End it before" in caplog.text
        connection.close()
        assert the_record().state == State.IN_PROGRESS
        end_lease()
        assert code_of(client.post("/leased/", {}, **key())) == UNKNOWN
        assert Effect.objects.count() == 0

    def test_database_is_gone(
        self, client: Any, handle: Handle, monkeypatch: Any
    ) -> None:
        """E9: If the response can't be stored, the client gets a 500."""

        def handler(request: Request) -> Any:
            monkeypatch.setattr(claims_in("default"), "_execute", fail)
            return create_effect(request)

        handle(handler)
        assert client.post("/leased/", {}, **key()).status_code == 500
        monkeypatch.undo()
        assert the_record().state == State.IN_PROGRESS
        end_lease()
        assert code_of(client.post("/leased/", {}, **key())) == UNKNOWN

    def test_failed_and_gone(
        self, client: Any, handle: Handle, monkeypatch: Any, caplog: Any
    ) -> None:
        """E9: A failure's answer is its own, also where it could not be written."""

        def handler(request: Request) -> Any:
            monkeypatch.setattr(claims_in("default"), "_execute", fail)
            raise Settled

        handle(handler)
        client.raise_request_exception = True
        with pytest.raises(Settled):
            client.post("/leased/", {}, **key())
        assert "could not be updated" in caplog.text

    def test_lost_and_gone(
        self, client: Any, handle: Handle, monkeypatch: Any, caplog: Any
    ) -> None:
        """E7: A lost claim is reported, even if the new owner can't be looked up."""

        def handler(request: Request) -> Any:
            IdempotencyRecord.objects.update(token=uuid.uuid4())
            monkeypatch.setattr(claims_in("default"), "look_up", fail)
            return create_effect(request)

        handle(handler)
        answer = client.post("/leased/", {}, **key())
        assert code_of(answer) == "idempotency_claim_lost"
        assert "current attempt unknown" in caplog.text

    @pytest.mark.parametrize("url", ["/leased/", "/rerun/"])
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [("is_busy", 409), ("is_transient", 503), ("another", 500)],
    )
    def test_no_claim(
        self,
        client: Any,
        handle: Handle,
        monkeypatch: Any,
        url: str,
        kind: str,
        expected: int,
    ) -> None:
        """E3, E4: Without a claim nothing runs, and the answer says what to do."""
        if url == "/rerun/":
            abandon(client, handle, url)
            before = the_record().token
        here = claims_in("default")
        monkeypatch.setattr(here, "take_over" if url == "/rerun/" else "claim", fail)
        for name in ("is_busy", "is_transient"):
            monkeypatch.setattr(here, name, lambda error, it=name: it == kind)
        assert client.post(url, {"a": 1}, **key()).status_code == expected
        if url == "/rerun/":
            assert the_record().token == before
        else:
            assert IdempotencyRecord.objects.count() == 0


def fail(*args: Any, **kwargs: Any) -> Any:
    raise OperationalError("gone")


def lose_reply(
    monkeypatch: pytest.MonkeyPatch, word: str, then: Callable[[], Any] = bool
) -> list[int]:
    """Let the first statement with a word be done, and its reply be lost."""
    execute, lost = claims_in("default")._execute, []

    def execute_and_lose(sql: str, values: Any) -> int:
        found = execute(sql, values)
        if word in sql and not lost:
            lost.append(found)
            then()
            connection.connection.close()
            fail()
        return found

    monkeypatch.setattr(claims_in("default"), "_execute", execute_and_lose)
    return lost


def test_lost_in_a_testcase(handle: Handle, monkeypatch: Any) -> None:
    """E11: In a TestCase's transaction no new connection could help."""
    answers = []

    tries = []

    def fail_once_more(*args: Any) -> Any:
        tries.append(args)
        fail()

    def handler(request: Request) -> Any:
        monkeypatch.setattr(claims_in("default"), "_execute", fail_once_more)
        return create_effect(request)

    class Case(TestCase):
        def test_leased(self) -> None:
            client = APIClient(raise_request_exception=False)
            client.credentials(HTTP_X_USER="ada")
            answers.append(client.post("/leased/", {}, **key()).status_code)

    handle(handler)
    run_case(Case)
    assert answers == [500]
    assert len(tries) == 1


class TestDecisions:
    """E9, A3: what a person can do."""

    @pytest.fixture
    def stuck(self, client: Any, handle: Handle) -> IdempotencyRecord:
        """Return an abandoned record."""
        abandon(client, handle, "/leased/")
        return the_record()

    def test_resolve(self, client: Any, stuck: IdempotencyRecord) -> None:
        """E9: The answer that a person gives is replayed."""
        response = HttpResponse(b'{"paid": 1}', status=201, content_type="text/x")
        stuck.resolve(response)
        assert (stuck.state, stuck.status_code) == (State.COMPLETED, 201)
        retry = client.post("/leased/", {"a": 1}, **key())
        assert (retry.status_code, retry.content) == (201, b'{"paid": 1}')
        assert retry["Content-Type"] == "text/x"
        assert retry["Idempotent-Replayed"] == "true"
        assert Effect.objects.count() == 1

    def test_release(self, client: Any, stuck: IdempotencyRecord) -> None:
        """E9: A key that a person gives back runs again."""
        stuck.release()
        assert client.post("/leased/", {"a": 2}, **key()).status_code == 201
        assert Effect.objects.count() == 2

    def test_release_of_a_completed_record(self, client: Any) -> None:
        """A3: A completed one can be armed again, too."""
        client.post("/leased/", {}, **key())
        the_record().release()
        assert client.post("/leased/", {}, **key()).status_code == 201
        assert Effect.objects.count() == 2

    @pytest.mark.parametrize("verb", ["resolve", "release"])
    @pytest.mark.parametrize("how", ["token", "lease", "gone", "completed"])
    def test_changed_meanwhile(
        self, stuck: IdempotencyRecord, verb: str, how: str
    ) -> None:
        """E7, E9: A decision about what is no longer so is refused."""
        rows = IdempotencyRecord.objects.all()
        alive = UTCNow() + timedelta(seconds=30)
        if how == "gone":
            rows._raw_delete("default")
        elif how == "completed":
            rows.update(state=State.COMPLETED)
        else:
            rows.update(
                **{
                    "token": {"token": uuid.uuid4()},
                    "lease": {"lease_expires_at": alive},
                }[how]
            )
        before = [*rows.values()]
        arguments = [HttpResponse()] if verb == "resolve" else []
        with pytest.raises(RecordChanged):
            getattr(stuck, verb)(*arguments)
        assert [*rows.values()] == before
        assert stuck.state == State.ABANDONED


class TestRetention:
    """P1, P2: leases and retention."""

    @pytest.mark.parametrize("url", ["/leased/", "/function/"])
    @pytest.mark.parametrize("alive", [True, False])
    def test_expired(self, client: Any, handle: Handle, url: str, alive: bool) -> None:
        """P1, E7: An expired key is new, unless a handler is still at it."""
        client.post(url, {}, **key())
        ends = UTCNow() + timedelta(seconds=60 if alive else -60)
        IdempotencyRecord.objects.update(
            lease_expires_at=ends,
            expires_at=UTCNow() - timedelta(days=1),
            state=State.IN_PROGRESS,
            status_code=None,
        )
        answer = client.post(url, {}, **key())
        assert answer.status_code == (409 if alive else 201)
        assert Effect.objects.count() == (1 if alive else 2)


class TestClocks:
    """E7: the database's clock, in UTC, decides about leases."""

    @pytest.mark.parametrize("apart", [-300, 300])
    def test_application_clocks(
        self, client: Any, handle: Handle, monkeypatch: Any, apart: int
    ) -> None:
        """E7: Application clocks five minutes apart change nothing."""
        others = []
        now = timezone.now

        def handler(request: Request) -> Any:
            if not others:
                with monkeypatch.context() as patch:
                    patch.setattr(timezone, "now", lambda: now() + offset)
                    others.append(client.post("/rerun/", {}, **key()))
                    # Of a length that no claim before has had the clock asked for.
                    request.idempotency.renew(timedelta(seconds=31))  # type: ignore[attr-defined]
                    others.append(client.post("/rerun/", {}, **key()))
                assert abs(lease_left() - 31) < 5
            return create_effect(request)

        offset = timedelta(seconds=apart)
        handle(handler)
        assert client.post("/rerun/", {}, **key()).status_code == 201
        assert [answer.status_code for answer in others] == [409, 409]
        assert Effect.objects.count() == 1

    @pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no sessions")
    @pytest.mark.parametrize("zone", ["-11:00", "+13:00", "changing"])
    def test_zones_of_sessions(self, client: Any, handle: Handle, zone: str) -> None:
        """E7: Sessions in other time zones and daylight saving change nothing."""
        others = []

        def handler(request: Request) -> Any:
            with connection.cursor() as cursor:
                cursor.execute("SET time_zone = %s" if MARIADB else SET_ZONE, [name])
            request.idempotency.renew()  # type: ignore[attr-defined]
            assert abs(lease_left() - 30) < 5
            others.append(client.post("/rerun/", {}, **key()))
            return create_effect(request)

        name = zone
        if zone == "changing":
            # POSIX: the clock is put on half an hour ago, and back in half an hour.
            if MARIADB:
                pytest.skip("MariaDB knows the zones that were loaded into it.")
            now = timezone.now()
            day = now.timetuple().tm_yday - 1
            on, off = (f"{day}/{now.hour + hours}:{now.minute:02}" for hours in (-1, 1))
            name = f"STD0DST,{on},{off}"
        elif not MARIADB:
            name = f"<{zone}>{'-' if zone[0] == '+' else ''}{zone[1:]}"
        handle(handler)
        assert client.post("/rerun/", {}, **key()).status_code == 201
        assert [answer.status_code for answer in others] == [409]


def test_in_a_testcase() -> None:
    """E11: Django's TestCase is no open transaction to leased mode."""

    class Case(TestCase):
        def test_leased(self) -> None:
            client = APIClient()
            client.credentials(HTTP_X_USER="ada")
            first = client.post("/leased/", {}, **key())
            assert first.status_code == 201
            assert client.post("/leased/", {}, **key()).content == first.content
            assert Effect.objects.count() == 1

    run_case(Case)


MARIADB = connection.vendor == "mysql"
SET_ZONE = "SELECT set_config('TimeZone', %s, false)"
