"""What an OpenAPI operation says of its protection: keys, answers and refusals."""

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
    """Add to an operation what a policy means; what it says already stays."""
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
    # A schema class of the project's own may well have numbers.
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


# The key.

KEY_SCHEMAS = {
    "query": {"type": "string", "pattern": f"^[!-~]{{1,{MAX_LENGTH}}}$"},
    # Bare or quoted (K2): what is sent may be longer than the key.
    "header": {"type": "string", "minLength": 1},
}


def _key_parameters(policy: Policy) -> Iterator[tuple[str, Json]]:
    """Yield each parameter, and a name for it that says what it is."""
    settings = get_settings()
    places = {"query": settings.QUERY_PARAM, "header": settings.HEADER}
    names = {place: name for place, name in places.items() if name}
    texts = [
        _(
            "Idempotency key: chosen by the client at random, once for each action, "
            "and sent again with each retry. A retry gets the first answer, and "
            "nothing happens twice."
        )
    ]
    either = len(names) > 1
    if either and policy.required:
        texts.append(
            _(
                "`{query}` in the query and the header `{header}` mean the same: "
                "one of them is required."
            ).format(**names)
        )
    elif either:
        texts.append(
            _(
                "`{query}` in the query and the header `{header}` mean the same: "
                "one is enough."
            ).format(**names)
        )
    # There is no way to say that one of two parameters is required; whoever marked
    # both would make clients and gateways refuse what is right.
    required = {"required": True} if policy.required and not either else {}
    for place, name in names.items():
        kind = "Required" if policy.required else "Optional"
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


# What stands in the headers of answers.


def _header(schema_type: str, description: str) -> Json:
    return {"schema": {"type": schema_type}, "description": description}


REPLAYED = {
    REPLAYED_HEADER: _header("boolean", "`true` if this is the first answer again.")
}
EXPIRES = {
    EXPIRES_HEADER: _header(
        "string", "Until when a retry gets this answer: an HTTP date."
    )
}
RETRY_AFTER = {
    "Retry-After": _header(
        "integer", "After how many seconds to retry, with the same key."
    )
}
LOCATION = {
    "Location": _header("string", "Repeated from a first answer that was not kept.")
}
ERROR = {ERROR_HEADER: _header("string", "The code, if idempotency is why.")}
HEADERS_OF_REFUSALS = {
    409: RETRY_AFTER | LOCATION | EXPIRES,
    429: RETRY_AFTER,
    503: RETRY_AFTER,
}


# Short names, since each operation has these.
NAMES = {REPLAYED_HEADER: "Replay", EXPIRES_HEADER: "Expiry"}


def _add_headers(shared: Shared, response: Json, headers: Json) -> None:
    if "$ref" not in response:
        own = response.setdefault("headers", {})
        known = {name.lower() for name in own}
        # Hooks change what is theirs now, and that alone.
        for name, header in deepcopy(headers).items():
            if name.lower() not in known:
                own[name] = shared.part(NAMES.get(name, name), header)


def _may_be_stored(status: str, policy: Policy) -> bool:
    """Tell whether answers of a status, or of a range or "default", are kept (O1)."""
    if not status.isdigit():
        return not status.startswith("5")
    return int(status) < 500 and int(status) not in policy.released_statuses


# Refusals.


class IdempotencyErrorSerializer(serializers.Serializer[Any]):
    """Why the request was refused."""

    # As Django REST framework's own EXCEPTION_HANDLER has it, and the code beside it.
    detail = serializers.CharField()
    code = serializers.CharField()


def _name(refusals: list[IdempotencyError], policy: Policy) -> str:
    """Return a name that tells apart what policies make different."""
    status_code = refusals[0].status_code
    kinds = {400: "Required" * policy.required, 409: "Leased" * (not policy.atomic)}
    return f"Refusal{status_code}{kinds.get(status_code, '')}"


def _refusals(auto_schema: AutoSchema, refusals: list[IdempotencyError]) -> Json:
    """Return the answer to an operation that has none of that status itself."""
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
    """Add to an answer of the operation's own what makes refusals of it."""
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
    """Return a refusal's schema; that of a project's own format is not known."""
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
