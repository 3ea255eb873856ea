"""Classes and assignments in the admin."""

from __future__ import annotations

from django.contrib import admin

from testproject.school.models import Assignment, SchoolClass

admin.site.register([SchoolClass, Assignment])
