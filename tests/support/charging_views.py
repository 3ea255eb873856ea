"""Leased views that charge somebody, in a ledger outside the database.

What a handler does is in the request's ``handler``, and its headers say what happens
to it on the way. Served by ``tests.support.fault_wsgi``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.http import Http404
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.support.charge_ledger import Charge, Ledger
from tests.support.fault_points import reach
from tests.support.rendezvous import meet
from tests.urls import urlpatterns as usual_urls


def charge(request: Request) -> str:
    """Make the outside call, and return which run has made it."""
    context: Any = request.idempotency  # type: ignore[attr-defined]
    made = Charge(of=context.key, key=context.derive("charge"), run=uuid4().hex)
    fail(request, "before")
    reach("about to charge")
    ledger_of(request).add(made)
    reach("charged")
    fail(request, "after")
    return made.run


def ledger_of(request: Request) -> Ledger:
    return Ledger(Path(request.META["HTTP_X_LEDGER"]))


def fail(request: Request, when: str) -> None:
    """Fail where the request says so."""
    if request.META.get("HTTP_X_FAIL") == when:
        raise RuntimeError(f"failed {when} the charge, as it was told")


def plain(request: Request) -> Response:
    """Charge, and write down that it was done."""
    run = charge(request)
    Effect.objects.create(note=run)
    return Response({"run": run}, 201)


def renewing(request: Request) -> Response:
    """Extend the lease before each step."""
    request.idempotency.renew()  # type: ignore[attr-defined]
    run = charge(request)
    request.idempotency.renew()  # type: ignore[attr-defined]
    return Response({"run": run}, 201)


def refusing(request: Request) -> Response:
    """Charge, and then find that something is missing."""
    charge(request)
    raise Http404


def releasing(request: Request) -> Response:
    """Find out that there is nothing to be had, and give the key back."""
    context: Any = request.idempotency  # type: ignore[attr-defined]
    context.derive("charge")
    context.release()
    return Response({"declined": True}, 402)


def paused(request: Request) -> Response:
    """Meet the test before charging, where it wants to be met."""
    if place := request.META.get("HTTP_X_MEET"):
        meet(place)
    return Response({"run": charge(request)}, 201)


def paused_and_renewing(request: Request) -> Response:
    """Meet the test, and then make sure of the claim before charging."""
    if place := request.META.get("HTTP_X_MEET"):
        meet(place)
    request.idempotency.renew()  # type: ignore[attr-defined]
    return Response({"run": charge(request)}, 201)


HANDLERS: dict[str, Callable[[Request], Response]] = {
    "plain": plain,
    "renewing": renewing,
    "refusing": refusing,
    "releasing": releasing,
    "paused": paused,
    "paused-and-renewing": paused_and_renewing,
}


class Hold(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned: Any = "hold"
    # Only what a test does to it ends a lease.
    idempotency_lease = timedelta(hours=1)

    def post(self, request: Request) -> Response:
        return HANDLERS[request.data["handler"]](request)


class Rerun(Hold):
    idempotency_on_abandoned = "rerun"


def find_out(record: IdempotencyRecord, request: Request) -> Response | None:
    """Answer with the charge under the derived key, if there is one."""
    key = request.idempotency.derive("charge")  # type: ignore[attr-defined]
    for found in ledger_of(request).charges():
        if found.key == key:
            return Response({"run": found.run, "found": True}, 201)
    return None


class Ask(Hold):
    idempotency_on_abandoned = find_out


class Wait(Hold):
    idempotency_on_concurrent = "wait"
    idempotency_wait_timeout = timedelta(hours=1)


urlpatterns = [
    path("hold/", Hold.as_view()),
    path("rerun/", Rerun.as_view()),
    path("ask/", Ask.as_view()),
    path("wait/", Wait.as_view()),
    *usual_urls,
]
