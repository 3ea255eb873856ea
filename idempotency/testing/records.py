"""Change records as time and crashes do."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import F, QuerySet

from idempotency.database import Duration, UTCNow
from idempotency.models import IdempotencyRecord, State, default_alias

TIMES = ("created_at", "completed_at", "expires_at", "lease_expires_at")


def age_records(
    age: timedelta, records: QuerySet[IdempotencyRecord] | None = None
) -> int:
    """Make records older by ``age``; return their number.

    The default is all records in the database where the app stores them. A purge
    deletes the records that expire by this, and their keys are new again (P1).
    """
    if records is None:
        records = IdempotencyRecord.objects.using(default_alias())
    return records.update(**{name: F(name) - Duration(age) for name in TIMES})


def abandon_record(key: str, *, using: str | None = None) -> IdempotencyRecord:
    """Make the record of a key abandoned, and return it (E9).

    A worker that dies before it stores the response leaves such a record when the lease
    ends. ``using`` is the alias of the record's database; the default is the database
    where the app stores records.

    Raise ``IdempotencyRecord.DoesNotExist`` if the key has no record, and
    ``MultipleObjectsReturned`` if several callers have used it.
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


def end_lease(key: str, alias: str) -> IdempotencyRecord | None:
    """End the lease of a key's run, as time does; return the record, if there is one.

    The key must belong to one caller.
    """
    records = IdempotencyRecord.objects.using(alias).filter(key=key)
    records.filter(state=State.IN_PROGRESS).update(lease_expires_at=UTCNow())
    return records.first()
