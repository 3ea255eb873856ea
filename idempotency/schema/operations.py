"""Describe an operation's protection: keys, response headers and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from django.utils.translation import gettext as _
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import modify_media_types_for_versioning
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers

from idempotency.conf import get_settings
from idempotency.conf.policy import Policy
from idempotency.exceptions import IdempotencyError
from idempotency.keys import MAX_LENGTH
from idempotency.responses import ERROR_HEADER, EXPIRES_HEADER, REPLAYED_HEADER
from idempotency.schema.components import Json, Shared, shared_of
from idempotency.schema.refusals import body_of, has_own_format, refusals_of


def describe(auto_schema: AutoSchema, operation: Json, policy: Policy) -> None:
    """Add a policy's description to an operation, and keep what the operation has."""
    shared = shared_of(auto_schema.registry)
    parameters = operation.setdefault("parameters", [])
    known = {_place(parameter) for parameter in parameters}
    known |= {
        (override.name.lower(), override.location)
        for override in auto_schema.get_override_parameters()
        if isinstance(override, OpenApiParameter) and override.exclude
    }
    for name, parameter in _key_parameters(policy):
        if _place(parameter) not in known:
            parameters.append(shared.part(name, parameter))
    # A project's schema class may use numbers as keys.
    responses = {str(status): each for status, each in operation["responses"].items()}
    operation["responses"] = responses
    for status, response in responses.items():
        if _may_be_stored(status, policy):
            _add_headers(shared, response, REPLAYED | EXPIRES)
    refusals: dict[int, list[IdempotencyError]] = {}
    for refusal in refusals_of(policy):
        refusals.setdefault(refusal.status_code, []).append(refusal)
    for status_code, group in refusals.items():
        own = responses.get(str(status_code))
        if own is None:
            made = _refusals(auto_schema, group)
            responses[str(status_code)] = shared.part(_name(group, policy), made)
        elif "$ref" not in own:
            _join(auto_schema, shared, own, group)
    shared.add(operation)


KEY_SCHEMAS = {
    "query": {"type": "string", "pattern": f"^[!-~]{{1,{MAX_LENGTH}}}$"},
    # Bare or quoted (K2), so the value can be longer than the key.
    "header": {"type": "string", "minLength": 1},
}


def _key_parameters(policy: Policy) -> Iterator[tuple[str, Json]]:
    """Yield the parameters for the key, each with the name of its component."""
    settings = get_settings()
    places = {"query": settings.QUERY_PARAM, "header": settings.HEADER}
    names = {place: name for place, name in places.items() if name}
    texts = [
        _(
            "Idempotency key: a random key that the client chooses for each action, "
            "and sends with each attempt. A retry gets the first response, and nothing "
            "happens twice."
        )
    ]
    either = len(names) > 1
    if either:
        text = (
            _("Required in the query as `{query}` or in the header `{header}`.")
            if policy.required
            else _("Optional in the query as `{query}` or in the header `{header}`.")
        )
        texts.append(text.format(**names))
    # OpenAPI can't express that one of two parameters is required. If both were
    # required, clients and gateways would refuse valid requests.
    required = {"required": True} if policy.required and not either else {}
    kind = "Required" if policy.required else "Optional"
    for place, name in names.items():
        yield (
            f"{kind}Key{place.capitalize()}",
            {
                "in": place,
                "name": name,
                "schema": deepcopy(KEY_SCHEMAS[place]),
                "description": " ".join(texts),
                **required,
            },
        )


def _place(parameter: Json) -> tuple[str, str]:
    return parameter.get("name", "").lower(), parameter.get("in", "")


def _header(name: str, schema_type: str, description: str) -> Json:
    return {name: {"schema": {"type": schema_type}, "description": description}}


REPLAYED = _header(REPLAYED_HEADER, "boolean", "`true` if this is a replay.")
EXPIRES = _header(
    EXPIRES_HEADER, "string", "HTTP date until which a retry gets this response."
)
RETRY_AFTER = _header(
    "Retry-After", "integer", "Seconds to wait before a retry with the same key."
)
LOCATION = _header(
    "Location", "string", "Repeated from the first response, which was not kept."
)
ERROR = _header(ERROR_HEADER, "string", "The code, if this is an idempotency refusal.")
HEADERS_OF_REFUSALS = {
    409: RETRY_AFTER | LOCATION | EXPIRES,
    429: RETRY_AFTER,
    503: RETRY_AFTER,
}


# Short names, because every operation has these.
NAMES = {REPLAYED_HEADER: "Replay", EXPIRES_HEADER: "Expiry"}


def _add_headers(shared: Shared, response: Json, headers: Json) -> None:
    if "$ref" not in response:
        own = response.setdefault("headers", {})
        known = {name.lower() for name in own}
        # Copies, because the project's code may change them.
        for name, header in deepcopy(headers).items():
            if name.lower() not in known:
                own[name] = shared.part(NAMES.get(name, name), header)


def _may_be_stored(status: str, policy: Policy) -> bool:
    """Return whether responses of a status, a range or "default" may be stored (O1)."""
    if not status.isdigit():
        return not status.startswith("5")
    return int(status) < 500 and int(status) not in policy.released_statuses


class IdempotencyErrorSerializer(serializers.Serializer[Any]):
    """Why the request was refused."""

    detail = serializers.CharField()
    code = serializers.CharField()


def _name(refusals: list[IdempotencyError], policy: Policy) -> str:
    """Return the component's name, which depends on the policy if the value does."""
    status_code = refusals[0].status_code
    kinds = {400: "Required" * policy.required, 409: "Leased" * (not policy.atomic)}
    return f"Refusal{status_code}{kinds.get(status_code, '')}"


def _refusals(auto_schema: AutoSchema, refusals: list[IdempotencyError]) -> Json:
    """Return a response for refusals whose status the operation does not have."""
    lines = [f"- `{each.default_code}`: {each.detail}" for each in refusals]
    examples = {
        each.default_code: {"value": body}
        for each in refusals
        if (body := body_of(each, auto_schema.view)) is not None
    }
    content: Json = {}
    for media_type in _media_types(auto_schema):
        media = content[media_type] = {"schema": _schema(auto_schema)}
        if examples and "json" in media_type:
            media["examples"] = deepcopy(examples)
    return {
        "description": "\n\n".join([_("Idempotency:"), "\n".join(lines)]),
        "headers": deepcopy(_headers_of(refusals)),
        "content": content,
    }


def _join(
    auto_schema: AutoSchema,
    shared: Shared,
    response: Json,
    refusals: list[IdempotencyError],
) -> None:
    """Add refusals to a response of the operation."""
    codes = ", ".join(f"`{each.default_code}`" for each in refusals)
    texts = [response.get("description"), f"{_('Idempotency:')} {codes}"]
    response["description"] = "\n\n".join(filter(None, texts))
    _add_headers(shared, response, _headers_of(refusals))
    for media_type in _media_types(auto_schema):
        media = response.setdefault("content", {}).setdefault(media_type, {})
        media["schema"] = _either(media.get("schema"), _schema(auto_schema))


def _headers_of(refusals: list[IdempotencyError]) -> Json:
    return ERROR | HEADERS_OF_REFUSALS.get(refusals[0].status_code, {})


def _schema(auto_schema: AutoSchema) -> Json:
    """Return a refusal's schema, or {} if the project has its own format."""
    if has_own_format(auto_schema.view):
        return {}
    component = auto_schema.resolve_serializer(IdempotencyErrorSerializer, "response")
    found: Json = component.ref
    return found


def _media_types(auto_schema: AutoSchema) -> list[str]:
    found: list[str] = modify_media_types_for_versioning(
        auto_schema.view, auto_schema.map_renderers("media_type")
    )
    return found


def _either(own: Json | None, other: Json) -> Json:
    if own is None:
        return other
    return {"anyOf": [own, other]} if other and own != other else own
