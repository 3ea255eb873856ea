"""The envelope: ``$request`` and ``$data``, or ``$errors``, and ``$warnings``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from rest_framework.renderers import JSONRenderer


class EnvelopeRenderer(JSONRenderer):
    """Put a response into the envelope.

    A replay is not rendered again, so it has the ``$request`` of the first response.
    """

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Render the data in the envelope."""
        context = renderer_context or {}
        response = context["response"]
        if response.status_code == 204:
            return b""
        envelope: dict[str, Any] = {"$request": str(uuid.uuid4())}
        envelope["$errors" if response.exception else "$data"] = data
        idempotency = getattr(context["request"], "idempotency", None)
        if idempotency is not None and idempotency.warnings:
            envelope["$warnings"] = [
                warning.as_member() for warning in idempotency.warnings
            ]
        rendered: bytes = super().render(envelope, accepted_media_type, context)
        return rendered
