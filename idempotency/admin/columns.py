"""Columns of the list, and fields of a record's page."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from idempotency.admin import display, messages
from idempotency.admin.decoding import (
    SHOWN_CHARACTERS,
    decode,
    indented,
    presentable,
)
from idempotency.admin.lists import (
    OF_A_CALLER,
    CallerFilter,
    EndpointFilter,
    StateFilter,
)
from idempotency.admin.permissions import Permissions
from idempotency.models import IdempotencyRecord, State, Status
from idempotency.responses import replayed_headers
from idempotency.steps import Entry

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

# They are readable without colour.
SIGNS = {
    Status.COMPLETED: "✓",
    Status.NOT_KEPT: "✓",
    Status.IN_PROGRESS: "…",
    Status.ABANDONED: "!",
    Status.ERASED: "✓",
}
# Steps and calls of one record on its page.
SHOWN_STEPS = 100
BREAK = mark_safe("<br>")
STEP_NAMES = {"step": _("step “%(name)s”"), "call": _("call “%(name)s”")}


class Columns(Permissions):
    """Columns and fields of ``IdempotencyRecordAdmin``."""

    @admin.display(description=_("key and scope"))
    def listed_key(self, record: IdempotencyRecord) -> SafeString:
        """Return the key as a link to the record, and the scope."""
        return format_html(
            '<a class="idempotency-record" href="{}">{}</a><br>{}{}',
            self._address("change", record.pk),
            display.in_a_column(record.key or display.erased()),
            self._listed_caller(record.scope),
            self._others(record),
        )

    def _listed_caller(self, scope: str) -> SafeString:
        """Return the scope with links to its records and to its user."""
        if not scope:
            return self._caller(scope)
        user = self._user_address(scope)
        return format_html(
            '<a href="{}">{}</a>{}',
            self._records_of(**{CallerFilter.parameter_name: scope}),
            display.in_a_column(scope),
            format_html(' (<a href="{}">{}</a>)', user, gettext("user"))
            if user
            else "",
        )

    def _others(self, record: IdempotencyRecord) -> SafeString | str:
        """Return a link to a caller's abandoned records that the list leaves out."""
        left_out = getattr(record, "of_caller", 0) - OF_A_CALLER
        if left_out < 1 or record.turn != OF_A_CALLER:  # type: ignore[attr-defined]  # annotated
            return ""
        more = ngettext(
            "%(number)d more of this caller", "%(number)d more of this caller", left_out
        ) % {"number": left_out}
        if self.restricts_single_records:
            # The number would include records that the user may not view.
            more = gettext("more of this caller")
        query = {
            StateFilter.parameter_name: "abandoned",
            CallerFilter.parameter_name: record.scope,
        }
        return format_html('<br><a href="{}">{}</a>', self._records_of(**query), more)

    @admin.display(description=_("scope"))
    def scope_link(self, record: IdempotencyRecord) -> SafeString:
        """Return the full scope, with a link to its other records."""
        if not record.scope:
            return self._caller(record.scope)
        shown = format_html("{}", presentable(record.scope))
        return format_html(
            '{}<br><a href="{}">{}</a>',
            self._with_user_link(record.scope, shown),
            self._records_of(**{CallerFilter.parameter_name: record.scope}),
            gettext("All records of this caller"),
        )

    @admin.display(description=_("request"))
    def request_line(self, record: IdempotencyRecord) -> SafeString:
        """Return method and route: the path can be a secret."""
        return display.route(record)

    @admin.display(description=_("request"))
    def listed_request(self, record: IdempotencyRecord) -> SafeString:
        """Return method and route with a link to their records, and the view."""
        line, view = self.request_line(record), display.view_name(record)
        if record.route:
            line = format_html('<a href="{}">{}</a>', self._endpoint(record), line)
        if view is None:
            return line
        # A class, a class and its action, or a module and its function.
        *_modules, owner, name = view.split(".")
        short = name if name[:1].isupper() else f"{owner}.{name}"
        return format_html(
            '{}<br><span class="idempotency-quiet">{}</span>',
            line,
            display.in_a_column(short),
        )

    @admin.display(description=_("view"))
    def endpoint(self, record: IdempotencyRecord) -> SafeString:
        """Return the view's dotted name, with a link to the endpoint's records."""
        view = format_html("{}", display.view_name(record) or gettext("unknown"))
        if not record.route:
            return view
        more = gettext("All records of this endpoint")
        return format_html(
            '{}<br><a href="{}">{}</a>', view, self._endpoint(record), more
        )

    def _endpoint(self, record: IdempotencyRecord) -> str:
        """Return the address of the list of an endpoint's records."""
        chosen = f"{record.method} {record.route}"
        return self._records_of(**{EndpointFilter.parameter_name: chosen})

    @admin.display(description=_("request"))
    def asked(self, record: IdempotencyRecord) -> str:
        """Return method and full path."""
        return display.asked(record)

    @admin.display(description=_("response"))
    def listed_answer(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the HTTP status, the size of the stored body and the run's time."""
        if record.status_code is None:
            return "-"
        size = record.body_size
        kept = gettext("not kept") if size is None else display.in_bytes(size)
        lines = [str(record.status_code), kept]
        if record.completed_at is not None:
            took = display.duration(record.created_at, record.completed_at)
            unbroken = took.replace(" ", "\N{NO-BREAK SPACE}")
            lines.append(gettext("after %(duration)s") % {"duration": unbroken})
        return format_html_join(BREAK, "{}", ((line,) for line in lines))

    @admin.display(description=_("state"))
    def state_badge(self, record: IdempotencyRecord) -> SafeString:
        """Return the record's current status."""
        status = record.status
        # The response column says whether the response was kept.
        shown = Status.COMPLETED if status is Status.NOT_KEPT else status
        return format_html(
            '<span class="idempotency-badge idempotency-{}">'
            '<span aria-hidden="true">{}</span> {}</span>',
            status.value,
            SIGNS[status],
            shown.label,
        )

    @admin.display(description=_("state"))
    def listed_state(self, record: IdempotencyRecord) -> SafeString:
        """Return the record's current status and its number of attempts."""
        attempts = ngettext("%(number)d attempt", "%(number)d attempts", record.attempt)
        return format_html(
            "{}<br>{}", self.state_badge(record), attempts % {"number": record.attempt}
        )

    @admin.display(description=_("created and expires"))
    def listed_times(self, record: IdempotencyRecord) -> SafeString:
        """Return when the key was claimed and when the record expires."""
        created, expires = map(
            timezone.localtime, (record.created_at, record.expires_at)
        )
        now = record.read_at
        return format_html(
            '<time datetime="{}">{}</time><br>{}<br><time datetime="{}">{}</time>',
            created.isoformat(),
            created.strftime("%Y-%m-%d\N{NO-BREAK SPACE}%H:%M:%S"),
            display.distance(created, now),
            expires.isoformat(),
            gettext("expires %(when)s") % {"when": display.distance(expires, now)},
        )

    @admin.display(description=_("next request"))
    def next_request(self, record: IdempotencyRecord) -> SafeString:
        """Return what the next request with the key gets."""
        return format_html(
            '<strong class="idempotency-next">{}</strong>',
            messages.next_request(record),
        )

    @admin.display(description=_("timeline"))
    def time_line(self, record: IdempotencyRecord) -> SafeString:
        """Return the record's events in order of time."""
        lease = record.lease_expires_at
        claimed = gettext("claimed")
        if lease is None and record.status_code is None:
            claimed = gettext("claimed; abandoned without a response")
        begin = (record.created_at, claimed)
        events = []
        if record.completed_at is not None:
            took = display.duration(record.created_at, record.completed_at)
            completed = gettext("completed after %(duration)s") % {"duration": took}
            events.append((record.completed_at, completed))
        if lease is not None:
            events.append((lease, _end_of_lease(record)))
        events.append((record.expires_at, gettext("expires: the key is new again")))
        # The clocks of steps are those of the application.
        events = [begin, *_events_of_steps(record), *sorted(events)]
        rows = (
            (display.second(at), what, display.distance(at, record.read_at))
            for at, what in events
        )
        return format_html(
            '<ol class="idempotency-times">{}</ol>',
            format_html_join(
                "", "<li><time>{}</time> <span>{}</span> <em>{}</em></li>", rows
            ),
        )

    @admin.display(description=_("results of steps"))
    def step_results(self, record: IdempotencyRecord) -> SafeString:
        """Return the results that the next run gets (E14), shortened if long."""
        results = results_of(record)
        each = SHOWN_CHARACTERS // len(results)
        return format_html(
            '<dl class="idempotency-results">{}</dl>',
            format_html_join(
                "",
                "<dt>{}</dt><dd>{}</dd>",
                (
                    (name, display.preformatted(Truncator(shown).chars(each)))
                    for name, shown in results
                ),
            ),
        )

    @admin.display(description=_("headers"))
    def stored_headers(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the headers of a replay, one per line."""
        replayed = replayed_headers(record.headers or [])
        lines = "\n".join(f"{name}: {value}" for name, value in replayed)
        shown = presentable(Truncator(lines).chars(SHOWN_CHARACTERS))
        return display.preformatted(shown) if lines else "-"

    @admin.display(description=_("body"))
    def answer(self, record: IdempotencyRecord) -> SafeString | str:
        """Return the body's type, size, SHA-256 and download, and any text in it."""
        stored = record.stored_response
        if record.is_erased:
            return display.erased()
        if stored is None:
            missing = _("There is no response yet."), _("No response was stored.")
            return str(missing[not record.is_leased])
        if stored.body is None:
            not_kept = gettext(
                "The response was not kept: it was streamed, a file or too large, or "
                "the view chose not to store it."
            )
            unreadable = gettext("The response can't be decrypted.")
            return unreadable if record.unreadable else not_kept
        if not stored.body:
            return gettext("The response has no body.")
        decoded = decode(stored)
        facts = format_html(
            '<p>{} · {} · <a href="{}">{}</a><br>SHA-256 {}</p>',
            presentable(decoded.content_type) or gettext("no content type"),
            display.in_bytes(decoded.size),
            self._address("body", record.pk),
            gettext("Download"),
            decoded.sha256,
        )
        if decoded.text is None:
            return facts
        rest = gettext("Only the first %(number)d characters are shown.")
        end = format_html("<p>{}</p>", rest % {"number": len(decoded.text)})
        text = display.preformatted(decoded.text)
        return format_html("{}{}{}", facts, text, end if decoded.is_cut else "")

    @admin.display(description=_("body"))
    def hidden_answer(self, record: IdempotencyRecord) -> str:
        """Return why the body is not shown."""
        return gettext("You do not have permission to view stored responses.")


def results_of(record: IdempotencyRecord) -> list[tuple[str, str]]:
    """Return the names and results of the last steps, as JSON for display."""
    last = record.entries[-SHOWN_STEPS:]
    return [
        (presentable(each["name"]), indented(each["result"]))
        for each in last
        if "result" in each
    ]


def _events_of_steps(
    record: IdempotencyRecord,
) -> list[tuple[datetime, str]]:
    entries = record.entries
    left_out = len(entries) - SHOWN_STEPS
    events = [
        (datetime.fromisoformat(each["began"]), _course(record, each))
        for each in entries[-SHOWN_STEPS:]
    ]
    if left_out > 0:
        earlier = ngettext(
            "after %(number)d earlier step or call",
            "after %(number)d earlier steps and calls",
            left_out,
        ) % {"number": left_out}
        at, first = events[0]
        events[0] = at, f"{first} ({earlier})"
    return events


def _course(record: IdempotencyRecord, entry: Entry) -> str:
    """Return what became of a step or call."""
    name = STEP_NAMES[entry["kind"]] % {"name": presentable(entry["name"])}
    if "ended" not in entry:
        if record.call_in_doubt is None:
            state = gettext("its end was not recorded")
        elif record.is_leased:
            state = gettext("not ended")
        else:
            state = gettext("in doubt, it may or may not have happened")
        return f"{name}: {state}"
    began, ended = (datetime.fromisoformat(entry[each]) for each in ("began", "ended"))
    until = gettext("ended at %(time)s after %(duration)s") % {
        "time": timezone.localtime(ended).strftime("%H:%M:%S"),
        "duration": display.duration(began, ended),
    }
    return f"{name}: {until}"


def _end_of_lease(record: IdempotencyRecord) -> str:
    if record.is_leased:
        return gettext("the lease ends unless it is renewed")
    if record.state == State.ABANDONED:
        return gettext("abandoned: the handler ended in an error")
    return gettext("abandoned: the lease ended before there was a response")
