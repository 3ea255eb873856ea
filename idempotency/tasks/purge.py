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

# For a batch that is under way when the budget ends.
GRACE = timedelta(minutes=1)


class AfterBudget:
    """A soft time limit in seconds: GRACE after PURGE_TIME_BUDGET.

    Not after a project's own limit for all tasks, with which Celery would refuse to
    send the task. Whoever sets another one, such as ``celery control``, replaces this.
    """

    def __get__(self, task: Any, owner: type) -> Any:
        if task is None:
            return self
        limit = int((get_settings().PURGE_TIME_BUDGET + GRACE).total_seconds())
        # Older Celery leaves the project's limit to the worker.
        others = task.time_limit or task.app.conf.task_time_limit
        return min(limit, others or limit)


class PurgeTask(Task):  # type: ignore[type-arg]  # generic in the stubs alone
    """A task that ends by itself before a worker ends it."""

    soft_time_limit = AfterBudget()

    def time_budget(self) -> timedelta:
        """Return PURGE_TIME_BUDGET, or less where this run's limits come before."""
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
    """Delete the records whose retention is over, within PURGE_TIME_BUDGET (P3).

    ``database`` is an alias; by default the one that records are written to. What is
    left when the time ends, or when the worker does, is the next run's.
    """
    try:
        IdempotencyRecord.objects.using(database).purge(time_budget=self.time_budget())
    except SoftTimeLimitExceeded:
        logger.warning(
            "A batch of the purge took too long: its time limit ended it",
            extra=extras("purge_stopped", database=database),
        )
