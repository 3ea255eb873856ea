"""Stored keys in the admin: a desk for support, not an editor (contract A)."""

from __future__ import annotations

from idempotency.admin.permissions import SEE_BODY
from idempotency.admin.records import IdempotencyRecordAdmin

__all__ = ["SEE_BODY", "IdempotencyRecordAdmin"]
