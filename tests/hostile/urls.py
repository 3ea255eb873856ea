"""The tests' views, with a handler that accounts for each effect."""

from __future__ import annotations

from typing import Any

from django.urls import path
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.mixins import IdempotencyMixin
from tests.app.models import Effect
from tests.app.views import Behaviour
from tests.urls import urlpatterns as usual_patterns


def take(request: Request) -> Any:
    """Read the body, and note which request acted, for which record, and where."""
    shape = type(request.data).__name__
    context = getattr(request._request, "idempotency", None)
    record = (context and context.record_id) or "-"
    match = request.resolver_match
    assert match is not None
    number = request.META.get("HTTP_X_NUMBER", "?")[:60]
    effect = Effect.objects.create(note=f"{number} {record} {match.route}")
    return Response({"effect": effect.pk, "shape": shape}, status=201)


class UnprotectedView(APIView):
    def post(self, request: Request) -> Any:
        return take(request)

    def get(self, request: Request) -> Any:
        return take(request)


class CostsView(IdempotencyMixin, APIView):
    """Reads the data, unless told not to, and does nothing else."""

    parser_classes = [JSONParser, FormParser, MultiPartParser]

    def post(self, request: Request) -> Any:
        data = None if "unread" in request.query_params else request.data
        return Response({"shape": type(data).__name__}, status=201)


Behaviour.handler = staticmethod(take)
urlpatterns = [
    *usual_patterns,
    path("unprotected-view/", UnprotectedView.as_view()),
    path("costs/", CostsView.as_view()),
]
