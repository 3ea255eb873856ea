"""What a class and an assignment look like on the wire."""

from __future__ import annotations

from rest_framework import serializers

from testproject.school.models import Assignment, SchoolClass


class SchoolClassSerializer(serializers.ModelSerializer[SchoolClass]):
    """A class."""

    class Meta:
        model = SchoolClass
        fields = ("id", "name")


class AssignmentSerializer(serializers.ModelSerializer[Assignment]):
    """An assignment; its class is in the address."""

    class Meta:
        model = Assignment
        fields = ("id", "title", "due_date", "created_at")
