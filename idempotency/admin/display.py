"""Format values of a record as escaped HTML (contract A1)."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from django.utils.timesince import timesince, timeuntil
from django.utils.translation import gettext, ngettext

from idempotency.admin.decoding import SHOWN_CHARACTERS, presentable
from idempotency.models import IdempotencyRecord
from idempotency.routes import route_of, view_of

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

COLUMN_CHARACTERS = 100
BREAKS = re.compile(r"(?=/)|(?<=[:.])")


def erased() -> str:
    """Return what stands for the scope and key of an erased record (P4)."""
    return gettext("erased")


def in_a_column(text: str) -> SafeString:
    """Return text with line breaks allowed, truncated so that all columns fit."""
    parts = BREAKS.split(Truncator(presentable(text)).chars(COLUMN_CHARACTERS))
    return format_html(
        '<span class="idempotency-cell">{}</span>',
        format_html_join("", "{}<wbr>", ((part,) for part in parts)),
    )


def asked(record: IdempotencyRecord) -> str:
    """Return method and full path, or the route of an erased record."""
    path = record.path or route_name(record)
    return f"{record.method} {presentable(Truncator(path).chars(SHOWN_CHARACTERS))}"


def route_name(record: IdempotencyRecord) -> str:
    """Return the route, which has none of the path's values."""
    # Records of earlier versions, and of requests without a route, have a path only.
    found = record.route or (route_of(record.path) if record.path else None)
    return found or gettext("unknown route")


def route(record: IdempotencyRecord) -> SafeString:
    """Return method and route."""
    return format_html("{} {}", record.method, in_a_column(route_name(record)))


def view_name(record: IdempotencyRecord) -> str | None:
    """Return the dotted name of the view that the record's path leads to now."""
    return view_of(record.path, record.method) if record.path else None


def preformatted(text: str) -> SafeString:
    """Return text with its line breaks, in a box that the keyboard can scroll."""
    return format_html(
        '<pre class="idempotency-text" dir="auto" tabindex="0">{}</pre>', text
    )


def in_bytes(size: int) -> str:
    """Return a number of bytes with its unit."""
    text = ngettext("%(size)s byte", "%(size)s bytes", size)
    return text % {"size": f"{size:,}"}


def second(at: datetime) -> str:
    """Return a time to the second in the user's time zone."""
    return timezone.localtime(at).strftime("%Y-%m-%d %H:%M:%S")


def duration(began: datetime, ended: datetime) -> str:
    """Return the time from one event to another in milliseconds."""
    return f"{round((ended - began) / timedelta(milliseconds=1)):,} ms"


def distance(at: datetime, now: datetime) -> str:
    """Return a time relative to now, such as "in 3 days"."""
    if at <= now:
        return gettext("%(time)s ago") % {"time": timesince(at, now, depth=1)}
    return gettext("in %(time)s") % {"time": timeuntil(at, now, depth=1)}
