"""One handler, bare and protected: it inserts a row and answers with so many bytes."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection
from django.http import HttpResponse
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from benchmarks.answers import BYTES, TEXT
from benchmarks.floor import COMMIT, claim, send, statements
from idempotency.claims.rows import ATTNAMES
from idempotency.context import context_of
from idempotency.decorators import idempotent
from tests.app.models import Effect

# What JSON and its names take of a body.
OVERHEAD = 24


def act(request: Request, size: int) -> Response:
    """Insert one row, and answer with a body of about that many bytes."""
    effect = Effect.objects.create(note="benchmark")
    if slow := request.META.get("HTTP_X_SLOW"):
        time.sleep(float(slow))
    return Response({"id": effect.pk, "text": TEXT[: size - OVERHEAD]}, status=201)


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
@idempotent
def refusing(request: Request, size: int) -> Any:
    """In atomic mode, with an answer that gives the key back."""
    act(request, size)
    return Response({"title": ["too long"]}, status=400)


@api_view(["POST"])
@idempotent(atomic=False, lease=timedelta(seconds=60), on_abandoned="hold")
def leased(request: Request, size: int) -> Any:
    """In leased mode."""
    return act(request, size)


@api_view(["POST"])
@idempotent(atomic=False, lease=timedelta(seconds=60), on_abandoned="resume")
def resuming(request: Request, size: int) -> Any:
    """In leased mode, in one step that returns the response."""
    return context_of(request).step("act", lambda: act(request, size))


@api_view(["POST"])
def floor(request: Request, size: int) -> Any:
    """The app's statements through the bare driver, and nothing else of the app."""
    sent = statements(UUID(request.META["HTTP_IDEMPOTENCY_KEY"]), BYTES[:size])
    connection.ensure_connection()
    began_at, found = claim(sent.claim)
    if found is not None:
        send(COMMIT)
        return HttpResponse(found[ATTNAMES.index("body")], status=201)
    response = act(request, size)
    send(sent.store(began_at), COMMIT)
    return response


urlpatterns = [
    path("bare/<int:size>/", bare),
    path("keyed/<int:size>/", keyed),
    path("refusing/<int:size>/", refusing),
    path("leased/<int:size>/", leased),
    path("resuming/<int:size>/", resuming),
    path("floor/<int:size>/", floor),
]
