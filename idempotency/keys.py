"""Find, validate and judge the idempotency key in a request (contract K1 to K6)."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, unquote_plus

from idempotency.conf import get_settings
from idempotency.exceptions import KeyAmbiguous, KeyInvalid

MAX_LENGTH = 255

VALID = re.compile(rf"[\x21-\x7e]{{1,{MAX_LENGTH}}}")
# RFC 9651 section 3.3.3: printable ASCII; only the quote and the backslash are escaped.
QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
# One value, with the comma behind it, of a header that a server joined because it came
# more than once (RFC 9110 section 5.3).
MEMBER = re.compile(rf'(?:{QUOTED.pattern}[ \t]*|([^",][^,]*)?)(?:(,)[ \t]*|\Z)')
ESCAPED = re.compile(r"\\(.)")

# What clients put around a parameter's name, such as the brackets of PHP and jQuery.
BRACKETS = re.compile(r"\[[0-9]*\]\Z")
SIGNS = string.punctuation + string.whitespace

MIN_STRONG_LENGTH = 8
MIN_RANDOM_LENGTH = 20
# A time in nanoseconds has 19 digits; a UUID may have no letters, and has 32.
MAX_WEAK_DIGITS = 19
SEPARATORS = re.compile(r"[^0-9A-Za-z]+")
# With other separators too, such as the hyphens in the names of files.
ISO_8601 = re.compile(
    r"""
    [-+]?\d{4,6}                                           # more than 4 have a sign
    [-/.]?
    (?: (?:0[1-9]|1[0-2]) (?: [-/.]?(?:0[1-9]|[12]\d|3[01]) )?           # month, day
      | W(?:0[1-9]|[1-4]\d|5[0-3]) (?: -?[1-7] )?                         # week, day
      | [0-3]\d\d )                                             # day of the year
    (?: [-T_]? (?:[01]\d|2[0-4])                                              # hour
        (?: [-:.]?[0-5]\d (?: [-:.]?(?:[0-5]\d|60) )? )?           # minute, second
        (?: [-.,]\d+ )? )?                              # a fraction of the last one
    (?: Z | [-+](?:[01]\d|2[0-4])(?: :?[0-5]\d )? )?
    (?: \[[^][]+\] )*                                         # RFC 9557: its zone
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A valid key, and whether the client sent it in the query (K7)."""

    value: str = field(repr=False)
    in_query: bool


def query_pairs(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the query's names and values in the order of the URL.

    Decode them as UTF-8, unlike ``request.GET``, which uses the body's charset: a
    request could hide its key by naming another charset. Keep invalid bytes distinct,
    because they differ in another charset (F1).
    """
    query = meta.get("QUERY_STRING", "")
    return parse_qsl(query, keep_blank_values=True, errors="surrogateescape")


def find_raw(meta: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Return the keys in the query and the header, not validated."""
    settings = get_settings()
    param, header = settings.QUERY_PARAM, settings.HEADER
    in_query: list[str] = []
    query = meta.get("QUERY_STRING")
    if query and param and param in unquote_plus(query):
        in_query = [value for name, value in query_pairs(meta) if name == param]
    in_header = meta.get(_meta_name(header)) if header else None
    return in_query, in_header


def _meta_name(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


def find_key(meta: Mapping[str, Any]) -> ClientKey | None:
    """Return the key from a request's ``META``, or None if there is none.

    Raise ``KeyInvalid`` (K2, K3) or ``KeyAmbiguous`` (K1).
    """
    in_query, in_header = find_raw(meta)
    if not in_query and in_header is None:
        return None
    values = {*in_query}
    if in_header is not None:
        values |= _header_values(in_header)
    if not all(map(VALID.fullmatch, values)):
        raise KeyInvalid
    if len(values) > 1:
        raise KeyAmbiguous
    return ClientKey(values.pop(), in_query=bool(in_query))


def _header_values(raw: str) -> set[str]:
    raw = raw.strip(" \t")
    values: set[str] = set()
    start, comma = 0, ","
    while comma:
        member = MEMBER.match(raw, start)
        if member is None:
            raise KeyInvalid
        quoted, bare, comma = member.groups()
        bare = (bare or "").rstrip(" \t")
        values.add(bare if quoted is None else ESCAPED.sub(r"\1", quoted))
        start = member.end()
    return values


def find_near_miss(meta: Mapping[str, Any]) -> Literal["query", "header"] | None:
    """Return where a request without a key has a misspelled name of it (K1)."""
    settings = get_settings()
    param, header = settings.QUERY_PARAM, settings.HEADER
    query = meta.get("QUERY_STRING")
    if query and param:
        core = _core(param)
        # Parse the query only if the name is in it somewhere.
        near = core and core in unquote_plus(query).lower()
        if near and any(_core(name) == core for name, _ in query_pairs(meta)):
            return "query"
    if header:
        other = header[2:] if header.lower().startswith("x-") else f"x-{header}"
        if _meta_name(other) in meta:
            return "header"
    return None


def _core(name: str) -> str:
    """Return a parameter's name in lower case, without punctuation around it."""
    return BRACKETS.sub("", unquote(name)).strip(SIGNS).lower()


def is_weak(key: str) -> bool:
    """Return whether another client is likely to choose the same key (K6)."""
    core = SEPARATORS.sub("", key)
    return (
        len(key) < MIN_STRONG_LENGTH
        or len({*core}) < 2
        or (core.isdecimal() and len(core) <= MAX_WEAK_DIGITS)
        or ISO_8601.fullmatch(key) is not None
    )


def looks_random(key: str) -> bool:
    """Return whether no other client is likely to choose the same key (S1)."""
    return len(key) >= MIN_RANDOM_LENGTH and not is_weak(key)
