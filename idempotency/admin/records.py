"""The admin of records: browsable, never addable or editable (contract A1 to A3)."""

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
from idempotency.admin.columns import Columns
from idempotency.admin.pages import Pages
from idempotency.admin.purge import PurgePage
from idempotency.discretion import discreet_page
from idempotency.keys import ESCAPED, QUOTED
from idempotency.models import IdempotencyRecord, record_id

# What those get who may not read answers, in place of fields that tell what was sent
# or answered; None for nothing.
FOR_OTHERS = {
    "asked": "request_line",
    "path": "request_line",
    "fingerprint": None,
    "headers": None,
    "stored_headers": None,
    "body": "hidden_answer",
    "answer": "hidden_answer",
}


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(Columns, Pages, PurgePage):
    """Read-only; answers and decisions are for users with permissions of their own."""

    list_display = (
        "listed_key",
        "listed_state",
        "request_line",
        "listed_answer",
        "listed_times",
    )
    # The first column has links of its own.
    list_display_links = None
    list_filter = lists.FILTERS
    sortable_by = ()
    search_fields = ("key",)
    search_help_text = format_lazy(
        _(
            "An idempotency key, whole, or a scope and a key with a blank between "
            "them. Without one, the {number} that expire last are listed."
        ),
        number=lists.LISTED,
    )
    list_per_page = 50
    paginator = lists.LastRecords
    # These would count the table.
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    fieldsets: ClassVar[Any] = (
        (None, {"fields": ("next_request", "key", "scope_link", "state_badge")}),
        (_("Request"), {"fields": ("asked", "attempt", "fingerprint")}),
        (_("Answer"), {"fields": ("status_code", "stored_headers", "answer")}),
        (_("Times"), {"fields": ("time_line",)}),
    )

    class Media:
        """The look of both themes, without a script."""

        css: ClassVar[Any] = {"all": ("idempotency/admin.css",)}

    def get_urls(self) -> list[URLPattern]:
        """Keep records out of error reports, on Django's own pages, too (X1)."""
        patterns = super().get_urls()
        for pattern in patterns:
            if isinstance(pattern, URLPattern):
                pattern.callback = discreet_page(pattern.callback)
        return patterns

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list in the order that has an index."""
        return lists.RecordList

    def lookup_allowed(
        self, lookup: str, value: str, request: HttpRequest | None = None
    ) -> bool:
        """Refuse addresses that look into a body, or through the whole table."""
        return lookup in {spec.parameter_name for spec in lists.FILTERS}

    def get_search_results(
        self,
        request: HttpRequest,
        queryset: models.QuerySet[IdempotencyRecord],
        search_term: str,
    ) -> tuple[models.QuerySet[IdempotencyRecord], bool]:
        """Find a key, whole, as a client wrote it: bare or quoted (K2).

        A scope before it makes the record's id of both.
        """
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
        """Put others in the place of fields that are for readers of answers alone."""
        if self.has_body_permission(request, obj):
            return self.fieldsets
        return [
            (
                head,
                {
                    **options,
                    "fields": [
                        shown
                        for name in flatten(options["fields"])
                        if (shown := FOR_OTHERS.get(name, name)) is not None
                    ],
                },
            )
            for head, options in self.fieldsets
        ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Records are made by requests alone."""
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """What was answered stays answered."""
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Deleting a record lets its request act again: see release (A3)."""
        return False
