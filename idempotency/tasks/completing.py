"""The Celery task that completes abandoned requests."""

from __future__ import annotations

from celery import shared_task
from celery.exceptions import SoftTimeLimitExceeded

from idempotency.completing import complete_abandoned


@shared_task(name="idempotency.tasks.complete_abandoned_records", ignore_result=True)
def complete_abandoned_records(database: str | None = None) -> None:
    """Complete a few abandoned requests by their endpoints' completers (E17).

    ``database`` is an alias; the default is the database that stores records.
    """
    complete_abandoned(database, fatal=(SoftTimeLimitExceeded,))
