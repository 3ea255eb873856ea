"""The API's description: what the renderer puts around answers belongs to it, too."""

from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from rest_framework import serializers

REQUEST = {"type": "string", "format": "uuid"}
EXAMPLE_REQUEST = "5d0f4c1e-3f2b-4a57-9a55-0d6f1c2b7a90"


class ErrorSerializer(serializers.Serializer[Any]):
    """A code for programs, a message for people."""

    code = serializers.CharField()
    message = serializers.CharField()


def envelope(member: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an envelope around that of what is in it."""
    return {
        "type": "object",
        "properties": {"$request": REQUEST, member: schema},
        "required": ["$request", member],
    }


class EnvelopeSchema(AutoSchema):
    """Describe each answer in its envelope, those to idempotency keys among them."""

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Put the envelope around the content of each answer."""
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)
        for status, response in (operation or {}).get("responses", {}).items():
            for media in response.get("content", {}).values():
                self.put_into_envelope(media, is_error=int(status) >= 400)
        return operation

    def put_into_envelope(self, media: dict[str, Any], *, is_error: bool) -> None:
        """Do as ``EnvelopeRenderer`` does."""
        member = "$errors" if is_error else "$data"
        media["schema"] = (
            self.errors() if is_error else envelope(member, media["schema"])
        )
        for example in media.get("examples", {}).values():
            example["value"] = {"$request": EXAMPLE_REQUEST, member: example["value"]}

    def errors(self) -> dict[str, Any]:
        """Return a reference to the envelope of errors, the same for all operations.

        Generators of clients make one type of it.
        """
        error = self.resolve_serializer(ErrorSerializer, "response").ref
        component = ResolvedComponent(  # type: ignore[no-untyped-call]  # has no types
            name="Errors",
            type=ResolvedComponent.SCHEMA,
            schema=envelope("$errors", {"type": "array", "items": error}),
            object="Errors",
        )
        self.registry.register_on_missing(component)
        return component.ref
