"""The API's description: what the renderer puts around answers belongs to it, too."""

from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema
from rest_framework import serializers

REQUEST = {"type": "string", "format": "uuid"}
EXAMPLE_REQUEST = "5d0f4c1e-3f2b-4a57-9a55-0d6f1c2b7a90"


class ErrorSerializer(serializers.Serializer[Any]):
    """A code for programs, a message for people."""

    code = serializers.CharField()
    message = serializers.CharField()


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
        member, schema = ("$data", media["schema"])
        if is_error:
            error = self.resolve_serializer(ErrorSerializer, "response").ref
            member, schema = ("$errors", {"type": "array", "items": error})
        media["schema"] = {
            "type": "object",
            "properties": {"$request": REQUEST, member: schema},
            "required": ["$request", member],
        }
        for example in media.get("examples", {}).values():
            example["value"] = {"$request": EXAMPLE_REQUEST, member: example["value"]}
