"""The OpenAPI schema of the API, with the renderer's envelope."""

from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from rest_framework import serializers

REQUEST = {"type": "string", "format": "uuid"}
EXAMPLE_REQUEST = "5d0f4c1e-3f2b-4a57-9a55-0d6f1c2b7a90"


class ErrorSerializer(serializers.Serializer[Any]):
    """A code and a message."""

    code = serializers.CharField()
    message = serializers.CharField()


def envelope(member: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an envelope around another schema."""
    return {
        "type": "object",
        "properties": {"$request": REQUEST, member: schema},
        "required": ["$request", member],
    }


class EnvelopeSchema(AutoSchema):
    """Describe each response in its envelope, including the app's refusals."""

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Put the envelope around the content of each response."""
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)
        for status, response in (operation or {}).get("responses", {}).items():
            for media in response.get("content", {}).values():
                self.put_into_envelope(media, is_error=int(status) >= 400)
        return operation

    def put_into_envelope(self, media: dict[str, Any], *, is_error: bool) -> None:
        """Put the schema and the examples into the envelope."""
        member = "$errors" if is_error else "$data"
        media["schema"] = (
            self.errors() if is_error else envelope(member, media["schema"])
        )
        for example in media.get("examples", {}).values():
            example["value"] = {"$request": EXAMPLE_REQUEST, member: example["value"]}

    def errors(self) -> dict[str, Any]:
        """Return a reference to one schema, so that generated clients have one type."""
        error = self.resolve_serializer(ErrorSerializer, "response").ref
        component = ResolvedComponent(  # type: ignore[no-untyped-call]  # has no types
            name="Errors",
            type=ResolvedComponent.SCHEMA,
            schema=envelope("$errors", {"type": "array", "items": error}),
            object="Errors",
        )
        self.registry.register_on_missing(component)
        return component.ref
