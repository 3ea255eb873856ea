"""``classes``, ``classes/<uuid>/assignments`` and ``payments``, no trailing slashes."""

from __future__ import annotations

from django.urls import path

from testproject.school.views import (
    AssignmentViewSet,
    PaymentView,
    SchoolClassViewSet,
    UnknownAddressView,
)

urlpatterns = [
    path("classes", SchoolClassViewSet.as_view({"get": "list"})),
    path("classes/<uuid:pk>", SchoolClassViewSet.as_view({"get": "retrieve"})),
    path(
        "classes/<uuid:class_pk>/assignments",
        AssignmentViewSet.as_view({"get": "list", "post": "create"}),
        name="assignments",
    ),
    path(
        "classes/<uuid:class_pk>/assignments/<uuid:pk>",
        AssignmentViewSet.as_view(
            {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}
        ),
        name="assignment",
    ),
    path("payments", PaymentView.as_view(), name="payments"),
    path("<path:unknown>", UnknownAddressView.as_view()),
]
