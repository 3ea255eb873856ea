"""Stored keys in the admin: browsable, never addable or editable (contract A1, A2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import models, router
from django.db.models import Case, Q, Value, When
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator, format_lazy
from django.utils.timesince import timesince
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from idempotency.answers import SHOWN_CHARACTERS, decode
from idempotency.clocks import UTCNow
from idempotency.conf import get_settings
from idempotency.models import IdempotencyRecord, State

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

    RecordAdminBase = admin.ModelAdmin[IdempotencyRecord]
else:
    RecordAdminBase = admin.ModelAdmin

SEE_BODY = "idempotency.view_response_body"
LISTED = 1000
COLUMN_CHARACTERS = 100
BREAKS = re.compile(r"(?=/)|(?<=:)")


class LatestRecords(Paginator):  # type: ignore[type-arg]  # generic for the stubs alone
    """Pages of the latest records, which are counted no further than that."""

    @cached_property
    def count(self) -> int:
        """The number of records on all pages together."""
        records: models.QuerySet[Any] = self.object_list  # type: ignore[assignment]  # of the admin
        return records.order_by()[:LISTED].count()


class RecordList(ChangeList):
    """The list in the one order that has an index, whatever the address asks for."""

    def get_ordering(
        self, request: HttpRequest, queryset: models.QuerySet[Any]
    ) -> list[Any]:
        """Return the order of expiry, the latest first."""
        return ["-expires_at", "-pk"]


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(RecordAdminBase):
    """Read-only; answers are for users with a permission of their own."""

    list_display = (
        "listed_key",
        "listed_scope",
        "current_state",
        "method",
        "listed_path",
        "status",
        "age",
    )
    sortable_by = ()
    search_fields = ("key",)
    search_help_text = format_lazy(
        _("An idempotency key, whole. Without one, the latest {number} are listed."),
        number=LISTED,
    )
    list_per_page = 50
    paginator = LatestRecords
    # These would count the table.
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    fieldsets: ClassVar[Any] = (
        (None, {"fields": ("key", "scope", ("current_state", "attempt", "age"))}),
        (_("Request"), {"fields": ("method", "path", "fingerprint")}),
        (_("Answer"), {"fields": ("status_code", "stored_headers", "answer")}),
        (_("Times"), {"fields": (("created_at", "completed_at", "expires_at"),)}),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[IdempotencyRecord]:
        """Return records from where they are written to, without what is large."""
        alias = get_settings().USING or router.db_for_write(IdempotencyRecord)
        has_live_lease = Q(lease_expires_at__gt=UTCNow())
        # In progress without a live lease, and yet visible: nobody is at it (E5, E9).
        state = Case(
            When(
                Q(state=State.IN_PROGRESS) & ~has_live_lease,
                then=Value(State.ABANDONED),
            ),
            default="state",
        )
        records = super().get_queryset(request).using(alias)
        return records.annotate(current_state=state).defer("body", "headers")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return the list in the order that has an index."""
        return RecordList

    def lookup_allowed(
        self, lookup: str, value: str, request: HttpRequest | None = None
    ) -> bool:
        """Refuse addresses that look into a body, or through the whole table."""
        return False

    def get_search_results(
        self,
        request: HttpRequest,
        queryset: models.QuerySet[IdempotencyRecord],
        search_term: str,
    ) -> tuple[models.QuerySet[IdempotencyRecord], bool]:
        """Find a key, whole, as a client wrote it: bare or quoted (K2)."""
        key = search_term.strip()
        if not key:
            return queryset, False
        return queryset.filter(key__in={key, key.strip('"')}), False

    def get_readonly_fields(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> list[str]:
        """Return every field: nothing is editable."""
        return flatten_fieldsets(self.get_fieldsets(request, obj))

    def get_fieldsets(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> Any:
        """Put a sentence in the answer's place for those who may not read it."""
        if request.user.has_perm(SEE_BODY):
            return self.fieldsets
        record, asked, _answer, times = self.fieldsets
        hidden = (_("Answer"), {"fields": ("status_code", "hidden_answer")})
        return (record, asked, hidden, times)

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
        """Deleting a record lets its request act again; purging is the task's."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """Add the download of an answer's body."""
        download = path(
            "<path:object_id>/body/",
            self.admin_site.admin_view(self.download_body),
            name="idempotency_idempotencyrecord_body",
        )
        return [download, *super().get_urls()]

    def download_body(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send a body as a file of no type, so that no browser shows or runs it."""
        if not self.has_view_permission(request) or not request.user.has_perm(SEE_BODY):
            raise PermissionDenied
        record = self.get_object(request, object_id)
        if record is None or record.body is None:
            raise Http404
        response = HttpResponse(
            bytes(record.body), content_type="application/octet-stream"
        )
        response["Content-Disposition"] = f'attachment; filename="{record.pk}.bin"'
        response["X-Content-Type-Options"] = "nosniff"
        response["Content-Security-Policy"] = "sandbox"
        return response

    @admin.display(description=_("key"))
    def listed_key(self, record: IdempotencyRecord) -> SafeString:
        """Return the key for the list."""
        return _in_a_column(record.key, least=8)

    @admin.display(description=_("scope"))
    def listed_scope(self, record: IdempotencyRecord) -> SafeString:
        """Return the scope for the list."""
        return _in_a_column(record.scope)

    @admin.display(description=_("path"))
    def listed_path(self, record: IdempotencyRecord) -> SafeString:
        """Return the path for the list."""
        return _in_a_column(record.path, least=7)

    @admin.display(description=_("status"))
    def status(self, record: IdempotencyRecord) -> int | None:
        """Return the HTTP status for the list."""
        return record.status_code

    @admin.display(description=_("state"))
    def current_state(self, record: IdempotencyRecord) -> str:
        """Return in a word what the record is now."""
        return str(State(record.current_state).label)  # type: ignore[attr-defined]  # annotated

    @admin.display(description=_("age"))
    def age(self, record: IdempotencyRecord) -> str:
        """Return how long ago the key was claimed."""
        return timesince(record.created_at, timezone.now(), depth=1)

    @admin.display(description=_("headers"))
    def stored_headers(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the headers that are replayed, one to a line."""
        lines = "\n".join(f"{name}: {value}" for name, value in record.headers or [])
        return _preformatted(lines) if lines else "-"

    @admin.display(description=_("body"))
    def answer(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the answer decoded, or its type, size and SHA-256 with a download."""
        stored = record.stored_response
        if stored is None:
            return gettext("There is no answer yet.")
        if stored.body is None:
            return gettext(
                "The answer was not kept: it was streamed, a file, too large, or the "
                "view said not to. A retry is refused."
            )
        if not stored.body:
            return gettext("The answer has no body.")
        decoded = decode(stored)
        size = ngettext("%(size)d byte", "%(size)d bytes", decoded.size)
        facts = format_html(
            '<p>{} · {} · <a href="{}">{}</a><br>SHA-256 {}</p>',
            decoded.content_type or gettext("no content type"),
            size % {"size": decoded.size},
            reverse(
                "admin:idempotency_idempotencyrecord_body",
                args=[record.pk],
                current_app=self.admin_site.name,
            ),
            gettext("Download"),
            decoded.sha256,
        )
        if decoded.text is None:
            return facts
        rest = gettext("The text goes on. The first %(number)d characters are shown.")
        end = format_html("<p>{}</p>", rest % {"number": SHOWN_CHARACTERS})
        return format_html(
            "{}{}{}", facts, _preformatted(decoded.text), end if decoded.is_cut else ""
        )

    @admin.display(description=_("body"))
    def hidden_answer(self, record: IdempotencyRecord) -> str:
        """Say why there is nothing to read."""
        return gettext("You do not have the permission to read stored answers.")


def _in_a_column(text: str, least: int = 6) -> SafeString:
    """Cut what is long, and let the rest break, so that every column is in view."""
    parts = BREAKS.split(Truncator(text).chars(COLUMN_CHARACTERS))
    return format_html(
        '<span style="display: inline-block; min-width: {}em; '
        'overflow-wrap: anywhere">{}</span>',
        least,
        format_html_join("", "{}<wbr>", ((part,) for part in parts)),
    )


def _preformatted(text: str) -> SafeString:
    return format_html(
        '<pre dir="auto" tabindex="0" style="white-space: pre-wrap; '
        'overflow: auto; max-height: 70vh; margin: .5em 0">{}</pre>',
        text,
    )
