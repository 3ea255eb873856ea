"""Leased views that charge somebody, in a ledger outside the database.

What a handler does is in the request's ``handler``, except in a third party's view, and
its headers say what happens to it on the way. Served by ``tests.support.fault_wsgi``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from rest_framework.generics import CreateAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import CharField, ModelSerializer
from rest_framework.views import APIView

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.routing import protected
from tests.app.models import Effect
from tests.app.views import with_user
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


HANDLERS: dict[str, Callable[[Any], HttpResponse]] = {
    "plain": plain,
    "renewing": renewing,
    "refusing": refusing,
    "releasing": releasing,
    "paused": paused,
    "paused-and-renewing": paused_and_renewing,
}


# Only what a test does to it ends a lease.
LEASE = timedelta(hours=1)


class Hold(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned: Any = "hold"
    idempotency_lease = LEASE

    def post(self, request: Request) -> HttpResponse:
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


class Wait(Hold):
    idempotency_on_concurrent = "wait"
    idempotency_wait_timeout = timedelta(hours=1)


def django_view(**options: Any) -> Any:
    """Return a leased function that takes Django's own request."""

    @transaction.non_atomic_requests
    @with_user
    @idempotent(**options)
    def view(request: HttpRequest) -> HttpResponse:
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
    *views_of_each_kind("hold", "hold"),
    *views_of_each_kind("rerun", "rerun"),
    *views_of_each_kind("ask", find_out),
    *usual_urls,
]
