"""Completing: a worker finishes what a client has not come back for (E17)."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.http import HttpResponse
from django.urls import path
from django.utils import translation
from rest_framework.decorators import api_view
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency import completing
from idempotency.claims import claims_in
from idempotency.completing import (
    CompletionReport,
    complete,
    complete_abandoned,
    completer_of,
    resume,
)
from idempotency.context import RequestContext
from idempotency.database import UTCNow
from idempotency.decorators import idempotent
from idempotency.exceptions import ClaimLost, OutcomeUnknown
from idempotency.mixins import IdempotencyMixin
from idempotency.models import (
    IdempotencyRecord,
    RecordChanged,
    RecordHeld,
    State,
)
from idempotency.signals import response_stored, steps_skipped
from idempotency.steps import as_text, from_text, held_entry
from tests.app.models import Effect
from tests.conftest import KEY, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

TAKE_OVER = "idempotency.claims.leases.Leases.take_over"
LEASED: dict[str, Any] = {"atomic": False, "on_abandoned": "resume"}
charges: list[str] = []


class Killed(BaseException):
    """The end of a process."""


def charge(derived: str) -> dict[str, Any]:
    if derived not in charges:
        charges.append(derived)
    return {"charge": charges.index(derived)}


def book(steps: Any, order: dict[str, Any], die: str = "") -> Response:
    def ride() -> dict[str, Any]:
        return {"id": Effect.objects.create(name=order["name"]).pk}

    ridden = steps.step("ride", ride)
    if die == "ride":
        raise Killed
    charged = steps.call("charge", charge)
    if die == "charge":
        raise Killed

    def confirm() -> Response:
        Effect.objects.create(name=f"receipt of {order['name']}")
        return Response({**ridden, **charged}, status=201)

    response: Response = steps.step("confirm", confirm)
    return response


def finish(steps: RequestContext) -> Response:
    return book(steps, steps.recorded["order"])


def start(request: Request) -> Any:
    steps: Any = request.idempotency  # type: ignore[attr-defined]
    order = {"name": request.data["name"]}
    order = steps.step("order", lambda: order)
    return book(steps, order, request.headers.get("X-Die", ""))


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(**LEASED, completer="tests.test_completing.finish")
def by_path(request: Request) -> Any:
    return start(request)


class Shouting(JSONRenderer):
    """A renderer that knows what Django REST framework gives to renderers."""

    def render(
        self, data: Any, media_type: Any = None, renderer_context: Any = None
    ) -> bytes:
        known = {"view", "args", "kwargs", "request", "response"}
        assert {*renderer_context} >= known
        return bytes(super().render(data, media_type, renderer_context)).upper()


class ByClass(IdempotencyMixin, APIView):
    renderer_classes = (Shouting,)
    idempotency_atomic = False
    idempotency_on_abandoned = "resume"
    idempotency_completer = finish

    def post(self, request: Request) -> Any:
        return start(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(**LEASED)
def without(request: Request) -> Any:
    return start(request)


urlpatterns = [
    *usual_urls,
    path("by-path/", by_path),
    path("by-class/", ByClass.as_view()),
    path("without/", without),
    *i18n_patterns(path("by-language/", by_path), prefix_default_language=False),
]


@pytest.fixture(autouse=True)
def no_charges() -> None:
    charges.clear()


def post(client: APIClient, place: str, value: str = KEY, **headers: str) -> Any:
    return client.post(place, {"name": value[-20:]}, headers=headers, **key(value))


def cut_off(
    client: APIClient, place: str = "/by-path/", value: str = KEY, die: str = "ride"
) -> IdempotencyRecord:
    """Return the record of a run that was cut off an hour ago."""
    with pytest.raises(Killed):
        post(client, place, value, **{"X-Die": die})
    IdempotencyRecord.objects.filter(key=value).update(
        lease_expires_at=UTCNow() - timedelta(hours=1)
    )
    return IdempotencyRecord.objects.get(key=value)


def names() -> list[str]:
    return [*Effect.objects.order_by("pk").values_list("name", flat=True)]


class TestResume:
    """``resume()`` and ``complete()``."""

    @pytest.mark.parametrize("place", ["/by-path/", "/by-class/"])
    @pytest.mark.parametrize("die", ["ride", "charge"])
    def test_complete(self, client: APIClient, place: str, die: str) -> None:
        """E17: Each effect happens once, and a later retry gets the response."""
        record = cut_off(client, place, die=die)
        derived = [*charges]
        response = complete(record)
        again = post(client, place)
        assert (again.status_code, again["Idempotent-Replayed"]) == (201, "true")
        assert again.content == getattr(response, "rendered_content", again.content)
        assert names() == [KEY[-20:], f"receipt of {KEY[-20:]}"]
        assert len(charges) == 1
        assert derived in ([], charges)
        if place == "/by-class/":
            assert again.content.startswith(b'{"ID":')
        done = IdempotencyRecord.objects.get()
        assert (done.state, done.attempt) == (State.COMPLETED, 2)

    def test_results_are_no_marks(self, client: APIClient) -> None:
        """E13, E17: Whatever a result says, only a held call is in doubt."""
        record = cut_off(client)
        payload, entries = from_text(record.steps)
        entries[0]["result"]["in_doubt"] = True
        records = IdempotencyRecord.objects
        records.update(steps=as_text(payload, entries))
        assert (records.resumable().count(), records.get().call_in_doubt) == (1, None)
        entries.append(held_entry("wire", record.created_at))
        records.update(steps=as_text(payload, entries))
        assert (records.resumable().count(), records.get().call_in_doubt) == (0, "wire")

    def test_nothing_skipped(
        self, client: APIClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """E16, E17: Reading a recorded result is asking for its name."""
        complete(cut_off(client))
        assert "steps_skipped" not in caplog.text
        assert names() == [KEY[-20:], f"receipt of {KEY[-20:]}"]

    @pytest.mark.parametrize("found", [None, HttpResponse(b"another")])
    def test_last_step_without_return(self, client: APIClient, found: Any) -> None:
        """E15: The stored response is returned, whatever the function returns."""

        def forget(steps: RequestContext) -> Any:
            finish(steps)
            return found

        assert resume(cut_off(client), forget).status_code == 201
        assert post(client, "/by-path/").status_code == 201

    def test_derived_key(self, client: APIClient) -> None:
        """E10, E17: A completer's derived keys are those of the handler."""
        record = cut_off(client, die="charge")
        seen: list[str] = []

        def look(steps: RequestContext) -> HttpResponse:
            seen.append(steps.derive("charge"))
            return HttpResponse(b"done", content_type="text/plain")

        resume(record, look)
        assert seen == charges

    def test_plain_response(self, client: APIClient) -> None:
        """E17: A response outside of a step ends the run, too; names are reported."""
        record = cut_off(client)
        seen: list[Any] = []

        def listen(details: Any, **kwargs: Any) -> None:
            seen.append(details)

        steps_skipped.connect(listen)
        response_stored.connect(listen)
        try:
            resume(record, lambda steps: HttpResponse(b"done"), lease=timedelta(1))
        finally:
            steps_skipped.disconnect(listen)
            response_stored.disconnect(listen)
        assert seen[0].names == ("order", "ride")
        assert (seen[1].status_code, seen[1].record_id) == (200, record.pk)
        assert post(client, "/by-path/").content == b"done"

    def test_renderer_of_its_own(self, client: APIClient) -> None:
        """E17: A response that has a renderer keeps it."""
        record = cut_off(client)

        def shout(steps: RequestContext) -> Response:
            response = Response({"done": True})
            response.accepted_renderer = JSONRenderer()
            response.accepted_media_type = "application/json"
            response.renderer_context = {}
            return response

        resume(record, shout)
        assert post(client, "/by-path/").content == b'{"done":true}'

    def test_error_response(self, client: APIClient) -> None:
        """E17: From 500 up the record stays abandoned."""
        record = cut_off(client)
        response = resume(record, lambda steps: HttpResponse(status=503))
        assert response.status_code == 503
        assert IdempotencyRecord.objects.get().state == State.ABANDONED
        assert post(client, "/by-path/").status_code == 201

    def test_exception(self, client: APIClient) -> None:
        """E17: What the function raises is raised, and the next run goes on."""
        record = cut_off(client)
        with pytest.raises(ZeroDivisionError):
            resume(record, lambda steps: 1 / 0)  # type: ignore[arg-type, return-value]
        assert IdempotencyRecord.objects.get().state == State.ABANDONED
        assert post(client, "/by-path/").status_code == 201
        assert names() == [KEY[-20:], f"receipt of {KEY[-20:]}"]

    def test_exception_after_the_end(self, client: APIClient) -> None:
        """E15: The response is stored by then."""
        record = cut_off(client)

        def fail(steps: RequestContext) -> Any:
            finish(steps)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            resume(record, fail)
        assert "Idempotent-Replayed" in post(client, "/by-path/")

    def test_renewed_and_lost(self, client: APIClient) -> None:
        """E8, E12: A completer can renew its claim, and lose it."""
        record = cut_off(client)

        def lose(steps: RequestContext) -> Any:
            steps.renew(timedelta(seconds=5))
            IdempotencyRecord.objects.update(token=record.pk)
            return finish(steps)

        with pytest.raises(ClaimLost):
            resume(record, lose)
        assert names() == [KEY[-20:]]

    def test_renewed_in_a_step(self, client: APIClient) -> None:
        """E8: A lease that a rollback would undo is refused, as in a handler."""

        def renew(steps: RequestContext) -> Any:
            return steps.step("renewed", steps.renew)  # type: ignore[arg-type, type-var]

        with pytest.raises(RuntimeError, match="has a transaction open"):
            resume(cut_off(client), renew)
        assert post(client, "/by-path/").status_code == 201

    def test_transaction_left_open(self, client: APIClient, caplog: Any) -> None:
        """E7: No response is stored in a transaction that nobody commits."""
        record = cut_off(client)
        heard: list[Any] = []

        def listen(details: Any, **kwargs: Any) -> None:
            heard.append(details)

        def leave_open(steps: RequestContext) -> HttpResponse:
            transaction.set_autocommit(False)
            return HttpResponse(b"done")

        response_stored.connect(listen)
        try:
            with pytest.raises(RuntimeError, match="has a transaction open"):
                resume(record, leave_open)
        finally:
            response_stored.disconnect(listen)
            transaction.rollback()
            transaction.set_autocommit(True)
        assert heard == []
        assert "could not be updated" in caplog.messages[-1]
        assert IdempotencyRecord.objects.get().status_code is None

    def test_failed_and_lost(self, client: APIClient) -> None:
        """E7: A failure answers for itself, also if another run has the record."""
        record = cut_off(client)

        def fail(steps: RequestContext) -> Any:
            IdempotencyRecord.objects.update(token=record.pk)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            resume(record, fail)

    @pytest.mark.parametrize("is_busy", [True, False])
    def test_busy(self, client: APIClient, monkeypatch: Any, is_busy: bool) -> None:
        """E17: A record that another run is just taking over is left to it."""
        record = cut_off(client)

        def fail(*args: Any) -> Any:
            raise OperationalError

        monkeypatch.setattr("idempotency.claims.leases.Leases.take_over", fail)
        monkeypatch.setattr(
            type(claims_in("default")), "is_busy", lambda *args: is_busy
        )
        with pytest.raises(RecordChanged if is_busy else OperationalError):
            resume(record, finish)

    @pytest.mark.skipif(
        connection.vendor != "mysql", reason="MariaDB alone refuses to wait for a row."
    )
    def test_locked_row(self, client: APIClient) -> None:
        """E17: So it is where another transaction holds the record's row."""
        record, other = cut_off(client), connection.copy()
        try:
            other.set_autocommit(False)
            with other.cursor() as cursor:
                cursor.execute("UPDATE idempotency_idempotencyrecord SET attempt = 1")
            with pytest.raises(RecordChanged):
                resume(record, finish)
        finally:
            other.close()

    def test_changed(self, client: APIClient) -> None:
        """E17: What is no abandoned run of steps any more is left alone."""
        record = cut_off(client)
        rows = IdempotencyRecord.objects.all()
        for change in (
            {"token": KEY_TOKEN},
            {"lease_expires_at": UTCNow() + timedelta(seconds=60)},
            {"expires_at": UTCNow() - timedelta(seconds=1)},
            {"steps": None},
            {"state": State.COMPLETED},
        ):
            with transaction.atomic():
                before = rows.values(*change).get()
            rows.update(**change)
            with pytest.raises(RecordChanged):
                resume(record, finish)
            rows.update(**before)
        rows.delete()
        with pytest.raises(RecordChanged):
            resume(record, finish)
        assert names() == [KEY[-20:]]

    def test_lost_race(self, client: APIClient, monkeypatch: Any) -> None:
        """E17: Only one of two completers takes over."""
        record = cut_off(client)

        def lose(*args: Any) -> bool:
            IdempotencyRecord.objects.update(token=uuid4())
            return False

        monkeypatch.setattr(TAKE_OVER, lose)
        with pytest.raises(RecordChanged) as error:
            resume(record, finish)
        assert error.type is RecordChanged

    def test_held(self, client: APIClient, monkeypatch: Any) -> None:
        """E17: While a transaction writes to the record, nobody completes it."""
        record = cut_off(client)

        def busy(*args: Any) -> bool:
            raise OperationalError

        monkeypatch.setattr(TAKE_OVER, busy)
        monkeypatch.setattr(claims_in("default"), "is_busy", lambda error: True)
        with pytest.raises(RecordHeld):
            resume(record, finish)
        assert str(complete_abandoned()) == "0 completed, 0 failed, 0 left"
        monkeypatch.setattr(claims_in("default"), "is_busy", lambda error: False)
        with pytest.raises(OperationalError):
            resume(record, finish)

    def test_call_in_doubt(self, client: APIClient) -> None:
        """E13: A call in doubt waits for a person, not for a completer."""
        record = cut_off(client)

        def die(steps: RequestContext) -> Any:
            def call(derived: str) -> Any:
                raise Killed

            return steps.call("held", call, on_abandoned="hold")

        with pytest.raises(Killed):
            resume(record, die)
        record.refresh_from_db()
        with pytest.raises(OutcomeUnknown):
            resume(record, finish)

    @pytest.mark.django_db(transaction=True)
    def test_in_a_transaction(self, client: APIClient) -> None:
        """E11: The claim must be committed first."""
        record = cut_off(client)
        with (
            transaction.atomic(),
            pytest.raises(ImproperlyConfigured, match="inside a transaction"),
        ):
            resume(record, finish)

    def test_no_completer(self, client: APIClient) -> None:
        """E17: An endpoint may have none, have none any more, or be gone."""
        record = cut_off(client, "/without/")
        assert completer_of(record) is None
        with pytest.raises(LookupError):
            complete(record)
        record.path = "/gone/"
        assert completer_of(record) is None
        record.path = "/function/"
        assert completer_of(record) is None
        resume(record, finish)  # of an endpoint without renderers

    @pytest.mark.parametrize("place", ["/de/by-language/", "/by-language/"])
    def test_languages(self, client: APIClient, settings: Any, place: str) -> None:
        """E17: The language of whoever completes does not matter."""
        settings.MIDDLEWARE = ["django.middleware.locale.LocaleMiddleware"]
        record = cut_off(client, place)
        for language in ("en", "de", "fr"):
            with translation.override(language):
                assert completer_of(record) is not None


KEY_TOKEN = "00000000-0000-4000-8000-000000000000"


class TestCompleteAbandoned:
    """``complete_abandoned()``: a few at a time, with pauses, and a limit."""

    def test_report(self, client: APIClient) -> None:
        """E17: It completes what is due, and counts the rest."""
        for number in range(3):
            cut_off(client, value=f"key-of-20-characters-{number}")
        cut_off(client, "/without/", value="key-of-20-characters-a")
        report = complete_abandoned(limit=2)
        assert report.completed == 2
        report = complete_abandoned()
        assert str(report) == "1 completed, 0 failed, 1 left"
        assert str(complete_abandoned()) == "0 completed, 0 failed, 1 left"
        assert len(names()) == 3 * 2 + 1

    def test_many_without_completers(self, client: APIClient, monkeypatch: Any) -> None:
        """E17: However many wait in vain, those with a completer come to their turn."""
        monkeypatch.setattr(completing, "PAGE_SIZE", 2)
        values = [f"key-of-20-characters-{number}" for number in range(9)]
        for value in values:
            place = "/by-path/" if value in values[3::5] else "/without/"
            cut_off(client, place, value)
        # Pages begin amid records whose leases ended at the same moment.
        rows = IdempotencyRecord.objects.all()
        rows.update(lease_expires_at=UTCNow() - timedelta(hours=2))
        for value in values[4:]:
            rows.filter(key=value).update(
                lease_expires_at=UTCNow() - timedelta(minutes=90 - int(value[-1]))
            )
        assert str(complete_abandoned()) == "2 completed, 0 failed, 7 left"

    def test_pauses(self, client: APIClient) -> None:
        """E17: A record waits twice as long after each run; then a person decides."""
        cut_off(client)
        rows = IdempotencyRecord.objects.all()
        for attempt, minutes, is_due in (
            (1, 0.5, False),
            (2, 1.5, False),
            (10, 10_000, False),
            (9, 200, False),
            (9, 300, True),
        ):
            rows.update(
                attempt=attempt,
                lease_expires_at=UTCNow() - timedelta(minutes=minutes),
            )
            assert complete_abandoned().completed == is_due

    @pytest.mark.parametrize(
        ("most", "attempt", "is_due"),
        [
            (1, 1, False),
            (2, 1, True),
            (2, 2, False),
            (1000, 10, True),
            (1000, 40, False),
        ],
    )
    def test_limits(
        self, client: APIClient, most: int, attempt: int, is_due: bool
    ) -> None:
        """E17: After as many runs as are allowed, be it one or a thousand, none is."""
        cut_off(client)
        IdempotencyRecord.objects.update(
            attempt=attempt, lease_expires_at=UTCNow() - timedelta(days=1)
        )
        assert complete_abandoned(max_attempts=most).completed == is_due

    def test_failing(self, client: APIClient, monkeypatch: Any, caplog: Any) -> None:
        """E17: A completer's error is logged, and the record waits."""
        cut_off(client)

        def fail(steps: RequestContext) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr("tests.test_completing.finish", fail)
        assert complete_abandoned().failed == 1
        assert "A completer failed" in caplog.text
        assert complete_abandoned().failed == 0
        monkeypatch.undo()
        monkeypatch.setattr(
            "tests.test_completing.finish", lambda steps: HttpResponse(status=500)
        )
        make_due()
        assert complete_abandoned().failed == 1
        make_due()
        monkeypatch.setattr("tests.test_completing.finish", fail)
        with pytest.raises(ZeroDivisionError):
            complete_abandoned(fatal=(ZeroDivisionError,))

    def test_missing(self, client: APIClient, monkeypatch: Any, caplog: Any) -> None:
        """E17: Records whose completer can't be imported do not stop the others'."""
        cut_off(client)
        cut_off(client, value="key-of-20-characters-1")
        cut_off(client, "/by-class/", "key-of-20-characters-2")
        monkeypatch.delattr("tests.test_completing.finish")
        assert complete_abandoned() == CompletionReport(completed=1, left=2)
        assert caplog.text.count("A completer can't be imported") == 1

    def test_taken_meanwhile(self, client: APIClient, monkeypatch: Any) -> None:
        """E17: What another run has is left to it."""
        cut_off(client)
        cut_off(client, value="key-of-20-characters-1")

        def changed(*args: Any, **kwargs: Any) -> Any:
            IdempotencyRecord.objects.all()._raw_delete("default")
            raise RecordChanged

        monkeypatch.setattr(completing, "resume", changed)
        assert str(complete_abandoned()) == "0 completed, 0 failed, 0 left"

    def test_in_doubt(self, client: APIClient) -> None:
        """E13: A call in doubt is left to a person."""
        record = cut_off(client)

        def die(steps: RequestContext) -> Any:
            def call(derived: str) -> Any:
                raise Killed

            return steps.call("held", call, on_abandoned="hold")

        with pytest.raises(Killed):
            resume(record, die)
        make_due()
        assert str(complete_abandoned()) == "0 completed, 0 failed, 0 left"

    def test_command(self, client: APIClient) -> None:
        """E17: The command does the same, and prints the report."""
        cut_off(client)
        out = StringIO()
        call_command("complete_idempotency_records", "--limit", "1", stdout=out)
        assert out.getvalue() == "1 completed, 0 failed, 0 left\n"

    def test_task(self, client: APIClient) -> None:
        """E17: So does the task."""
        from idempotency.tasks import complete_abandoned_records  # noqa: PLC0415

        cut_off(client)
        complete_abandoned_records()
        assert "Idempotent-Replayed" in post(client, "/by-path/")


def make_due() -> None:
    IdempotencyRecord.objects.update(
        lease_expires_at=UTCNow() - timedelta(days=1), attempt=2
    )


class TestOption:
    """The option ``completer``."""

    def test_without_resume(self) -> None:
        """X2: It has no effect without ``on_abandoned="resume"``."""
        with pytest.raises(ImproperlyConfigured, match="completer has no effect"):
            idempotent(atomic=False, on_abandoned="hold", completer=finish)
        with pytest.raises(ImproperlyConfigured, match="without atomic=False"):
            idempotent(completer=finish)
