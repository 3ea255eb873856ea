"""How a refusal says its code to programs, whatever the error format (contract X1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rest_framework.views import exception_handler

from idempotency.exceptions import IdempotencyError

if TYPE_CHECKING:
    from rest_framework.response import Response
    from rest_framework.views import APIView

ExceptionHandler = Callable[[Exception, dict[str, Any]], "Response | None"]


def exception_handler_of(view: APIView) -> ExceptionHandler:
    """Return a view's EXCEPTION_HANDLER, that of DRF with codes of the app's refusals.

    A format of the project's own is left alone.
    """
    own: ExceptionHandler = view.get_exception_handler()
    return _exception_handler if own is exception_handler else own


def _exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    response = exception_handler(error, context)
    if (
        response is not None
        and isinstance(error, IdempotencyError)
        and isinstance(error.detail, str)
    ):
        response.data = {**response.data, "code": error.default_code}
    return response
