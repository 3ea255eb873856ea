"""HttpResponse -> what is kept -> HttpResponse (contract R2 to R5)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.http import HttpResponse, HttpResponseBase
from django.middleware.locale import LocaleMiddleware
from django.utils.module_loading import import_string
from django.utils.translation import get_language
from rest_framework.response import Response

from idempotency.client_warnings import WARNING_HEADER
from idempotency.conf import get_settings

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

ERROR_HEADER = "Idempotency-Error"
EXPIRES_HEADER = "Idempotency-Expires"
REPLAYED_HEADER = "Idempotent-Replayed"

# Beside the headers of an answer that was no Response of Django REST framework's. A
# version that knows nothing of it writes its own value over it.
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
        # The app's own belong to one answer, not to the record.
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
    """The part of an answer that a record keeps; a tombstone where ``body`` is None.

    A tombstone (R4) has the answer's status and at most its Location.
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
        """Take what is to be kept of a rendered response.

        Streaming and file responses, those over MAX_RESPONSE_BYTES or with NUL in a
        header, which PostgreSQL can't store, become tombstones, as everything does
        where ``keep`` is false (O4). ``is_plain`` asks for a replay that is no Response
        of Django REST framework's either (R2b). ``language`` is that of a body whose
        view names none.
        """
        headers = [[name, value] for name, value in response.items()]
        if language and "Content-Language" not in response.headers:
            headers.append(["Content-Language", language])
        has_nul = any("\0" in value for _name, value in headers)
        if keep and isinstance(response, HttpResponse) and not has_nul:
            body = bytes(response.content)
            if len(body) <= get_settings().MAX_RESPONSE_BYTES:
                kept = _without(_unstored(response), headers)
                return cls(
                    status_code=response.status_code,
                    headers=[*kept, PLAIN] if is_plain else kept,
                    body=body,
                )
        all_of_it = cls(status_code=response.status_code, headers=headers, body=None)
        return all_of_it.as_tombstone()

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
        """Make the answer again, byte for byte."""
        response = HttpResponse(self.body or b"", status=self.status_code)
        self.put_headers(response)
        return response

    def put_headers(self, response: HttpResponse) -> None:
        """Give a new response the headers of the answer, and no others."""
        del response["Content-Type"]
        for pair in self.headers:
            if pair != PLAIN:
                response[pair[0]] = pair[1]

    @property
    def content_type(self) -> str:
        """The answer's Content-Type, or an empty string."""
        headers = {name.lower(): value for name, value in self.headers}
        return headers.get("content-type", "")

    @property
    def media_type(self) -> str:
        """The same without its parameters."""
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def is_plain(self) -> bool:
        """Whether the answer was no Response of Django REST framework's (R2b)."""
        return PLAIN in self.headers


def language_to_be_named() -> str | None:
    """Return what LocaleMiddleware is going to say of an answer's language, if it is.

    Of a replay it would say what the retry speaks (R2).
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
    """Return what a client gets of a record's headers."""
    return [pair for pair in headers if pair != PLAIN]


def _unstored(response: HttpResponse) -> set[str]:
    named = response.get("Connection", "").split(",")
    return {
        *UNSTORED_HEADERS,
        *(name.strip().lower() for name in named),
        *(name.lower() for name in get_settings().UNSTORED_HEADERS),
    }


def _without(unstored: set[str], headers: Iterable[list[str]]) -> Headers:
    return [pair for pair in headers if pair[0].lower() not in unstored]


def replay(stored: StoredResponse, view: APIView, request: Request) -> HttpResponse:
    """Make an answer again, byte for byte, without any renderer (R6)."""
    return stored.to_http() if stored.is_plain else Replay(stored, view, request)


class Replay(Response):
    """A Response that is rendered already.

    What the view would have to be asked for is asked for when somebody wants it:
    the handler has not run, and the view may count on that.
    """

    def __init__(self, stored: StoredResponse, view: APIView, request: Request) -> None:
        super().__init__(status=stored.status_code)
        del self.data  # see below
        self._stored = stored
        self._replayed_by = view, request
        self.content = stored.body or b""
        stored.put_headers(self)

    @cached_property
    def data(self) -> Any:
        """What the body says if it is JSON, else None."""
        return _read(self._stored)

    @cached_property
    def accepted_renderer(self) -> Any:  # type: ignore[override]  # may be written, too
        """The renderer that has made the body, as far as the view still has it."""
        return self._negotiated()[0]

    @cached_property
    def accepted_media_type(self) -> Any:  # type: ignore[override]  # so may this
        """The media type that this renderer is for."""
        return self._negotiated()[1]

    @cached_property
    def renderer_context(self) -> Any:
        """What the view hands to a renderer."""
        view, _request = self._replayed_by
        return {**view.get_renderer_context(), "response": self}

    @property
    def rendered_content(self) -> Any:
        """The stored body, or what a renderer makes of data that were changed since."""
        # Text tells apart what is equal to Python alone, such as 1 and True.
        if repr(self.data) == repr(_read(self._stored)):
            return self._stored.body
        return super().rendered_content

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only this process knows, as Response does."""
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
