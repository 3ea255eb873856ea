"""The API. ``IdempotencyMixin`` is all that a view needs to be safe to retry."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import ModelViewSet, ReadOnlyModelViewSet

from idempotency.mixins import IdempotencyMixin
from testproject.school.models import Assignment, SchoolClass
from testproject.school.serializers import AssignmentSerializer, SchoolClassSerializer


class SchoolClassViewSet(ReadOnlyModelViewSet[SchoolClass]):
    """The classes that the user teaches."""

    serializer_class = SchoolClassSerializer

    def get_queryset(self) -> QuerySet[SchoolClass]:
        """Return the user's own classes."""
        return SchoolClass.objects.filter(teacher=self.request.user.pk).order_by("name")


class AssignmentViewSet(IdempotencyMixin, ModelViewSet[Assignment]):
    """The assignments of a class; creating one takes an idempotency key."""

    serializer_class = AssignmentSerializer

    def get_queryset(self) -> QuerySet[Assignment]:
        """Return the assignments of one of the user's own classes."""
        return Assignment.objects.filter(school_class=self.get_school_class())

    def perform_create(self, serializer: BaseSerializer[Assignment]) -> None:
        """Save the assignment into the class that the address names."""
        serializer.save(school_class=self.get_school_class())

    def get_success_headers(self, data: Any) -> dict[str, str]:
        """Return the new assignment's address."""
        location = reverse("assignment", args=[self.kwargs["class_pk"], data["id"]])
        return {"Location": location}

    def get_school_class(self) -> SchoolClass:
        """Return the class, or answer 404 to a user who does not teach it."""
        own = SchoolClass.objects.filter(teacher=self.request.user.pk)
        return get_object_or_404(own, pk=self.kwargs["class_pk"])


class UnknownAddressView(APIView):
    """Answer 404 in the envelope, rather than with a page, where nothing is."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse whatever the method is."""
        super().initial(request, *args, **kwargs)
        raise NotFound
