"""The API. ``IdempotencyMixin`` makes a view safe to retry.

A view with an external call also chooses what a retry does if the call may have
happened: see ``PaymentView``. One that also writes has steps: see ``RideView``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import NotFound
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import ModelViewSet, ReadOnlyModelViewSet

from idempotency.context import RequestContext
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from testproject.school import provider, rides
from testproject.school.models import Assignment, Ride, SchoolClass
from testproject.school.schema import ErrorSerializer
from testproject.school.serializers import (
    AssignmentSerializer,
    PaymentSerializer,
    RideSerializer,
    SchoolClassSerializer,
)


class SchoolClassViewSet(ReadOnlyModelViewSet[SchoolClass]):
    """The classes that the user teaches."""

    queryset = SchoolClass.objects.none()  # for the schema
    serializer_class = SchoolClassSerializer

    def get_queryset(self) -> QuerySet[SchoolClass]:
        """Return the user's own classes."""
        return SchoolClass.objects.filter(teacher=self.request.user.pk).order_by("name")


class AssignmentViewSet(IdempotencyMixin, ModelViewSet[Assignment]):
    """The assignments of a class. Send an idempotency key to create one."""

    queryset = Assignment.objects.none()  # for the schema
    serializer_class = AssignmentSerializer

    def get_queryset(self) -> QuerySet[Assignment]:
        """Return the assignments of one of the user's own classes."""
        return Assignment.objects.filter(school_class=self.get_school_class())

    def perform_create(self, serializer: BaseSerializer[Assignment]) -> None:
        """Save the assignment in the class that the URL names."""
        serializer.save(school_class=self.get_school_class())

    def get_success_headers(self, data: Any) -> dict[str, str]:
        """Return the new assignment's Location."""
        location = reverse("assignment", args=[self.kwargs["class_pk"], data["id"]])
        return {"Location": location}

    def get_school_class(self) -> SchoolClass:
        """Return the class, or raise ``Http404`` for a user who does not teach it."""
        own = SchoolClass.objects.filter(teacher=self.request.user.pk)
        return get_object_or_404(own, pk=self.kwargs["class_pk"])


def ask_provider(record: IdempotencyRecord, request: Request) -> Response | None:
    """Return the response to an abandoned payment, or None if it was never charged."""
    idempotency: RequestContext = request.idempotency  # type: ignore[attr-defined]  # set by the mixin
    charge = provider.find_charge(idempotency.derive("charge"))
    return None if charge is None else payment_response(charge)


class PaymentView(IdempotencyMixin, APIView):
    """Charge a card at the provider, which no rollback can undo."""

    idempotency_required = True
    idempotency_atomic = False
    # Far longer than the provider may take, so that no run loses its claim.
    idempotency_lease = timedelta(seconds=60)
    idempotency_on_abandoned = ask_provider

    @extend_schema(
        request=PaymentSerializer,
        responses={201: PaymentSerializer, 402: ErrorSerializer(many=True)},
    )
    def post(self, request: Request) -> Response:
        """Send the payment to the provider, with the same key in every run."""
        serializer = PaymentSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        idempotency: RequestContext = request.idempotency  # type: ignore[attr-defined]  # set by the mixin
        key = idempotency.derive("charge")
        try:
            charge = provider.charge(serializer.validated_data, key)
        except provider.ProviderUnreachable:
            # This run charged nothing, but an earlier one may have.
            if idempotency.attempt == 1:
                idempotency.release()
            raise
        return payment_response(charge)


def payment_response(charge: provider.Charge) -> Response:
    """Return the response to a charge or a declined one, to be stored in both cases."""
    if charge["status"] == "declined":
        return Response([provider.CARD_DECLINED], status=402, exception=True)
    return Response(PaymentSerializer(charge).data, status=201)


class RideView(IdempotencyMixin, ListAPIView[Ride]):
    """The user's rides. Send an idempotency key to book one."""

    queryset = Ride.objects.none()  # for the schema
    serializer_class = RideSerializer
    idempotency_required = True
    idempotency_atomic = False
    idempotency_lease = timedelta(seconds=60)
    idempotency_on_abandoned = "resume"
    idempotency_completer = "testproject.school.rides.complete"

    def get_queryset(self) -> QuerySet[Ride]:
        """Return the user's own rides."""
        return Ride.objects.filter(teacher=self.request.user.pk)

    @extend_schema(
        responses={201: RideSerializer, 402: ErrorSerializer(many=True)},
    )
    def post(self, request: Request) -> Response:
        """Book a ride in steps, the first of which records the order."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        asked = {**serializer.validated_data, "teacher": request.user.pk}
        idempotency: RequestContext = request.idempotency  # type: ignore[attr-defined]  # set by the mixin
        return rides.book(idempotency, idempotency.step("order", lambda: asked))


class UnknownAddressView(APIView):
    """Respond with 404 in the envelope to unknown URLs, instead of with a page."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Raise ``NotFound`` for every method."""
        super().initial(request, *args, **kwargs)
        raise NotFound
