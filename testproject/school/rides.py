"""Book a ride in steps: a retry, or a completer, continues where a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework.response import Response

from idempotency.context import RequestContext
from testproject.school import provider
from testproject.school.models import Ride


def book(idempotency: RequestContext, order: Mapping[str, Any]) -> Response:
    """Create the ride, charge the card, and confirm."""

    def create() -> str:
        ride = Ride.objects.create(
            teacher_id=order["teacher"],
            destination=order["destination"],
            amount=order["amount"],
            currency=order["currency"],
        )
        return str(ride.pk)

    def charge(key: str) -> provider.Charge:
        payment = {name: order[name] for name in ("amount", "currency", "card")}
        return provider.charge({**payment, "reference": order["destination"]}, key)

    def close(status: Ride.Status) -> None:
        ride = Ride.objects.get(pk=ride_id)
        ride.status, ride.charge = status, charged["id"]
        ride.save(update_fields=["status", "charge"])

    def confirm() -> Response:
        close(Ride.Status.PAID)
        receipt = {name: order[name] for name in ("destination", "amount", "currency")}
        return Response({"id": ride_id, **receipt, "status": "paid"}, status=201)

    def cancel() -> Response:
        close(Ride.Status.CANCELLED)
        return Response([provider.CARD_DECLINED], status=402, exception=True)

    ride_id = idempotency.step("ride", create)
    charged = idempotency.call("charge", charge)
    if charged["status"] == "declined":
        return idempotency.step("cancel", cancel)
    return idempotency.step("receipt", confirm)


def complete(idempotency: RequestContext) -> Response:
    """Finish a booking whose client does not return."""
    return book(idempotency, idempotency.recorded["order"])
