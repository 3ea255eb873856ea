"""An answer made again, as code around a view expects one (contract R2b)."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.http import HttpResponse
from rest_framework.response import Response

from idempotency.responses import CHARSET, StoredResponse

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView


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
