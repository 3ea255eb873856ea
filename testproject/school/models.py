"""Classes and their assignments."""

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
