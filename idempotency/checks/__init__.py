"""System checks (contract X2), listed in ``docs/checks.md``.

Importing this package registers them.
"""

from __future__ import annotations

from idempotency.checks.callers import check_callers, check_reading
from idempotency.checks.databases import (
    check_backlog,
    check_databases,
    check_durability,
    check_round_trips,
    check_servers,
    check_tested_databases,
)
from idempotency.checks.decorators import check_decorators
from idempotency.checks.encryption import (
    check_encryption_keys,
    check_stored_credentials,
)
from idempotency.checks.endpoints import (
    check_endpoints,
    check_leased_views,
    check_methods,
    check_views_without_the_mixin,
)
from idempotency.checks.schedules import (
    check_jobs_are_scheduled,
    check_jobs_are_scheduled_in_database,
)
from idempotency.checks.settings import (
    check_enabled,
    check_quota,
    check_settings,
    check_settings_of_their_own,
)

__all__ = [
    "check_backlog",
    "check_callers",
    "check_databases",
    "check_decorators",
    "check_durability",
    "check_enabled",
    "check_encryption_keys",
    "check_endpoints",
    "check_jobs_are_scheduled",
    "check_jobs_are_scheduled_in_database",
    "check_leased_views",
    "check_methods",
    "check_quota",
    "check_reading",
    "check_round_trips",
    "check_servers",
    "check_settings",
    "check_settings_of_their_own",
    "check_stored_credentials",
    "check_tested_databases",
    "check_views_without_the_mixin",
]
