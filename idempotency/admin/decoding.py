"""Decode a stored response for display; nothing in it is executed (contract A1)."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from idempotency.responses import CHARSET, StoredResponse

# Browsers still scroll a page of this length smoothly.
SHOWN_CHARACTERS = 50_000
# A character has at most four bytes, so these are enough for SHOWN_CHARACTERS.
DECODED_BYTES = 5 * SHOWN_CHARACTERS
INDENT = "  "
# JSON that is nested deeper is not indented: the page would be mostly spaces.
DEEPEST = 100

TEXT_TYPES = (
    "text/",
    "application/javascript",
    "application/x-ndjson",
    "application/x-www-form-urlencoded",
    "application/xml",
    "application/yaml",
)
# A quote that starts a string, punctuation, or a number or word.
JSON_PART = re.compile(r'["[\]{},:]|[^][{},:"\s]+')
# Accepts control characters in strings.
LENIENT = json.JSONDecoder(strict=False)
# Python's text encodings that are no charsets. Some take quadratic time.
NO_CHARSETS = {
    codecs.lookup(name).name
    for name in (
        "idna",
        "palmos",
        "punycode",
        "raw_unicode_escape",
        "undefined",
        "unicode_escape",
    )
}
# Browsers show control characters differently or not at all.
CONTROL_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
}
# They change the order in which other characters are shown, such as "evil" for "live"
# (https://www.unicode.org/reports/tr9/).
BIDIRECTIONAL = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
ESCAPES = CONTROL_PICTURES | {code: f"\\u{code:04x}" for code in BIDIRECTIONAL}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBody:
    """A stored body for display.

    ``text`` is None if the body is not text; it is not safe as HTML. ``is_cut`` is
    true if the body has more text. ``size`` and ``sha256`` are of the whole body.
    """

    content_type: str
    size: int
    sha256: str
    text: str | None
    is_cut: bool


def decode(stored: StoredResponse) -> DecodedBody:
    """Decode a stored body by its Content-Type, and indent JSON.

    If the body does not match its type, show the readable part. Apart from the
    SHA-256, the cost does not grow with the body.
    """
    body = stored.body or b""
    headers = {name.lower(): value for name, value in stored.headers}
    content_type = headers.get("content-type", "")
    is_whole = len(body) <= DECODED_BYTES
    text = None
    if not headers.get("content-encoding"):
        text = _text(body[:DECODED_BYTES], content_type, is_whole=is_whole)
    return DecodedBody(
        content_type=content_type,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        text=text and presentable(text[:SHOWN_CHARACTERS]),
        is_cut=text is not None and not (is_whole and len(text) <= SHOWN_CHARACTERS),
    )


def indented(value: Any) -> str:
    """Return a JSON value with one member per line, for display."""
    text = json.dumps(value)
    return presentable(_indented(text, is_whole=True)[:SHOWN_CHARACTERS])


def _text(body: bytes, content_type: str, *, is_whole: bool) -> str | None:
    media_type = content_type.partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or media_type.endswith("+json")
    is_text = media_type.startswith(TEXT_TYPES) or media_type.endswith("+xml")
    if not (is_json or is_text):
        return None
    text = _decoded(body, content_type)
    if not is_whole:
        text = text.removesuffix("\ufffd")  # half a character
    return _indented(text, is_whole=is_whole) if is_json else text


def _decoded(body: bytes, content_type: str) -> str:
    named = CHARSET.search(content_type)
    charset = named[1] if named else "utf-8"
    try:
        if codecs.lookup(charset).name in NO_CHARSETS:
            charset = "utf-8"
        text = body.decode(charset, errors="replace")
    except (LookupError, ValueError):
        text = body.decode(errors="replace")
    return text.removeprefix("\ufeff")


def presentable(text: str) -> str:
    """Return text as a page can show it, with what is not visible made visible."""
    # JSON can escape lone surrogates, which UTF-8 can't encode.
    encodable = text.encode(errors="backslashreplace").decode()
    return encodable.translate(ESCAPES)


def _indented(text: str, *, is_whole: bool) -> str:
    """Return JSON with one member per line, or the text if it is not JSON.

    Unlike ``json.dumps(json.loads(text))``, this keeps numbers and repeated members as
    they were sent. A body that was cut is not validated.
    """
    written: list[str] = []
    length = 0
    try:
        if is_whole:
            # int() would refuse very long numbers.
            json.loads(text, parse_int=str, parse_float=str)
        for part in _lines(text):
            written.append(part)
            length += len(part)
            if length > SHOWN_CHARACTERS:
                break
    except (ValueError, RecursionError):
        return text
    return "".join(written) or text


def _lines(text: str) -> Iterator[str]:
    """Yield the parts of JSON with line breaks and indentation.

    Raise ``ValueError`` if the nesting is deeper than ``DEEPEST``.
    """
    depth = at = 0
    is_empty = False
    while match := JSON_PART.search(text, at):
        part, at = match[0], match.end()
        if part == '"':
            part, at = _string(text, match.start())
        if part in ("]", "}"):
            depth -= 1
            if not is_empty:
                yield "\n" + INDENT * depth
        elif is_empty:
            yield "\n" + INDENT * depth
        is_empty = part in ("[", "{")
        depth += is_empty
        if depth > DEEPEST:
            raise ValueError("too deep")
        if part == ":":
            yield ": "
        elif part == ",":
            yield ",\n" + INDENT * depth
        else:
            yield part


def _string(text: str, start: int) -> tuple[str, int]:
    r"""Return a JSON string with its ``\u`` escapes decoded, and its end.

    A string without an end is the rest of the text.
    """
    try:
        value, end = LENIENT.raw_decode(text, start)
    except ValueError:
        return text[start:], len(text)
    written = text[start:end]
    if "\\u" in written:
        return json.dumps(value, ensure_ascii=False), end
    return written, end
