"""Helpers for a project's tests of its endpoints; pytest is optional.

Imports are lazy, so that pytest can load ``idempotency.testing.fixtures`` before Django
has its settings.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idempotency.testing.assertions import assert_idempotent
    from idempotency.testing.clients import IdempotentClient
    from idempotency.testing.races import assert_race_safe
    from idempotency.testing.records import abandon_record, age_records
    from idempotency.testing.resuming import assert_resumable

__all__ = [
    "IdempotentClient",
    "abandon_record",
    "age_records",
    "assert_idempotent",
    "assert_race_safe",
    "assert_resumable",
]

MODULES = {
    "IdempotentClient": "clients",
    "abandon_record": "records",
    "age_records": "records",
    "assert_idempotent": "assertions",
    "assert_race_safe": "races",
    "assert_resumable": "resuming",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
