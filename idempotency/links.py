"""Links built from a request's URL, which may have the idempotency key in its query."""

from __future__ import annotations

from typing import overload
from urllib.parse import unquote_plus

from idempotency.conf import get_settings


@overload
def without_key(url: str) -> str: ...
@overload
def without_key(url: None) -> None: ...
@overload
def without_key(url: str | None) -> str | None: ...
def without_key(url: str | None) -> str | None:
    """Return a URL without the idempotency key in its query.

    Everything else stays as written. None stays None, for the next link of a last page.
    """
    param = get_settings().QUERY_PARAM
    if not url or not param:
        return url
    address, sharp, fragment = url.partition("#")
    address, _, query = address.partition("?")
    pairs = query.split("&")
    names = (unquote_plus(p.partition("=")[0], errors="surrogateescape") for p in pairs)
    kept = [pair for pair, name in zip(pairs, names, strict=True) if name != param]
    if len(kept) == len(pairs):
        return url
    return "".join([address, "?" if kept else "", "&".join(kept), sharp, fragment])
