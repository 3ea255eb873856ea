"""The Celery task that purges expired records."""

from __future__ import annotations

import logging

from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from idempotency.conf import get_settings
from idempotency.models import IdempotencyRecord

logger = logging.getLogger("idempotency")

# Seconds for a batch that is under way when the budget ends.
GRACE = 60


class PurgeTask(Task):  # type: ignore[type-arg]  # generic in the stubs alone
    """A task that a worker ends softly when it is well beyond its budget."""

    @property
    def soft_time_limit(self) -> int:  # type: ignore[override]  # not read-only there
        """Seconds: PURGE_TIME_BUDGET and a minute."""
        return int(get_settings().PURGE_TIME_BUDGET.total_seconds()) + GRACE


@shared_task(
    name="idempotency.tasks.purge_expired_records", base=PurgeTask, ignore_result=True
)
def purge_expired_records(database: str | None = None) -> None:
    """Delete the records whose retention is over, within PURGE_TIME_BUDGET (P3).

    ``database`` is an alias; by default the one that records are written to. What is
    left when the time ends, or when the worker does, is the next run's.
    """
    try:
        IdempotencyRecord.objects.using(database).purge()
    except SoftTimeLimitExceeded:
        logger.warning("A batch of the purge took longer than %d s", GRACE)
