"""HttpResponse -> what is kept -> HttpResponse (contract R2 to R5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse, HttpResponseBase

from idempotency.client_warnings import WARNING_HEADER
from idempotency.conf import get_settings

EXPIRES_HEADER = "Idempotency-Expires"
REPLAYED_HEADER = "Idempotent-Replayed"

UNSTORED_HEADERS = frozenset(
    {
        "set-cookie",
        "date",
        "server",
        "content-length",
        # Hop-by-hop: RFC 9110 section 7.6.1, and RFC 2616 section 13.5.1 before it.
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # The app's own belong to one answer, not to the record.
        EXPIRES_HEADER.lower(),
        REPLAYED_HEADER.lower(),
        WARNING_HEADER.lower(),
    }
)

Headers = list[list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """The part of an answer that a record keeps; a tombstone where ``body`` is None.

    A tombstone (R4) has the answer's status and at most its Location.
    """

    status_code: int
    headers: Headers
    body: bytes | None

    @classmethod
    def from_http(cls, response: HttpResponseBase, *, keep: bool) -> StoredResponse:
        """Take what is to be kept of a rendered response.

        Streaming and file responses, those over MAX_RESPONSE_BYTES or with NUL in a
        header, which PostgreSQL can't store, become tombstones, as everything does
        where ``keep`` is false (O4).
        """
        headers = [[name, value] for name, value in response.items()]
        has_nul = any("\0" in value for _name, value in headers)
        if keep and isinstance(response, HttpResponse) and not has_nul:
            body = bytes(response.content)
            if len(body) <= get_settings().MAX_RESPONSE_BYTES:
                return cls(
                    status_code=response.status_code,
                    headers=_without(_unstored(response), headers),
                    body=body,
                )
        kept = cls(status_code=response.status_code, headers=headers, body=None)
        return kept.as_tombstone()

    def as_tombstone(self) -> StoredResponse:
        """Return what is kept of an answer whose body is not (R4)."""
        location = [
            [name, value]
            for name, value in self.headers
            if name.lower() == "location" and "\0" not in value
        ]
        return StoredResponse(status_code=self.status_code, headers=location, body=None)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of a record that hold the answer."""
        return {
            "status_code": self.status_code,
            "headers": self.headers,
            "body": self.body,
            "body_size": None if self.body is None else len(self.body),
        }

    def to_http(self) -> HttpResponse:
        """Make the answer again, byte for byte, without any renderer (R6)."""
        response = HttpResponse(self.body or b"", status=self.status_code)
        del response["Content-Type"]
        for name, value in self.headers:
            response[name] = value
        return response


def _unstored(response: HttpResponse) -> set[str]:
    named = response.get("Connection", "").split(",")
    return {
        *UNSTORED_HEADERS,
        *(name.strip().lower() for name in named),
        *(name.lower() for name in get_settings().UNSTORED_HEADERS),
    }


def _without(unstored: set[str], headers: Iterable[list[str]]) -> Headers:
    return [pair for pair in headers if pair[0].lower() not in unstored]
