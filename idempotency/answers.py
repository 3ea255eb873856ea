"""A stored answer as people may see it: decoded, never executed (contract A1)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from idempotency.responses import CHARSET, StoredResponse

# What fits on a page that a browser still scrolls with ease.
SHOWN_CHARACTERS = 50_000
INDENT = "  "

TEXT_TYPES = (
    "text/",
    "application/javascript",
    "application/x-ndjson",
    "application/x-www-form-urlencoded",
    "application/xml",
    "application/yaml",
)
# A string, a mark, or a number or word.
JSON_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},:]|[^][{},:"\s]+')
# Browsers drop these or do as they like: the pictures of Unicode stand in for them.
CONTROL_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedAnswer:
    """A body that was kept, in words.

    ``text`` is None where the body is not text; it is not safe as HTML. ``is_cut``
    tells that the text goes on. The SHA-256 is that of the whole body.
    """

    content_type: str
    size: int
    sha256: str
    text: str | None
    is_cut: bool


def decode(stored: StoredResponse) -> DecodedAnswer:
    """Decode a kept body by its Content-Type: JSON indented, text as text.

    Where a body is not what its type says, this shows what can be read of it.
    """
    body = stored.body or b""
    headers = {name.lower(): value for name, value in stored.headers}
    content_type = headers.get("content-type", "")
    text = None if headers.get("content-encoding") else _text(body, content_type)
    return DecodedAnswer(
        content_type=content_type,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        text=text and _presentable(text[:SHOWN_CHARACTERS]),
        is_cut=text is not None and len(text) > SHOWN_CHARACTERS,
    )


def _text(body: bytes, content_type: str) -> str | None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/json" or media_type.endswith("+json"):
        return _indented(_decoded(body, content_type))
    if media_type.startswith(TEXT_TYPES) or media_type.endswith("+xml"):
        return _decoded(body, content_type)
    return None


def _decoded(body: bytes, content_type: str) -> str:
    charset = CHARSET.search(content_type)
    try:
        text = body.decode(charset[1] if charset else "utf-8", errors="replace")
    except (LookupError, ValueError):
        text = body.decode(errors="replace")
    return text.removeprefix("\ufeff")


def _presentable(text: str) -> str:
    # JSON may escape halves of surrogate pairs, which no page can be encoded with.
    encodable = text.encode(errors="backslashreplace").decode()
    return encodable.translate(CONTROL_PICTURES)


def _indented(text: str) -> str:
    """Return JSON one member to a line, as far as it is shown, or else the text.

    Numbers and repeated members stay as they were sent, which ``json.dumps`` of
    ``json.loads`` would not grant.
    """
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    written: list[str] = []
    length = 0
    for part in _lines(text):
        written.append(part)
        length += len(part)
        if length > SHOWN_CHARACTERS:
            break
    return "".join(written)


def _lines(text: str) -> Iterator[str]:
    depth = 0
    is_empty = False
    for match in JSON_PART.finditer(text):
        part = match[0]
        if part in ("]", "}"):
            depth -= 1
            if not is_empty:
                yield "\n" + INDENT * depth
        elif is_empty:
            yield "\n" + INDENT * depth
        is_empty = part in ("[", "{")
        depth += is_empty
        if part == ":":
            yield ": "
        elif part == ",":
            yield ",\n" + INDENT * depth
        elif "\\u" in part:
            yield json.dumps(json.loads(part), ensure_ascii=False)
        else:
            yield part
