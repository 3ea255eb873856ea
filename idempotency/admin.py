"""Stored keys in the admin: browsable, never addable or editable (contract A1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.timesince import timesince
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from idempotency.answers import decode
from idempotency.models import IdempotencyRecord

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

    RecordAdminBase = admin.ModelAdmin[IdempotencyRecord]
else:
    RecordAdminBase = admin.ModelAdmin

SEE_BODY = "idempotency.view_response_body"


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(RecordAdminBase):
    """Read-only; answers are for users with a permission of their own."""

    list_display = (
        "key",
        "scope",
        "state",
        "method",
        "path",
        "status_code",
        "age",
    )
    list_filter = ("state", "method")
    search_fields = ("=key",)
    search_help_text = _("An idempotency key, whole")
    ordering = ("-expires_at",)
    list_per_page = 50
    # Counting every record would read them all.
    show_full_result_count = False
    fieldsets: ClassVar[Any] = (
        (None, {"fields": ("key", "scope", "state", "attempt")}),
        (_("Request"), {"fields": ("method", "path", "fingerprint")}),
        (
            _("Times"),
            {"fields": ("created_at", "completed_at", "expires_at", "age")},
        ),
        (_("Answer"), {"fields": ("status_code", "stored_headers", "answer")}),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[IdempotencyRecord]:
        """Leave the bodies where they are; the detail page fetches its own."""
        return super().get_queryset(request).defer("body", "headers")

    def get_readonly_fields(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> list[str]:
        """Return every field: nothing is editable."""
        return [name for _title, group in self.fieldsets for name in group["fields"]]

    def get_fieldsets(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> Any:
        """Put a sentence in the answer's place for those who may not read it."""
        if request.user.has_perm(SEE_BODY):
            return self.fieldsets
        hidden = (_("Answer"), {"fields": ("status_code", "hidden_answer")})
        return (*self.fieldsets[:-1], hidden)

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

    @admin.display(description=_("age"), ordering="created_at")
    def age(self, record: IdempotencyRecord) -> str:
        """Return how long ago the key was claimed."""
        return timesince(record.created_at, timezone.now())

    @admin.display(description=_("headers"))
    def stored_headers(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the headers that are replayed, one to a line."""
        lines = "\n".join(f"{name}: {value}" for name, value in record.headers or [])
        return format_html("<pre>{}</pre>", lines) if lines else "-"

    @admin.display(description=_("body"))
    def answer(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the answer decoded, or its type, size and SHA-256 with a download."""
        stored = record.stored_response
        if stored is None:
            return gettext("There is no answer yet.")
        if stored.body is None:
            return gettext("The answer was not kept.")
        decoded = decode(stored)
        link = format_html(
            '<a href="{}" download>{}</a>',
            reverse("admin:idempotency_idempotencyrecord_body", args=[record.pk]),
            _("Download"),
        )
        facts = format_html(
            "<p>{} · {} · SHA-256 {} · {}</p>",
            decoded.content_type or _("no content type"),
            _("%(size)d bytes") % {"size": decoded.size},
            decoded.sha256,
            link,
        )
        if decoded.text is None:
            return facts
        return format_html(
            '<pre style="white-space: pre-wrap">{}</pre>{}', decoded.text, facts
        )

    @admin.display(description=_("body"))
    def hidden_answer(self, record: IdempotencyRecord) -> str:
        """Say why there is nothing to read."""
        return gettext("You do not have the permission to read stored answers.")
