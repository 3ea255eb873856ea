"""The ``IDEMPOTENCY`` setting: annotated defaults, read live."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
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
    # WSGI can't tell an underscore from a hyphen, so servers drop such headers.
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]+", value) is not None


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
SECRET = Rule(_is_text, "a string that nobody can guess")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings. ``policy`` has those of the table of options.

    Each other field is the default of the key of the same name.
    """

    policy: Policy = field(default_factory=Policy)
    ENABLED: Annotated[bool, BOOLEAN] = True
    QUERY_PARAM: Annotated[str | None, PARAMETER_NAME] = "$idempotency"
    HEADER: Annotated[str | None, HEADER_NAME] = "Idempotency-Key"
    ANONYMOUS: Annotated[str, one_of("allow", "refuse")] = "allow"
    FINGERPRINT: Annotated[str | Callable[[Request], Any] | None, FUNCTION] = None
    WARNINGS: Annotated[Collection[str], WARNING_PLACES] = ("body", "header")
    UNSTORED_HEADERS: Annotated[Collection[str], HEADER_NAMES] = ()
    MAX_RESPONSE_BYTES: Annotated[int, COUNT] = 10 * 1024 * 1024
    DERIVATION_SECRET: Annotated[str | None, SECRET] = None
    PURGE_BATCH_SIZE: Annotated[int, COUNT] = 1000
    PURGE_TIME_BUDGET: Annotated[timedelta, DURATION] = timedelta(minutes=5)


class Setting(NamedTuple):
    """What a key of ``IDEMPOTENCY`` must be, what it is by default, and if None may."""

    rule: Rule
    default: Any
    is_nullable: bool


def _is_nullable(hint: Any) -> bool:
    return NoneType in get_args(get_args(hint)[0])


def _rows() -> dict[str, Setting]:
    of_policy = get_type_hints(Policy, include_extras=True)
    found = {
        each.name.upper(): Setting(
            OPTIONS[each.name].rule, each.default, _is_nullable(of_policy[each.name])
        )
        for each in fields(Policy)
        if OPTIONS[each.name].has_setting
    }
    own = get_type_hints(Settings, include_extras=True)
    for each in fields(Settings):
        if each.name != "policy":
            hint = own[each.name]
            rule: Rule = hint.__metadata__[0]
            found[each.name] = Setting(rule, each.default, _is_nullable(hint))
    return found


SETTINGS = _rows()

_project: Mapping[str, Any] = {}
_settings = Settings()


def get_settings() -> Settings:
    """Return the settings as they are now, so ``override_settings`` works.

    The system checks report unknown keys.
    """
    global _project, _settings  # noqa: PLW0603  # made again only when they change
    project = getattr(django_settings, "IDEMPOTENCY", None) or {}
    if project != _project:
        known = {name: value for name, value in project.items() if name in SETTINGS}
        options = {
            name.lower(): known.pop(name)
            for name in [*known]
            if name.lower() in OPTIONS
        }
        _settings = Settings(policy=Policy(**options), **known)
        _project = dict(project)
    return _settings


def get_secret() -> bytes:
    """Return the secret of keyed digests: DERIVATION_SECRET, or else SECRET_KEY.

    Django lets SECRET_KEY be text or bytes.
    """
    return force_bytes(get_settings().DERIVATION_SECRET or django_settings.SECRET_KEY)
