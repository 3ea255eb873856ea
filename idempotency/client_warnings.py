"""The warnings to clients, and where a response carries them (K5 to K7)."""

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
    """A stable code and a message, both plain ASCII."""

    code: str
    message: str

    def as_member(self) -> dict[str, str]:
        """Return the entry for ``$warnings``."""
        return {"code": self.code, "message": self.message}

    def as_header(self) -> str:
        """Return the entry for the header, an RFC 9651 token with a parameter."""
        return f'{self.code};message="{self.message}"'


KEY_IGNORED = ClientWarning(
    "IDEMPOTENCY_KEY_IGNORED",
    "Idempotency keys have no effect with this method. The key was ignored.",
)
KEY_MISSPELLED = ClientWarning(
    "IDEMPOTENCY_KEY_MISSPELLED",
    "The name of the idempotency key is misspelled, so the key has no effect. {right}",
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
    """Return the warning about a misspelled name, with the correct name (K1)."""
    settings = get_settings()
    right = f"The header is {settings.HEADER}."
    if place == "query":
        # Quoted, because the warning's own header takes only ASCII without quotes.
        right = f"The parameter is {quote(settings.QUERY_PARAM or '', safe='$')}."
    return replace(KEY_MISSPELLED, message=KEY_MISSPELLED.message.format(right=right))


def add_to_header(
    response: HttpResponseBase, warnings: Iterable[ClientWarning]
) -> None:
    """Write the warnings into ``Idempotency-Warning``, an RFC 9651 list."""
    if "header" in get_settings().WARNINGS:
        response[WARNING_HEADER] = ", ".join(w.as_header() for w in warnings)


def add_to_body(response: HttpResponseBase, warnings: Iterable[ClientWarning]) -> None:
    """Add ``$warnings`` to response data that becomes a JSON object.

    Work on a copy, because the handler may use the data elsewhere. Keep the handler's
    own ``$warnings`` in front.
    """
    data: Any = getattr(response, "data", None)
    if "body" not in get_settings().WARNINGS or not isinstance(data, dict):
        return
    own = data.get(WARNINGS_MEMBER, [])
    if isinstance(own, list):
        data = data.copy()  # keeps a ReturnDict what it is
        data[WARNINGS_MEMBER] = [*own, *(w.as_member() for w in warnings)]
        response.data = data  # type: ignore[attr-defined]  # DRF's Response has it
