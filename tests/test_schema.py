"""OpenAPI: protected operations show their keys and answers, and only they."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connections, transaction
from django.test import Client, override_settings
from django.urls import path
from django.utils.module_loading import import_string
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.extensions import OpenApiViewExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import get_lib_doc_excludes
from drf_spectacular.settings import SPECTACULAR_DEFAULTS, patched_settings
from drf_spectacular.utils import (
    OpenApiCallback,
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_view,
)
from drf_spectacular.validation import validate_schema
from rest_framework import serializers
from rest_framework.decorators import action, api_view
from rest_framework.exceptions import APIException
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.versioning import AcceptHeaderVersioning
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency import schema
from idempotency.decorators import idempotent
from idempotency.exceptions import IdempotencyError
from idempotency.hooks import Hooks
from idempotency.mixins import IdempotencyMixin
from idempotency.routing import protected
from idempotency.schema.operations import IdempotencyErrorSerializer
from tests.app import views
from tests.conftest import once
from tests.support.processes import PATIENCE, ROOT
from tests.test_docs import table

pytestmark = once

Json = dict[str, Any]

PAGE = (ROOT / "docs" / "openapi.md").read_text(encoding="utf-8")
QUERY, HEADER = ("$idempotency", "query"), ("Idempotency-Key", "header")
STORED = {"Idempotent-Replayed", "Idempotency-Expires"}
REFUSED = {"400", "409", "422", "503"}
HEADERS_409 = {"Idempotency-Error", "Retry-After", "Location"}
VERSIONS = ("3.0.3", "3.1.0")


class Problem(serializers.Serializer[Any]):
    problem = serializers.CharField()


def schema_of(callback: Any, **settings: Any) -> Json:
    """Return the valid schema of one view."""
    with patched_settings(settings), GENERATOR_STATS.silence():
        generator = SchemaGenerator(patterns=[path("here/", callback)])
        found: Json = generator.get_schema(public=True)
    validate_schema(found)
    return found


def resolved(found: Json, part: Any) -> Any:
    """Return a part of a schema with what it refers to, other schemas apart."""
    if isinstance(part, list):
        return [resolved(found, each) for each in part]
    if not isinstance(part, dict):
        return part
    where = part.get("$ref", "#/components/schemas/")
    if where.startswith("#/components/schemas/"):
        return {name: resolved(found, each) for name, each in part.items()}
    _root, *steps = where.split("/")
    return resolved(found, reduce(getitem, steps, found))


def operation_of(callback: Any, method: str = "post", **settings: Any) -> Json:
    found = schema_of(callback, **settings)
    operation: Json = resolved(found, found["paths"]["/here/"][method])
    return operation


def places(operation: Json) -> set[tuple[str, str]]:
    return {(each["name"], each["in"]) for each in operation.get("parameters", [])}


def mentions(operation: Json) -> bool:
    """Return whether a client could read of idempotency at all."""
    return "idempot" in json.dumps(operation).lower()


def examples(operation: Json, status: str) -> Json:
    media = operation["responses"][status]["content"]["application/json"]
    return {name: each["value"] for name, each in media["examples"].items()}


def view_with(handler: Callable[..., Any], **attributes: Any) -> Any:
    """Return a view with the mixin and a POST handler of a test's own."""
    members = {"post": handler, **attributes}
    return type("View", (IdempotencyMixin, APIView), members).as_view()  # type: ignore[attr-defined]


def post(**documented: Any) -> Callable[..., Any]:
    """Return a handler, and what @extend_schema says of it if anything."""

    def handler(self: Any, request: Request) -> Response:
        return Response()

    return extend_schema(request=None, **documented)(handler) if documented else handler


@extend_schema_view(post=extend_schema(summary="Mine."))
@api_view(["POST"])
@idempotent
def described(request: Request) -> Response:
    return Response()


class DescribedActions(IdempotencyMixin, ViewSet):
    @extend_schema(request=None, summary="Mine.")
    @action(detail=False, methods=["post"])
    def act(self, request: Request) -> Response:
        return Response()


VIEW_SET = views.MixinViewSet
WAYS = {
    "mixin on a view": views.MixinView.as_view(),
    "mixin on a view set": VIEW_SET.as_view({"post": "create", "get": "list"}),
    "mixin, extra action": VIEW_SET.as_view({"post": "extra"}),
    "decorated beside the mixin": VIEW_SET.as_view({"post": "strict"}),
    "function": views.function,
    "function below its description": described,
    "method": views.MethodView.as_view(),
    "action": views.ActionViewSet.as_view({"post": "act"}),
    "action below its description": DescribedActions.as_view(
        {"post": "act"}, **DescribedActions.act.kwargs
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("callback", WAYS.values(), ids=WAYS)
def test_every_way(callback: Any, version: str) -> None:
    """POST shows keys, headers and refusals; what is beside it shows nothing."""
    found = schema_of(callback, OAS_VERSION=version)
    operations = resolved(found, found["paths"]["/here/"])
    operation = operations.pop("post")
    assert places(operation) == {QUERY, HEADER}
    assert {*operation["responses"]} - REFUSED in ({"200"}, {"201"})
    assert {*operation["responses"]} > REFUSED
    for status, response in operation["responses"].items():
        if status in REFUSED:
            assert response["description"].startswith("Idempotency:\n\n- `idempotency_")
            assert examples(operation, status)
        else:
            assert {*response["headers"]} == STORED
    assert not mentions(operations)


UNPROTECTED = {
    "exempt": VIEW_SET.as_view({"post": "search"}),
    "function": views.unprotected,
    "other methods": views.MixinView.as_view(idempotency_methods=("PUT",)),
}


@pytest.mark.parametrize("callback", UNPROTECTED.values(), ids=UNPROTECTED)
def test_unprotected(callback: Any) -> None:
    assert not mentions(schema_of(callback))


@pytest.mark.parametrize("callback", WAYS.values(), ids=WAYS)
def test_not_enabled(callback: Any, settings: Any) -> None:
    settings.IDEMPOTENCY = {"ENABLED": False}
    assert not mentions(schema_of(callback))


def test_methods() -> None:
    """Keys are shown where the view or the project says that they mean something."""
    callback = views.MixinView.as_view(idempotency_methods=("GET",))
    assert places(operation_of(callback, "get")) == {QUERY, HEADER}
    assert not mentions(operation_of(callback, "post"))


# The key.


def test_both_places_of_a_required_key() -> None:
    """Neither is marked: one of them is enough, and that is what is said."""
    operation = operation_of(views.required)
    for parameter in operation["parameters"]:
        assert "required" not in parameter
        assert "Required in the query as" in parameter["description"]
    assert "idempotency_key_required" in examples(operation, "400")


def test_key_that_is_not_required() -> None:
    operation = operation_of(views.function)
    for parameter in operation["parameters"]:
        assert "required" not in parameter
        assert "Optional in the query as" in parameter["description"]
    assert "idempotency_key_required" not in examples(operation, "400")


@pytest.mark.parametrize(
    ("project", "place"),
    [
        ({"QUERY_PARAM": None}, HEADER),
        ({"HEADER": None}, QUERY),
        ({"QUERY_PARAM": None, "HEADER": "X-Key"}, ("X-Key", "header")),
        ({"QUERY_PARAM": "key", "HEADER": None}, ("key", "query")),
    ],
)
def test_one_place(project: Json, place: tuple[str, str], settings: Any) -> None:
    """What no request can have is left out, and the other one is marked."""
    settings.IDEMPOTENCY = project
    for callback, required in ((views.function, False), (views.required, True)):
        operation = operation_of(callback)
        assert places(operation) == {place}
        (parameter,) = operation["parameters"]
        assert parameter.get("required", False) is required
        assert "in the query as" not in parameter["description"]


def test_key_parameters_of_the_project() -> None:
    """What @extend_schema says of the key stays, and what it takes away stays away."""
    own = OpenApiParameter("idempotency-key", str, "header", description="Mine.")
    hidden = OpenApiParameter("$idempotency", str, "query", exclude=True)
    other = OpenApiParameter("other", str, "query")
    handler = post(parameters=[own, hidden, other])
    (mine, kept) = operation_of(view_with(handler))["parameters"]
    assert (mine["name"], mine["description"]) == ("idempotency-key", "Mine.")
    assert kept["name"] == "other"


def test_a_header_of_the_answers_is_no_parameter() -> None:
    """What @extend_schema says of an answer's header says nothing of the request's."""
    answers = OpenApiParameter("Idempotency-Key", str, "header", response=True)
    assert HEADER in places(operation_of(view_with(post(parameters=[answers]))))


# Answers.


def own_responses(**attributes: Any) -> Json:
    """Return the answers of an operation that says much itself."""
    statuses = ("200", "302", "402", "404", "409", "500", "default", "4XX", "5XX")
    responses = {status: OpenApiResponse(description=status) for status in statuses}

    found: Json = operation_of(view_with(post(responses=responses), **attributes))[
        "responses"
    ]
    return found


def with_headers(responses: Json) -> set[str]:
    return {
        status
        for status, response in responses.items()
        if {*response.get("headers", {})} >= STORED
    }


def test_headers_of_answers_that_may_be_stored() -> None:
    """O1, R3: Below 500 and not released."""
    assert with_headers(own_responses()) == {"200", "302", "402", "default", "4XX"}
    released = own_responses(idempotency_released_statuses=(402,))
    assert with_headers(released) == {"200", "302", "404", "409", "default", "4XX"}


def test_own_headers_stay() -> None:
    own = OpenApiParameter(
        "idempotency-expires", str, "header", response=["200"], description="Mine."
    )
    handler = post(parameters=[own], responses=Problem)
    headers = operation_of(view_with(handler))["responses"]["200"]["headers"]
    assert {*headers} == {"idempotency-expires", "Idempotent-Replayed"}


def test_refusals_join_what_is_there() -> None:
    """An operation's own 409 keeps its words, schema and examples."""
    own = OpenApiResponse(
        Problem,
        description="Taken.",
        examples=[OpenApiExample("taken", {"problem": "Taken."})],
    )
    handler = post(responses={201: None, 409: own})
    operation = operation_of(view_with(handler))
    response = operation["responses"]["409"]
    assert response["description"] == (
        "Taken.\n\nIdempotency: `idempotency_in_progress`, "
        "`idempotency_response_not_kept`, `idempotency_outcome_unknown`"
    )
    assert {*response["headers"]} == {*STORED - {"Idempotent-Replayed"}, *HEADERS_409}
    media = response["content"]["application/json"]
    assert media["schema"] == {
        "anyOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"$ref": "#/components/schemas/IdempotencyError"},
        ]
    }
    assert [*examples(operation, "409").values()] == [{"problem": "Taken."}]


def test_refusals_of_the_same_format_join() -> None:
    own = OpenApiResponse(IdempotencyErrorSerializer)
    handler = post(responses={200: None, 422: own})
    response = operation_of(view_with(handler))["responses"]["422"]
    assert response["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/IdempotencyError"
    }


class Raw(AutoSchema):
    """Answers as only a class of the project's own can write them."""

    def _get_response_bodies(self, *args: Any, **kwargs: Any) -> Json:
        detail = {"schema": {"type": "object"}, "example": {"detail": "Mine."}}
        return {
            "200": {"$ref": "#/components/responses/Mine"},
            "409": {"$ref": "#/components/responses/Mine"},
            "422": {"description": "", "content": {"application/json": detail}},
        }


def test_references_and_single_examples_stay() -> None:
    responses = {"responses": {"Mine": {"description": "Mine."}}}
    callback = view_with(post(), schema=Raw())
    found = schema_of(callback, APPEND_COMPONENTS=responses)
    operation = found["paths"]["/here/"]["post"]
    for status in ("200", "409"):
        assert operation["responses"][status] == {"$ref": "#/components/responses/Mine"}
    media = operation["responses"]["422"]["content"]["application/json"]
    assert media["example"] == {"detail": "Mine."}
    assert "examples" not in media


class Numbered(AutoSchema):
    """Answers by numbers, which JSON makes strings of."""

    def _get_response_bodies(self, *args: Any, **kwargs: Any) -> Json:
        return {200: {"description": "Mine."}, 409: {"description": "Mine."}}


def test_statuses_that_are_numbers() -> None:
    responses = operation_of(view_with(post(), schema=Numbered()))["responses"]
    assert {*responses} == {"200", *REFUSED}
    assert {*responses["200"]["headers"]} == STORED
    assert responses["409"]["description"].startswith("Mine.\n\nIdempotency: `")


class Text(BaseRenderer):
    media_type = "text/plain"
    format = "txt"


def test_examples_are_json() -> None:
    callback = view_with(post(), renderer_classes=[JSONRenderer, Text])
    content = operation_of(callback)["responses"]["422"]["content"]
    assert "examples" in content["application/json"]
    assert "examples" not in content["text/plain"]
    assert content["text/plain"]["schema"] == content["application/json"]["schema"]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_media_types_with_a_version(version: str) -> None:
    """Refusals join the answers of the version that is asked for."""
    view = view_with(
        post(responses={200: Problem, 409: Problem}),
        versioning_class=type(
            "Versioning", (AcceptHeaderVersioning,), {"default_version": "1.0"}
        ),
    )
    asked_for = "application/json" + f"; version={version}" * (version != "1.0")
    request = Request(APIRequestFactory().get("/", HTTP_ACCEPT=asked_for))
    request.accepted_media_type = asked_for
    request.version, request.versioning_scheme = version, view.cls.versioning_class()
    generator = SchemaGenerator(patterns=[path("here/", view)], api_version=version)
    found = generator.get_schema(request=request, public=True)
    operation = resolved(found, found["paths"]["/here/"]["post"])
    for response in operation["responses"].values():
        assert [*response["content"]] == [asked_for]


def with_quota(settings: Any) -> Json:
    rates = {"DEFAULT_THROTTLE_RATES": {"idempotency": "9/day"}}
    return {**settings.REST_FRAMEWORK, **rates}


def test_every_code_is_shown(settings: Any) -> None:
    """X1: Between them, endpoints show each refusal, under the status that it has."""
    leased: Any = {"idempotency_atomic": False, "idempotency_on_abandoned": "hold"}
    operation = operation_of(view_with(post(), **leased, idempotency_required=True))
    assert "429" not in operation["responses"]
    settings.IDEMPOTENCY = {"ANONYMOUS": "refuse"}
    settings.REST_FRAMEWORK = with_quota(settings)
    strict = operation_of(views.function)
    assert "idempotency_key_weak" not in examples(strict, "400")
    assert {*strict["responses"]["429"]["headers"]} == {
        "Idempotency-Error",
        "Retry-After",
    }
    shown = {
        (int(status), code)
        for each in (operation, strict)
        for status in (REFUSED | {"429"}) & {*each["responses"]}
        for code in examples(each, status)
    }
    assert shown == {
        (each.status_code, each.default_code)
        for each in IdempotencyError.__subclasses__()
    }
    for status in REFUSED:
        text = operation["responses"][status]["description"]
        assert all(f"`{code}`" in text for code in examples(operation, status))
    atomic = operation_of(views.function)
    assert "idempotency_claim_lost" not in examples(atomic, "409")


def test_headers_of_refusals() -> None:
    """R3, R4, E3, E4, X1."""
    responses = operation_of(views.function)["responses"]
    headers = {status: {*responses[status].get("headers", {})} for status in REFUSED}
    code = {"Idempotency-Error"}
    assert headers == {
        "400": code,
        "409": code | {"Retry-After", "Location", "Idempotency-Expires"},
        "422": code,
        "503": code | {"Retry-After"},
    }


# The project's error format.


def test_format_of_rest_framework() -> None:
    found = schema_of(views.function)
    operation = resolved(found, found["paths"]["/here/"]["post"])
    shown = examples(operation, "409")["idempotency_in_progress"]
    assert {*shown} == {"detail", "code"}
    assert shown["code"] == "idempotency_in_progress"
    assert shown["detail"].startswith("A request with this idempotency key is still")
    component = found["components"]["schemas"]["IdempotencyError"]
    text = {"type": "string"}
    assert component["properties"] == {"detail": text, "code": text}


asked: list[str] = []


def own_handler(exc: Exception, context: Json) -> Response:
    assert isinstance(exc, APIException)
    asked.append(str(exc.get_codes()))
    where = context["request"].path
    return Response({"error": exc.get_codes(), "where": where}, exc.status_code)


def broken_handler(exc: Exception, context: Json) -> Response:
    return Response(context["request"].tenant)


def counting_handler(exc: Exception, context: Json) -> Response:
    """Tell apart what is made up, as the page says."""
    asked.append("sent" if hasattr(context["request"], "idempotency") else "made up")
    return Response({})


def silent_handler(exc: Exception, context: Json) -> None:
    return None


def test_format_of_the_project(settings: Any) -> None:
    """Examples are what its handler makes of refusals; of server errors there are none.

    Such a handler may report them to somebody.
    """
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": "tests.test_schema.own_handler",
    }
    asked.clear()
    found = schema_of(views.function)
    operation = resolved(found, found["paths"]["/here/"]["post"])
    assert examples(operation, "422") == {
        "idempotency_key_reused": {
            "error": "idempotency_key_reused",
            "where": "/path/of/the/request",
        }
    }
    media = operation["responses"]["503"]["content"]["application/json"]
    assert media == {"schema": {}}
    assert "idempotency_transaction_failed" not in asked
    assert "IdempotencyError" not in found.get("components", {}).get("schemas", {})


@pytest.mark.django_db
def test_refusals_that_nobody_got(client: APIClient, settings: Any) -> None:
    """A project's handler can tell the schema's refusals from those of requests."""
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "EXCEPTION_HANDLER": "tests.test_schema.counting_handler",
    }
    assert '`hasattr(context["request"], "idempotency")`' in PAGE
    asked.clear()
    operation_of(views.required)
    assert {*asked} == {"made up"}
    asked.clear()
    for path_ in ("/required/", "/required/?$idempotency="):
        client.post(path_, {})
    assert asked == ["sent", "sent"]


@pytest.mark.parametrize("handler", [broken_handler, silent_handler])
def test_format_that_needs_a_real_request(handler: Any) -> None:
    """Without examples, the codes are still there."""
    callback = view_with(post(), get_exception_handler=lambda self: handler)
    response = operation_of(callback)["responses"]["409"]
    assert "`idempotency_in_progress`" in response["description"]
    assert response["content"] == {"application/json": {"schema": {}}}


def test_own_schema_of_the_projects_format_stays() -> None:
    """The project's own words for its format are better than none."""
    handler = post(responses={200: None, 409: Problem})
    view = view_with(handler, get_exception_handler=lambda self: own_handler)
    media = operation_of(view)["responses"]["409"]["content"]["application/json"]
    assert media["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_transactions_are_left_alone(atomic_requests: bool) -> None:
    """DRF's handler marks a transaction for rollback: not that of the reader."""
    with transaction.atomic():
        operation_of(views.function)
        assert not transaction.get_rollback()
        transaction.set_rollback(True)
        operation_of(views.function)
        assert transaction.get_rollback()
    assert connections["default"].in_atomic_block is False


# What a project does beside it.


class Custom(AutoSchema):
    """Changes what is there, as a project may."""

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        operation = super().get_operation(*args, **kwargs)
        operation["x-seen"] = sorted(operation["responses"])
        return operation

    def get_override_parameters(self) -> Any:
        return [OpenApiParameter("X-Tenant", str, "header")]


def test_own_schema_class() -> None:
    operation = operation_of(view_with(post(), schema=Custom()))
    assert places(operation) == {QUERY, HEADER, ("X-Tenant", "header")}
    assert {*operation["x-seen"]} >= REFUSED


def hook(result: Json, **kwargs: Any) -> Json:
    for operations in result["paths"].values():
        operations["post"]["x-seen"] = sorted(operations["post"]["responses"])
    return result


@pytest.mark.parametrize("hooks", [[], ["tests.test_schema.hook"]])
def test_own_hooks(hooks: list[str]) -> None:
    """A project's hooks do not replace anything, and see everything."""
    operation = operation_of(
        views.required, POSTPROCESSING_HOOKS=hooks, PREPROCESSING_HOOKS=[]
    )
    assert operation.get("x-seen", sorted(operation["responses"])) == [
        "200",
        *sorted(REFUSED),
    ]
    assert ("x-seen" in operation) is bool(hooks)


def marking_hook(result: Json, **kwargs: Any) -> Json:
    """Mark everything, as a hook may that has its own words for it."""
    unmarked = [each for path in result["paths"].values() for each in path.values()]
    for each in unmarked:
        if isinstance(each, dict):
            unmarked += each.values()
        elif isinstance(each, list):
            unmarked += each
    for each in unmarked:
        if isinstance(each, dict):
            each["x-marks"] = each.get("x-marks", 0) + 1
    return result


class ProblemJSON(JSONRenderer):
    media_type = "application/problem+json"


def test_hooks_change_one_place_at_a_time() -> None:
    """What a hook writes is neither elsewhere nor in the next schema."""
    handler = post(responses={200: None})
    view = view_with(
        handler,
        put=handler,
        idempotency_methods=("POST", "PUT"),
        renderer_classes=[JSONRenderer, ProblemJSON],
    )
    before = schema_of(view)
    marking = {"POSTPROCESSING_HOOKS": ["tests.test_schema.marking_hook"]}
    with patched_settings(marking), GENERATOR_STATS.silence():
        generator = SchemaGenerator(patterns=[path("here/", view)])
        marked = json.dumps(generator.get_schema(public=True))
    assert {*re.findall(r'"x-marks": (\d+)', marked)} == {"1"}
    assert schema_of(view) == before


def test_below_extend_schema() -> None:
    """The order of @extend_schema and @idempotent does not matter."""

    @extend_schema(summary="Mine.", request=None, responses={201: Problem})
    @api_view(["POST"])
    @idempotent
    def function(request: Request) -> Response:
        return Response()

    class Both(APIView):
        @idempotent
        @extend_schema(summary="Mine.", request=None, responses={201: Problem})
        def post(self, request: Request) -> Response:
            return Response()

        @extend_schema(summary="Mine.", request=None, responses={201: Problem})
        @idempotent(methods=("PUT",))
        def put(self, request: Request) -> Response:
            return Response()

    class WithAction(ViewSet):
        @extend_schema(summary="Mine.", request=None, responses={201: Problem})
        @action(detail=False, methods=["post"])
        @idempotent
        def act(self, request: Request) -> Response:
            return Response()

    for callback, method in (
        (function, "post"),
        (Both.as_view(), "post"),
        (Both.as_view(), "put"),
        (WithAction.as_view({"post": "act"}), "post"),
    ):
        operation = operation_of(callback, method)
        assert operation["summary"] == "Mine."
        assert places(operation) == {QUERY, HEADER}
        assert {*operation["responses"]} == REFUSED | {"201"}


def test_operations_that_are_written_by_hand() -> None:
    """An operation that is written by hand or hidden stays as it is."""
    own = {"operationId": "mine", "responses": {"200": {"description": "Mine."}}}
    by_hand = view_with(post(operation=own))
    assert operation_of(by_hand) == own
    hidden = view_with(post(exclude=True))
    assert schema_of(hidden)["paths"] == {}


class Documented(APIView):
    """What clients may read."""


def test_descriptions_are_the_projects() -> None:
    """What the mixin says to developers is not what the schema says to clients."""

    class Silent(IdempotencyMixin, APIView):
        def post(self, request: Request) -> Response:
            return Response()

        get = post

    class Inherited(IdempotencyMixin, Documented):
        post = Silent.post

    class Spoken(IdempotencyMixin, APIView):
        """The view."""

        def post(self, request: Request) -> Response:
            """Do it."""
            return Response()

        def get(self, request: Request) -> Response:
            return Response()

    assert "description" not in operation_of(Silent.as_view())
    assert "description" not in operation_of(Silent.as_view(), "get")
    inherited = operation_of(Inherited.as_view())
    assert inherited["description"] == "What clients may read."
    assert operation_of(Spoken.as_view())["description"] == "Do it."
    assert operation_of(Spoken.as_view(), "get")["description"] == "The view."


def with_the_mixin() -> list[type]:
    return [*get_lib_doc_excludes(), IdempotencyMixin]


def with_the_hooks() -> list[type]:
    return [*get_lib_doc_excludes(), Hooks]


@pytest.mark.parametrize(
    ("project", "inherited"),
    [
        ({"DISABLE_DOCSTRING_DESCRIPTIONS": True}, None),
        ({"GET_LIB_DOC_EXCLUDES": with_the_mixin}, Documented.__doc__),
        ({"GET_LIB_DOC_EXCLUDES": with_the_hooks}, Documented.__doc__),
    ],
    ids=["no docstrings", "without the mixin's", "without its hooks'"],
)
def test_a_project_that_says_which_docstrings_count(
    project: Json, inherited: str | None
) -> None:
    """Whatever it says, there is a schema, and nothing of the mixin in it."""
    if not {*project} <= {*SPECTACULAR_DEFAULTS}:
        pytest.skip("This drf-spectacular has no such setting")
    bare = type("Bare", (APIView,), {"post": post()})
    behind = type("Behind", (IdempotencyMixin, Documented), {"post": post()})
    views_ = {
        "bare": bare.as_view(),  # type: ignore[attr-defined]
        "protected": view_with(post()),
        "behind": behind.as_view(),  # type: ignore[attr-defined]
    }
    described = {
        name: operation_of(view, **project).get("description")
        for name, view in views_.items()
    }
    assert described == {"bare": None, "protected": None, "behind": inherited}


@pytest.fixture
def extended() -> Iterator[type[APIView]]:
    """A view that an extension describes, as drf-spectacular does other packages'."""

    class Extended(APIView):
        def post(self, request: Request) -> Response:
            return Response()

    class Extension(OpenApiViewExtension):
        target_class = Extended

        def view_replacement(self) -> type[APIView]:
            class Fixed(self.target_class):  # type: ignore[misc,name-defined]
                @extend_schema(responses=Problem)
                def post(self, request: Request) -> Response:
                    return Response()

            return Fixed

    yield Extended
    OpenApiViewExtension._registry.remove(Extension)


def test_view_extensions(extended: Any) -> None:
    """A view of another package is described as before ``protected()``."""
    view = extended.as_view()
    (pattern,) = protected([path("", view)], required=True)
    before, now = (operation_of(each) for each in (view, pattern.callback))
    described = before["responses"]["200"]["content"]
    assert "Problem" in str(described)
    assert now["responses"]["200"]["content"] == described
    assert places(now) == {QUERY, HEADER}
    assert not mentions(before)
    assert "idempotency_key_required" in str(schema_of(pattern.callback))
    assert now.get("description") == before.get("description")
    assert pattern.callback.cls.idempotency_required


def test_view_without_extension() -> None:
    """``protected()`` leaves a view without one as it is described."""
    (pattern,) = protected([path("", views.PlainView.as_view())])
    assert places(operation_of(pattern.callback)) == {QUERY, HEADER}


def test_callbacks_are_not_protected() -> None:
    """What the project calls at its clients' is no view of its own."""
    called = OpenApiCallback(
        "told", "{$request.body#/url}", extend_schema(request=Problem, responses=None)
    )
    handler = post(responses=None, callbacks=[called])
    operation = operation_of(view_with(handler))
    assert places(operation) == {QUERY, HEADER}
    assert not mentions(operation["callbacks"])


def test_installed_once() -> None:
    """However often Django calls ready()."""
    before = operation_of(views.function)
    schema.install()
    assert operation_of(views.function) == before


# Whole projects.


def run(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_golden(tmp_path: Path) -> None:
    """The demo project's schema is the one that was looked at.

    After a change: python manage.py spectacular --file tests/golden/openapi.yaml
    """
    made = tmp_path / "openapi.yaml"
    run(
        *("manage.py", "spectacular", "--validate", "--fail-on-warn"),
        *("--file", str(made)),
        DJANGO_SETTINGS_MODULE="testproject.settings",
        DEMO_VAR_DIR=str(tmp_path),
        DATABASE_URL="sqlite://:memory:",
    )
    golden = ROOT / "tests" / "golden" / "openapi.yaml"
    assert made.read_text("utf-8") == golden.read_text("utf-8")


def test_without_docstrings(tmp_path: Path) -> None:
    """``python -OO`` leaves the descriptions out, and nothing else."""
    made = tmp_path / "openapi.json"
    run(
        *("-OO", "manage.py", "spectacular", "--validate", "--fail-on-warn"),
        *("--format", "openapi-json", "--file", str(made)),
        DJANGO_SETTINGS_MODULE="testproject.settings",
        DEMO_VAR_DIR=str(tmp_path),
        DATABASE_URL="sqlite://:memory:",
    )
    found = json.loads(made.read_text("utf-8"))
    paths = resolved(found, found["paths"])
    assert QUERY in places(paths["/api/v2/user/payments"]["post"])
    assert not mentions(paths["/api/v2/user/classes"])


WITHOUT = """
import sys
sys.modules["drf_spectacular"] = None
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["rest_framework", "idempotency"], SECRET_KEY="secret"
)
import django
django.setup()
import idempotency.mixins, idempotency.protection
from django.core.checks import run_checks
assert [check.id for check in run_checks()] == ["idempotency.W001"]
assert not {"idempotency.schema", "idempotency.schema.operations"} & {*sys.modules}
"""


def test_without_the_package() -> None:
    run("-c", WITHOUT)


# The page about it.


def test_refusals_on_the_page(settings: Any) -> None:
    """Its table has each status with the headers that schemas show."""
    settings.REST_FRAMEWORK = with_quota(settings)
    responses = operation_of(views.function)["responses"]
    status = "refusals with status"
    rows = table(status, "headers", document=PAGE)
    assert {row[status] for row in rows} == REFUSED | {"429"}
    for row in rows:
        headers = responses[row[status]].get("headers", {})
        assert re.findall("`([^`]+)`", row["headers"]) == [*headers]


def test_links_on_the_page() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_settings_on_the_page() -> None:
    sample, urls = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: Json = {"INSTALLED_APPS": [], "REST_FRAMEWORK": {"is": "kept"}}
    exec(compile(sample, "docs/openapi.md", "exec"), names)
    assert names["REST_FRAMEWORK"].pop("is") == "kept"
    names["urlpatterns"] = []
    exec(compile(urls, "docs/openapi.md", "exec"), names)
    urlconf = type("Urls", (), {"urlpatterns": names["urlpatterns"]})
    with override_settings(ROOT_URLCONF=urlconf):
        answers = [Client().get(f"/api/{page}/") for page in ("schema", "docs")]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert b"/api/schema/" in answers[1].content
    (app,) = names["INSTALLED_APPS"]
    assert apps.is_installed(app)
    assert import_string(names["REST_FRAMEWORK"]["DEFAULT_SCHEMA_CLASS"]) is AutoSchema
    assert APIView.schema.__class__ is AutoSchema
