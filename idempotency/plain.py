"""Run the handlers of plain Django views, and send refusals as JSON."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import (
    BadRequest,
    ImproperlyConfigured,
    PermissionDenied,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse
from django.http.multipartparser import MultiPartParserError

from idempotency.conf import get_settings
from idempotency.conf.policy import Options
from idempotency.exceptions import IdempotencyError
from idempotency.execution import execute
from idempotency.hooks import imported
from idempotency.keyed_request import Handler


class PlainView:
    """Stands for a plain view where execution expects one of Django REST framework's.

    ``owner`` is the instance of a class-based view, or None for a function.
    """

    # What Django turns into a response below 500.
    idempotency_refusals = (
        *(IdempotencyError, Http404, PermissionDenied),
        *(BadRequest, SuspiciousOperation, MultiPartParserError),
    )

    def __init__(
        self, request: HttpRequest, name: str, owner: Any, args: Any, kwargs: Any
    ) -> None:
        self.request = request
        self.idempotency_name = name
        self.owner = owner
        self.args, self.kwargs = args, kwargs
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


def execute_plain(
    request: HttpRequest,
    handler: Handler,
    options: Options,
    *,
    name: str,
    owner: Any = None,
    args: Any = (),
    kwargs: Any = None,
) -> HttpResponseBase:
    """Run the handler of a plain view, or replay its response.

    ``name`` is the handler's dotted name. Raise any error of the handler.
    """
    view: Any = PlainView(request, name, owner, args, kwargs or {})

    def run() -> HttpResponseBase:
        response: Any = handler()
        if not isinstance(response, HttpResponseBase):
            raise ImproperlyConfigured(
                f"{name} must return an HttpResponse, not {type(response).__name__}. "
                "The app can't protect handlers of other frameworks."
            )
        return response

    plain: Any = request
    try:
        response = execute(view, plain, run, options)
    except Exception as error:  # noqa: BLE001  # raised again unless it is a refusal
        response = view.handle_exception(error)
    found: HttpResponseBase = view.finalize_response(request, response)
    return found
