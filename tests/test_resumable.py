"""The test kit for steps: handlers that resume pass, and only those."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from django.core import mail
from django.db import connection, transaction
from django.http import StreamingHttpResponse
from django.test import TestCase, TransactionTestCase
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.context import context_of
from idempotency.decorators import idempotent
from idempotency.exceptions import WriteOutsideStep
from idempotency.mixins import IdempotencyMixin
from idempotency.modes.stray_writes import write_in
from idempotency.testing import (
    IdempotentClient,
    assert_idempotent,
    assert_race_safe,
    assert_resumable,
)
from tests.app.models import Effect
from tests.conftest import KEY, once
from tests.support.processes import ROOT
from tests.test_docs import run_case
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]

Handler = Callable[[Request, Any], Any]
numbers = count(1)


class Provider:
    """An outside service; charges with the same key are one."""

    def __init__(self) -> None:
        self.charges: list[str] = []

    def charge(self, key: str) -> dict[str, Any]:
        if key not in self.charges:
            self.charges.append(key)
        return {"charge": self.charges.index(key)}

    def charge_again(self, key: str) -> dict[str, Any]:
        """Charge, whatever the key."""
        return self.charge(str(uuid4()))


provider = Provider()
handler: Handler


class Resuming(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned = "resume"

    def post(self, request: Request) -> Any:
        return handler(request, context_of(request))


class Rerunning(Resuming):
    idempotency_on_abandoned = "rerun"


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="resume", lease=timedelta(seconds=60))
def resuming(request: Request) -> Any:
    return handler(request, context_of(request))


urlpatterns = [
    *usual_urls,
    path("resuming/", Resuming.as_view()),
    path("resuming-function/", resuming),
    path("rerunning/", Rerunning.as_view()),
]


@pytest.fixture(autouse=True)
def fresh() -> None:
    global provider  # noqa: PLW0603  # of the handlers
    provider = Provider()


@pytest.fixture
def ada() -> APIClient:
    """Return a client as most tests have it: the view's errors are raised."""
    client = APIClient()
    client.credentials(HTTP_X_USER="ada")
    return client


@pytest.fixture(autouse=True)
def warned() -> Iterator[list[Any]]:
    """Return the warnings about writes outside of steps."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("error")
        warnings.simplefilter("always", WriteOutsideStep)
        yield found


def handle(function: Handler) -> None:
    global handler  # noqa: PLW0603  # of the views
    handler = function


def create(name: str) -> dict[str, Any]:
    return {"id": Effect.objects.create(note=name).pk, "name": name}


def charges() -> int:
    return len(provider.charges)


# Handlers that resume


def book(request: Request, steps: Any) -> Any:
    """Order, charge, confirm."""
    ride = steps.step("ride", lambda: create("ride"))
    charged = steps.call("charge", provider.charge)

    def confirm() -> Response:
        Effect.objects.filter(pk=ride["id"]).update(note="paid")
        create("receipt")
        return Response({**ride, **charged, "lines": [{"at": str(uuid4())}]}, 201)

    return steps.step("confirm", confirm)


def plain(request: Request, steps: Any) -> Any:
    """Return a response outside of a step."""
    ride = steps.step("ride", lambda: create("ride"))
    return Response(ride, 201)


def held(request: Request, steps: Any) -> Any:
    steps.step("ride", lambda: create("ride"))
    charged = steps.call("charge", provider.charge_again, on_abandoned="hold")
    return Response(charged, 201)


def found_out(request: Request, steps: Any) -> Any:
    """Charge a provider that takes no keys, but can be asked."""
    before = steps.step("before", charges)
    charged = steps.call(
        "charge",
        provider.charge_again,
        on_abandoned=lambda key, record: (
            {"charge": charges() - 1} if charges() > before else None
        ),
    )
    return steps.step("end", lambda: Response({**create("ride"), **charged}, 201))


def loop(request: Request, steps: Any) -> Any:
    for number in range(3):
        steps.step(f"line-{number}", lambda: create("line"))
    return Response({"lines": 3}, 201)


def declined(request: Request, steps: Any) -> Any:
    """Store a refusal."""
    steps.step("ride", lambda: create("ride"))
    return steps.step("cancel", lambda: Response({"why": "declined"}, 402))


def mailing(request: Request, steps: Any) -> Any:
    def confirm() -> Response:
        transaction.on_commit(lambda: mail.send_mail("s", "b", "a@x.org", ["b@x.org"]))
        return Response(create("receipt"), 201)

    return steps.step("confirm", confirm)


def streaming(request: Request, steps: Any) -> Any:
    steps.step("ride", lambda: create("ride"))
    return StreamingHttpResponse([b"a", b"b"])


def page(request: Request, steps: Any) -> Any:
    """Return HTML, which differs each time."""
    ride = steps.step("ride", lambda: create("ride"))
    return Response(f"ride {ride['id']}", 201, content_type="text/html")


@pytest.mark.parametrize(
    "good",
    [book, plain, held, found_out, loop, declined, mailing, streaming, page],
)
@pytest.mark.parametrize("url", ["/resuming/", "/resuming-function/"])
def test_good_handlers(
    ada: APIClient, good: Handler, url: str, warned: list[Any]
) -> None:
    """E12, E13: A handler in steps and calls passes."""
    handle(good)
    effects = {"charges": charges}
    answer = assert_resumable(ada, "post", url, {}, effects=effects)
    assert answer.status_code in (200, 201, 402)
    assert warned == []


@once
def test_payloads_that_are_taken_once(ada: APIClient) -> None:
    """A function as ``data`` returns another payload for each key."""

    def once(request: Request, steps: Any) -> Any:
        if Effect.objects.filter(name=request.data["name"]).exists():
            return Response({"code": "taken"}, 400)

        def ride() -> dict[str, Any]:
            return {"id": Effect.objects.create(name=request.data["name"]).pk}

        return Response(steps.step("ride", ride), 201)

    handle(once)
    assert "pass data=<a function" in refused(ada, data={"name": "a"})
    sent: list[str] = []

    def data() -> dict[str, str]:
        sent.append(f"ride {next(numbers)}")
        return {"name": sent[-1]}

    message = refused(ada, data=data)
    assert message.startswith(
        "POST /resuming/: ended after the step 'ride', the retry got 400 "
        '{"code":"taken"}, unlike an undisturbed request:\n'
        "    status: 201 undisturbed, 400 by the retry\n"
    )

    def asks_first(request: Request, steps: Any) -> Any:
        if "ride" not in steps.recorded:
            return once(request, steps)
        return Response(steps.step("ride", dict), 201)

    handle(asks_first)
    sent.clear()
    assert_resumable(ada, "post", "/resuming/", data)
    assert len(sent) == len({*sent}) > 10


def test_effects_that_depend_on_earlier_requests(ada: APIClient) -> None:
    """What the first request alone does is not missed later."""

    def first_adds(request: Request, steps: Any) -> Any:
        def order() -> dict[str, Any]:
            _, is_new = Effect.objects.get_or_create(name="customer")
            return {**create("order"), "is_new": is_new}

        order_made = steps.step("order", order)
        orders = Effect.objects.filter(note="order").order_by("pk")
        # The list grows with each request.
        listed = [order_made["id"], *orders.values_list("pk", flat=True)]
        return Response({"orders": listed, "nothing": []}, 201)

    handle(first_adds)
    assert_resumable(ada, "post", "/resuming/", {})


@once
def test_fewer_boundaries(ada: APIClient) -> None:
    """The kit stops where later requests pass fewer boundaries than the first ones."""
    left = iter([7, 7, 7])

    def caching(request: Request, steps: Any) -> Any:
        for _ in range(next(left, 0)):
            Effect.objects.first()
        return Response(steps.step("ride", lambda: create("ride")), 201)

    handle(caching)
    assert_resumable(ada, "post", "/resuming/", {})


@pytest.mark.parametrize("case", [TestCase, TransactionTestCase])
def test_in_djangos_test_cases(case: type[TestCase], ada: APIClient) -> None:
    """The kit works in the transaction of a TestCase as it does without one."""

    class Case(case):  # type: ignore[misc, valid-type]
        def test_endpoints(self) -> None:
            for good in (book, held, found_out, loop):
                handle(good)
                effects = {"charges": charges}
                assert_resumable(ada, "post", "/resuming/", {}, effects=effects)
            for bad in (stray, stray_bulk):
                handle(bad)
                assert re.search(r"app.Effect: \+. by one request", refused(ada))

    run_case(Case)


@pytest.mark.django_db
def test_in_pytest_django(ada: APIClient) -> None:
    """The kit works in pytest-django's own transaction."""
    handle(book)
    assert_resumable(ada, "post", "/resuming/", {}, key_in="query")


@pytest.mark.django_db(transaction=True)
def test_in_pytest_djangos_transactional_tests(ada: APIClient) -> None:
    """The kit works with real commits."""
    handle(book)
    assert_resumable(ada, "post", "/resuming/", {}, key_in="query")


# Handlers that do not


def stray(request: Request, steps: Any) -> Any:
    Effect.objects.create(note="stray")
    return Response(steps.step("ride", lambda: create("ride")), 201)


def stray_bulk(request: Request, steps: Any) -> Any:
    Effect.objects.bulk_create([Effect(), Effect()])
    return Response(steps.step("ride", lambda: create("ride")), 201)


def stray_in_a_call(request: Request, steps: Any) -> Any:
    steps.call("log", lambda key: create("log"))
    return Response({}, 201)


def stray_that_decides(request: Request, steps: Any) -> Any:
    """Skip what an earlier run has begun."""
    _, is_new = Effect.objects.get_or_create(name=str(request.data))
    if is_new:
        steps.step("ride", lambda: create("ride"))
    return Response({}, 201)


def calls_outside(request: Request, steps: Any) -> Any:
    ride = steps.step("ride", lambda: create("ride"))
    provider.charge_again("")
    return steps.step("end", lambda: Response(ride, 201))


def calls_without_the_key(request: Request, steps: Any) -> Any:
    charged = steps.call("charge", provider.charge_again)
    return Response(charged, 201)


def calls_in_a_step(request: Request, steps: Any) -> Any:
    def ride() -> dict[str, Any]:
        provider.charge_again("")
        return create("ride")

    return Response(steps.step("ride", ride), 201)


def finds_out_wrongly(request: Request, steps: Any) -> Any:
    charged = steps.call(
        "charge", provider.charge_again, on_abandoned=lambda key, record: None
    )
    return Response(charged, 201)


def random_name(request: Request, steps: Any) -> Any:
    return Response(steps.step(f"ride-{uuid4()}", lambda: create("ride")), 201)


def another_response(request: Request, steps: Any) -> Any:
    is_new = not steps.recorded
    ride = steps.step("ride", lambda: create("ride"))
    return Response({**ride, "is_new": is_new}, 201)


def another_status(request: Request, steps: Any) -> Any:
    is_new = not steps.recorded
    ride = steps.step("ride", lambda: create("ride"))
    return Response(ride, 201 if is_new else 200)


def another_type(request: Request, steps: Any) -> Any:
    is_new = not steps.recorded
    ride = steps.step("ride", lambda: create("ride"))
    return Response({"ride": ride["id"] if is_new else None}, 201)


def failing_retry(request: Request, steps: Any) -> Any:
    if "ride" in steps.recorded:
        raise ZeroDivisionError("the view's own")
    return Response(steps.step("ride", lambda: create("ride")), 201)


def refused(
    client: APIClient, data: Any = None, url: str = "/resuming/", **arguments: Any
) -> str:
    """Return what the kit says against an endpoint."""
    effects = {"charges": charges}
    with pytest.raises(AssertionError) as caught:
        assert_resumable(client, "post", url, data or {}, effects=effects, **arguments)
    return str(caught.value)


MAKE_STEPS = "what is in no step and no call. Put writes into request.idempotency.step"
USE_RESULTS = "Let the handler decide by results of steps and calls"


@once
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (
            stray,
            (
                r"ended after INSERT app_effect, the retry got 201 \{.*\}. Together",
                r"app.Effect: \+2 by one request, \+3 by both",
                rf"INSERT app_effect outside of a step: {__file__}:\d+",
                MAKE_STEPS,
            ),
        ),
        (
            stray_bulk,
            (
                r"ended before the step 'ride', the retry got 201",
                r"app.Effect: \+3 by one request, \+5 by both",
                MAKE_STEPS,
            ),
        ),
        (
            stray_in_a_call,
            (
                r"ended after INSERT app_effect in the call 'log', the retry got 201",
                r"app.Effect: \+1 by one request, \+2 by both",
                r"INSERT app_effect outside of a step: ",
                MAKE_STEPS,
            ),
        ),
        (
            stray_that_decides,
            (
                r"app.Effect: \+2 by one request, \+1 by both",
                r"INSERT app_effect outside of a step: ",
                USE_RESULTS,
            ),
        ),
        (
            calls_outside,
            (
                r"ended before the step 'end', the retry got 201",
                r"charges: \+1 by one request, \+2 by both",
                "and external calls into request.idempotency.call",
            ),
        ),
        (
            calls_without_the_key,
            (
                r"ended after the call 'charge', with its result unrecorded, the retry",
                r"charges: \+1 by one request, \+2 by both",
                "Pass the key that its function gets to the other side",
            ),
        ),
        (
            finds_out_wrongly,
            (
                r"ended after the call 'charge', with its result unrecorded, the retry",
                r"charges: \+1 by one request, \+2 by both",
                "or to a callable that finds out",
            ),
        ),
        (
            calls_in_a_step,
            (
                r"ended before INSERT app_effect in the step 'ride', the retry got 201",
                r"charges: \+1 by one request, \+2 by both",
                "Move what it does elsewhere to request.idempotency.call",
            ),
        ),
        (
            random_name,
            (
                r"ended after the step 'ride-.*', the retry got 201 \{.*\} and did not",
                r"recorded: 'ride-[0-9a-f-]{36}'",
                r"asked for: 'ride-[0-9a-f-]{36}'",
                "Make the name from the payload",
            ),
        ),
        (
            another_response,
            (
                r"ended after the step 'ride', the retry got 201 .*, unlike an und",
                r"body\['is_new'\]: True undisturbed, False by the retry",
                USE_RESULTS,
            ),
        ),
        (
            another_status,
            (r"status: 201 undisturbed, 200 by the retry", USE_RESULTS),
        ),
        (
            another_type,
            (r"body\['ride'\]: \d+ undisturbed, None by the retry", USE_RESULTS),
        ),
        (
            failing_retry,
            (
                r"ended after the step 'ride', the retry raised ZeroDivisionError\(",
                USE_RESULTS,
            ),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_handlers(ada: APIClient, bad: Handler, said: tuple[str, ...]) -> None:
    """E12 to E16: The message has the boundary, what doubled and what to do."""
    handle(bad)
    message = refused(ada, data=lambda: {"number": next(numbers)})
    assert message.startswith("POST /resuming/: ended ")
    for line in said:
        assert re.search(line, message), message


@once
def test_message_of_the_page(ada: APIClient) -> None:
    """A failure reads as docs/testing.md prints it."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"```text\n(POST /rides/.*?)\n```", page, re.DOTALL)

    def ride(request: Request, steps: Any) -> Any:
        return Response({"id": create("ride")["id"]}, 201)

    handle(ride)
    message = refused(ada)
    for ours, theirs in (
        (r"/resuming/", "/rides/"),
        (r"app\.Effect", "rides.Ride"),
        (r"app_effect", "rides_ride"),
        (r'"id":\d+', '"id":2'),
        (f"{re.escape(__file__)}:\\d+", "/srv/rides/views.py:12"),
    ):
        message = re.sub(ours, theirs, message)
    assert message == printed


@once
def test_what_is_not_the_handlers_reason(ada: APIClient) -> None:
    """Where a call doubled, writes outside of steps are not named."""

    def both(request: Request, steps: Any) -> Any:
        Effect.objects.update_or_create(name="harmless")
        return calls_without_the_key(request, steps)

    handle(both)
    message = refused(ada)
    assert "charges: +1 by one request, +2 by both" in message
    assert "outside of a step" not in message


def test_process_is_dead(ada: APIClient) -> None:
    """Code that goes on after the end executes no statement."""

    def immortal(request: Request, steps: Any) -> Any:
        try:
            steps.step("ride", lambda: create("ride"))
        finally:
            # Doubles unless the process is dead.
            if "ride" not in steps.recorded:
                create("undead")
        return Response({}, 201)

    handle(immortal)
    assert_resumable(ada, "post", "/resuming/", {})
    assert not Effect.objects.filter(note="undead").exists()


@once
def test_other_endpoints(ada: APIClient) -> None:
    """Endpoints that do not resume are for the other assertions."""
    handle(lambda request, steps: Response(create("ride"), 201))
    for url in ("/rerunning/", "/function/", "/unprotected/"):
        assert 'on_abandoned="resume". For all others' in refused(ada, url=url)


@once
def test_nothing_happened(ada: APIClient) -> None:
    """A test that could not have failed does not pass."""
    handle(lambda request, steps: Response({}, 201))
    assert "effects=<a queryset" in refused(ada)
    handle(lambda request, steps: Response({}, 400))
    assert "POST /resuming/ got 400" in refused(ada)


# Warnings


def keyed(client: APIClient, url: str = "/resuming/", key: str | None = KEY) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(url, {}, headers=headers)


def everywhere(request: Request, steps: Any) -> Any:
    """Write outside and inside of a step, and in a call."""
    Effect.objects.create(note="outside")
    ride = steps.step("ride", lambda: create("ride"))
    steps.call("log", lambda key: Effect.objects.filter(note="x").update(note="y"))
    steps.renew()
    Effect.objects.filter(note="x").delete()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return steps.step("end", lambda: Response(ride, 201))


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
@pytest.mark.parametrize("url", ["/resuming/", "/resuming-function/"])
def test_warnings_in_debug_mode(
    ada: APIClient, settings: Any, warned: list[Any], url: str, key: str | None
) -> None:
    """E12: With DEBUG, a write outside of a step is warned about, where it stands."""
    handle(everywhere)
    assert keyed(ada, url, key and f"{key}1").status_code == 201
    assert warned == []
    settings.DEBUG = True
    assert keyed(ada, url, key).status_code == 201
    view = "Resuming" if url == "/resuming/" else "resuming"
    assert [str(each.message) for each in warned] == [
        f"tests.test_resumable.{view} writes outside of a step ({write}), so a run "
        'that resumes writes again. Put it into request.idempotency.step("a name", '
        "function)."
        for write in ("INSERT app_effect", "UPDATE app_effect", "DELETE app_effect")
    ]
    first = everywhere.__code__.co_firstlineno
    assert {each.filename for each in warned} == {__file__}
    assert [each.lineno - first for each in warned] == [2, 4, 6]


@once
def test_warnings_once(ada: APIClient, settings: Any, warned: list[Any]) -> None:
    """Python shows the warning of a line once, unless its filters say otherwise."""
    settings.DEBUG = True
    warnings.simplefilter("default", WriteOutsideStep)
    handle(everywhere)
    for number in range(3):
        keyed(ada, key=f"{KEY}{number}")
    assert len(warned) == 3


@once
def test_warnings_as_errors(ada: APIClient, settings: Any) -> None:
    """A filter can make errors of them; then nothing is written."""
    settings.DEBUG = True
    warnings.simplefilter("error", WriteOutsideStep)
    handle(everywhere)
    with pytest.raises(WriteOutsideStep, match="INSERT app_effect"):
        keyed(ada)
    assert not Effect.objects.exists()


def test_no_warnings(ada: APIClient, settings: Any, warned: list[Any]) -> None:
    """Other endpoints, and what writes before and after the handler, stay alone."""
    settings.DEBUG = True
    settings.MIDDLEWARE = [f"{__name__}.WritingMiddleware"]
    handle(lambda request, steps: Response(create("ride"), 201))
    assert keyed(ada, "/rerunning/").status_code == 201
    handle(book)
    assert keyed(ada, key=f"{KEY}1").status_code == 201
    assert Effect.objects.filter(note="log").count() == 4
    assert warned == []


class WritingMiddleware:
    """Writes before and after the view."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        create("log")
        response = self.get_response(request)
        create("log")
        return response


def test_warnings_of_the_kit(ada: APIClient, warned: list[Any]) -> None:
    """Whatever of the kit sends a request, it warns."""

    def harmless(request: Request, steps: Any) -> Any:
        Effect.objects.filter(note="x").update(note="y")
        return book(request, steps)

    handle(harmless)
    calls: list[Callable[[], Any]] = [
        lambda: assert_idempotent(ada, "post", "/resuming/", {}),
        lambda: assert_race_safe(ada, "post", "/resuming/", {}, duplicates=2),
        lambda: IdempotentClient(HTTP_X_USER="ada").post("/resuming/", {}),
        lambda: assert_resumable(ada, "post", "/resuming/", {}),
    ]
    for call in calls:
        warned.clear()
        call()
        found = {str(each.message).partition(", so")[0] for each in warned}
        assert found == {
            "tests.test_resumable.Resuming writes outside of a step (UPDATE app_effect)"
        }
    assert len(warned) == 1  # each line once, and at the end
    warnings.simplefilter("error", WriteOutsideStep)
    with pytest.raises(WriteOutsideStep, match="UPDATE app_effect"):
        assert_resumable(ada, "post", "/resuming/", {})


@once
@pytest.mark.parametrize(
    ("sql", "write"),
    [
        ('INSERT INTO "a" VALUES (1)', "INSERT a"),
        ("insert ignore into `a` (b) values (1)", "INSERT a"),
        ('UPDATE ONLY "s"."a" SET b = 1', "UPDATE a"),
        ("TRUNCATE TABLE a", "TRUNCATE a"),
        ("SELECT 1 FROM a FOR UPDATE", None),
        ('SAVEPOINT "a"', None),
        (b"INSERT INTO a VALUES (1)", None),
    ],
)
def test_writes_in_statements(sql: Any, write: str | None) -> None:
    """A write is known by its first words."""
    assert write_in(sql) == write
