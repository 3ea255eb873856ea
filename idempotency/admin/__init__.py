"""Show idempotency records to support staff in the admin, read-only (contract A)."""

from __future__ import annotations

from idempotency.admin.permissions import SEE_BODY
from idempotency.admin.records import IdempotencyRecordAdmin

__all__ = ["SEE_BODY", "IdempotencyRecordAdmin"]
