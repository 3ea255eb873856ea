"""Facts of a record as markup; nothing that a record says becomes any (contract A1)."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

from django.utils import formats, timezone
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from django.utils.timesince import timesince, timeuntil
from django.utils.translation import gettext, ngettext

from idempotency.admin.decoding import SHOWN_CHARACTERS, decode
from idempotency.models import IdempotencyRecord, State, Status
from idempotency.responses import replayed_headers
from idempotency.routes import route_of

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

COLUMN_CHARACTERS = 100
BREAKS = re.compile(r"(?=/)|(?<=:)")
# They read without colour, too.
SIGNS = {
    Status.COMPLETED: "✓",
    Status.NOT_KEPT: "✓",
    Status.IN_PROGRESS: "…",
    Status.ABANDONED: "!",
}


def in_a_column(text: str) -> SafeString:
    """Cut what is long, and let the rest break, so that every column is in view."""
    parts = BREAKS.split(Truncator(text).chars(COLUMN_CHARACTERS))
    return format_html(
        '<span class="idempotency-cell">{}</span>',
        format_html_join("", "{}<wbr>", ((part,) for part in parts)),
    )


def asked(record: IdempotencyRecord) -> str:
    """Return method and path, whole."""
    return f"{record.method} {Truncator(record.path).chars(SHOWN_CHARACTERS)}"


def route(record: IdempotencyRecord) -> SafeString:
    """Return method and route: what was asked without what the client put into it."""
    found = route_of(record.path) or gettext("unknown route")
    return format_html("{} {}", record.method, in_a_column(found))


def preformatted(text: str) -> SafeString:
    """Return text that keeps its lines and can be scrolled with the keyboard."""
    return format_html(
        '<pre class="idempotency-text" dir="auto" tabindex="0">{}</pre>', text
    )


def badge(status: Status) -> SafeString:
    """Return a status with a sign before its word.

    Beside it stands whether a response was kept.
    """
    is_completed = status in (Status.COMPLETED, Status.NOT_KEPT)
    return format_html(
        '<span class="idempotency-badge idempotency-{}">'
        '<span aria-hidden="true">{}</span> {}</span>',
        status.value,
        SIGNS[status],
        Status.COMPLETED.label if is_completed else status.label,
    )


def in_bytes(size: int) -> str:
    """Return how many bytes, in words."""
    text = ngettext("%(size)s byte", "%(size)s bytes", size)
    return text % {"size": f"{size:,}"}


def headers(record: IdempotencyRecord) -> SafeString | str:
    """Return the headers that are replayed, one to a line."""
    replayed = replayed_headers(record.headers or [])
    lines = "\n".join(f"{name}: {value}" for name, value in replayed)
    return preformatted(Truncator(lines).chars(SHOWN_CHARACTERS)) if lines else "-"


def answer(record: IdempotencyRecord, download: str) -> SafeString | str:
    """Return the answer decoded, or its type, size and SHA-256 with a download."""
    stored = record.stored_response
    if stored is None and record.is_leased:
        return gettext("There is no answer yet.")
    if stored is None:
        return gettext("No answer was stored.")
    if stored.body is None:
        return gettext(
            "The answer was not kept: it was streamed, a file, too large, or the "
            "view said not to."
        )
    if not stored.body:
        return gettext("The answer has no body.")
    decoded = decode(stored)
    facts = format_html(
        '<p>{} · {} · <a href="{}">{}</a><br>SHA-256 {}</p>',
        decoded.content_type or gettext("no content type"),
        in_bytes(decoded.size),
        download,
        gettext("Download"),
        decoded.sha256,
    )
    if decoded.text is None:
        return facts
    rest = gettext("The text goes on. The first %(number)d characters are shown.")
    end = format_html("<p>{}</p>", rest % {"number": len(decoded.text)})
    return format_html(
        "{}{}{}", facts, preformatted(decoded.text), end if decoded.is_cut else ""
    )


def time_line(record: IdempotencyRecord) -> SafeString:
    """Return what a record knows of its times, in their order."""
    lease = record.lease_expires_at
    claimed = gettext("claimed")
    if lease is None and record.status_code is None:
        claimed = gettext("claimed; abandoned since, without an answer")
    events = [(record.created_at, claimed)]
    if record.completed_at is not None:
        events.append((record.completed_at, gettext("completed")))
    if lease is not None:
        events.append((lease, _end_of_lease(record)))
    events.append((record.expires_at, gettext("expires: the key is new again")))
    rows = (
        (moment(at), what, distance(at, record.read_at))
        for at, what in sorted(events, key=lambda event: event[0])
    )
    return format_html(
        '<ol class="idempotency-times">{}</ol>',
        format_html_join(
            "", "<li><time>{}</time> <span>{}</span> <em>{}</em></li>", rows
        ),
    )


def _end_of_lease(record: IdempotencyRecord) -> str:
    if record.is_leased:
        return gettext("the lease ends, unless it is renewed")
    if record.state == State.ABANDONED:
        return gettext("abandoned: the handler ended in an error")
    return gettext("abandoned: the lease ended before there was an answer")


def moment(at: datetime) -> str:
    """Return a time in the reader's own form."""
    return formats.date_format(timezone.localtime(at), "DATETIME_FORMAT")


def distance(at: datetime, now: datetime) -> str:
    """Return how far from now a time is."""
    if at <= now:
        return gettext("%(time)s ago") % {"time": timesince(at, now, depth=1)}
    return gettext("in %(time)s") % {"time": timeuntil(at, now, depth=1)}
