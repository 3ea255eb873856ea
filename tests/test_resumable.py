"""The test kit for steps: handlers that resume pass, and only those."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any
from unittest.mock import patch
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
from idempotency.models import IdempotencyRecord, State
from idempotency.testing import (
    IdempotentClient,
    assert_idempotent,
    assert_race_safe,
    assert_resumable,
)
from tests.app.models import Effect
from tests.conftest import KEY, key
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
def fresh() -> Iterator[None]:
    global provider  # noqa: PLW0603  # of the handlers
    provider = Provider()
    yield


@pytest.fixture
def ada() -> APIClient:
    """Return a client as most tests have it: the view's errors are raised."""
    client = APIClient()
    client.credentials(HTTP_X_USER="ada")
    return client


@pytest.fixture(autouse=True)
def warned() -> Iterator[list[str]]:
    """Note the warnings about writes outside of steps."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("error")
        warnings.simplefilter("always", WriteOutsideStep)
        said: list[str] = []
        yield said
        said += [str(each.message) for each in found]


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
def test_good_handlers(ada: APIClient, good: Handler, url: str) -> None:
    """E12, E13: A handler in steps and calls passes."""
    handle(good)
    effects = {"charges": charges}
    answer = assert_resumable(ada, "post", url, {}, effects=effects)
    assert answer.status_code in (200, 201, 402)


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
    assert "ended after the step 'ride', the retry got 400" in message

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
            handle(stray)
            assert "app.Effect: +2 by one request, +3 by both" in refused(ada)
            handle(stray_bulk)
            assert "app.Effect: +3 by one request" in refused(ada)

    run_case(Case)


@pytest.mark.django_db
def test_in_pytest_django(ada: APIClient) -> None:
    """The kit works in pytest-django's own transaction."""
    handle(book)
    assert_resumable(ada, "post", "/resuming/", {}, key_in="query")


@pytest.mark.django_db(transaction=True)
def test_in_pytest_djangos_transactional_tests(ada: APIClient) -> None:
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


@pytest.mark.parametrize("bad", [stray, stray_bulk, stray_in_a_call, stray_that_decides, calls_outside, calls_without_the_key, calls_in_a_step, finds_out_wrongly, random_name, another_response, another_status, another_type, failing_retry])
def test_show(ada: APIClient, bad: Handler) -> None:
    handle(bad)
    print(refused(ada, data=(lambda: {"n": next(numbers)})))
