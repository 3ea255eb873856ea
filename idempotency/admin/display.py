"""Format values of a record as escaped HTML (contract A1)."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

from django.utils import formats, timezone
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from django.utils.timesince import timesince, timeuntil
from django.utils.translation import gettext, ngettext

from idempotency.admin.decoding import SHOWN_CHARACTERS
from idempotency.models import IdempotencyRecord
from idempotency.routes import route_of

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

COLUMN_CHARACTERS = 100
BREAKS = re.compile(r"(?=/)|(?<=:)")


def in_a_column(text: str) -> SafeString:
    """Return text with line breaks allowed, truncated so that all columns fit."""
    parts = BREAKS.split(Truncator(text).chars(COLUMN_CHARACTERS))
    return format_html(
        '<span class="idempotency-cell">{}</span>',
        format_html_join("", "{}<wbr>", ((part,) for part in parts)),
    )


def asked(record: IdempotencyRecord) -> str:
    """Return method and full path."""
    return f"{record.method} {Truncator(record.path).chars(SHOWN_CHARACTERS)}"


def route(record: IdempotencyRecord) -> SafeString:
    """Return method and route, which has none of the path's values."""
    found = route_of(record.path) or gettext("unknown route")
    return format_html("{} {}", record.method, in_a_column(found))


def preformatted(text: str) -> SafeString:
    """Return text with its line breaks, in a box that the keyboard can scroll."""
    return format_html(
        '<pre class="idempotency-text" dir="auto" tabindex="0">{}</pre>', text
    )


def in_bytes(size: int) -> str:
    """Return a number of bytes with its unit."""
    text = ngettext("%(size)s byte", "%(size)s bytes", size)
    return text % {"size": f"{size:,}"}


def moment(at: datetime) -> str:
    """Return a time in the user's language and time zone."""
    return formats.date_format(timezone.localtime(at), "DATETIME_FORMAT")


def second(at: datetime) -> str:
    """Return a time to the second in the user's time zone."""
    return timezone.localtime(at).strftime("%Y-%m-%d %H:%M:%S")


def distance(at: datetime, now: datetime) -> str:
    """Return a time relative to now, such as "in 3 days"."""
    if at <= now:
        return gettext("%(time)s ago") % {"time": timesince(at, now, depth=1)}
    return gettext("in %(time)s") % {"time": timeuntil(at, now, depth=1)}
