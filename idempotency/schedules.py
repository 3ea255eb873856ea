"""A ready entry for Celery Beat (contract P3).

Write ``CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE}`` into the settings, or the same
into ``app.conf.beat_schedule``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

PURGE_TASK = "idempotency.tasks.purge_expired_records"

BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "purge-expired-idempotency-records": {
        "task": PURGE_TASK,
        "schedule": timedelta(hours=1),
        # A purge that waited for its successor has nothing left to do. The schedulers
        # of Celery and of django-celery-beat each have a name of their own for that.
        "options": {"expires": 3600, "expire_seconds": 3600},
    },
}
