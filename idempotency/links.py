"""Links made of a request's URL, which has the request's key in its query."""

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

    Everything else stays as it is written. None stays None, so that the link of a last
    page can be handed in as it is.
    """
    param = get_settings().QUERY_PARAM
    if not url or not param:
        return url
    address, sharp, fragment = url.partition("#")
    address, _, query = address.partition("?")
    pairs = query.split("&")
    kept = [pair for pair in pairs if _name(pair) != param]
    if len(kept) == len(pairs):
        return url
    return "".join([address, "?" if kept else "", "&".join(kept), sharp, fragment])


def _name(pair: str) -> str:
    """Return a parameter's name as the app reads it."""
    return unquote_plus(pair.partition("=")[0], errors="surrogateescape")
