"""A stored answer as people may see it: decoded, never executed (contract A1)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from idempotency.responses import StoredResponse

CHARSET = re.compile(r"charset=\"?([\w.:-]+)", re.ASCII | re.IGNORECASE)
TEXT_TYPES = ("text/", "application/xml", "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedAnswer:
    """``text`` is None where the body is not text; it is not safe as HTML."""

    content_type: str
    size: int
    sha256: str
    text: str | None


def decode(stored: StoredResponse) -> DecodedAnswer:
    """Decode a kept body by its Content-Type: JSON indented, text as text."""
    body = stored.body or b""
    content_type = next(
        (value for name, value in stored.headers if name.lower() == "content-type"), ""
    )
    return DecodedAnswer(
        content_type=content_type,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        text=_text(body, content_type),
    )


def _text(body: bytes, content_type: str) -> str | None:
    media_type = content_type.partition(";")[0].strip().lower()
    charset = CHARSET.search(content_type)
    is_json = media_type == "application/json" or media_type.endswith("+json")
    if not is_json and not media_type.startswith(TEXT_TYPES):
        return None
    try:
        text = body.decode(charset[1] if charset else "utf-8")
        return (
            json.dumps(json.loads(text), indent=2, ensure_ascii=False)
            if is_json
            else text
        )
    except (ValueError, LookupError, RecursionError):
        return None
