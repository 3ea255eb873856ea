"""Leased views that charge somebody, in a ledger outside the database.

What a handler does is in the request's ``handler``, except in a third party's view, and
its headers say what happens to it on the way. Served by ``tests.support.fault_wsgi``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import transaction
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
)
from django.urls import include, path
from rest_framework.generics import CreateAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import CharField, ModelSerializer
from rest_framework.views import APIView

from idempotency.completing import complete
from idempotency.context import RequestContext, context_of
from idempotency.database import UTCNow
from idempotency.decorators import idempotent
from idempotency.exceptions import ClaimLost
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, RecordChanged
from idempotency.routing import protected
from tests.app.models import Effect
from tests.app.views import with_user
from tests.support.charge_ledger import Charge, Ledger
from tests.support.fault_points import reach
from tests.support.rendezvous import meet
from tests.urls import urlpatterns as usual_urls


def charge(request: Request) -> str:
    """Make the outside call, and return which run has made it."""
    context = context_of(request)
    made = Charge(of=str(context.key), key=context.derive("charge"), run=uuid4().hex)
    charge_in(ledger_of(request), made, request)
    return made.run


def charge_in(ledger: Ledger, made: Charge, request: Request | None) -> None:
    """Charge, and fail on the way if the request says so."""
    fail(request, "before")
    reach("about to charge")
    ledger.add(made)
    reach("charged")
    fail(request, "after")


def ledger_of(request: Request) -> Ledger:
    return Ledger(Path(request.META["HTTP_X_LEDGER"]))


def fail(request: Request | None, when: str) -> None:
    """Fail where the request says so."""
    if request is not None and request.META.get("HTTP_X_FAIL") == when:
        raise RuntimeError(f"failed {when} the charge, as it was told")


def answer(request: Any, status: int, **data: Any) -> HttpResponse:
    """Answer as views of the request's kind do."""
    if isinstance(request, HttpRequest):
        return JsonResponse(data, status=status)
    return Response(data, status)


def plain(request: Request) -> HttpResponse:
    """Charge, and write down that it was done."""
    run = charge(request)
    Effect.objects.create(note=run)
    return answer(request, 201, run=run)


def renewing(request: Request) -> HttpResponse:
    """Extend the lease before each step."""
    request.idempotency.renew()  # type: ignore[attr-defined]
    run = charge(request)
    request.idempotency.renew()  # type: ignore[attr-defined]
    return answer(request, 201, run=run)


def refusing(request: Request) -> HttpResponse:
    """Charge, and then find that something is missing."""
    charge(request)
    raise Http404


def releasing(request: Request) -> HttpResponse:
    """Find out that there is nothing to be had, and give the key back."""
    context: Any = request.idempotency  # type: ignore[attr-defined]
    context.derive("charge")
    context.release()
    return answer(request, 402, declined=True)


def paused(request: Request) -> HttpResponse:
    """Meet the test before charging, where it wants to be met."""
    if place := request.META.get("HTTP_X_MEET"):
        meet(place)
    return answer(request, 201, run=charge(request))


def paused_and_renewing(request: Request) -> HttpResponse:
    """Meet the test, and then make sure of the claim before charging."""
    if place := request.META.get("HTTP_X_MEET"):
        meet(place)
    request.idempotency.renew()  # type: ignore[attr-defined]
    return answer(request, 201, run=charge(request))


@dataclass(frozen=True)
class Booking:
    """A handler in steps: an order, a charge for it, and a receipt."""

    steps: RequestContext
    # What was asked for, as the first step has recorded it for a completer.
    asked: dict[str, Any]
    # None in a completer.
    request: Any = None

    def book(self) -> HttpResponse:
        """Write the order, charge, and write the receipt or that it was declined."""
        steps = self.steps
        self.pass_by("start")
        ordered = steps.step("order", lambda: {**self.asked, **self.write("order")})
        self.pass_by("ordered")
        policy: Any = self.asked["policy"]
        if policy == "ask":
            policy = lambda key, record: self.found_under(key)  # noqa: E731
        charged = steps.call("charge", self.charge, on_abandoned=policy)
        self.pass_by("charged")
        told = {"order": ordered["order"], **charged}
        if "declined" in charged:
            return steps.step("cancel", lambda: self.respond("cancelled", told, 402))
        if self.asked["handler"] != "answering-apart":
            return steps.step("receipt", lambda: self.respond("receipt", told, 201))
        receipt = steps.step("receipt", lambda: self.write("receipt"))
        return self.answer(201, **told, **receipt)

    def write(self, what: str) -> dict[str, Any]:
        """Write a row of the key, and name it."""
        self.pass_by(what)
        return {what: Effect.objects.create(note=f"{what} {self.steps.key}").pk}

    def respond(self, what: str, told: dict[str, Any], status: int) -> HttpResponse:
        """Write a row, and name it and all others."""
        return self.answer(status, **told, **self.write(what))

    def answer(self, status: int, **told: Any) -> HttpResponse:
        """Answer as views of the endpoint's kind do."""
        kind = JsonResponse if self.asked["is_plain"] else Response
        return kind(told, status=status)

    def charge(self, key: str) -> dict[str, Any]:
        """Have the provider charge, which remembers its first answer to each key."""
        self.pass_by("charge")
        if self.asked["handler"] == "declined":
            reach("about to be declined")
            return {"declined": True}
        ledger, run = Ledger(Path(self.asked["ledger"])), uuid4().hex
        charge_in(
            ledger, Charge(of=str(self.steps.key), key=key, run=run), self.request
        )
        return self.found_under(key) or {}

    def found_under(self, key: str) -> dict[str, Any] | None:
        """Return what the provider remembers of a key."""
        charges = Ledger(Path(self.asked["ledger"])).charges()
        return next(({"run": made.run} for made in charges if made.key == key), None)

    def pass_by(self, place: str) -> None:
        """Let the lease be over, or meet the test, where the request says so."""
        headers = {} if self.request is None else self.request.META
        if headers.get("HTTP_X_OVERDUE_AT") == place:
            mine = IdempotencyRecord.objects.filter(key=self.steps.key)
            mine.update(lease_expires_at=UTCNow() - timedelta(seconds=1))
        if headers.get("HTTP_X_MEET_AT") == place:
            meet(headers["HTTP_X_MEET"])


def in_steps(request: Any, handler: str = "in-steps") -> HttpResponse:
    """Book what is asked for."""
    asked = {
        "handler": handler,
        "policy": request.resolver_match.kwargs["policy"],
        "ledger": request.META["HTTP_X_LEDGER"],
        "is_plain": isinstance(request, HttpRequest),
    }
    return Booking(context_of(request), asked, request).book()


def complete_booking(steps: RequestContext) -> HttpResponse:
    """Finish a booking whose client does not come back."""
    return Booking(steps, steps.recorded["order"]).book()


@transaction.non_atomic_requests
def complete_now(request: HttpRequest) -> HttpResponseBase:
    """Finish the booking of a key, as the task for abandoned records does."""
    key = request.META["HTTP_IDEMPOTENCY_KEY"]
    try:
        return complete(IdempotencyRecord.objects.get(key=key))
    except (RecordChanged, ClaimLost):
        return HttpResponse(status=409)


HANDLERS: dict[str, Callable[[Any], HttpResponse]] = {
    "plain": plain,
    "renewing": renewing,
    "refusing": refusing,
    "releasing": releasing,
    "paused": paused,
    "paused-and-renewing": paused_and_renewing,
    "in-steps": in_steps,
    "declined": partial(in_steps, handler="declined"),
    "answering-apart": partial(in_steps, handler="answering-apart"),
}


# Only what a test does to it ends a lease.
LEASE = timedelta(hours=1)


class Hold(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned: Any = "hold"
    idempotency_lease = LEASE

    def post(self, request: Request, policy: str = "") -> HttpResponse:
        return HANDLERS[request.data["handler"]](request)


class Rerun(Hold):
    idempotency_on_abandoned = "rerun"


def find_out(record: IdempotencyRecord, request: Any) -> HttpResponse | None:
    """Answer with the charge under the derived key, if there is one."""
    key = request.idempotency.derive("charge")
    for found in ledger_of(request).charges():
        if found.key == key:
            return answer(request, 201, run=found.run, found=True)
    return None


class Ask(Hold):
    idempotency_on_abandoned = find_out


COMPLETER = f"{__name__}.complete_booking"


class Resume(Hold):
    idempotency_on_abandoned = "resume"
    idempotency_completer = COMPLETER


class Wait(Hold):
    idempotency_on_concurrent = "wait"
    idempotency_wait_timeout = timedelta(hours=1)


def django_view(**options: Any) -> Any:
    """Return a leased function that takes Django's own request."""

    @transaction.non_atomic_requests
    @with_user
    @idempotent(**options)
    def view(request: HttpRequest, policy: str = "") -> HttpResponse:
        return HANDLERS[json.loads(request.body)["handler"]](request)

    return view


class ChargeSerializer(ModelSerializer[Effect]):
    """What a view of Django REST framework's own, with nothing of ours, charges by."""

    run = CharField(source="note", read_only=True)

    class Meta:
        model = Effect
        fields = ("run",)

    def create(self, validated_data: dict[str, Any]) -> Effect:
        """Charge, and write down that it was done."""
        return Effect.objects.create(note=charge(self.context["request"]))


def views_of_each_kind(name: str, on_abandoned: Any) -> list[Any]:
    """Return a plain view, and a third party's, under one policy."""
    options = {"atomic": False, "lease": LEASE, "on_abandoned": on_abandoned}
    create = CreateAPIView.as_view(serializer_class=ChargeSerializer)
    return [
        path(f"django/{name}/", django_view(**options)),
        path("third-party/", include(protected([path(f"{name}/", create)], **options))),
    ]


urlpatterns = [
    path("hold/", Hold.as_view()),
    path("rerun/", Rerun.as_view()),
    path("ask/", Ask.as_view()),
    path("wait/", Wait.as_view()),
    path("steps/<policy>/", Resume.as_view()),
    path(
        "django/steps/<policy>/",
        django_view(
            atomic=False, lease=LEASE, on_abandoned="resume", completer=COMPLETER
        ),
    ),
    path("complete/", complete_now),
    *views_of_each_kind("hold", "hold"),
    *views_of_each_kind("rerun", "rerun"),
    *views_of_each_kind("ask", find_out),
    *usual_urls,
]
