"""Turn a response into its stored form, and back into a response (R2 to R5)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.middleware.locale import LocaleMiddleware
from django.utils.module_loading import import_string
from django.utils.translation import get_language
from rest_framework.response import Response

from idempotency.client_warnings import WARNING_HEADER
from idempotency.conf import get_settings
from idempotency.encryption import stored_size

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

ERROR_HEADER = "Idempotency-Error"
EXPIRES_HEADER = "Idempotency-Expires"
REPLAYED_HEADER = "Idempotent-Replayed"

# Stored beside the headers of a response that is not Django REST framework's. An older
# version of the app replays it as a header, and overwrites that with its own value.
PLAIN = [REPLAYED_HEADER, "plain"]

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
        # The app sets its own anew in each response.
        ERROR_HEADER.lower(),
        EXPIRES_HEADER.lower(),
        REPLAYED_HEADER.lower(),
        WARNING_HEADER.lower(),
    }
)

CHARSET = re.compile(r"charset=[\"']?([\w.:-]+)", re.ASCII | re.IGNORECASE)

Headers = list[list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """The part of a response that a record keeps.

    Without a body it is a tombstone (R4), with the status and at most the Location.
    """

    status_code: int
    headers: Headers = field(repr=False)
    body: bytes | None = field(repr=False)

    @classmethod
    def from_http(
        cls,
        response: HttpResponseBase,
        *,
        keep: bool,
        is_plain: bool = False,
        language: str | None = None,
    ) -> StoredResponse:
        """Return what to keep of a rendered response.

        That is a tombstone for a streaming or file response, for one over
        MAX_RESPONSE_BYTES or with NUL in a header, which PostgreSQL can't store, and
        if ``keep`` is false (O4). ``is_plain`` means that neither the response nor its
        replay is Django REST framework's (R2b). ``language`` is the default for
        Content-Language.
        """
        headers = [[name, value] for name, value in response.items()]
        if language and "Content-Language" not in response.headers:
            headers.append(["Content-Language", language])
        has_nul = any("\0" in value for _name, value in headers)
        if keep and isinstance(response, HttpResponse) and not has_nul:
            body = bytes(response.content)
            if stored_size(len(body)) <= get_settings().MAX_RESPONSE_BYTES:
                unstored = _unstored(response)
                kept = [pair for pair in headers if pair[0].lower() not in unstored]
                return cls(
                    status_code=response.status_code,
                    headers=[*kept, PLAIN] if is_plain else kept,
                    body=body,
                )
        whole = cls(status_code=response.status_code, headers=headers, body=None)
        return whole.as_tombstone()

    def as_tombstone(self) -> StoredResponse:
        """Return the response without its body (R4)."""
        location = [
            [name, value]
            for name, value in self.headers
            if name.lower() == "location" and "\0" not in value
        ]
        return StoredResponse(status_code=self.status_code, headers=location, body=None)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields of a record for the response."""
        return {
            "status_code": self.status_code,
            "headers": self.headers,
            "body": self.body,
            "body_size": None if self.body is None else len(self.body),
        }

    def to_http(self) -> HttpResponse:
        """Return the response as Django's, byte for byte."""
        response = HttpResponse(self.body or b"", status=self.status_code)
        self.put_headers(response)
        if 300 <= self.status_code < 400 and "Location" in response:
            # As HttpResponseRedirect has it, for tests and middleware.
            response.url = response["Location"]  # type: ignore[attr-defined]
        return response

    def put_headers(self, response: HttpResponse) -> None:
        """Set the stored headers, and no others, on a new response."""
        del response["Content-Type"]
        for pair in self.headers:
            if pair != PLAIN:
                response[pair[0]] = pair[1]

    @property
    def content_type(self) -> str:
        """The Content-Type, or an empty string."""
        headers = {name.lower(): value for name, value in self.headers}
        return headers.get("content-type", "")

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters."""
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def is_plain(self) -> bool:
        """Whether the response was not Django REST framework's (R2b)."""
        return PLAIN in self.headers


def language_to_be_named() -> str | None:
    """Return the Content-Language that LocaleMiddleware would set, or None (R2).

    On a replay it would set the language of the retry instead.
    """
    is_named = _has_locale_middleware(tuple(django_settings.MIDDLEWARE))
    return get_language() if is_named else None


@lru_cache
def _has_locale_middleware(middleware: tuple[str, ...]) -> bool:
    found = map(import_string, middleware)
    return any(
        isinstance(each, type) and issubclass(each, LocaleMiddleware) for each in found
    )


def replayed_headers(headers: Headers) -> Headers:
    """Return those of a record's headers that a client gets."""
    return [pair for pair in headers if pair != PLAIN]


def _unstored(response: HttpResponse) -> set[str]:
    named = response.get("Connection", "").split(",")
    return {
        *UNSTORED_HEADERS,
        *(name.strip().lower() for name in named),
        *(name.lower() for name in get_settings().UNSTORED_HEADERS),
    }


def replay(stored: StoredResponse, view: APIView, request: Request) -> HttpResponse:
    """Return a stored response, byte for byte, without a renderer (R6)."""
    # The request of a plain view is Django's, also if a person stored the response.
    is_plain = stored.is_plain or isinstance(request, HttpRequest)
    return stored.to_http() if is_plain else Replay(stored, view, request)


class Replay(Response):
    """A Response that is rendered already.

    It asks the view for anything as late as possible, because the view may expect that
    its handler has run.
    """

    def __init__(self, stored: StoredResponse, view: APIView, request: Request) -> None:
        super().__init__(status=stored.status_code)
        del self.data  # for the cached property
        self._stored = stored
        self._replayed_by = view, request
        self.content = stored.body or b""
        stored.put_headers(self)

    @cached_property
    def data(self) -> Any:
        """The parsed body if it is JSON, else None."""
        return _read(self._stored)

    @cached_property
    def accepted_renderer(self) -> Any:  # type: ignore[override]  # stays writable
        """The renderer of the body's media type, if the view still has it."""
        return self._negotiated()[0]

    @cached_property
    def accepted_media_type(self) -> Any:  # type: ignore[override]  # stays writable
        """The media type of this renderer."""
        return self._negotiated()[1]

    @cached_property
    def renderer_context(self) -> Any:
        """The view's context for renderers."""
        view, _request = self._replayed_by
        return {**view.get_renderer_context(), "response": self}

    @property
    def rendered_content(self) -> Any:
        """The stored body, or a new rendering if something has changed the data."""
        # By repr(), because 1 == True in Python but not in JSON.
        if repr(self.data) == repr(_read(self._stored)):
            return self._stored.body
        return super().rendered_content

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can't be pickled, as Response does."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[misc]  # the stubs have none
        state.pop("_replayed_by", None)
        return state

    def _negotiated(self) -> tuple[Any, str]:
        view, request = self._replayed_by
        renderer, media_type = view.perform_content_negotiation(request, force=True)
        made = self._stored.media_type
        known = {each.media_type: each for each in view.get_renderers()}
        if renderer.media_type == made or made not in known:
            return renderer, media_type
        return known[made], made


def _read(stored: StoredResponse) -> Any:
    media_type, body = stored.media_type, stored.body or b""
    if media_type != "application/json" and not media_type.endswith("+json"):
        return None
    charset = CHARSET.search(stored.content_type)
    try:
        return json.loads(body.decode(charset[1]) if charset else body)
    except (LookupError, ValueError, RecursionError):
        return None
