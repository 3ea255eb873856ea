"""The admin of records: browsable, never addable or editable (contract A1 to A3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.db import models, router
from django.db.models import Case, Q, Value, When
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.text import format_lazy
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from idempotency.admin import display, lists
from idempotency.admin.pages import Pages
from idempotency.conf import get_settings
from idempotency.models import IdempotencyRecord, NextAnswer, State, record_id

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

    RecordAdminBase = admin.ModelAdmin[IdempotencyRecord]
else:
    RecordAdminBase = admin.ModelAdmin

SEE_BODY = "idempotency.view_response_body"
# How a scope of the default kind begins (S1).
USER_SCOPE = "user:"

NEXT_ANSWERS = {
    NextAnswer.RUN: _(
        "The retention is over: the key is new, and the next request with it acts."
    ),
    NextAnswer.REPLAY: _(
        "The next request with this key and the same content gets this answer again, "
        "with status {status}, and does not act. Other content is refused with 422."
    ),
    NextAnswer.NOT_KEPT: _(
        "The next request with this key is refused with 409 "
        "idempotency_response_not_kept, which names status {status}. It does not act."
    ),
    NextAnswer.IN_PROGRESS: _(
        "A handler is at work: the next request with this key is refused with 409 "
        "idempotency_in_progress, or waits where its endpoint lets it."
    ),
    NextAnswer.UNKNOWN: _(
        "Nobody knows whether the handler acted. The next request with this key gets "
        "409 idempotency_outcome_unknown until the record is resolved or released, "
        "unless its endpoint's on_abandoned says to run again or to find out."
    ),
}


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(Pages, RecordAdminBase):
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
            "them. Without one, the latest {number} are listed."
        ),
        number=lists.LISTED,
    )
    list_per_page = 50
    paginator = lists.LatestRecords
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

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[IdempotencyRecord]:
        """Return records from where they are written to, without what is large."""
        alias = get_settings().USING or router.db_for_write(IdempotencyRecord)
        records: Any = super().get_queryset(request).using(alias)
        # In progress without a live lease, and yet visible: nobody is at it (E5, E9).
        state = Case(
            When(
                Q(state=State.IN_PROGRESS, is_leased=False), then=Value(State.ABANDONED)
            ),
            default="state",
        )
        found: models.QuerySet[IdempotencyRecord] = (
            records.with_lease_state()
            .annotate(current_state=state)
            .defer("body", "headers")
        )
        return found

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
        keys = {key, key.strip('"')}
        if scope:
            return queryset.filter(pk__in=[record_id(scope[0], k) for k in keys]), False
        return queryset.filter(key__in=keys), False

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
        """Deleting a record lets its request act again: see release (A3)."""
        return False

    @admin.display(description=_("key and scope"))
    def listed_key(self, record: IdempotencyRecord) -> SafeString:
        """Return the key, which leads to the record, and whose it is."""
        return format_html(
            '<a class="idempotency-record" href="{}">{}</a><br>{}',
            self._address("change", record.pk),
            display.in_a_column(record.key, least=8),
            self._with_user_link(record, display.in_a_column(record.scope, least=8)),
        )

    @admin.display(description=_("scope"))
    def scope_link(self, record: IdempotencyRecord) -> SafeString:
        """Return the scope, whole."""
        return self._with_user_link(record, format_html("{}", record.scope))

    def _with_user_link(
        self, record: IdempotencyRecord, shown: SafeString
    ) -> SafeString:
        """Link a scope to the user where it is one that this site shows."""
        kind, _colon, pk = record.scope.removeprefix(USER_SCOPE).rpartition(":")
        label = settings.AUTH_USER_MODEL.lower()
        if not (record.scope.startswith(USER_SCOPE) and kind == label and pk):
            return shown
        if apps.get_model(label) not in self.admin_site._registry:
            return shown
        name = f"admin:{label.replace('.', '_')}_change"
        address = reverse(name, args=[pk], current_app=self.admin_site.name)
        return format_html('<a href="{}">{}</a>', address, shown)

    @admin.display(description=_("request"))
    def request_line(self, record: IdempotencyRecord) -> SafeString:
        """Return method and path."""
        return format_html(
            "{} {}", record.method, display.in_a_column(record.path, least=7)
        )

    @admin.display(description=_("request"))
    def asked(self, record: IdempotencyRecord) -> str:
        """Return method and path, whole."""
        return f"{record.method} {record.path}"

    @admin.display(description=_("answer"))
    def listed_answer(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the HTTP status, and the body's size or that it was not kept."""
        if record.status_code is None:
            return "-"
        size = record.body_size
        kept = gettext("not kept") if size is None else display.in_bytes(size)
        return format_html("{}<br>{}", record.status_code, kept)

    @admin.display(description=_("state"))
    def state_badge(self, record: IdempotencyRecord) -> SafeString:
        """Return what the record is now."""
        return display.badge(State(record.current_state))  # type: ignore[attr-defined]  # annotated

    @admin.display(description=_("state"))
    def listed_state(self, record: IdempotencyRecord) -> SafeString:
        """Return what the record is now, and how often its handler has run."""
        attempts = ngettext("%(number)d attempt", "%(number)d attempts", record.attempt)
        return format_html(
            "{}<br>{}", self.state_badge(record), attempts % {"number": record.attempt}
        )

    @admin.display(description=_("created and expires"))
    def listed_times(self, record: IdempotencyRecord) -> SafeString:
        """Return when the key was claimed, its age, and when it is new again."""
        created, expires = map(
            timezone.localtime, (record.created_at, record.expires_at)
        )
        now = timezone.now()
        return format_html(
            '<time datetime="{}">{}</time><br>{}<br><time datetime="{}">{}</time>',
            created.isoformat(),
            created.strftime("%Y-%m-%d\N{NO-BREAK SPACE}%H:%M"),
            display.distance(created, now),
            expires.isoformat(),
            gettext("expires %(when)s") % {"when": display.distance(expires, now)},
        )

    @admin.display(description=_("next request"))
    def next_request(self, record: IdempotencyRecord) -> SafeString:
        """Say in a sentence what a retry would get, by the code that decides it."""
        sentence = NEXT_ANSWERS[record.next_answer(timezone.now())]
        return format_html(
            '<strong class="idempotency-next">{}</strong>',
            sentence.format(status=record.status_code),
        )

    @admin.display(description=_("what happened when"))
    def time_line(self, record: IdempotencyRecord) -> SafeString:
        """Return what the record knows of its times, in their order."""
        return display.time_line(record)

    @admin.display(description=_("headers"))
    def stored_headers(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the headers that are replayed."""
        return display.headers(record)

    @admin.display(description=_("body"))
    def answer(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the answer to read or to download."""
        return display.answer(record, self._address("body", record.pk))

    @admin.display(description=_("body"))
    def hidden_answer(self, record: IdempotencyRecord) -> str:
        """Say why there is nothing to read."""
        return gettext("You do not have the permission to read stored answers.")
