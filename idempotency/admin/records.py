"""The read-only admin of records (contract A1 to A3)."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.utils import flatten, flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.db import models
from django.http import HttpRequest
from django.urls import URLPattern
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from idempotency.admin import lists
from idempotency.admin.columns import Columns, results_of
from idempotency.admin.erasing import ErasePage
from idempotency.admin.pages import Pages
from idempotency.admin.purge import PurgePage
from idempotency.admin.search import Search
from idempotency.discretion import discreet_page
from idempotency.keys import ESCAPED, QUOTED
from idempotency.models import IdempotencyRecord, record_id

# Replacements of fields whose text Django would show as it is.
FOR_ALL = {"scope": "scope_link", "path": "asked", "headers": "stored_headers"}
# Replacements of fields for users who may not view responses; None removes a field.
FOR_OTHERS = {
    "asked": "request_line",
    "path": "request_line",
    "fingerprint": None,
    "headers": None,
    "stored_headers": None,
    "body": "hidden_answer",
    "answer": "hidden_answer",
    "steps": None,
    "step_results": None,
}


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(Columns, Pages, Search, PurgePage, ErasePage):
    """Read-only admin; responses and decisions need permissions of their own."""

    list_display = (
        "listed_key",
        "listed_state",
        "listed_request",
        "listed_answer",
        "listed_times",
    )
    list_display_links = None  # the first column has its own links
    list_filter = lists.FILTERS
    sortable_by = ()
    search_fields = ("key",)
    search_help_text = format_lazy(
        _(
            "Search for a whole idempotency key, or scope and key with a space between "
            "them; for a caller by name, primary key or scope; for an endpoint by "
            "method, route, path or view. Without a search, the list shows the "
            "{number} records that expire last."
        ),
        number=lists.LISTED,
    )
    list_per_page = 50
    paginator = lists.LastRecords
    # Both would count the whole table.
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    fieldsets: ClassVar[Any] = (
        (None, {"fields": ("next_request", "key", "scope_link", "state_badge")}),
        (_("Request"), {"fields": ("asked", "endpoint", "attempt", "fingerprint")}),
        (_("Response"), {"fields": ("status_code", "stored_headers", "answer")}),
        (_("Times"), {"fields": ("time_line", "step_results")}),
    )

    class Media:
        """Styles for both themes; no script."""

        css: ClassVar[Any] = {"all": ("idempotency/admin.css",)}

    def get_urls(self) -> list[URLPattern]:
        """Keep records out of error reports, on Django's own pages as well (X1)."""
        patterns = super().get_urls()
        for pattern in patterns:
            if isinstance(pattern, URLPattern):
                pattern.callback = discreet_page(pattern.callback)
        return patterns

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list that uses the indexes."""
        return lists.RecordList

    def lookup_allowed(
        self, lookup: str, value: str, request: HttpRequest | None = None
    ) -> bool:
        """Allow the filters only: other lookups could read bodies or scan the table."""
        return lookup in {spec.parameter_name for spec in lists.FILTERS}

    def get_search_results(
        self,
        request: HttpRequest,
        queryset: models.QuerySet[IdempotencyRecord],
        search_term: str,
    ) -> tuple[models.QuerySet[IdempotencyRecord], bool]:
        """Find a whole key, bare or quoted (K2), or a scope and a key."""
        term = search_term.strip()
        if not term:
            return queryset, False
        *scope, key = term.rsplit(maxsplit=1)
        keys = {key}
        if QUOTED.fullmatch(key):
            keys.add(ESCAPED.sub(r"\1", key[1:-1]))
        if scope:
            return queryset.filter(pk__in=[record_id(scope[0], k) for k in keys]), False
        return lists.that_have(queryset, "key", keys), False

    def get_readonly_fields(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> list[str]:
        """Return every field: nothing is editable."""
        return flatten_fieldsets(self.get_fieldsets(request, obj))

    def get_fieldsets(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> Any:
        """Replace the fields that only users who may view responses see."""
        replaced: dict[str, str | None] = {**FOR_ALL}
        if not self.has_body_permission(request, obj):
            replaced |= FOR_OTHERS
        elif obj is None or not results_of(obj):
            replaced["step_results"] = None
        shown = []
        for head, options in self.fieldsets:
            names = [replaced.get(name, name) for name in flatten(options["fields"])]
            shown.append((head, {**options, "fields": [*filter(None, names)]}))
        return shown

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: only requests create records."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Return False: a stored response never changes."""
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Return False: staff release a key instead (A3)."""
        return False
