"""The school app's configuration."""

from __future__ import annotations

from django.apps import AppConfig


class SchoolConfig(AppConfig):
    """Classes and their assignments."""

    name = "testproject.school"
    label = "school"
