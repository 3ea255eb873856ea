"""Check the settings."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.utils.module_loading import import_string
from rest_framework.settings import api_settings

from idempotency.conf import SETTINGS, get_settings
from idempotency.conf.policy import OPTIONS, Rule
from idempotency.modes.quotas import Quota

SECRETS = ("DERIVATION_SECRET", "ENCRYPTION_KEYS")


def misfit(rule: Rule, value: Any) -> str | None:
    """Return a hint if the value breaks the rule, or None."""
    expected = f"It must be {rule.expected}."
    if not rule.holds(value):
        return expected
    # callable() first: isinstance() would evaluate a lazy proxy.
    if rule.takes_path and not callable(value) and isinstance(value, str):
        if value in rule.words:
            return None
        try:
            return None if callable(import_string(value)) else expected
        except ImportError as error:
            return f"{expected} The import failed: {str(error).rstrip('.')}."
    return None


@checks.register("idempotency")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report settings that are unknown, of a wrong type or contradictory."""
    return list(_mistakes_in_settings()) or list(_long_lease())


@checks.register("idempotency")
def check_settings_of_their_own(**kwargs: Any) -> list[CheckMessage]:
    """Warn about settings such as IDEMPOTENCY_RETENTION, which the app ignores."""
    return [
        checks.Warning(
            f"The app ignores the setting IDEMPOTENCY_{name}.",
            hint=(
                f'Write IDEMPOTENCY = {{"{name}": ...}}. Silence this check if '
                "another package uses it."
            ),
            id="idempotency.W006",
        )
        for name in SETTINGS
        if hasattr(settings, f"IDEMPOTENCY_{name}")
    ]


@checks.register("idempotency")
def check_quota(**kwargs: Any) -> list[CheckMessage]:
    """Report a quota that Django REST framework can't parse."""
    if not Quota.is_wrong():
        return []
    rates = api_settings.DEFAULT_THROTTLE_RATES
    shown = rates.get(Quota.scope) if isinstance(rates, dict) else rates
    return [
        Error(
            f'DEFAULT_THROTTLE_RATES["idempotency"] is not a rate: {shown!r}.',
            hint=(
                "Write a number of requests, a slash, and s, m, h or d for second, "
                'minute, hour or day, such as "1000/day". Without the entry, or with '
                "None, there is no quota."
            ),
            id="idempotency.E014",
        )
    ]


def _long_lease() -> Iterator[CheckMessage]:
    now = get_settings()
    # The default does not matter without leased endpoints, and check_endpoints checks
    # those.
    lease, retention = now.policy.lease, now.policy.retention
    if lease >= retention and "LEASE" in getattr(settings, "IDEMPOTENCY", {}):
        yield lease_error("IDEMPOTENCY", lease, retention)


def lease_error(where: str, lease: timedelta, retention: timedelta) -> Error:
    """Return the error about a record that could expire during its lease."""
    return Error(
        f"{where}: a lease of {lease} is not shorter than the retention of "
        f"{retention}.",
        hint=(
            "The lease is how long a run may take, and the retention begins with it. "
            "Shorten the lease, or lengthen the retention."
        ),
        id="idempotency.E007",
    )


@checks.register("idempotency", deploy=True)
def check_enabled(**kwargs: Any) -> list[CheckMessage]:
    """Warn about a deployment with the app turned off."""
    if not settings_are_right() or get_settings().ENABLED:
        return []
    return [
        checks.Warning(
            "ENABLED is False: keys have no effect, and retries act again.",
            hint='Remove "ENABLED" from IDEMPOTENCY, or set it to True.',
            id="idempotency.W005",
        )
    ]


def settings_are_right() -> bool:
    """Return whether ``check_settings`` finds no mistake except a long lease."""
    return not any(_mistakes_in_settings())


def _meant_by(name: object) -> str:
    """Return a sentence about what an unknown key may mean, or nothing."""
    wanted = str(name)
    if wanted.lower() in OPTIONS and wanted.upper() not in SETTINGS:
        return f"{wanted.lower()} is an option of endpoints, not a setting. "
    close = get_close_matches(wanted.upper(), SETTINGS, n=1)
    return f"Did you mean {close[0]}? " if close else ""


def _mistakes_in_settings() -> Iterator[CheckMessage]:
    project: Any = getattr(settings, "IDEMPOTENCY", {})
    if not isinstance(project, dict):
        yield Error(
            "The IDEMPOTENCY setting is not a dictionary.",
            hint='For example, write IDEMPOTENCY = {"RETENTION": timedelta(days=30)}.',
            id="idempotency.E001",
        )
        return
    for name, value in project.items():
        if name not in SETTINGS:
            yield Error(
                f"IDEMPOTENCY has an unknown key {name!r}.",
                hint=f"{_meant_by(name)}The keys are {', '.join(sorted(SETTINGS))}.",
                id="idempotency.E002",
            )
        elif value is None and SETTINGS[name].is_nullable:
            continue
        elif (hint := misfit(SETTINGS[name].rule, value)) is not None:
            # Messages end up in logs, so they don't quote secrets.
            shown = "this value" if name in SECRETS else repr(value)
            yield Error(
                f"IDEMPOTENCY[{name!r}] can't be {shown}.",
                hint=hint,
                id="idempotency.E003",
            )
    now = get_settings()
    if now.ENABLED and now.QUERY_PARAM is None and now.HEADER is None:
        yield Error(
            "QUERY_PARAM and HEADER are both None, so no request can have a key.",
            hint='Set one of them, or turn the app off with "ENABLED": False.',
            id="idempotency.E004",
        )
