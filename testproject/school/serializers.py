"""Serializers for classes, assignments, payments and rides."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rest_framework import serializers

from testproject.school.models import Assignment, Ride, SchoolClass


class SchoolClassSerializer(serializers.ModelSerializer[SchoolClass]):
    """A class."""

    class Meta:
        model = SchoolClass
        fields = ("id", "name")


class AssignmentSerializer(serializers.ModelSerializer[Assignment]):
    """An assignment; its class is in the URL."""

    class Meta:
        model = Assignment
        fields = ("id", "title", "due_date", "created_at")


class PaymentSerializer(serializers.Serializer[Any]):
    """A payment; ``card`` is the provider's token for a card."""

    id = serializers.CharField(read_only=True)
    amount = serializers.DecimalField(
        max_digits=8, decimal_places=2, min_value=Decimal("0.01")
    )
    currency = serializers.ChoiceField(choices=("EUR", "USD"))
    card = serializers.CharField(max_length=100, write_only=True)
    reference = serializers.CharField(max_length=100)


class RideSerializer(serializers.ModelSerializer[Ride]):
    """A ride, and how it is paid."""

    amount = serializers.DecimalField(
        max_digits=8, decimal_places=2, min_value=Decimal("0.01")
    )
    currency = serializers.ChoiceField(choices=("EUR", "USD"))
    card = serializers.CharField(max_length=100, write_only=True)

    class Meta:
        model = Ride
        fields = ("id", "destination", "amount", "currency", "card", "status")
        read_only_fields = ("status",)
