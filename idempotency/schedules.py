"""Entries for Celery Beat (contract P3, E17).

Write ``CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE}`` in the settings, or add it to
``app.conf.beat_schedule``. Projects with completers also add
``**COMPLETING_SCHEDULE``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

PURGE_TASK = "idempotency.tasks.purge_expired_records"
COMPLETING_TASK = "idempotency.tasks.complete_abandoned_records"

BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "purge-expired-idempotency-records": {
        "task": PURGE_TASK,
        "schedule": timedelta(minutes=10),
        # A run that is still queued when the next one comes is not needed. Celery and
        # django-celery-beat have different names for this option.
        "options": {"expires": 600, "expire_seconds": 600},
    },
}

COMPLETING_SCHEDULE: dict[str, dict[str, Any]] = {
    "complete-abandoned-idempotency-records": {
        "task": COMPLETING_TASK,
        "schedule": timedelta(minutes=1),
        "options": {"expires": 60, "expire_seconds": 60},
    },
}
