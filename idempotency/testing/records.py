"""Records as time and crashes leave them."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import F, QuerySet

from idempotency.database import Duration, UTCNow
from idempotency.models import IdempotencyRecord, State, default_alias

TIMES = ("created_at", "completed_at", "expires_at", "lease_expires_at")


def age_records(
    age: timedelta, records: QuerySet[IdempotencyRecord] | None = None
) -> int:
    """Make records older by ``age``, as if that much time had gone by.

    All records of the default database for them, or those of ``records``. Returns how
    many there were. What has expired by that is what a purge deletes, and its keys are
    new (P1).
    """
    if records is None:
        records = IdempotencyRecord.objects.using(default_alias())
    return records.update(**{name: F(name) - Duration(age) for name in TIMES})


def abandon_record(key: str, *, using: str | None = None) -> IdempotencyRecord:
    """Turn the record of a key into an abandoned one, and return it (E9).

    As a worker leaves it that died after it had acted and before its answer was stored,
    when the lease is over. ``using`` is the alias of the record's database, by default
    the one that records are written to.

    Raises ``IdempotencyRecord.DoesNotExist`` if no request with that key was answered,
    and ``MultipleObjectsReturned`` if several callers have one.
    """
    alias = using or default_alias()
    record = IdempotencyRecord.objects.using(alias).get(key=key)
    IdempotencyRecord.objects.using(alias).filter(pk=record.pk).update(
        state=State.ABANDONED,
        lease_expires_at=UTCNow(),
        status_code=None,
        headers=None,
        body=None,
        body_size=None,
        completed_at=None,
    )
    record.refresh_from_db()
    return record
