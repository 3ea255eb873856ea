"""No key, scope, body or credential in what the app leaves to reports of errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sentry_sdk
from django.core.signals import got_request_exception
from django.db import DatabaseError, Error, connection, connections, transaction
from django.db import IntegrityError as DjangoIntegrityError
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils import timezone
from django.views import View
from django.views.debug import ExceptionReporter
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.transport import Transport

from idempotency.claims import Claims, claims_in
from idempotency.context import RequestContext, context_of
from idempotency.decorators import idempotent
from idempotency.discretion import HIDDEN, without_values
from idempotency.exceptions import ClaimLost
from idempotency.execution import Identity
from idempotency.fingerprints import Fingerprint
from idempotency.keys import ClientKey
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, RecordChanged, State
from idempotency.responses import StoredResponse
from idempotency.steps import as_text, held_entry
from tests.app.views import behave
from tests.support.admin_pages import LIST, RELEASE, RESOLVE, VIEW, Enter
from tests.support.failing_commits import commit_fails_with
from tests.support.record_factories import make_record
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

Handle = Callable[[Callable[[Request], Any]], None]

# Made up, so that the lines of source code in a report have none of them.
KEY, SCOPE, SENT, ANSWERED, CREDENTIAL = (
    f"{name}-{uuid4()}" for name in ("key", "scope", "sent", "answered", "credential")
)
FINGERPRINT = uuid4().hex * 2
SECRETS = (KEY, SCOPE, SENT, ANSWERED, CREDENTIAL, FINGERPRINT)
TABLE = IdempotencyRecord._meta.db_table


class Kept(Transport):
    """Keeps the events that would be sent to Sentry."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.events.append(envelope.get_event())


@contextmanager
def sentry() -> Iterator[tuple[sentry_sdk.Scope, list[Any]]]:
    """Yield a scope of Sentry and its events, with nothing scrubbed by name."""
    transport = Kept()
    client = sentry_sdk.Client(
        dsn="https://public@sentry.invalid/1",
        transport=transport,
        default_integrations=False,
        auto_enabling_integrations=False,
        include_local_variables=True,
        add_full_stack=True,
        attach_stacktrace=True,
        max_value_length=1_000_000,
        event_scrubber=EventScrubber(denylist=[], pii_denylist=[]),
    )
    with sentry_sdk.new_scope() as scope:
        scope.set_client(client)
        yield scope, transport.events
    client.close()


class Reports:
    """What Django and Sentry report of errors."""

    # A report with DEBUG has all that one without it has.
    debug = True

    def __init__(self) -> None:
        # Everything in a report, and what it has of the app's frames alone.
        self.whole: list[str] = []
        self.frames: list[dict[str, Any]] = []

    def of_error(self, request: Any = None, **_more: Any) -> None:
        """Report the error that is being handled."""
        found = sys.exc_info()
        with override_settings(DEBUG=self.debug):
            reporter = ExceptionReporter(request, *found)  # type: ignore[arg-type]
            self.whole += [reporter.get_traceback_text(), reporter.get_traceback_html()]
        with sentry() as (scope, events):
            scope.capture_exception(found)  # type: ignore[arg-type]
        self._keep(events)

    def of_message(self) -> None:
        """Report what is no error, with the frames that are at work."""
        with sentry() as (scope, events):
            scope.capture_message("Something is strange")
        self._keep(events)

    def _keep(self, events: list[Any]) -> None:
        (event,) = events
        places = event.get("exception") or event.get("threads")
        for each in places["values"]:
            self.frames += each.get("stacktrace", {}).get("frames", [])
        errors = event.get("exception", {"values": []})["values"]
        self.whole += [
            json.dumps({**each, "stacktrace": _without_client(each)}) for each in errors
        ]

    @property
    def text(self) -> str:
        return "\n".join(self.whole)

    @property
    def of_app(self) -> list[dict[str, Any]]:
        return [f for f in self.frames if str(f["module"]).startswith("idempotency")]


def _without_client(exception: dict[str, Any]) -> list[Any]:
    frames = exception.get("stacktrace", {}).get("frames", [])
    clients = ("rest_framework.test", "django.test")
    return [each for each in frames if not str(each["module"]).startswith(clients)]


def told(text: str) -> list[str]:
    """Return which secrets a text tells, as they are or as bytes are written."""
    return [
        secret
        for secret in SECRETS
        if secret in text or secret.encode().hex() in text.lower()
    ]


def assert_discreet(reports: Reports, *, whole: bool = True) -> None:
    """Check that there are reports, and that they tell nothing."""
    assert reports.of_app
    assert told(json.dumps(reports.of_app)) == []
    if whole:
        assert told(reports.text) == []


@pytest.fixture
def reports() -> Iterator[Reports]:
    """Collect the reports of what a test's requests come to."""
    found = Reports()
    Behaviours.reports = found
    got_request_exception.connect(found.of_error)
    yield found
    got_request_exception.disconnect(found.of_error)


class Behaviours:
    """What the test's views do besides."""

    reports: Reports
    scope: Callable[[Request], str] = staticmethod(lambda request: SCOPE)
    fingerprint: Callable[[Request], Any] | None = None
    check: Callable[[], None] = staticmethod(lambda: None)


class Atomic(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        return behave(request)

    def get_idempotency_scope(self, request: Request) -> str:
        return Behaviours.scope(request)

    def get_idempotency_fingerprint(self, request: Request) -> Any:
        if Behaviours.fingerprint is not None:
            return Behaviours.fingerprint(request)
        return super().get_idempotency_fingerprint(request)

    def check_replay(self, request: Request, record: IdempotencyRecord) -> None:
        Behaviours.check()

    def should_store_response(self, response: Any) -> bool:
        Behaviours.check()
        return True

    def handle_exception(self, exc: Exception) -> Any:
        # Projects report refusals, too.
        Behaviours.reports.of_error()
        return super().handle_exception(exc)


class Leased(Atomic):
    idempotency_atomic = False
    idempotency_lease = timedelta(seconds=30)
    idempotency_on_abandoned = staticmethod(lambda record, request: Behaviours.check())


class ReadsAway(BasePermission):
    def has_permission(self, request: Any, view: Any) -> bool:
        return bool(request._request.read())


class ReadBefore(APIView):
    permission_classes = (ReadsAway,)

    @idempotent(scope=lambda request: SCOPE)
    def post(self, request: Request) -> Any:
        return behave(request)


class OfNobody(IdempotencyMixin, APIView):
    """Its callers are users without a key, and the header was not asked."""

    def perform_authentication(self, request: Request) -> None:
        request.user = SimpleNamespace(is_authenticated=True)  # type: ignore[assignment]

    def post(self, request: Request) -> Any:
        return behave(request)


@idempotent(scope=lambda request: SCOPE)
def plain(request: HttpRequest) -> Any:
    return behave(request)  # type: ignore[arg-type]  # a test's own handler


class Plain(IdempotencyMixin, View):
    def post(self, request: HttpRequest) -> Any:
        return behave(request)  # type: ignore[arg-type]  # a test's own handler

    def get_idempotency_scope(self, request: Any) -> str:
        return SCOPE


urlpatterns = [
    *usual_urls,
    path("plain/", plain),
    path("plain-class/", Plain.as_view()),
    path("atomic/", Atomic.as_view()),
    path("leased/", Leased.as_view()),
    path("read-before/", ReadBefore.as_view()),
    path("of-nobody/", OfNobody.as_view()),
]
both_modes = pytest.mark.parametrize("url", ["/atomic/", "/leased/"])


def post(client: APIClient, url: str) -> Any:
    return client.post(
        f"{url}?a=1",
        {"sent": SENT},
        HTTP_IDEMPOTENCY_KEY=KEY,
        HTTP_AUTHORIZATION=f"Bearer {CREDENTIAL}",
    )


def answer(request: Request) -> Any:
    return Response({"answered": ANSWERED})


@contextmanager
def refusing(operation: str, when: str) -> Iterator[None]:
    """Let the database refuse to write the record, and quote the row as it can."""
    row = "OLD" if operation == "DELETE" else "NEW"
    condition = when.format(row=row)
    told_of = f"{row}.scope, ' ', {row}.{connection.ops.quote_name('key')}"
    create = f"CREATE TRIGGER refuse BEFORE {operation} ON {TABLE} FOR EACH ROW "
    function = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION 'no: %', {row}; END $$"
    )
    signal = (
        f"BEGIN DECLARE said VARCHAR(500); IF {condition} THEN "
        f"SET said = CONCAT('no: ', {told_of}); "
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = said; END IF; END"
    )
    make, drop = {
        "postgresql": (
            [function, f"{create} WHEN ({condition}) EXECUTE FUNCTION refuse()"],
            [f"DROP TRIGGER refuse ON {TABLE}", "DROP FUNCTION refuse"],
        ),
        "mysql": ([create + signal], ["DROP TRIGGER refuse"]),
        # Its triggers can't quote before SQLite 3.47.
        "sqlite": (
            [f"{create} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'no'); END"],
            ["DROP TRIGGER refuse"],
        ),
    }[connection.vendor]
    statements(make)
    try:
        yield
    finally:
        statements(drop)


def statements(several: list[str]) -> None:
    with connection.cursor() as cursor:
        for each in several:
            cursor.execute(each)


@pytest.mark.parametrize("url", ["/plain/", "/plain-class/"])
@pytest.mark.parametrize("place", ["handler", "store"])
def test_plain_views(
    url: str, place: str, client: APIClient, reports: Reports, handle: Handle
) -> None:
    """X1: Errors of plain Django views show no secret in the app's frames, either."""

    def work(request: Any) -> Any:
        if place == "handler":
            raise ZeroDivisionError
        return HttpResponse(ANSWERED)

    handle(work)
    written = {"postgresql": "INSERT"}.get(connection.vendor, "UPDATE")
    with refusing(written, COMPLETED):
        status_code = post(client, url).status_code
    assert status_code == (500 if place == "handler" else 503)
    if place == "handler":  # the other is a refusal, which is no error to Django
        assert_discreet(reports, whole=False)
    assert IdempotencyRecord.objects.count() == 0


ALWAYS = "{row}.attempt > 0"
COMPLETED = "{row}.state = 'completed'"
RENEWED = "{row}.state = 'in_progress'"


@both_modes
class TestStatements:
    """X1: Where a statement of the app's fails, no report has its values."""

    @pytest.mark.usefixtures("by_statements")
    def test_claim(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: A claim that the database refuses."""
        handle(answer)
        with refusing("INSERT", ALWAYS):
            assert post(client, url).status_code == 500
        assert_discreet(reports)
        # What is left tells where it was, and what.
        assert "_execute" in reports.text or "_fetch_row" in reports.text
        assert "Error" in reports.text

    def test_look_up(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: A look-up that the database refuses."""
        handle(answer)
        statements([f"ALTER TABLE {TABLE} RENAME COLUMN status_code TO status"])
        try:
            # SQLite's has no code: it may be transient.
            assert post(client, url).status_code in {500, 503}
        finally:
            statements([f"ALTER TABLE {TABLE} RENAME COLUMN status TO status_code"])
        assert_discreet(reports)

    def test_claim_by_other_statements(
        self,
        url: str,
        client: APIClient,
        reports: Reports,
        handle: Handle,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """X1: The same in any of Django's databases."""
        monkeypatch.setattr(
            connections["default"],
            "_idempotency_claims",
            Claims(connections["default"]),
            raising=False,
        )
        handle(answer)
        with refusing("INSERT", ALWAYS):
            assert post(client, url).status_code == 500
        assert_discreet(reports)

    @pytest.mark.usefixtures("by_statements")
    def test_complete(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: An answer that the database refuses."""
        handle(answer)
        with refusing("UPDATE", COMPLETED):
            assert post(client, url).status_code in {500, 503}
        assert_discreet(reports)

    def test_a_row_that_a_constraint_refuses(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: PostgreSQL quotes the whole row, with key, scope and body."""
        if connection.vendor != "postgresql":
            pytest.skip("of PostgreSQL")
        handle(answer)
        statements(
            [f"ALTER TABLE {TABLE} ADD CONSTRAINT short CHECK (status_code IS NULL)"]
        )
        try:
            assert post(client, url).status_code in {500, 503}
        finally:
            statements([f"ALTER TABLE {TABLE} DROP CONSTRAINT short"])
        assert_discreet(reports)
        assert "violates check constraint" in reports.text
        assert "SQLSTATE 23514, " in reports.text

    def test_a_value_that_a_column_refuses(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: MariaDB quotes a string that is none in the column's character set."""
        if connection.vendor != "mysql":
            pytest.skip("of MariaDB")
        handle(
            lambda request: HttpResponse(b"\xff" + ANSWERED.encode(), content_type="x")
        )
        change = f"ALTER TABLE {TABLE} MODIFY body {{}} NULL"
        statements([change.format("LONGTEXT CHARACTER SET utf8mb4")])
        try:
            assert post(client, url).status_code in {500, 503}
        finally:
            statements([change.format("LONGBLOB")])
        assert_discreet(reports)
        assert f"(1366, {HIDDEN!r})" in reports.text

    @pytest.mark.usefixtures("by_statements")
    def test_release(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: A key that can't be given back."""
        handle(lambda request: Response({"answered": ANSWERED}, status=422))
        with (
            refusing("DELETE", ALWAYS),
            override_settings(IDEMPOTENCY={"RELEASED_STATUSES": [422]}),
        ):
            assert post(client, url).status_code == 500
        assert_discreet(reports)


class TestLease:
    """X1: What leased mode writes while the handler runs."""

    def test_renew(self, client: APIClient, reports: Reports, handle: Handle) -> None:
        """X1: The handler may report that its lease can't be renewed by itself."""

        def renew(request: Request) -> Any:
            try:
                context_of(request).renew()
            except DatabaseError:
                reports.of_error()
                raise
            raise AssertionError

        handle(renew)
        with refusing("UPDATE", RENEWED):
            assert post(client, "/leased/").status_code == 500
        assert_discreet(reports)

    def test_derive(self, client: APIClient, reports: Reports, handle: Handle) -> None:
        """X1: A name that no key can be derived with; the handler reports it itself."""

        def derive(request: Request) -> Any:
            try:
                context_of(request).derive("\ud800")
            except UnicodeError:
                reports.of_error()
                raise
            raise AssertionError

        handle(derive)
        assert post(client, "/leased/").status_code == 500
        assert_discreet(reports)


class TestOtherSteps:
    """X1: What fails besides statements of the app's."""

    @both_modes
    def test_scope(self, url: str, client: APIClient, reports: Reports) -> None:
        """X1: The project's function does not know whose key it is."""

        def fail(request: Request) -> str:
            raise LookupError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Behaviours, "scope", staticmethod(fail))
            assert post(client, url).status_code == 500
        assert_discreet(reports)

    @both_modes
    def test_scope_that_is_none(
        self, url: str, client: APIClient, reports: Reports
    ) -> None:
        """X1: The project's function gives what can't be stored."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Behaviours, "scope", staticmethod(lambda request: f"{SCOPE}\0")
            )
            assert post(client, url).status_code == 500
            patch.setattr(Behaviours, "scope", staticmethod(lambda r: f"{SCOPE}\ud800"))
            assert post(client, url).status_code == 500
        assert_discreet(reports)

    def test_scope_of_nobody(self, client: APIClient, reports: Reports) -> None:
        """X1: Nothing names the caller, and the header is at hand."""
        assert post(client, "/of-nobody/").status_code == 500
        assert_discreet(reports)

    def test_body_was_read(self, client: APIClient, reports: Reports) -> None:
        """X1: The fingerprint has the request's headers and body at hand."""
        assert post(client, "/read-before/").status_code == 500
        assert_discreet(reports)
        assert "can't be read again" in reports.text

    @both_modes
    def test_fingerprint(self, url: str, client: APIClient, reports: Reports) -> None:
        """X1: The project's fingerprint is none."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Behaviours, "fingerprint", staticmethod(lambda r: [SENT]))
            assert post(client, url).status_code == 500
        assert_discreet(reports)

    @both_modes
    @pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, ClaimLost])
    def test_handler(
        self,
        url: str,
        error: type[BaseException],
        client: APIClient,
        reports: Reports,
        handle: Handle,
    ) -> None:
        """X1: If the handler fails, its own variables stay in the report."""

        def fail(request: Request) -> Any:
            clue = "a clue"
            raise error(clue)

        handle(fail)
        if error is SystemExit:
            with pytest.raises(SystemExit) as caught:
                post(client, url)
            frames = caught.traceback
            assert [f.locals for f in frames if f.name == "_run_handler"] == [{}]
            assert [f.locals["clue"] for f in frames if f.name == "fail"] == ["a clue"]
            return
        post(client, url)
        assert_discreet(reports)
        assert any("a clue" in str(f.get("vars")) for f in reports.frames)
        assert "clue = " in reports.text

    @both_modes
    def test_rendering(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: The answer can't be rendered; the renderer's own frames have it."""
        handle(lambda request: Response({"answered": ANSWERED, "what": object()}))
        assert post(client, url).status_code == 500
        assert_discreet(reports, whole=False)

    @both_modes
    def test_hooks(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: The project's hooks fail, on the first request and on the replay."""

        def fail() -> None:
            raise LookupError

        handle(answer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Behaviours, "check", staticmethod(fail))
            assert post(client, url).status_code == 500
        IdempotencyRecord.objects.all()._raw_delete("default")
        assert post(client, url).status_code == 200
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Behaviours, "check", staticmethod(fail))
            assert post(client, url).status_code == 500
        assert_discreet(reports)

    def test_commit(self, client: APIClient, reports: Reports, handle: Handle) -> None:
        """X1: Nobody knows whether the COMMIT succeeded."""

        lost = connection.Database.OperationalError(2013, "the reply is lost")
        handle(answer)
        with commit_fails_with(lost):
            assert post(client, "/atomic/").status_code == 500
        assert_discreet(reports)
        assert "the reply is lost" in reports.text

    @both_modes
    def test_reports_of_what_is_no_error(
        self, url: str, client: APIClient, reports: Reports, handle: Handle
    ) -> None:
        """X1: The project's code reports something, with all frames around it."""

        def fingerprint(request: Request) -> str:
            reports.of_message()
            return SENT

        def handler(request: Request) -> Any:
            reports.of_message()
            return answer(request)

        handle(handler)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Behaviours, "fingerprint", staticmethod(fingerprint))
            patch.setattr(Behaviours, "check", staticmethod(reports.of_message))
            assert post(client, url).status_code == 200
            assert post(client, url)["Idempotent-Replayed"] == "true"
            before = timezone.now() - timedelta(hours=1)
            IdempotencyRecord.objects.update(
                state=State.ABANDONED,
                status_code=None,
                body_size=None,
                lease_expires_at=before,
            )
            assert post(client, url).status_code in {200, 409}
        functions = {frame["function"] for frame in reports.of_app}
        assert {"_run_handler", "_identify", "_replay", "to_store"} <= functions
        assert_discreet(reports)


NO_ANSWER = {"body": None, "status_code": None, "headers": None, "body_size": None}


def make_abandoned() -> IdempotencyRecord:
    ended = timezone.now() - timedelta(minutes=5)
    return make_record(
        key=KEY,
        scope=SCOPE,
        state=State.ABANDONED,
        lease_expires_at=ended,
        steps=as_text(FINGERPRINT, [held_entry("charge", ended)]),
        **NO_ANSWER,
    )


def typed_in(page: str) -> dict[str, Any]:
    return {
        "resolve": {"status_code": 201, "content_type": "text/plain", "body": ANSWERED},
        "call": {"outcome": "returned", "result": json.dumps(ANSWERED)},
        "release": {"reason": ANSWERED},
    }[page]


class TestDecisions:
    """X1: A person's decision that the database refuses."""

    def test_in_code(self, reports: Reports) -> None:
        """X1: By the record's own methods."""
        record = make_abandoned()
        with refusing("UPDATE", ALWAYS):
            try:
                record.call_returned("charge", ANSWERED)
            except DatabaseError:
                reports.of_error()
        with refusing("UPDATE", COMPLETED), pytest.raises(DatabaseError) as caught:
            record.resolve(HttpResponse(ANSWERED))
        assert told(str(caught.value)) == []
        with refusing("UPDATE", COMPLETED):
            try:
                record.resolve(HttpResponse(ANSWERED))
            except DatabaseError:
                reports.of_error()
        with refusing("DELETE", ALWAYS):
            try:
                record.release()
            except DatabaseError:
                reports.of_error()
        record.release()
        try:
            record.release()
        except RecordChanged:
            reports.of_error()
        assert_discreet(reports)

    @pytest.mark.parametrize("page", ["resolve", "release", "call"])
    def test_in_the_admin(self, page: str, enter: Enter, reports: Reports) -> None:
        """X1: In the admin, where the answer was typed in."""
        client = enter(VIEW, RELEASE, RESOLVE)
        client.raise_request_exception = False
        # Django hides form fields only without DEBUG.
        reports.debug = False
        record = make_abandoned()
        write = ("DELETE" if page == "release" else "UPDATE", ALWAYS)
        with refusing(*write):
            response = client.post(
                f"{LIST}{record.pk}/{page}/",
                {"token": str(record.token), **typed_in(page)},
            )
        assert response.status_code == 500
        assert_discreet(reports)


class TestRepr:
    """X1: No repr of the app's objects has a secret."""

    def test_of_all(self) -> None:
        """X1: Nothing of the app's has a secret in its repr."""

        class Talkative(IdempotencyRecord):
            class Meta:
                proxy = True
                app_label = "idempotency"

            def __str__(self) -> str:
                return KEY

        record = Talkative(id=UUID(int=1), key=KEY, scope=SCOPE)
        whole: Any = RequestContext(key=KEY, scope=SCOPE, payload=SENT, attempt=3)
        whole._fresh["charge"] = KEY
        fingerprint = Fingerprint(1, SENT)
        told_of = [
            *(record, whole, fingerprint, ClientKey(KEY, in_query=True)),
            StoredResponse(
                status_code=201, headers=[["a", ANSWERED]], body=ANSWERED.encode()
            ),
            Identity(
                request=SENT,  # type: ignore[arg-type]
                scope=SCOPE,
                key=KEY,
                record_id=UUID(int=1),
                fingerprint=fingerprint,
            ),
        ]
        assert told(repr(told_of)) == []
        assert repr(record) == f"<Talkative: {UUID(int=1)}>"
        assert "attempt=3" in repr(whole)


def made(module: str, name: str, *args: object, **attributes: object) -> Error:
    """Return Django's error of a driver's."""
    kind = type(name, (Exception,), {"__module__": module, **attributes})
    error = DatabaseError(*args)
    error.__cause__ = kind(*args)
    return error


def diagnosis(state: str | None, **found: str) -> SimpleNamespace:
    nothing = dict.fromkeys(
        ["context", "message_primary", "table_name", "column_name", "constraint_name"]
    )
    return SimpleNamespace(sqlstate=state, **{**nothing, **found})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            made(
                "psycopg.errors",
                "UndefinedTable",
                f"x {KEY}",
                diag=diagnosis("42P01", message_primary="no such relation"),
            ),
            ("no such relation (SQLSTATE 42P01)",),
        ),
        (
            made(
                "psycopg.errors",
                "DataError",
                f"x {KEY}",
                diag=diagnosis("22P02", message_primary=KEY, column_name="c"),
            ),
            (f"{HIDDEN} (SQLSTATE 22P02, c)",),
        ),
        (
            made(
                "psycopg.errors",
                "RaiseException",
                f"x {KEY}",
                diag=diagnosis("P0001", message_primary=KEY, context="a trigger"),
            ),
            (f"{HIDDEN} (SQLSTATE P0001)",),
        ),
        (
            made("psycopg", "OperationalError", "gone", diag=diagnosis(None)),
            ("gone",),
        ),
        (made("MySQLdb", "IntegrityError", 1062, f"x {KEY}"), (1062, HIDDEN)),
        (made("MySQLdb", "ProgrammingError", 1146, "no table"), (1146, "no table")),
        (made("MySQLdb", "OperationalError", 2006, "gone"), (2006, "gone")),
        (made("MySQLdb", "OperationalError"), (HIDDEN,)),
        (
            made("sqlite3", "IntegrityError", "UNIQUE constraint failed: t.c"),
            ("UNIQUE constraint failed: t.c",),
        ),
        (made("sqlite3", "IntegrityError", f"no: {KEY}"), (HIDDEN,)),
        (
            made("sqlite3", "OperationalError", "database is locked"),
            ("database is locked",),
        ),
        (made("oracledb.exceptions", "DatabaseError", f"x {KEY}"), (HIDDEN,)),
        (DjangoIntegrityError(1048, f"x {KEY}"), (1048, HIDDEN)),
        (DatabaseError("Django's own"), ("Django's own",)),
    ],
)
def test_what_databases_say(error: Error, said: tuple[object, ...]) -> None:
    """X1: Of what a server said, what can quote a value is left out."""
    found = without_values(error)
    assert found is error
    assert found.args == said
    assert found.__cause__ is None or found.__cause__.args == said


def test_kinds_of_errors_are_still_told_apart(client: APIClient) -> None:
    """E4: Whether a claim may do well later is known by what is left of an error."""
    claims = claims_in("default")
    deadlock: Any = {
        "postgresql": lambda: made(
            "psycopg.errors",
            "DeadlockDetected",
            "x",
            sqlstate="40P01",
            diag=diagnosis("40P01", context="while locking"),
        ),
        "mysql": lambda: made("MySQLdb", "OperationalError", 1213, "Deadlock"),
        "sqlite": lambda: made("sqlite3", "OperationalError", "database is locked"),
    }[connection.vendor]()
    error: Any = without_values(deadlock)
    if connection.vendor == "sqlite":
        from django.db import OperationalError  # noqa: PLC0415

        error = OperationalError(*error.args)
    assert claims.is_transient(error)


def test_a_statement_in_the_middle_of_an_error() -> None:
    """X1: What was being handled when a statement failed is left as it was."""
    outer: Any = ValueError(KEY)

    def fail() -> None:
        try:
            raise outer
        except ValueError:
            with transaction.atomic():
                claims_in("default")._execute(f"SELECT %s FROM {uuid4().hex}", [KEY])

    with pytest.raises(DatabaseError) as caught:
        fail()
    error = caught.value
    assert error.__context__ is outer
    assert outer.args == (KEY,)
    assert outer.__traceback__ is not None
    assert told(str(error) + str(error.__cause__)) == []
