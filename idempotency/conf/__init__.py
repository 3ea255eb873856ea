"""The ``IDEMPOTENCY`` setting: its keys, rules and defaults."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from django.conf import settings as django_settings
from django.utils.encoding import force_bytes
from rest_framework.request import Request

from idempotency.conf.policy import (
    BOOLEAN,
    DURATION,
    FUNCTION,
    OPTIONS,
    Option,
    Policy,
    Rule,
    is_int,
    one_of,
)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(
        map(_is_text, value)
    )


def _is_header_name(value: object) -> bool:
    # No underscores: WSGI can't tell them from hyphens, so servers drop such headers.
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]+", value) is not None


def _are_strings(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(each, str) for each in value
    )


COUNT = Rule(lambda value: is_int(value) and value > 0, "a whole number from 1")
PARAMETER_NAME = Rule(_is_text, "the name of a query parameter, or None")
HEADER_NAME = Rule(
    _is_header_name, "a header's name, of letters, digits and hyphens, or None"
)
HEADER_NAMES = Rule(_are_texts, "a collection of header names")
WARNING_PLACES = Rule(
    lambda value: _are_texts(value) and {*value} <= {"body", "header"},
    'a collection of "body" and "header"',
)
SECRET = Rule(_is_text, "a non-empty string that is hard to guess")
ENCRYPTION_KEYS = Rule(
    _are_strings,
    'a list of strings, each printed by "manage.py idempotency_encryption_key"; '
    "an empty one in front means that nothing is encrypted",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings: ``policy`` for the options, and a field for each other key."""

    policy: Policy = field(default_factory=Policy)
    ENABLED: Annotated[bool, BOOLEAN] = True
    QUERY_PARAM: Annotated[str | None, PARAMETER_NAME] = "$idempotency"
    HEADER: Annotated[str | None, HEADER_NAME] = "Idempotency-Key"
    ANONYMOUS: Annotated[str, one_of("allow", "refuse")] = "allow"
    REFUSAL_RESPONSE: Annotated[str | Callable[..., Any] | None, FUNCTION] = None
    FINGERPRINT: Annotated[str | Callable[[Request], Any] | None, FUNCTION] = None
    WARNINGS: Annotated[Collection[str], WARNING_PLACES] = ("body", "header")
    UNSTORED_HEADERS: Annotated[Collection[str], HEADER_NAMES] = ()
    MAX_RESPONSE_BYTES: Annotated[int, COUNT] = 10 * 1024 * 1024
    DERIVATION_SECRET: Annotated[str | None, SECRET] = None
    ENCRYPTION_KEYS: Annotated[Sequence[str], ENCRYPTION_KEYS] = ()
    PURGE_BATCH_SIZE: Annotated[int, COUNT] = 1000
    PURGE_TIME_BUDGET: Annotated[timedelta, DURATION] = timedelta(minutes=9)


class Setting(NamedTuple):
    """The rule and default of a key of ``IDEMPOTENCY``, and whether it may be None."""

    rule: Rule
    default: Any
    is_nullable: bool


def _rows() -> dict[str, Setting]:
    found = {}
    for table in (Policy, Settings):
        hints = get_type_hints(table, include_extras=True)
        for each in fields(table):
            row = getattr(hints[each.name], "__metadata__", (None,))[0]
            rule = row.rule if isinstance(row, Option) and row.has_setting else row
            if isinstance(rule, Rule):
                is_nullable = NoneType in get_args(get_args(hints[each.name])[0])
                found[each.name.upper()] = Setting(rule, each.default, is_nullable)
    return found


SETTINGS = _rows()

_project: Mapping[str, Any] = {}
_settings = Settings()


def get_settings() -> Settings:
    """Return the current settings, so that ``override_settings`` works.

    Ignore unknown keys, which the system checks report.
    """
    global _project, _settings  # noqa: PLW0603  # rebuilt only when they change
    project = getattr(django_settings, "IDEMPOTENCY", None) or {}
    if project != _project:
        known = {name: value for name, value in project.items() if name in SETTINGS}
        shared = [name for name in known if name.lower() in OPTIONS]
        policy = Policy(**{name.lower(): known.pop(name) for name in shared})
        _settings = Settings(policy=policy, **known)
        _project = dict(project)
    return _settings


def get_secret() -> bytes:
    """Return the secret for keyed digests: DERIVATION_SECRET, or else SECRET_KEY."""
    # SECRET_KEY may be text or bytes.
    return force_bytes(get_settings().DERIVATION_SECRET or django_settings.SECRET_KEY)
