"""A project's own admins of the records, each with its rules, and their addresses."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.urls import path

from idempotency.admin import IdempotencyRecordAdmin
from idempotency.models import IdempotencyRecord
from tests.urls import urlpatterns as usual_urls

OURS, THEIRS = "user:auth.user:1", "user:auth.user:2"


class TenantAdmin(IdempotencyRecordAdmin):
    """Has one tenant's records."""

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).filter(scope=OURS)


class GuardedAdmin(IdempotencyRecordAdmin):
    """Has all, and lets one tenant's alone be viewed."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        may = super().has_view_permission(request, obj)
        return may and (obj is None or obj.scope == OURS)


class CarefulAdmin(IdempotencyRecordAdmin):
    """Lets all be viewed, and one tenant's alone be read and decided about."""

    def is_ours(self, obj: Any) -> bool:
        return bool(obj.scope == OURS)

    def has_body_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_body_permission(request, obj) and self.is_ours(obj)

    def has_release_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_release_permission(request, obj) and self.is_ours(obj)

    def has_resolve_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_resolve_permission(request, obj) and self.is_ours(obj)


class ClosedAdmin(IdempotencyRecordAdmin):
    """Lets nobody do what is about all records."""

    def has_purge_permission(self, request: HttpRequest) -> bool:
        return False

    def has_overview_permission(self, request: HttpRequest) -> bool:
        return False


ADMINS = (TenantAdmin, GuardedAdmin, CarefulAdmin, ClosedAdmin)


def no_view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
    return HttpResponse()


def site_of(kind: type[IdempotencyRecordAdmin]) -> AdminSite:
    site = AdminSite(kind.__name__)
    site.register(IdempotencyRecord, kind)
    return site


def place_of(kind: type[IdempotencyRecordAdmin]) -> str:
    return f"/{kind.__name__}/idempotency/idempotencyrecord/"


urlpatterns = [
    *usual_urls,
    *[path(f"{kind.__name__}/", site_of(kind).urls) for kind in ADMINS],
    path("reset/<token>/", no_view),
]
