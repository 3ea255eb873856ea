"""A user's module under the strictest rules of type checkers."""

from __future__ import annotations

from datetime import timedelta

from django.http import HttpResponseBase
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from typing_extensions import assert_type

from idempotency.context import RequestContext, context_of
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.purging import PurgeReport
from idempotency.schedules import BEAT_SCHEDULE
from idempotency.signals import ResponseStored, response_stored


def whose(request: Request) -> str:
    return "everybody"


def find_out(record: IdempotencyRecord, request: Request) -> Response | None:
    return None


@idempotent
def bare(request: Request, number: int) -> Response:
    context = context_of(request)
    assert_type(context, RequestContext)
    return Response({"key": context.derive("charge")})


@idempotent(
    required=True,
    methods=("POST", "PATCH"),
    retention=timedelta(days=1),
    using="default",
    scope=whose,
    released_statuses=range(400, 500),
    on_concurrent="wait",
    wait_timeout=timedelta(seconds=2),
    atomic=False,
    lease=timedelta(minutes=1),
    on_abandoned=find_out,
)
def with_options(request: Request, number: int) -> Response:
    return Response()


@api_view(["POST"])
@idempotency_exempt
def left_alone(request: Request) -> Response:
    return Response()


class Orders(IdempotencyMixin, APIView):
    idempotency_required = True
    idempotency_retention = timedelta(days=1)
    idempotency_scope = whose

    def post(self, request: Request) -> Response:
        return Response()

    def get_idempotency_scope(self, request: Request) -> str:
        return super().get_idempotency_scope(request)

    def should_store_response(self, response: HttpResponseBase) -> bool:
        return response.status_code != 418

    def check_replay(self, request: Request, record: IdempotencyRecord) -> None:
        self.check_object_permissions(request, record)


def charged(key: str) -> dict[str, str]:
    return {"charge": key}


def find_charge(key: str, record: IdempotencyRecord) -> dict[str, str] | None:
    return None


def ended() -> Response | dict[str, int]:
    return Response()


@idempotent(atomic=False, on_abandoned="resume")
def resuming(request: Request) -> Response:
    steps = context_of(request)
    ride = steps.step("ride", lambda: {"id": 1, "amount": 5})
    assert_type(ride, dict[str, int])
    assert_type(ride["amount"], int)
    assert_type(steps.step("nothing", lambda: None), None)
    assert_type(steps.step("ended", ended), "Response | dict[str, int]")
    assert_type(steps.call("charge", charged), dict[str, str])
    assert_type(steps.call("held", charged, on_abandoned="hold"), dict[str, str])
    assert_type(steps.call("found", charged, find_charge), dict[str, str])
    return steps.step("end", Response)


class Methods(APIView):
    @idempotent(on_concurrent="refuse")
    def post(self, request: Request) -> Response:
        return Response()


def stored(sender: type[APIView], details: ResponseStored, **kwargs: object) -> None:
    assert_type(details.attempt, "int | None")


def use(request: Request) -> None:
    assert_type(bare(request, 1), Response)
    assert_type(with_options(request, number=1), Response)
    response_stored.connect(stored)
    path("orders", Orders.as_view())
    records = IdempotencyRecord.objects
    assert_type(records.purge(older_than=timedelta(days=1)), PurgeReport)
    assert_type(records.using("other").filter(scope="a").purge().deleted, int)
    for record in records.expired():
        assert_type(record, IdempotencyRecord)
    assert_type(records.abandoned().first(), "IdempotencyRecord | None")
    assert_type(records.get(key="a"), IdempotencyRecord)
    assert BEAT_SCHEDULE
