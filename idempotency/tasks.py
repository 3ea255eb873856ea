"""The Celery task that purges expired records."""

from __future__ import annotations

import logging

from celery import shared_task

from idempotency.models import IdempotencyRecord

logger = logging.getLogger("idempotency")


@shared_task(name="idempotency.tasks.purge_expired_records", ignore_result=True)
def purge_expired_records(database: str | None = None) -> None:
    """Delete the records whose retention is over, within PURGE_TIME_BUDGET (P3).

    ``database`` is an alias; by default the one that records are written to.
    """
    report = IdempotencyRecord.objects.using(database).purge()
    logger.info(
        "Purged %d expired records in %d batches and %.1f s%s",
        report.deleted,
        report.batches,
        report.seconds,
        "; more are left for the next run" if report.more else "",
    )
