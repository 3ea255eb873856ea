"""Whatever an answer is, to look at it costs what the page shows, not what it has."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from django.test import Client

from idempotency.admin.decoding import DECODED_BYTES, SHOWN_CHARACTERS, decode
from idempotency.responses import StoredResponse
from tests.support.admin_pages import Page, address
from tests.support.record_factories import make_record

MIB = 2**20
LONG = 8 * MIB
# More than the bytes that are decoded, as text and as what is made of it, never take.
MOST_MEMORY = 12 * MIB


def filled(start: bytes, pump: bytes, end: bytes = b"") -> bytes:
    return start + pump * ((LONG - len(start) - len(end)) // len(pump)) + end


JSON, TEXT = "application/json", "text/plain"
NASTY: dict[str, tuple[str, bytes]] = {
    "one string": (JSON, filled(b'{"a": "', b"x", b'"}')),
    "one string of escapes": (JSON, filled(b'["', rb"\n", b'"]')),
    "one string of numbered escapes": (JSON, filled(b'["', rb"\ud83d\udc4b", b'"]')),
    "a string without an end": (JSON, filled(b'["', b"x")),
    "a string that ends in a backslash": (JSON, filled(b'["', b"\\")),
    "quotes": (JSON, filled(b"", b'"')),
    "empty lists": (JSON, filled(b"[", b"[],", b"[]]")),
    "deep lists": (JSON, b"[" * (LONG // 2) + b"]" * (LONG // 2)),
    "deep objects": (JSON, filled(b"", b'{"":', b"")),
    "closed lists": (JSON, filled(b"", b"]")),
    "one number": (JSON, filled(b"", b"1")),
    "blanks": (JSON, filled(b"", b" ")),
    "no JSON": (JSON, filled(b"", b"\x00")),
    "text": (TEXT, filled(b"", b"<&>\x1b")),
    "no UTF-8": (TEXT, filled(b"", b"\xff")),
    "UTF-16": (
        f"{TEXT}; charset=utf-16",
        filled(b"", "\U0001f44b".encode("utf-16-le")),
    ),
    "UTF-7": (f"{TEXT}; charset=utf-7", filled(b"", b"+AGE-")),
    "punycode": (f"{TEXT}; charset=punycode", filled(b"", b"ab")),
    "idna": (f"{TEXT}; charset=idna", filled(b"", b"xn--4ca.")),
    "escapes": (f"{TEXT}; charset=unicode_escape", filled(b"", rb"\d")),
    "a long type": ("text/" + "charset=" * 10_000, filled(b"", b"x")),
}


@pytest.mark.parametrize("name", NASTY)
def test_memory(name: str) -> None:
    """A1: An answer of 8 MiB takes little more to look at than what is shown of it."""
    content_type, body = NASTY[name]
    stored = StoredResponse(
        status_code=201, headers=[["Content-Type", content_type]], body=body
    )
    tracemalloc.start()
    try:
        decoded = decode(stored)
        _now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoded.text is not None
    assert 0 < len(decoded.text) <= SHOWN_CHARACTERS * 7  # lone surrogates are written
    assert decoded.is_cut
    assert decoded.size == len(body)
    assert most < MOST_MEMORY


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["one string", "empty lists", "text", "punycode"])
def test_page(staff: Client, name: str) -> None:
    """A1: The page says what it shows, and the whole is there as a download."""
    content_type, body = NASTY[name]
    headers = [["Content-Type", content_type], *[["X-Long", "x" * 1000]] * 1000]
    record = make_record(headers=headers, body=body)
    page = Page(staff.get(address(record)))
    assert "Only the first 50000 characters are shown." in page.text
    assert len(page.text) < 3 * SHOWN_CHARACTERS
    assert staff.get(address(record, "body")).content == body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        # What fits is checked: JSON that is none stays as it was sent.
        (b"[1,2", "[1,2"),
        (b'["a\nb"]', '["a\nb"]'),
        (b"[1" + b"0" * 5000 + b"]", "[\n  1" + "0" * 5000 + "\n]"),
        (b'{"a":"\\u0416\\"","b":"\\\\"}', '{\n  "a": "Ж\\"",\n  "b": "\\\\"\n}'),
        (b"[" * 101 + b"]" * 101, "[" * 101 + "]" * 101),
    ],
)
def test_indented(body: bytes, text: str) -> None:
    """A1: JSON has a line for each member, as it was sent."""
    headers = [["Content-Type", JSON]]
    stored = StoredResponse(status_code=200, headers=headers, body=body)
    assert decode(stored).text == text


@pytest.mark.parametrize("more", range(3))
def test_half_a_character(more: int) -> None:
    """A1: Where a body is cut, no character is made up."""
    # What is escaped takes less room on the page, so the end of the part is in view.
    start = json.dumps(["Ж" * (DECODED_BYTES // 6 - 1000)])[:-1] + ', "'
    body = start.encode() + b"." * more + "世".encode() * DECODED_BYTES
    headers = [["Content-Type", JSON]]
    stored = StoredResponse(status_code=200, headers=headers, body=body)
    decoded = decode(stored)
    assert decoded.text is not None
    assert decoded.text.endswith("世")
    assert "\ufffd" not in decoded.text
    assert len(decoded.text) < SHOWN_CHARACTERS
