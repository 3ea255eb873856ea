"""Facts of a record as markup; nothing that a record says becomes any (contract A1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext

from idempotency.answers import SHOWN_CHARACTERS, decode
from idempotency.models import IdempotencyRecord, State

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

COLUMN_CHARACTERS = 100
BREAKS = re.compile(r"(?=/)|(?<=:)")
# They read without colour, too.
SIGNS = {State.COMPLETED: "✓", State.IN_PROGRESS: "…", State.ABANDONED: "!"}


def in_a_column(text: str, least: int = 6) -> SafeString:
    """Cut what is long, and let the rest break, so that every column is in view."""
    parts = BREAKS.split(Truncator(text).chars(COLUMN_CHARACTERS))
    return format_html(
        '<span class="idempotency-cell" style="min-width: {}em">{}</span>',
        least,
        format_html_join("", "{}<wbr>", ((part,) for part in parts)),
    )


def preformatted(text: str) -> SafeString:
    """Return text that keeps its lines and can be scrolled with the keyboard."""
    return format_html(
        '<pre class="idempotency-text" dir="auto" tabindex="0">{}</pre>', text
    )


def badge(state: State) -> SafeString:
    """Return a state with a sign before its word."""
    return format_html(
        '<span class="idempotency-badge idempotency-{}">'
        '<span aria-hidden="true">{}</span> {}</span>',
        state.value,
        SIGNS[state],
        state.label,
    )


def in_bytes(size: int) -> str:
    """Return how many bytes, in words."""
    text = ngettext("%(size)s byte", "%(size)s bytes", size)
    return text % {"size": f"{size:,}"}


def headers(record: IdempotencyRecord) -> SafeString | str:
    """Return the headers that are replayed, one to a line."""
    lines = "\n".join(f"{name}: {value}" for name, value in record.headers or [])
    return preformatted(lines) if lines else "-"


def answer(record: IdempotencyRecord, site: str) -> SafeString | str:
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
    facts = format_html(
        '<p>{} · {} · <a href="{}">{}</a><br>SHA-256 {}</p>',
        decoded.content_type or gettext("no content type"),
        in_bytes(decoded.size),
        reverse(
            "admin:idempotency_idempotencyrecord_body",
            args=[record.pk],
            current_app=site,
        ),
        gettext("Download"),
        decoded.sha256,
    )
    if decoded.text is None:
        return facts
    rest = gettext("The text goes on. The first %(number)d characters are shown.")
    end = format_html("<p>{}</p>", rest % {"number": SHOWN_CHARACTERS})
    return format_html(
        "{}{}{}", facts, preformatted(decoded.text), end if decoded.is_cut else ""
    )
