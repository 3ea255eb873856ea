"""What stands for a plain Django view, and its refusals as JSON."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse
from django.http.multipartparser import MultiPartParserError

from idempotency.conf import get_settings
from idempotency.exceptions import IdempotencyError
from idempotency.hooks import imported


class PlainView:
    """Stands for a plain view where execution expects one of Django REST framework's.

    ``owner`` is the instance of a class-based view, or None for a function.
    """

    # A handler refuses a request by these: Django makes a response below 500 of them.
    REFUSALS = (
        *(IdempotencyError, Http404, PermissionDenied),
        *(BadRequest, SuspiciousOperation, MultiPartParserError),
    )

    # The arguments of a URL, which Django REST framework's views hand on.
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  # never changed

    def __init__(self, request: HttpRequest, name: str, owner: Any) -> None:
        self.request = request
        self.name = name
        self.owner = owner
        self.headers: dict[str, str] = {}

    def finalize_response(
        self, request: HttpRequest, response: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return the response: Django has nothing to add."""
        return response

    def handle_exception(self, error: Exception) -> HttpResponseBase:
        """Return a response for a refusal of the app; leave other errors to Django."""
        if not isinstance(error, IdempotencyError):
            raise error
        response: HttpResponseBase = self.get_exception_handler()(self.request, error)
        return response

    def get_exception_handler(self) -> Any:
        """Return the function that makes the responses."""
        return imported(get_settings().REFUSAL_RESPONSE or refusal_response)


def refusal_response(request: HttpRequest, refusal: IdempotencyError) -> JsonResponse:
    """Return a refusal as JSON with ``detail`` and ``code`` (X1)."""
    content = {"detail": str(refusal.detail), "code": refusal.default_code}
    return JsonResponse(content, status=refusal.status_code)
