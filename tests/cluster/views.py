"""A handler in each mode. Each tells an outside ledger that it runs."""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db import transaction
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.context import context_of
from idempotency.decorators import idempotent
from tests.app.models import Effect
from tests.soak.views import ORDER, handler500
from tests.support.charge_ledger import Charge, Ledger

__all__ = ["handler500"]

# Far above what a busy machine or a failover takes.
LEASE = timedelta(seconds=20)
# The books of an outside provider, which no node's end takes back.
CHARGES = Ledger(Path(os.environ.get("CLUSTER_CHARGES", "charges")))
LEASED: dict[str, Any] = {"atomic": False, "lease": LEASE}


class GaveUp(Exception):
    """A handler that was told to leave its key abandoned."""


def charge(note: str, key: str) -> dict[str, Any]:
    """Act outside."""
    run = secrets.token_hex(8)
    CHARGES.add(Charge(of=note, key=key, run=run))
    return {"run": run}


def act(request: Request) -> Response:
    """Charge, write one row, and answer differently each time that it runs."""
    note, seconds = request.data["note"], request.data["seconds"]
    charged = charge(note, context_of(request).derive("charge"))
    # In autocommit, a node of Galera that repeats the INSERT by itself tells Django the
    # primary key of its first try.
    with transaction.atomic():
        effect = Effect.objects.create(note=note)
    time.sleep(seconds)
    return Response({**charged, "note": note, "effect": effect.pk}, status=201)


def book(steps: Any, note: str, seconds: float, *, gives_up: bool = False) -> Any:
    """Order, charge and write the receipt, each once."""

    def order() -> dict[str, Any]:
        name = ORDER.format(secrets.token_hex(8))
        return {"order": Effect.objects.create(name=name, note=note).pk}

    ordered = steps.step("order", order)
    if gives_up:
        raise GaveUp
    charged = steps.call("charge", lambda key: charge(note, key))
    time.sleep(seconds)

    def receipt() -> Response:
        effect = Effect.objects.create(note=note)
        told = {**ordered, **charged, "note": note, "effect": effect.pk}
        return Response(told, status=201)

    return steps.step("receipt", receipt)


def finish(steps: Any) -> Any:
    """Complete a booking whose client does not come back."""
    return book(steps, steps.recorded["asked"]["note"], 0)


@api_view(["POST"])
@idempotent
def atomic(request: Request) -> Any:
    return act(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(**LEASED, on_abandoned="hold")
def hold(request: Request) -> Any:
    return act(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(**LEASED, on_abandoned="rerun")
def rerun(request: Request) -> Any:
    return act(request)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(**LEASED, on_abandoned="resume", completer=finish)
def resume(request: Request) -> Any:
    steps = context_of(request)
    asked = steps.step("asked", lambda: {"note": request.data["note"]})
    return book(
        steps,
        asked["note"],
        request.data["seconds"],
        gives_up="HTTP_X_GIVE_UP" in request.META,
    )


urlpatterns = [
    path("atomic/", atomic),
    path("hold/", hold),
    path("rerun/", rerun),
    path("resume/", resume),
]
