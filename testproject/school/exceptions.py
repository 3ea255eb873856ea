"""Errors as a list of codes and messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rest_framework import views
from rest_framework.exceptions import ErrorDetail
from rest_framework.response import Response


def exception_handler(exc: Exception, context: Mapping[str, Any]) -> Response | None:
    """Return DRF's response, with one entry of ``$errors`` for each detail."""
    response = views.exception_handler(exc, dict(context))
    if response is not None:
        response.data = list(_errors(response.data))
    return response


def _errors(detail: Any, field: str = "") -> Iterator[dict[str, str]]:
    if isinstance(detail, Mapping):
        for name, value in detail.items():
            inner = "" if name in ("detail", "non_field_errors") else str(name)
            yield from _errors(
                value, f"{field}.{inner}" if field and inner else inner or field
            )
    elif isinstance(detail, list):
        for value in detail:
            yield from _errors(value, field)
    else:
        code = detail.code if isinstance(detail, ErrorDetail) else None
        message = f"{field}: {detail}" if field else str(detail)
        yield {"code": (code or "error").upper(), "message": message}
