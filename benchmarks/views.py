"""One handler, bare and protected: it inserts a row and answers with so many bytes."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.decorators import idempotent
from tests.app.models import Effect

FILLER = "x" * 1_048_576
# What JSON and its names take of a body.
OVERHEAD = 24


def act(request: Request, size: int) -> Response:
    """Insert one row, and answer with a body of about that many bytes."""
    effect = Effect.objects.create(note="benchmark")
    if slow := request.META.get("HTTP_X_SLOW"):
        time.sleep(float(slow))
    return Response({"id": effect.pk, "text": FILLER[: size - OVERHEAD]}, status=201)


@api_view(["POST"])
def bare(request: Request, size: int) -> Any:
    """Without the app."""
    return act(request, size)


@api_view(["POST"])
@idempotent
def keyed(request: Request, size: int) -> Any:
    """In atomic mode."""
    return act(request, size)


@api_view(["POST"])
@idempotent(atomic=False, lease=timedelta(seconds=60), on_abandoned="hold")
def leased(request: Request, size: int) -> Any:
    """In leased mode."""
    return act(request, size)


urlpatterns = [
    path("bare/<int:size>/", bare),
    path("keyed/<int:size>/", keyed),
    path("leased/<int:size>/", leased),
]
