"""OpenAPI: what operations have in common stands once in a schema."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from django.urls import path
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.renderers import OpenApiYamlRenderer
from drf_spectacular.settings import patched_settings
from drf_spectacular.utils import OpenApiResponse
from drf_spectacular.validation import validate_schema
from rest_framework import serializers
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.schema.components import Shared, shared_of
from tests.conftest import once
from tests.test_schema import Json, Problem, post, resolved, view_with

pytestmark = once

LEASED: Json = {"idempotency_atomic": False, "idempotency_on_abandoned": "hold"}


def schema_of(*views: Any, **settings: Any) -> Json:
    """Return the valid schema of views at addresses of their own."""
    patterns = [path(f"view{n}/", view) for n, view in enumerate(views)]
    with patched_settings(settings), GENERATOR_STATS.silence():
        found: Json = SchemaGenerator(patterns=patterns).get_schema(public=True)
    validate_schema(found)
    return found


def operation(found: Json, number: int = 0) -> Json:
    made: Json = found["paths"][f"/view{number}/"]["post"]
    return made


def as_yaml(found: Json) -> bytes:
    rendered: bytes = OpenApiYamlRenderer().render(found)
    return rendered


def as_json(found: Json) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()


VARIANTS: dict[str, Json] = {
    "usual": {},
    "required": {"idempotency_required": True},
    "leased": LEASED,
    "required and leased": {"idempotency_required": True, **LEASED},
}


@pytest.mark.parametrize("form", [as_yaml, as_json])
@pytest.mark.parametrize("variant", VARIANTS)
def test_size(form: Callable[[Json], bytes], variant: str, settings: Any) -> None:
    """Whatever its options, another protected operation gains at most 600 bytes."""
    handler = post(responses={201: Problem})
    views = [view_with(handler, **VARIANTS[variant]) for _ in range(2)]
    sizes = {}
    for enabled in (True, False):
        settings.IDEMPOTENCY = {"ENABLED": enabled}
        one, two = (len(form(schema_of(*views[:n]))) for n in (1, 2))
        sizes[enabled] = two - one
    assert 300 < sizes[True] - sizes[False] <= 600


def test_names() -> None:
    """A generator of clients finds names that say what they are of."""
    found = schema_of(*(view_with(post(), **each) for each in VARIANTS.values()))
    components = found["components"]
    assert [*components["parameters"]] == [
        *("OptionalKeyHeader", "OptionalKeyQuery"),
        *("RequiredKeyHeader", "RequiredKeyQuery"),
    ]
    assert [*components["responses"]] == [
        *("Refusal400", "Refusal400Required", "Refusal409", "Refusal409Leased"),
        *("Refusal422", "Refusal503"),
    ]
    assert [*components["headers"]] == ["Expiry", "Replay"]
    assert [*components["schemas"]] == ["IdempotencyError"]
    for number in range(4):
        assert all("$ref" in each for each in operation(found, number)["parameters"])


# What a project makes of it.


class Marking(AutoSchema):
    """Changes what it finds, as for an envelope that the renderer makes."""

    mark = "marked"

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        made = super().get_operation(*args, **kwargs)
        for parameter in made["parameters"]:
            parameter["x-mark"] = self.mark
        for response in made["responses"].values():
            response["x-mark"] = self.mark
            for media in response.get("content", {}).values():
                media["schema"] = {"properties": {self.mark: media["schema"]}}
        return made


class MarkingOtherwise(Marking):
    mark = "marked otherwise"


def test_schema_classes_see_whole_operations() -> None:
    """What they change is in the component; what differs then has one of its own."""
    classes = (Marking, Marking, MarkingOtherwise, AutoSchema)
    found = schema_of(*(view_with(post(), schema=each()) for each in classes))
    names = [operation(found, n)["responses"]["409"]["$ref"] for n in range(4)]
    assert [name.rpartition("/")[2] for name in names] == [
        *("Refusal409", "Refusal409", "Refusal409_2", "Refusal409_3"),
    ]
    marks = ["marked", "marked", "marked otherwise", None]
    for number, mark in enumerate(marks):
        made = resolved(found, operation(found, number))
        for each in [*made["parameters"], *made["responses"].values()]:
            assert each.get("x-mark") == mark


class Copying(AutoSchema):
    """Hands out copies."""

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        return deepcopy(super().get_operation(*args, **kwargs))


def test_copies_stay_where_they_are() -> None:
    found = schema_of(view_with(post(), schema=Copying()))
    made = operation(found)
    assert "Idempotency:" in made["responses"]["409"]["description"]
    assert resolved(found, made) == made


def test_names_that_are_taken() -> None:
    """A project's components stay, and the app does not refer to them."""
    own = {
        "responses": {"Refusal409": {"description": "Mine."}},
        "headers": {"Replay": {"schema": {"type": "string"}}},
    }
    found = schema_of(view_with(post(responses={200: None})), APPEND_COMPONENTS=own)
    components = found["components"]
    assert components["responses"]["Refusal409"] == {"description": "Mine."}
    assert components["headers"]["Replay"] == {"schema": {"type": "string"}}
    made = operation(found)
    assert made["responses"]["409"] == {"$ref": "#/components/responses/Refusal409_2"}
    assert made["responses"]["200"]["headers"]["Idempotent-Replayed"] == {
        "$ref": "#/components/headers/Replay_2"
    }


def test_camelized_names() -> None:
    """drf-spectacular reads the parameters of operations, references among them."""
    found = schema_of(view_with(post()), CAMELIZE_NAMES=True)
    assert operation(found)["parameters"][0]["$ref"].endswith("KeyQuery")


class Choice(serializers.Serializer[Any]):
    choice = serializers.ChoiceField(["a", "b"])


def test_hooks_that_add_components() -> None:
    """drf-spectacular's own hook for choices has all components built once more."""
    found = schema_of(view_with(post(responses={200: Choice})))
    assert "ChoiceEnum" in found["components"]["schemas"]
    assert "Refusal409" in found["components"]["responses"]


def renaming_hook(result: Json, **kwargs: Any) -> Json:
    for response in result["components"]["responses"].values():
        response["description"] = "Renamed."
    return result


def test_one_generator_twice() -> None:
    """A schema that is made again is the same, whatever hooks did to the first."""
    generator = SchemaGenerator(patterns=[path("view0/", view_with(post()))])
    hooks = ["tests.test_schema_components.renaming_hook"]
    with patched_settings({"POSTPROCESSING_HOOKS": hooks}):
        first, again = (generator.get_schema(public=True) for _ in range(2))
    assert first == again
    assert first["components"]["responses"]["Refusal409"]["description"] == "Renamed."


def test_one_stand_in_for_each_registry() -> None:
    registry = SchemaGenerator().registry
    found = shared_of(registry)
    assert isinstance(found, Shared)
    assert shared_of(registry) is registry.build is found
    assert shared_of(SchemaGenerator().registry) is not found


# Answers of the project's own.


def test_own_answers_gain_little(settings: Any) -> None:
    """What stands in an operation names codes, and refers to all else."""
    own = OpenApiResponse(Problem, description="Mine.")
    view = view_with(post(responses={201: Problem, 400: own, 409: own}))
    sizes = []
    for enabled in (False, True):
        settings.IDEMPOTENCY = {"ENABLED": enabled}
        sizes.append(len(as_json(operation(schema_of(view)))))
    assert sizes[1] - sizes[0] < 1500
    conflict = operation(schema_of(view))["responses"]["409"]
    for name in ("Idempotency-Error", "Retry-After", "Location"):
        assert conflict["headers"][name] == {"$ref": f"#/components/headers/{name}"}


def problem_handler(exc: Any, context: Json) -> Response:
    """Answer as RFC 9457 has it, with the address in it."""
    where = context["request"].build_absolute_uri()
    return Response({"type": exc.default_code, "instance": where}, exc.status_code)


def other_handler(exc: Any, context: Json) -> Response:
    return Response({"other": exc.default_code}, exc.status_code)


def test_examples_with_an_address_are_shared() -> None:
    """Formats that differ are told apart; the address of an operation is no format."""
    handlers = (problem_handler, problem_handler, other_handler)
    found = schema_of(
        *(
            view_with(post(), get_exception_handler=lambda self, each=each: each)
            for each in handlers
        )
    )
    refusals = found["components"]["responses"]
    assert {"Refusal422", "Refusal422_2"} < {*refusals}
    assert "Refusal422_3" not in refusals
    (example,) = refusals["Refusal422"]["content"]["application/json"][
        "examples"
    ].values()
    assert example["value"]["instance"] == "http://testserver/path/of/the/request"


def test_examples_of_the_root() -> None:
    """Each path has the root in it, and so has each address."""
    view = view_with(post(), get_exception_handler=lambda self: problem_handler)
    with GENERATOR_STATS.silence():
        found = SchemaGenerator(patterns=[path("", view)]).get_schema(public=True)
    refusal = found["components"]["responses"]["Refusal422"]
    (example,) = refusal["content"]["application/json"]["examples"].values()
    assert example["value"]["instance"] == "http://testserver/"


# Errors in somebody's schema.


class Broken(serializers.Serializer[Any]):
    def get_fields(self) -> Any:
        raise LookupError("broken")


class BrokenView(GenericAPIView[Any]):
    serializer_class = Broken

    def post(self, request: Request) -> Response:
        raise AssertionError


def frames_of(view: Any, **settings: Any) -> list[str]:
    with pytest.raises(LookupError, match="broken") as caught:
        schema_of(view, **settings)
    frames = traceback.extract_tb(caught.value.__traceback__)
    return [frame.filename for frame in frames if "/idempotency/" in frame.filename]


def test_a_traceback_of_somebody_elses() -> None:
    """What the app does not protect has nothing of it in its tracebacks."""
    assert frames_of(BrokenView.as_view()) == []


def test_a_traceback_while_not_enabled(settings: Any) -> None:
    settings.IDEMPOTENCY = {"ENABLED": False}
    decorated = type("View", (BrokenView,), {"post": idempotent(BrokenView.post)})
    assert frames_of(decorated.as_view()) == []


def test_a_method_of_a_class() -> None:
    """A schema class may well name AutoSchema rather than call super()."""

    class Direct(AutoSchema):
        def get_operation(self, *args: Any, **kwargs: Any) -> Any:
            return AutoSchema.get_operation(self, *args, **kwargs)

    class Plain(APIView):
        schema = Direct()
        post = post()

    class Protected(IdempotencyMixin, Plain):
        schema = Direct()

    found = schema_of(Plain.as_view(), Protected.as_view())
    assert "parameters" not in operation(found)
    assert len(operation(found, 1)["parameters"]) == 2


def test_a_schema_without_a_view() -> None:
    """Without a view the methods are drf-spectacular's own."""
    methods = (AutoSchema().get_operation, AutoSchema().get_description)
    assert {each.__module__ for each in methods} == {"drf_spectacular.openapi"}
