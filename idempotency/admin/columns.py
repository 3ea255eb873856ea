"""What the list and a record's page say of a record, column by column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from idempotency.admin import display, messages
from idempotency.admin.lists import OF_A_CALLER, CallerFilter, StateFilter
from idempotency.admin.permissions import Permissions
from idempotency.models import IdempotencyRecord

if TYPE_CHECKING:
    from django.utils.safestring import SafeString


class Columns(Permissions):
    """The columns and facts that ``IdempotencyRecordAdmin`` shows."""

    @admin.display(description=_("key and scope"))
    def listed_key(self, record: IdempotencyRecord) -> SafeString:
        """Return the key, which leads to the record, and whose it is."""
        return format_html(
            '<a class="idempotency-record" href="{}">{}</a><br>{}{}',
            self._address("change", record.pk),
            display.in_a_column(record.key),
            self._caller(record.scope),
            self._others(record),
        )

    def _others(self, record: IdempotencyRecord) -> SafeString | str:
        """Lead to what the list of abandoned records leaves out of a caller's."""
        left_out = getattr(record, "of_caller", 0) - OF_A_CALLER
        if left_out < 1 or record.turn != OF_A_CALLER:  # type: ignore[attr-defined]  # annotated
            return ""
        more = ngettext(
            "%(number)d more of this caller", "%(number)d more of this caller", left_out
        ) % {"number": left_out}
        if self.restricts_single_records:
            # Some of them may be hidden, and are not to be counted.
            more = gettext("more of this caller")
        query = {
            StateFilter.parameter_name: "abandoned",
            CallerFilter.parameter_name: record.scope,
        }
        return format_html(
            '<br><a href="{}?{}">{}</a>',
            self._address("changelist"),
            urlencode(query),
            more,
        )

    @admin.display(description=_("scope"))
    def scope_link(self, record: IdempotencyRecord) -> SafeString:
        """Return the scope, whole."""
        return self._with_user_link(record.scope, format_html("{}", record.scope))

    @admin.display(description=_("request"))
    def request_line(self, record: IdempotencyRecord) -> SafeString:
        """Return method and route: a path may be a secret, and many see the list."""
        return display.route(record)

    @admin.display(description=_("request"))
    def asked(self, record: IdempotencyRecord) -> str:
        """Return method and path, whole."""
        return display.asked(record)

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
        return display.badge(record.status)

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
        now = record.read_at
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
        """Say what a retry would get, by the code that decides it."""
        return format_html(
            '<strong class="idempotency-next">{}</strong>',
            messages.next_request(record),
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
