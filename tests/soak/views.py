"""Handlers that do what the payload says, protected in several ways."""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from rest_framework import views
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.context import context_of
from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from tests.app.models import Effect
from tests.support.charge_ledger import Charge, Ledger

ON_PURPOSE = "on_purpose"
SHARED = "shared-{}"
# Where handlers that contend leave a file each, to find each other by.
MEETINGS = Path(os.environ.get("SOAK_MEETINGS", "."))
# The books of an outside provider, which no crash takes back.
CHARGES = Ledger(MEETINGS / "charges")
ORDER = "order {}"
# Short, so that some handlers are late.
LEASE = timedelta(seconds=1)
# A partner whose worker was killed never comes.
MEETING_PATIENCE = 2


class OnPurpose(Exception):
    """A handler that was told to fail."""


def act(request: Request) -> Any:
    """Act once, and answer differently each time that it runs."""
    wanted = request.data
    what = wanted["do"]
    is_calm = "HTTP_X_CALM" in request.META
    if what == "raise":
        raise ValidationError("refused", code=ON_PURPOSE)
    if what == "contend":
        contend(wanted, is_calm=is_calm)
    note = f"{wanted['label']} {wanted['number']}"
    effect = Effect.objects.create(note=note)
    if what == "refuse":
        # Its row is a counter of failed attempts, which stays (O2).
        return Response({"code": ON_PURPOSE}, status=400)
    time.sleep(wanted["seconds"])
    if not is_calm:
        if what == "fail" or (what == "flaky" and random.random() < 0.3):
            raise OnPurpose
        if what == "flaky" and random.random() < 0.3:
            return Response({"code": ON_PURPOSE}, status=500)
    answer = {"effect": effect.pk, "note": note, "token": secrets.token_hex(8)}
    if what == "stream":
        return StreamingHttpResponse([str(effect.pk), " ", note], status=201)
    return Response(answer, status=201, headers={"Location": f"/effect/{effect.pk}/"})


def book(request: Request) -> Any:
    """Order, charge and write the receipt, in steps; its effect is the receipt."""
    wanted, parts = request.data, context_of(request)
    is_calm = "HTTP_X_CALM" in request.META
    note = f"{wanted['label']} {wanted['number']}"

    def order() -> dict[str, Any]:
        name = ORDER.format(secrets.token_hex(8))
        return {"order": Effect.objects.create(name=name, note=note).pk}

    def charge(key: str) -> dict[str, Any]:
        run = secrets.token_hex(8)
        CHARGES.add(Charge(of=wanted["label"], key=key, run=run))
        return {"run": run}

    def receipt() -> Response:
        effect = Effect.objects.create(note=note)
        told = {**ordered, **charged, "effect": effect.pk, "note": note}
        return Response(told, status=201, headers={"Location": f"/effect/{effect.pk}/"})

    ordered = parts.step("order", order)
    if not is_calm:
        time.sleep(wanted["seconds"])
    charged = parts.call("charge", charge)
    if not is_calm and random.random() < 0.3:
        raise OnPurpose
    return parts.step("receipt", receipt)


def contend(wanted: dict[str, Any], *, is_calm: bool) -> None:
    """Lock shared rows, in an order that may well be another request's backwards.

    With a partner, whose order surely is, it waits until both have their first row.
    """
    first, second = wanted["rows"]
    lock(first)
    if not is_calm and connection.features.has_select_for_update:
        let_others_come(wanted["label"], wanted.get("partner"))
    lock(second)


def lock(row: int) -> None:
    Effect.objects.select_for_update().get(name=SHARED.format(row))


def let_others_come(own: str, partner: str | None) -> None:
    """Wait for the partner to come this far, if it ever does, or else for anybody."""
    if partner is None:
        time.sleep(0.02)
        return
    (MEETINGS / own).touch()
    give_up_at = time.monotonic() + MEETING_PATIENCE
    while not (MEETINGS / partner).exists() and time.monotonic() < give_up_at:
        time.sleep(0.005)


@api_view(["GET", "POST"])
@idempotent
def function(request: Request) -> Any:
    if request.method == "GET":
        return Response({"effects": Effect.objects.filter(name=None)[:10].count()})
    return act(request)


@api_view(["POST"])
@idempotent(on_concurrent="wait", wait_timeout=timedelta(seconds=1))
def waiting(request: Request) -> Any:
    return act(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, lease=LEASE, on_abandoned="resume")
def steps(request: Request) -> Any:
    return book(request)


class MethodView(APIView):
    @idempotent(required=True)
    def post(self, request: Request) -> Any:
        return act(request)


class MixinView(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        return act(request)


def exception_handler(error: Exception, context: dict[str, Any]) -> Any:
    """Answer with the code, as the README shows it, and tell the ledger the cause."""
    response = views.exception_handler(error, context)
    if response is not None and hasattr(error, "get_codes"):
        response.data = {"code": error.get_codes(), "detail": error.detail}
        if error.__cause__ is not None:
            response.data["cause"] = str(error.__cause__)[:300]
    return response


def handler500(request: HttpRequest) -> HttpResponse:
    """Tell the ledger what it was."""
    kind, error, _traceback = sys.exc_info()
    name = kind.__name__ if kind else ""
    bases = [base.__name__ for base in kind.__mro__] if kind else []
    told = {"error": name, "bases": bases, "detail": str(error)[:300]}
    return JsonResponse(told, status=500)


urlpatterns = [
    path("function/", function),
    path("waiting/", waiting),
    path("method/", MethodView.as_view()),
    path("mixin/", MixinView.as_view()),
    path("steps/", steps),
]
