"""The warnings that a client gets beside its answer, and where they go (K5 to K7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote

from django.http import HttpResponseBase

from idempotency.conf import get_settings

WARNING_HEADER = "Idempotency-Warning"
WARNINGS_MEMBER = "$warnings"


@dataclass(frozen=True, slots=True)
class ClientWarning:
    """A stable code for programs and a message for people, both plain ASCII."""

    code: str
    message: str

    def as_member(self) -> dict[str, str]:
        """Return the entry of ``$warnings``."""
        return {"code": self.code, "message": self.message}

    def as_header(self) -> str:
        """Return the member of the header: an RFC 9651 token with a parameter."""
        return f'{self.code};message="{self.message}"'


KEY_IGNORED = ClientWarning(
    "IDEMPOTENCY_KEY_IGNORED",
    "Idempotency keys have no effect on requests of this method. The key was ignored.",
)
KEY_MISSPELLED = ClientWarning(
    "IDEMPOTENCY_KEY_MISSPELLED",
    "The idempotency key has no effect under a misspelled name. {right}",
)
KEY_UNSUPPORTED = ClientWarning(
    "IDEMPOTENCY_KEY_UNSUPPORTED",
    "This endpoint does not support idempotency keys. A retry can act again.",
)
KEY_WEAK = ClientWarning(
    "IDEMPOTENCY_KEY_WEAK",
    "The idempotency key is likely to collide. Use a UUID or another random string.",
)


def key_misspelled(place: Literal["query", "header"]) -> ClientWarning:
    """Return the warning of a near miss, with the name that is right there (K1)."""
    settings = get_settings()
    right = f"In the header it is {settings.HEADER}."
    if place == "query":
        # As it stands in a URL: no quote ends the header's string, all is ASCII.
        right = f"In the query it is {quote(settings.QUERY_PARAM or '', safe='$')}."
    return replace(KEY_MISSPELLED, message=KEY_MISSPELLED.message.format(right=right))


def add_to_header(
    response: HttpResponseBase, warnings: Iterable[ClientWarning]
) -> None:
    """Name the warnings in ``Idempotency-Warning``, an RFC 9651 list."""
    if "header" in get_settings().WARNINGS:
        response[WARNING_HEADER] = ", ".join(w.as_header() for w in warnings)


def add_to_body(response: HttpResponseBase, warnings: Iterable[ClientWarning]) -> None:
    """Add ``$warnings`` to the response's data where that will be a JSON object.

    Works on a copy: the handler may hold the data elsewhere. Warnings of the
    handler's own under the same name come first and stay.
    """
    data: Any = getattr(response, "data", None)
    if "body" not in get_settings().WARNINGS or not isinstance(data, dict):
        return
    own = data.get(WARNINGS_MEMBER, [])
    if isinstance(own, list):
        data = data.copy()
        data[WARNINGS_MEMBER] = [*own, *(w.as_member() for w in warnings)]
        response.data = data  # type: ignore[attr-defined]  # DRF's Response has it
