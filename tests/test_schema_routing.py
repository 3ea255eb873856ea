"""OpenAPI: views of ``protected()`` keep their descriptions; plain ones have none."""

from __future__ import annotations

from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.views import View
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.extensions import OpenApiViewExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema, extend_schema_view
from drf_spectacular.validation import validate_schema
from rest_framework import serializers
from rest_framework.decorators import action, api_view
from rest_framework.generics import CreateAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.routing import protected
from tests.conftest import once
from tests.test_schema import HEADER, QUERY, REFUSED, STORED, Json, places, resolved

pytestmark = once


class Note(serializers.Serializer[Any]):
    text = serializers.CharField()


class Receipt(serializers.Serializer[Any]):
    number = serializers.IntegerField()


class Create(CreateAPIView[Any]):
    """Create a note."""

    serializer_class = Note


@extend_schema_view(post=extend_schema(summary="Described.", responses=Receipt))
class Described(APIView):
    def post(self, request: Request) -> Response:
        return Response()


@extend_schema(request=Note, responses={202: Receipt}, tags=["functions"])
@api_view(["POST"])
def function(request: Request) -> Response:
    """Do something."""
    return Response()


class Notes(ViewSet):
    @extend_schema(request=Note, responses=Note)
    def create(self, request: Request) -> Response:
        return Response()

    @extend_schema(responses=Note(many=True))
    def list(self, request: Request) -> Response:
        return Response()

    @extend_schema(request=None, responses={204: None})
    @action(detail=True, methods=["post"])
    def publish(self, request: Request, pk: str) -> Response:
        return Response()


class OfPackage(APIView):
    """A view that only an extension of drf-spectacular describes."""

    def post(self, request: Request) -> Response:
        return Response()


class OfPackageExtension(OpenApiViewExtension):
    target_class = f"{__name__}.OfPackage"

    def view_replacement(self) -> Any:
        class Fixed(self.target_class):  # type: ignore[misc, name-defined]
            @extend_schema(request=Note, responses=Receipt)
            def post(self, request: Request) -> None:
                """Pay."""

        return Fixed


router = DefaultRouter()
router.register("notes", Notes, basename="note")
PATTERNS = [
    path("create/", Create.as_view()),
    path("described/", Described.as_view()),
    path("function/", function),
    path("package/", OfPackage.as_view()),
    path("router/", include(router.urls)),
]


def schema_of(patterns: Any) -> Json:
    with GENERATOR_STATS.silence():
        found: Json = SchemaGenerator(patterns=patterns).get_schema(public=True)
    validate_schema(found)
    return found


@pytest.mark.parametrize("options", [{}, {"required": True}])
def test_routing(options: Any, settings: Any) -> None:
    """Operations gain keys, headers and refusals, and lose nothing of their own."""
    bare, found = schema_of(PATTERNS), schema_of(protected(PATTERNS, **options))
    assert {*found["paths"]} == {*bare["paths"]}
    names = {"create", "described", "function", "package", "router/notes"}
    assert {f"/{name}/" for name in names} < {*bare["paths"]}
    for where, operations in bare["paths"].items():
        for method, operation in operations.items():
            gained = resolved(found, found["paths"][where][method])
            if method == "get":
                assert gained == operation
                continue
            assert places(gained) == {*places(operation), QUERY, HEADER}
            assert {*gained["responses"]} > REFUSED
            for status, response in operation["responses"].items():
                own = gained["responses"][status]
                assert {*own.pop("headers")} == STORED
                assert own == response
            for name in {*operation} - {"parameters", "responses"}:
                assert gained[name] == operation[name]
    said = str(found["components"]["parameters"])
    assert ("Required in the query as" in said) is bool(options)
    settings.IDEMPOTENCY = {"ENABLED": False}
    assert schema_of(protected(PATTERNS, **options)) == bare


class Mixed(IdempotencyMixin, View):
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


@idempotent
def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def test_plain_views() -> None:
    """Plain Django views are no operations, protected or not."""
    plain = [path("mixed/", Mixed.as_view()), path("page/", page)]
    assert schema_of([*PATTERNS, *plain]) == schema_of(PATTERNS)
