"""Classes, their assignments, and rides."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models


class SchoolClass(models.Model):
    """A class and the user who teaches it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=200)
    teacher = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="classes"
    )

    class Meta:
        verbose_name_plural = "classes"

    def __str__(self) -> str:
        return self.name


class Assignment(models.Model):
    """A task for a class."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    school_class = models.ForeignKey(
        SchoolClass, on_delete=models.CASCADE, related_name="assignments"
    )
    title = models.CharField(max_length=200)
    due_date = models.DateField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("created_at", "id")

    def __str__(self) -> str:
        return self.title


class Ride(models.Model):
    """A bus ride that a teacher has booked."""

    class Status(models.TextChoices):
        """How far the booking is."""

        BOOKED = "booked"
        PAID = "paid"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    teacher = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="rides"
    )
    destination = models.CharField(max_length=100)
    amount = models.DecimalField(max_digits=8, decimal_places=2)
    currency = models.CharField(max_length=3)
    status = models.CharField(
        max_length=9, choices=Status.choices, default=Status.BOOKED
    )
    # The provider's id of the charge.
    charge = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("created_at", "id")

    def __str__(self) -> str:
        return self.destination
