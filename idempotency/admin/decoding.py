"""A stored answer as people may see it: decoded, never executed (contract A1)."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from idempotency.responses import CHARSET, StoredResponse

# What fits on a page that a browser still scrolls with ease.
SHOWN_CHARACTERS = 50_000
# No more than that is decoded, however long a body is. No character takes more than
# four bytes, so of a text there is enough for what is shown.
DECODED_BYTES = 5 * SHOWN_CHARACTERS
INDENT = "  "
# JSON that is nested deeper is shown as it was sent: it would be blanks for the most.
DEEPEST = 100

TEXT_TYPES = (
    "text/",
    "application/javascript",
    "application/x-ndjson",
    "application/x-www-form-urlencoded",
    "application/xml",
    "application/yaml",
)
# The beginning of a string, a mark, or a number or word.
JSON_PART = re.compile(r'["[\]{},:]|[^][{},:"\s]+')
# Control characters in strings are no JSON, and can be read all the same.
LENIENT = json.JSONDecoder(strict=False)
# What Python calls text encodings and nobody else a charset. Some take quadratic time.
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
# Browsers drop these or do as they like: the pictures of Unicode stand in for them.
CONTROL_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedBody:
    """A body that was kept, in words.

    ``text`` is None where the body is not text; it is not safe as HTML. ``is_cut``
    tells that the text goes on. The SHA-256 is that of the whole body.
    """

    content_type: str
    size: int
    sha256: str
    text: str | None
    is_cut: bool


def decode(stored: StoredResponse) -> DecodedBody:
    """Decode a kept body by its Content-Type: JSON indented, text as text.

    Where a body is not what its type says, this shows what can be read of it. What it
    costs does not grow with the body, the SHA-256 apart.
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
        text=text and _presentable(text[:SHOWN_CHARACTERS]),
        is_cut=text is not None and not (is_whole and len(text) <= SHOWN_CHARACTERS),
    )


def _text(body: bytes, content_type: str, *, is_whole: bool) -> str | None:
    media_type = content_type.partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or media_type.endswith("+json")
    if not (is_json or media_type.startswith(TEXT_TYPES) or _is_xml(media_type)):
        return None
    text = _decoded(body, content_type)
    if not is_whole:
        text = text.removesuffix("\ufffd")  # half a character
    return _indented(text, is_whole=is_whole) if is_json else text


def _is_xml(media_type: str) -> bool:
    return media_type.endswith("+xml")


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


def _presentable(text: str) -> str:
    # JSON may escape halves of surrogate pairs, which no page can be encoded with.
    encodable = text.encode(errors="backslashreplace").decode()
    return encodable.translate(CONTROL_PICTURES)


def _indented(text: str, *, is_whole: bool) -> str:
    """Return JSON one member to a line, as far as it is shown, or else the text.

    Numbers and repeated members stay as they were sent, which ``json.dumps`` of
    ``json.loads`` would not grant. Whether a part of a body is JSON nobody can tell.
    """
    written: list[str] = []
    length = 0
    try:
        if is_whole:
            # Numbers are not made, so none is too long.
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
    """Yield the parts of JSON with line ends and blanks between them.

    Raises ``ValueError`` where it is too deep.
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
    """Return a string, with what it escapes by number as it reads, and its end.

    One that does not end is the rest of the text.
    """
    try:
        value, end = LENIENT.raw_decode(text, start)
    except ValueError:
        return text[start:], len(text)
    written = text[start:end]
    if "\\u" in written:
        return json.dumps(value, ensure_ascii=False), end
    return written, end
