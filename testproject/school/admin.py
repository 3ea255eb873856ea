"""Classes, assignments and rides in the admin."""

from __future__ import annotations

from django.contrib import admin

from testproject.school.models import Assignment, Ride, SchoolClass

admin.site.register([SchoolClass, Assignment, Ride])
