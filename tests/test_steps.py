"""Steps: a leased handler that resumes after its recorded parts (E12 to E16)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.http import JsonResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.claims import claims_in
from idempotency.claims.leases import Leases
from idempotency.context import context_of
from idempotency.database import UTCNow
from idempotency.decorators import idempotent
from idempotency.exceptions import ClaimLost
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, RecordChanged, State
from idempotency.signals import StepsSkipped, steps_skipped
from tests.app.models import Effect
from tests.conftest import KEY, code_of, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

Handler = Callable[[Request, Any], Any]


class Killed(BaseException):
    """The end of a process."""


class Provider:
    """An outside service that knows its keys."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}
        self.calls = 0

    def charge(self, key: str) -> dict[str, Any]:
        self.calls += 1
        self.charges.setdefault(key, len(self.charges) + 1)
        return {"charge": self.charges[key]}


provider = Provider()
handler: Handler | None = None


def respond(request: Request) -> Any:
    assert handler is not None
    return handler(request, context_of(request))


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="resume", lease=timedelta(seconds=60))
def resuming(request: Request) -> Any:
    return respond(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="rerun")
def rerunning(request: Request) -> Any:
    return respond(request)


class Mixed(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned = "resume"

    def post(self, request: Request) -> Any:
        return respond(request)

    def put(self, request: Request) -> Any:
        return respond(request)


@method_decorator(csrf_exempt, name="dispatch")
class Plain(IdempotencyMixin, View):
    idempotency_atomic = False
    idempotency_on_abandoned = "resume"

    def post(self, request: Any) -> Any:
        return respond_plain(request)

    def put(self, request: Any) -> Any:
        return respond_plain(request)


def respond_plain(request: Any) -> Any:
    response = respond(request)
    if isinstance(response, Response):
        return JsonResponse(response.data or {}, status=response.status_code)
    return response


class Breaking(Mixed):
    """A view that makes errors of its responses."""

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        response.status_code = 503
        return response


class Elsewhere(Mixed):
    idempotency_using = "other"


@api_view(["POST"])
@idempotent
def atomic(request: Request) -> Any:
    return respond(request)


urlpatterns = [
    *usual_urls,
    path("resuming/", resuming),
    path("rerunning/", rerunning),
    path("in-a-transaction/", atomic),
    path("mixed/", Mixed.as_view()),
    path("plain/", Plain.as_view()),
    path("elsewhere/", Elsewhere.as_view()),
    path("breaking/", Breaking.as_view()),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    global provider, handler  # noqa: PLW0603  # of the views
    provider = Provider()
    yield
    handler = None


def handle(function: Handler) -> None:
    global handler  # noqa: PLW0603  # of the views
    handler = function


def post(client: APIClient, place: str = "/resuming/", value: str | None = KEY) -> Any:
    return client.post(place, {}, **({} if value is None else key(value)))


def assert_refused(response: Any, code: str) -> None:
    assert (response.status_code, code_of(response)) == (409, code)


def end_the_lease() -> None:
    IdempotencyRecord.objects.filter(state=State.IN_PROGRESS).update(
        lease_expires_at=UTCNow() - timedelta(seconds=1)
    )


def create(name: str) -> dict[str, Any]:
    return {"id": Effect.objects.create(name=name).pk}


def book(request: Any, steps: Any, die: str = "") -> Any:
    """Order, charge, confirm; and end like a killed process at a place."""

    def reach(place: str) -> None:
        if place == die:
            raise Killed

    reach("begin")
    ride = steps.step("ride", lambda: create("ride"))
    reach("ride")
    charged = steps.call("charge", provider.charge)
    reach("charge")

    def confirm() -> Any:
        Effect.objects.create(name="receipt")
        make = Response if isinstance(request, Request) else JsonResponse
        return make({**ride, **charged}, status=201)

    response: Any = steps.step("confirm", confirm)
    reach("confirm")
    return response


def die_at(place: str) -> Handler:
    return lambda request, steps: book(request, steps, place)


def names() -> list[str]:
    return [*Effect.objects.order_by("pk").values_list("name", flat=True)]


class TestResume:
    """E12, E13, E15: a later run goes on, and each effect happens once."""

    def test_undisturbed(self, client: APIClient) -> None:
        """E12, E15: One run does everything once; the retry is a replay."""
        handle(book)
        first, again = post(client), post(client)
        assert (first.status_code, again["Idempotent-Replayed"]) == (201, "true")
        assert first.content == again.content
        assert names() == ["ride", "receipt"]
        assert (provider.calls, len(provider.charges)) == (1, 1)

    @pytest.mark.parametrize("place", ["begin", "ride", "charge", "confirm"])
    def test_cut_off(self, client: APIClient, place: str) -> None:
        """E12, E15: Wherever a run ends, the retry finishes it."""
        handle(die_at(place))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()
        handle(book)
        answer = post(client)
        assert answer.status_code == 201
        assert ("Idempotent-Replayed" in answer) is (place == "confirm")
        assert names() == ["ride", "receipt"]
        assert (provider.calls, len(provider.charges)) == (1, 1)
        assert post(client).content == answer.content

    def test_call_repeated(self, client: APIClient) -> None:
        """E13: A call that was not recorded is made again with the same key."""

        def die_after(key: str) -> Any:
            provider.charge(key)
            raise Killed

        handle(lambda request, steps: steps.call("charge", die_after))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()
        handle(book)
        assert post(client).status_code == 201
        assert (provider.calls, len(provider.charges)) == (2, 1)

    def test_call_held(self, client: APIClient) -> None:
        """E13: A call that may not be repeated waits for a person."""

        def die_after(key: str) -> Any:
            provider.charge(key)
            raise Killed

        def charge(function: Any) -> Handler:
            return lambda request, steps: Response(
                steps.call("charge", function, on_abandoned="hold"), status=201
            )

        handle(charge(die_after))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()
        handle(charge(provider.charge))
        assert_refused(post(client), "idempotency_outcome_unknown")
        record = IdempotencyRecord.objects.get()
        assert record.call_in_doubt == "charge"
        with pytest.raises(ValueError, match="'other' is not in doubt"):
            record.call_never_happened("other")
        record.call_returned("charge", {"charge": 1})
        assert record.call_in_doubt is None
        assert post(client).data == {"charge": 1}
        assert provider.calls == 1

    def test_call_never_happened(self, client: APIClient) -> None:
        """E13: If a person says that it has not happened, the next run calls."""

        def die(key: str) -> Any:
            raise Killed

        def charge(function: Any) -> Handler:
            return lambda request, steps: Response(
                steps.call("charge", function, on_abandoned="hold"), status=201
            )

        handle(charge(die))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()
        stale = IdempotencyRecord.objects.get()
        IdempotencyRecord.objects.get().call_never_happened("charge")
        with pytest.raises(RecordChanged):
            stale.call_returned("charge", {})
        handle(charge(provider.charge))
        assert post(client).data == {"charge": 1}

    @pytest.mark.parametrize("found", [None, {"charge": 7}])
    def test_call_found_out(self, client: APIClient, found: Any) -> None:
        """E13: A callable finds out what became of a call, or lets it be made."""
        asked: list[str] = []

        def find_out(key: str, record: IdempotencyRecord) -> Any:
            asked.append(key)
            assert record.read_at >= record.created_at
            return found

        def charge(request: Request, steps: Any) -> Any:
            result = steps.call("charge", provider.charge, on_abandoned=find_out)
            return Response(result, status=201)

        handle(lambda request, steps: steps.call("first", lambda key: 1 / 0))
        assert post(client).status_code == 500
        handle(charge)
        assert post(client).data == (found or {"charge": 1})
        assert provider.calls == (found is None)
        assert len(asked) == 1

    def test_no_second_run_meanwhile(self, client: APIClient) -> None:
        """E7: While a run has its lease, a retry is refused."""
        handle(die_at("ride"))
        with pytest.raises(Killed):
            post(client)
        IdempotencyRecord.objects.update(
            state=State.IN_PROGRESS, lease_expires_at=UTCNow() + timedelta(seconds=60)
        )
        assert_refused(post(client), "idempotency_in_progress")


class TestOutcomes:
    """E15: what ends a run, and what leaves it to be resumed."""

    def test_refusal_before_the_first_step(self, client: APIClient) -> None:
        """O2: Nothing is recorded, so the key is free."""

        def refuse(request: Request, steps: Any) -> Any:
            raise ValidationError

        handle(refuse)
        assert post(client).status_code == 400
        assert not IdempotencyRecord.objects.exists()

    def test_refusal_raised_after_a_step(self, client: APIClient) -> None:
        """E15: It does not free the key: the retry resumes."""

        def refuse(request: Request, steps: Any) -> Any:
            steps.step("ride", lambda: create("ride"))
            raise ValidationError

        handle(refuse)
        assert post(client).status_code == 400
        handle(book)
        assert post(client).status_code == 201
        assert names() == ["ride", "receipt"]

    def test_refusal_returned_after_a_step(self, client: APIClient) -> None:
        """E15: It is stored, whatever its status."""

        def refuse(request: Request, steps: Any) -> Any:
            steps.step("ride", lambda: create("ride"))
            return Response({"why": "declined"}, status=400)

        handle(refuse)
        assert post(client).status_code == 400
        handle(book)
        again = post(client)
        assert (again.status_code, again["Idempotent-Replayed"]) == (400, "true")
        assert names() == ["ride"]

    @pytest.mark.parametrize("status", [400, 409])
    def test_refusal_as_the_last_step(self, client: APIClient, status: int) -> None:
        """E15: It is stored together with what the step has written."""

        def cancel() -> Response:
            create("cancelled")
            return Response({}, status=status)

        handle(lambda request, steps: steps.step("cancel", cancel))
        assert post(client).status_code == status
        assert "Idempotent-Replayed" in post(client)
        assert names() == ["cancelled"]

    def test_error_of_a_step(self, client: APIClient) -> None:
        """E15: A response from 500 up undoes its step, and the run is resumed."""

        def fail() -> Response:
            create("failed")
            return Response({}, status=503)

        def run(request: Request, steps: Any) -> Any:
            steps.step("ride", lambda: create("ride"))
            return steps.step("confirm", fail)

        handle(run)
        assert post(client).status_code == 503
        assert names() == ["ride"]
        handle(book)
        assert post(client).status_code == 201
        assert names() == ["ride", "receipt"]

    def test_error_of_the_view(self, client: APIClient) -> None:
        """E15: So does a response that the view makes an error of."""
        handle(book)
        assert post(client, "/breaking/").status_code == 503
        assert names() == ["ride"]
        assert IdempotencyRecord.objects.get().state == State.ABANDONED

    def test_exception_in_a_step(self, client: APIClient) -> None:
        """E12: What a step raises undoes it, and it is not recorded."""

        def fail() -> Any:
            create("failed")
            raise ZeroDivisionError

        handle(lambda request, steps: steps.step("ride", fail))
        assert post(client).status_code == 500
        assert names() == []
        handle(book)
        assert post(client).status_code == 201

    def test_exception_after_the_end(self, client: APIClient) -> None:
        """E15: The response is stored by then, and the retry gets it."""

        def fail(request: Request, steps: Any) -> Any:
            book(request, steps)
            raise ZeroDivisionError

        handle(fail)
        assert post(client).status_code == 500
        assert post(client).status_code == 201
        assert names() == ["ride", "receipt"]

    def test_last_step_without_return(self, client: APIClient) -> None:
        """E15: The client gets what is stored."""

        def forget(request: Request, steps: Any) -> Any:
            book(request, steps)
            return Response({"another": "response"}, status=200)

        handle(forget)
        first = post(client)
        assert (first.status_code, post(client).content) == (201, first.content)

    def test_release(self, client: APIClient) -> None:
        """E15: After a recorded step ``release()`` raises."""

        def release(request: Request, steps: Any) -> Any:
            steps.step("ride", lambda: create("ride"))
            with pytest.raises(RuntimeError, match="a step is recorded"):
                steps.release()
            return Response({}, status=201)

        handle(release)
        assert post(client).status_code == 201

    def test_released_before_a_step(self, client: APIClient) -> None:
        """E15: A step after ``release()`` counts."""

        def release(request: Request, steps: Any) -> Any:
            steps.release()
            steps.step("ride", lambda: create("ride"))
            raise ValidationError

        handle(release)
        assert post(client).status_code == 400
        assert IdempotencyRecord.objects.get().state == State.ABANDONED

    def test_returned_after_release_and_a_step(self, client: APIClient) -> None:
        """E15: After a step a returned response is stored, ``release()`` or not."""

        def release(request: Request, steps: Any) -> Any:
            steps.release()
            return Response(steps.step("ride", lambda: create("ride")), status=201)

        handle(release)
        assert post(client).status_code == 201
        assert "Idempotent-Replayed" in post(client)
        assert names() == ["ride"]

    @pytest.mark.parametrize("error", [ZeroDivisionError, DatabaseError])
    def test_on_commit_raises(self, client: APIClient, error: type[Exception]) -> None:
        """O5: The step is committed, so it is recorded; the client gets the 500."""

        def fail() -> None:
            raise error

        def ride() -> Any:
            transaction.on_commit(fail)
            return create("ride")

        handle(lambda request, steps: Response(steps.step("ride", ride), status=201))
        assert post(client).status_code == 500
        handle(book)
        assert post(client).status_code == 201
        assert names() == ["ride", "receipt"]

    def test_claim_lost(self, client: APIClient) -> None:
        """E12: A late run's step is undone, and it says so."""

        def late(request: Request, steps: Any) -> Any:
            def ride() -> Any:
                return create("late")

            end_the_lease()
            mine = IdempotencyRecord.objects.get()
            mine.release()
            return steps.step("ride", ride)

        handle(late)
        assert_refused(post(client), "idempotency_claim_lost")
        assert names() == []


class TestNames:
    """E16: a name stands for one result."""

    def test_skipped(self, client: APIClient, caplog: pytest.LogCaptureFixture) -> None:
        """E16: A recorded name that is not asked for gets a warning and a signal."""
        seen: list[StepsSkipped] = []

        def listen(details: StepsSkipped, **kwargs: Any) -> None:
            seen.append(details)

        handle(die_at("charge"))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()
        steps_skipped.connect(listen)
        try:
            handle(
                lambda request, steps: Response(
                    steps.step("ride", lambda: create("ride")), status=201
                )
            )
            assert post(client).status_code == 201
        finally:
            steps_skipped.disconnect(listen)
        assert [details.names for details in seen] == [("charge",)]
        assert "steps_skipped" in caplog.text
        assert names() == ["ride"]

    def test_renamed(self, client: APIClient) -> None:
        """E16: A renamed step runs again."""
        handle(die_at("ride"))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()
        handle(
            lambda request, steps: Response(
                steps.step("trip", lambda: create("trip")), status=201
            )
        )
        assert post(client).status_code == 201
        assert names() == ["ride", "trip"]

    @pytest.mark.parametrize("place", ["/resuming/", "/in-a-transaction/"])
    @pytest.mark.parametrize("value", [None, KEY], ids=["no key", "key"])
    def test_used_twice(self, client: APIClient, place: str, value: Any) -> None:
        """E14: A name that was asked for is an error, with a key and without."""

        def twice(request: Request, steps: Any) -> Any:
            steps.step("ride", lambda: create("ride"))
            with pytest.raises(RuntimeError, match="are named 'ride'"):
                steps.step("ride", lambda: create("ride"))
            for bad in ("", "n" * 101, 1, "NUL \0", "lone \ud800"):
                with pytest.raises(ValueError, match="1 to 100 characters"):
                    steps.step(bad, lambda: create("ride"))
            return Response({}, status=201)

        handle(twice)
        assert post(client, place, value).status_code == 201
        assert names() == ["ride"]

    def test_another_kind(self, client: APIClient) -> None:
        """E16: A step's name is not a call's."""
        handle(die_at("ride"))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()

        def call(request: Request, steps: Any) -> Any:
            with pytest.raises(RuntimeError, match=r"recorded by step\(\)"):
                steps.call("ride", provider.charge)
            return Response({}, status=201)

        handle(call)
        assert post(client).status_code == 201

    def test_after_the_end(self, client: APIClient) -> None:
        """E15: Nothing comes after the stored response."""

        def go_on(request: Request, steps: Any) -> Any:
            response = book(request, steps)
            with pytest.raises(RuntimeError, match="'more' comes after the step"):
                steps.step("more", lambda: create("more"))
            return response

        handle(go_on)
        assert post(client).status_code == 201

    def test_another_mode(self, client: APIClient) -> None:
        """E16: After a change of the option, a person decides."""
        handle(die_at("ride"))
        with pytest.raises(Killed):
            post(client)
        end_the_lease()
        IdempotencyRecord.objects.update(steps=None)
        assert_refused(post(client), "idempotency_outcome_unknown")
        handle(lambda request, steps: 1 / 0)
        assert post(client, "/rerunning/", "another-key-of-20-chars").status_code == 500
        IdempotencyRecord.objects.filter(path="/rerunning/").update(steps="[]")
        refused = post(client, "/rerunning/", "another-key-of-20-chars")
        assert_refused(refused, "idempotency_outcome_unknown")


class TestResults:
    """E14: results are JSON, the same in the first run as in later ones."""

    @pytest.mark.parametrize("place", ["/resuming/", "/in-a-transaction/"])
    @pytest.mark.parametrize("value", [None, KEY], ids=["no key", "key"])
    def test_read_back(self, client: APIClient, place: str, value: Any) -> None:
        """E14: The first run gets what later ones get, read back from JSON."""

        def run(request: Request, steps: Any) -> Any:
            result = steps.step("one", lambda: {"day": date(2026, 1, 2), 1: (2, 3)})
            assert result == {"day": "2026-01-02", "1": [2, 3]}
            called = steps.call("two", lambda key: "NUL \\0 and \\ud800")
            assert called == "NUL \\0 and \\ud800"
            return Response({}, status=201)

        handle(run)
        assert post(client, place, value).status_code == 201

    @pytest.mark.parametrize("place", ["/resuming/", "/in-a-transaction/"])
    @pytest.mark.parametrize(
        "bad", [object(), float("nan"), Effect(), {"a": {1, 2}}], ids=repr
    )
    def test_not_json(self, client: APIClient, place: str, bad: Any) -> None:
        """E14: What is not JSON undoes its step."""

        def run(request: Request, steps: Any) -> Any:
            def step() -> Any:
                create("ride")
                return bad

            with pytest.raises(TypeError, match="'ride' must return JSON"):
                steps.step("ride", step)
            return Response({}, status=201)

        handle(run)
        assert post(client, place).status_code == 201
        assert names() == []

    def test_too_large(self, client: APIClient, settings: Any) -> None:
        """E14: The results of a run are no longer than a response may be."""
        settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 1000}

        def run(request: Request, steps: Any) -> Any:
            with pytest.raises(ValueError, match="longer than MAX_RESPONSE_BYTES"):
                steps.step("ride", lambda: [create("ride"), "x" * 1000])
            return Response({}, status=201)

        handle(run)
        assert post(client).status_code == 201
        assert names() == []

    def test_changed_by_the_handler(self, client: APIClient) -> None:
        """E14: A later run gets what was returned, whatever a run has made of it."""
        order = {"card": "4242", "lines": [1]}

        def spend(result: Any) -> None:
            assert result == order
            result["lines"].append(result.pop("card"))

        def run_as(number: int) -> Handler:
            def run(request: Request, steps: Any) -> Any:
                spend(steps.step("order", lambda: order))
                spend(steps.call("copy", lambda key: order))
                spend(steps.recorded["order"])
                steps.step(f"write them again, {number}", lambda: None)
                if number < 3:
                    raise Killed
                return Response({}, status=201)

            return run

        for number in (1, 2):
            handle(run_as(number))
            with pytest.raises(Killed):
                post(client)
            end_the_lease()
        handle(run_as(3))
        assert post(client).status_code == 201

    def test_forgotten(self, client: APIClient) -> None:
        """E14: Results go when the response is stored; names and times stay."""
        for value, last in (("key-of-20-characters-1", True), (KEY, False)):

            def run(request: Request, steps: Any, last: bool = last) -> Any:
                steps.step("ride", lambda: {"secret": "result"})
                assert steps.recorded == {"ride": {"secret": "result"}}
                if last:
                    return steps.step("end", lambda: Response({}, status=201))
                return Response({}, status=201)

            handle(run)
            assert post(client, value=value).status_code == 201
            record = IdempotencyRecord.objects.get(key=value)
            assert "secret" not in (record.steps or "")
            assert record.entries[0]["name"] == "ride"
            assert len(record.entries) == 1 + last

    def test_without_recording(self, client: APIClient) -> None:
        """E14: Without a key everything runs, and nothing is recorded."""

        def run(request: Request, steps: Any) -> Any:
            assert steps.recorded == {}
            response = book(request, steps)
            assert steps.recorded == {}
            return response

        handle(run)
        for number, place in enumerate(("/resuming/", "/in-a-transaction/"), 1):
            assert post(client, place, None).status_code == 201
            assert names() == ["ride", "receipt"]
            assert len(provider.charges) == number
            Effect.objects.all().delete()
        assert not IdempotencyRecord.objects.exists()

    def test_error_without_recording(self, client: APIClient) -> None:
        """E15: A response from 500 up undoes its step without a key, too."""

        def fail() -> Response:
            create("failed")
            return Response({}, status=503)

        handle(lambda request, steps: steps.step("confirm", fail))
        assert post(client, value=None).status_code == 503
        assert names() == []


class TestTransactions:
    """E12: a step stands in no open transaction and in no other step."""

    @pytest.mark.parametrize("value", [None, KEY], ids=["no key", "key"])
    def test_open_transaction(self, client: APIClient, value: str | None) -> None:
        """E12: It would be committed with something else, so it is refused."""

        def run(request: Request, steps: Any) -> Any:
            with transaction.atomic():
                for call in (
                    lambda: steps.step("ride", lambda: create("ride")),
                    lambda: steps.call("charge", provider.charge),
                ):
                    with pytest.raises(RuntimeError, match="can't run inside"):
                        call()

            def outer() -> Any:
                with pytest.raises(RuntimeError, match="can't run inside"):
                    steps.step("inner", lambda: create("inner"))

            steps.step("outer", outer)
            return Response({}, status=201)

        handle(run)
        assert post(client, value=value).status_code == 201
        assert (names(), provider.calls) == ([], 0)

    def test_another_policy(self, client: APIClient) -> None:
        """E12: In leased mode steps need ``on_abandoned="resume"``."""

        def run(request: Request, steps: Any) -> Any:
            for call in (
                lambda: steps.step("ride", lambda: create("ride")),
                lambda: steps.call("charge", provider.charge),
                lambda: steps.recorded,
            ):
                with pytest.raises(RuntimeError, match="needs on_abandoned"):
                    call()
            return Response({}, status=201)

        handle(run)
        for value in (None, KEY):
            assert post(client, "/rerunning/", value).status_code == 201

    def test_atomic_mode(self, client: APIClient) -> None:
        """E14: In atomic mode a step is a savepoint."""

        def run(request: Request, steps: Any) -> Any:
            steps.step("kept", lambda: create("kept"))

            def fail() -> Any:
                create("failed")
                raise DatabaseError

            with pytest.raises(DatabaseError):
                steps.step("undone", fail)
            return Response({}, status=201)

        handle(run)
        assert post(client, "/in-a-transaction/").status_code == 201
        assert names() == ["kept"]


@pytest.mark.parametrize("atomic_requests", [False, True], indirect=True)
@pytest.mark.parametrize("value", [None, KEY], ids=["no key", "key"])
@pytest.mark.parametrize("place", ["/mixed/", "/plain/"])
def test_atomic_requests(
    client: APIClient, atomic_requests: bool, place: str, value: str | None
) -> None:
    """E11, E14: The mixin keeps steps out of ATOMIC_REQUESTS, without a key, too."""
    handle(die_at("charge"))
    with pytest.raises(Killed):
        post(client, place, value)
    assert names() == ["ride"]
    if value is None:
        Effect.objects.all().delete()
    handle(book)
    assert post(client, place, value).status_code == 201
    assert names() == ["ride", "receipt"]
    # Requests that have no steps keep their transaction.
    seen: list[bool] = []

    def look(request: Request, steps: Any) -> Response:
        seen.append(connection.in_atomic_block)
        return Response()

    handle(look)
    assert client.put(place).status_code == 200
    assert seen == [atomic_requests]


def test_another_database(client: APIClient) -> None:
    """E12: Steps are in the database of the option ``using``."""

    def create_there(name: str) -> Any:
        return {"id": Effect.objects.using("other").create(name=name).pk}

    def fail() -> Any:
        create_there("failed")
        raise ZeroDivisionError

    def run(request: Request, steps: Any) -> Any:
        steps.step("ride", lambda: create_there("ride"))
        return steps.step("confirm", fail)

    handle(run)
    assert post(client, "/elsewhere/").status_code == 500
    there = Effect.objects.using("other")
    assert [*there.values_list("name", flat=True)] == ["ride"]
    assert IdempotencyRecord.objects.using("other").get().state == State.ABANDONED
    handle(lambda request, steps: Response(steps.recorded, status=201))
    assert [*post(client, "/elsewhere/").json()] == ["ride"]
    # With a method that is not protected, too.
    handle(lambda request, steps: steps.step("confirm", fail))
    assert client.put("/elsewhere/", {}).status_code == 500
    assert [*there.values_list("name", flat=True)] == ["ride"]


class TestLostReplies:
    """E7, E12: what was done before its reply was lost counts as done."""

    @pytest.fixture
    def claimed(self, client: APIClient) -> IdempotencyRecord:
        handle(die_at("ride"))
        with pytest.raises(Killed):
            post(client)
        IdempotencyRecord.objects.update(state=State.IN_PROGRESS)
        return IdempotencyRecord.objects.get()

    @pytest.fixture
    def leases(self) -> Leases:
        return Leases(claims_in("default"))

    def test_recorded_twice(
        self, claimed: Any, leases: Leases, monkeypatch: Any
    ) -> None:
        """The repetition finds its own token."""
        token, usual = uuid4(), leases.claims.record_steps

        def lose_reply(*args: Any) -> None:
            monkeypatch.undo()
            usual(*args)
            raise OperationalError("the reply is lost")

        monkeypatch.setattr(leases.claims, "record_steps", lose_reply)
        leases.record_steps(claimed, token, claimed.steps, timedelta(seconds=60))
        assert IdempotencyRecord.objects.get().token == token

    def test_taken_over(self, claimed: Any, leases: Leases, monkeypatch: Any) -> None:
        """The repetition finds another run's token."""

        def fail(*args: Any) -> None:
            monkeypatch.undo()
            IdempotencyRecord.objects.update(token=uuid4())
            raise OperationalError("the connection is lost")

        monkeypatch.setattr(leases.claims, "record_steps", fail)
        with pytest.raises(ClaimLost):
            leases.record_steps(claimed, uuid4(), claimed.steps, timedelta(seconds=60))

    def test_unknown(self, claimed: Any, leases: Leases, monkeypatch: Any) -> None:
        """In an open transaction, and without an answer, it is not known as done."""
        assert leases.is_recorded(claimed, claimed.token)
        with transaction.atomic():
            assert not leases.is_recorded(claimed, claimed.token)

        def fail(*args: Any) -> Any:
            raise OperationalError("the server is gone")

        monkeypatch.setattr(leases.claims, "look_up", fail)
        assert not leases.is_recorded(claimed, claimed.token)


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no deadlocks")
@pytest.mark.parametrize("is_caught", [False, True])
def test_deadlock(client: APIClient, is_caught: bool) -> None:
    """E12: A step that loses a deadlock is undone, and the retry resumes.

    The same if it catches the error: MariaDB has undone the whole transaction, and
    PostgreSQL takes no more statements.
    """
    statement = {
        "postgresql": (
            "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40P01'; END $$"
        ),
        "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213",
    }[connection.vendor]

    def lose() -> Any:
        create("lost")
        with connection.cursor() as cursor:
            if connection.vendor == "mysql":
                cursor.execute("ROLLBACK")  # as in a real deadlock
            cursor.execute(statement)

    def caught() -> Any:
        with suppress(DatabaseError):
            lose()
        return "done"

    handle(lambda request, steps: steps.step("ride", caught if is_caught else lose))
    response = post(client)
    if is_caught and connection.vendor == "postgresql":
        assert response.status_code == 500
    else:
        assert (response.status_code, code_of(response)) == (
            503,
            "idempotency_transaction_failed",
        )
    handle(book)
    assert post(client).status_code == 201
    assert names() == ["ride", "receipt"]


def test_caught_error(client: APIClient) -> None:
    """E12: A step that undoes what has failed, and goes on, is recorded as always."""

    def ride() -> Any:
        with suppress(DatabaseError), transaction.atomic():
            create("undone")
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")
        return create("ride")

    def fail(request: Any, steps: Any) -> Any:
        steps.step("ride", ride)
        return Response(status=500)

    handle(fail)
    assert post(client).status_code == 500
    assert names() == ["ride"]
    handle(book)
    assert post(client).status_code == 201
    assert names() == ["ride", "receipt"]
