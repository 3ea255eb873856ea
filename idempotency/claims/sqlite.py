"""Claims in SQLite."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import DatabaseError, OperationalError

from idempotency.claims.base import RowCountClaims


class SQLiteClaims(RowCountClaims):
    """SQLite: one writer at a time, so whoever waited finds the winner's record."""

    INSERT = "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING"

    # In Django's own form, without its zone: text is what is compared.
    LEASE_END = "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', %s)"

    def _lease_end(self, lease: timedelta) -> tuple[str, list[Any]]:
        return self.LEASE_END, [f"{lease.total_seconds():+.3f} seconds"]

    def is_busy(self, error: DatabaseError) -> bool:
        return isinstance(error, OperationalError) and "locked" in str(error)

    is_transient = is_busy
