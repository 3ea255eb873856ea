"""Whose key a request carries, and for what: how its record is found and compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from idempotency.fingerprints import VERSIONS, Fingerprint, fingerprint_in
from idempotency.models import IdempotencyRecord, State

if TYPE_CHECKING:
    from rest_framework.request import Request


# The database writes them (P1).
NO_TIMES: Any = {"created_at": None, "expires_at": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes two requests one: scope and key (S1), and what was asked (F1)."""

    request: Request = field(repr=False)
    scope: str = field(repr=False)
    key: str = field(repr=False)
    record_id: UUID
    fingerprint: Fingerprint

    def is_that_of(self, record: IdempotencyRecord) -> bool:
        """Compare with a record, in the record's own fingerprint version (F4)."""
        mine = self.fingerprint
        if record.fingerprint_version != mine.version:
            if record.fingerprint_version not in VERSIONS:
                return False
            mine = fingerprint_in(self.request, record.fingerprint_version)
        return (record.scope, record.key, record.fingerprint) == (
            self.scope,
            self.key,
            mine.digest,
        )

    def new_record(self) -> IdempotencyRecord:
        """Return the record of a claim that is to be won, as yet without times."""
        return IdempotencyRecord(
            id=self.record_id,
            scope=self.scope,
            key=self.key,
            method=self.request.method or "",
            # PostgreSQL has no NUL in text.
            path=self.request.path.replace("\0", "%00"),
            fingerprint=self.fingerprint.digest,
            fingerprint_version=self.fingerprint.version,
            state=State.IN_PROGRESS,
            attempt=1,
            token=uuid4(),
            # Said, since Django asks each field for a default otherwise.
            lease_expires_at=None,
            status_code=None,
            headers=None,
            body=None,
            body_size=None,
            completed_at=None,
            **NO_TIMES,
        )
