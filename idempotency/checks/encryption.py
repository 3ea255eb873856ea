"""Check the encryption of records (contract P5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Error

from idempotency.audit import Finding, audit
from idempotency.checks.settings import settings_are_right
from idempotency.conf import get_settings
from idempotency.encryption import NO_LIBRARY, has_library, mistakes_in


@checks.register("idempotency")
def check_encryption_keys(**kwargs: Any) -> list[CheckMessage]:
    """Report keys that are no keys, and keys without the library."""
    if not settings_are_right():
        return []
    return [*_wrong_keys()]


def _wrong_keys() -> Iterator[CheckMessage]:
    entries = [*get_settings().ENCRYPTION_KEYS]
    for mistake in mistakes_in(entries):
        what, _stop, hint = mistake.partition(". ")
        yield Error(f"{what}.", hint=hint, id="idempotency.E015")
    if any(entries) and not has_library():
        what, _stop, hint = NO_LIBRARY.partition(". ")
        yield Error(f"{what}.", hint=hint, id="idempotency.E016")


@checks.register("idempotency")
def check_stored_credentials(**kwargs: Any) -> list[CheckMessage]:
    """Warn once if endpoints of login packages store their responses as they are."""
    if not settings_are_right() or any(get_settings().ENCRYPTION_KEYS[:1]):
        return []
    found = {each.view: None for each in audit() if _stores_credentials(each)}
    if not found:
        return []
    return [
        checks.Warning(
            f"The database gets login tokens in plain text, from {', '.join(found)}.",
            hint=(
                "Leave these endpoints unprotected, set their option store to False, "
                "or set ENCRYPTION_KEYS."
            ),
            id="idempotency.W014",
        )
    ]


def _stores_credentials(finding: Finding) -> bool:
    protection = finding.protection
    if protection is None or not finding.credentials:
        return False
    return protection.policy.store is not False
