"""Claims in SQLite."""

from __future__ import annotations

from django.db import OperationalError

from idempotency.claims.base import ReturningClaims


class SQLiteClaims(ReturningClaims):
    """Claims under SQLite's write lock: a claim that waited finds the record."""

    INSERT = "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT DO NOTHING"

    def is_busy(self, error: BaseException) -> bool:
        return isinstance(error, OperationalError) and "locked" in str(error)

    is_transient = is_busy
