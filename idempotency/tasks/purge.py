"""The Celery task that purges expired records."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from idempotency.conf import get_settings
from idempotency.models import IdempotencyRecord
from idempotency.signals import extras

logger = logging.getLogger("idempotency")

# Time for the batch that is running when the budget ends.
GRACE = timedelta(minutes=1)


class AfterBudget:
    """A soft time limit in seconds: PURGE_TIME_BUDGET and GRACE.

    It is not above the project's hard limit, which Celery would refuse. Assigning
    another limit, as ``celery control`` does, replaces it.
    """

    def __get__(self, task: Any, owner: type) -> Any:
        if task is None:
            return self
        limit = int((get_settings().PURGE_TIME_BUDGET + GRACE).total_seconds())
        # In older Celery, the project's limit is not the task's.
        hard_limit = task.time_limit or task.app.conf.task_time_limit
        return min(limit, hard_limit or limit)


class PurgeTask(Task):  # type: ignore[type-arg]  # generic in the stubs alone
    """A task that stops before it reaches its time limits."""

    soft_time_limit = AfterBudget()

    def time_budget(self) -> timedelta:
        """Return PURGE_TIME_BUDGET, or less if this run's time limits are shorter."""
        budget = get_settings().PURGE_TIME_BUDGET
        for limit in filter(None, self.request.timelimit or ()):
            until = timedelta(seconds=limit)
            budget = min(budget, max(until - GRACE, until / 2))
        return budget


@shared_task(
    name="idempotency.tasks.purge_expired_records",
    base=PurgeTask,
    bind=True,
    ignore_result=True,
)
def purge_expired_records(self: PurgeTask, database: str | None = None) -> None:
    """Delete expired records for up to PURGE_TIME_BUDGET (P3).

    ``database`` is an alias; the default is the database that stores records. The next
    run deletes the rest.
    """
    try:
        IdempotencyRecord.objects.using(database).purge(time_budget=self.time_budget())
    except SoftTimeLimitExceeded:
        logger.warning(
            "The time limit stopped a purge: a batch took too long",
            extra=extras("purge_stopped", database=database),
        )
