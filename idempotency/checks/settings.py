"""Mistakes in the settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.utils.module_loading import import_string

from idempotency.conf import NAMES, get_settings
from idempotency.policy import BOOLEAN, DURATION, RULES, Rule


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(
        map(_is_text, value)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_header_name(value: object) -> bool:
    # WSGI can't tell an underscore from a hyphen, so servers drop such headers.
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]+", value) is not None


def _is_function(value: object) -> bool:
    # Callables first: a proxy is not to be asked whether it is a string.
    if callable(value) or not isinstance(value, str):
        return callable(value)
    try:
        return callable(import_string(value))
    except ImportError:
        return False


def _failure(name: str, value: object) -> str:
    """Return why a dotted path leads nowhere, as a sentence, if it is one."""
    if SETTINGS[name] in (FUNCTION, KEEPING, REPLAY_CHECK) and isinstance(value, str):
        try:
            import_string(value)
        except ImportError as error:
            return f" Importing it said: {str(error).rstrip('.')}."
    return ""


COUNT = Rule(_is_count, "a whole number from 1")
FUNCTION = Rule(
    _is_function,
    "a callable that takes the request and returns a string, "
    "or a dotted path that leads to one",
)
KEEPING = Rule(
    lambda value: isinstance(value, bool) or _is_function(value),
    "True, False, or a callable that takes the response and returns whether to keep "
    "it, or a dotted path that leads to one",
)
REPLAY_CHECK = Rule(
    lambda value: _is_function(value) or value == "object",
    '"object", or a callable that takes the request and the record, or a dotted path '
    "that leads to one",
)
SETTINGS: dict[str, Rule] = {
    **{name.upper(): rule for name, rule in RULES.items() if name.upper() in NAMES},
    "ENABLED": BOOLEAN,
    "QUERY_PARAM": Rule(_is_text, "the name of a query parameter, or None"),
    "HEADER": Rule(
        _is_header_name, "a header's name, of letters, digits and hyphens, or None"
    ),
    "SCOPE": FUNCTION,
    "ANONYMOUS": Rule(
        lambda value: value in ("allow", "refuse"), '"allow" or "refuse"'
    ),
    "FINGERPRINT": FUNCTION,
    "STORE": KEEPING,
    "CHECK_REPLAY": REPLAY_CHECK,
    "WARNINGS": Rule(
        lambda value: _are_texts(value) and {*value} <= {"body", "header"},
        'a collection of "body" and "header"',
    ),
    "UNSTORED_HEADERS": Rule(_are_texts, "a collection of header names"),
    "MAX_RESPONSE_BYTES": COUNT,
    "DERIVATION_SECRET": Rule(_is_text, "a string that nobody can guess"),
    "PURGE_BATCH_SIZE": COUNT,
    "PURGE_TIME_BUDGET": DURATION,
}
NULLABLE = {
    "USING",
    "SCOPE",
    "QUERY_PARAM",
    "HEADER",
    "FINGERPRINT",
    "CHECK_REPLAY",
    "DERIVATION_SECRET",
}


@checks.register("idempotency")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report settings that are unknown, of a wrong type or without meaning."""
    return list(_mistakes_in_settings()) or list(_long_lease())


@checks.register("idempotency")
def check_settings_of_their_own(**kwargs: Any) -> list[CheckMessage]:
    """Warn of keys that stand by themselves, as options of the mixin do."""
    return [
        checks.Warning(
            f"The app does not read the setting IDEMPOTENCY_{name}.",
            hint=(
                f'Write IDEMPOTENCY = {{"{name}": ...}}. Silence this check if '
                "another package reads it."
            ),
            id="idempotency.W006",
        )
        for name in NAMES
        if hasattr(settings, f"IDEMPOTENCY_{name}")
    ]


def _long_lease() -> Iterator[CheckMessage]:
    now = get_settings()
    # The default means nothing to a project without leased endpoints; those that
    # there are, the check of endpoints looks at.
    if now.LEASE >= now.RETENTION and "LEASE" in getattr(settings, "IDEMPOTENCY", {}):
        yield lease_error("IDEMPOTENCY", now.LEASE, now.RETENTION)


def lease_error(where: str, lease: timedelta, retention: timedelta) -> Error:
    """Return what is said of an answer that would expire before it is there."""
    return Error(
        f"{where}: a lease of {lease} is not shorter than the retention of "
        f"{retention}.",
        hint=(
            "A lease is how long one run may take, and the retention begins with it. "
            "Shorten the one, or lengthen the other."
        ),
        id="idempotency.E007",
    )


@checks.register("idempotency", deploy=True)
def check_enabled(**kwargs: Any) -> list[CheckMessage]:
    """Warn of a deployment where the app steps aside."""
    if not settings_are_right() or get_settings().ENABLED:
        return []
    return [
        checks.Warning(
            "IDEMPOTENCY has ENABLED False: no key has an effect, and retries act "
            "again.",
            hint='Leave "ENABLED" out, or write True.',
            id="idempotency.W005",
        )
    ]


def settings_are_right() -> bool:
    """Tell whether IDEMPOTENCY can be worked with; if not, ``check_settings`` says."""
    return not any(_mistakes_in_settings())


def _meant_by(name: object) -> str:
    """Return what an unknown key may have been meant to be, as a sentence."""
    wanted = str(name)
    if wanted.lower() in RULES and wanted.upper() not in NAMES:
        return f"{wanted.lower()} is an option of each endpoint, and no setting. "
    close = get_close_matches(wanted.upper(), NAMES, n=1)
    return f"Did you mean {close[0]}? " if close else ""


def _mistakes_in_settings() -> Iterator[CheckMessage]:
    project: Any = getattr(settings, "IDEMPOTENCY", {})
    if not isinstance(project, dict):
        yield Error(
            "The IDEMPOTENCY setting is not a dictionary.",
            hint='Write IDEMPOTENCY = {"RETENTION": timedelta(days=30)}, for example.',
            id="idempotency.E001",
        )
        return
    for name, value in project.items():
        if name not in NAMES:
            yield Error(
                f"IDEMPOTENCY has an unknown key {name!r}.",
                hint=f"{_meant_by(name)}The keys are {', '.join(sorted(NAMES))}.",
                id="idempotency.E002",
            )
        elif not (value is None and name in NULLABLE) and not SETTINGS[name].holds(
            value
        ):
            # What the checks say ends up in logs.
            shown = "what it is" if name == "DERIVATION_SECRET" else repr(value)
            yield Error(
                f"IDEMPOTENCY[{name!r}] can't be {shown}.",
                hint=f"It must be {SETTINGS[name].expected}." + _failure(name, value),
                id="idempotency.E003",
            )
    now = get_settings()
    if now.ENABLED and now.QUERY_PARAM is None and now.HEADER is None:
        yield Error(
            "IDEMPOTENCY turns off both QUERY_PARAM and HEADER: no request has a key.",
            hint='Leave one of them, or turn off the app with "ENABLED": False.',
            id="idempotency.E004",
        )
