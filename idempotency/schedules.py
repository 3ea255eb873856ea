"""An entry for Celery Beat (contract P3).

Write ``CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE}`` in the settings, or add it to
``app.conf.beat_schedule``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

PURGE_TASK = "idempotency.tasks.purge_expired_records"

BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "purge-expired-idempotency-records": {
        "task": PURGE_TASK,
        "schedule": timedelta(hours=1),
        # A run that is still queued when the next one comes is not needed. Celery and
        # django-celery-beat have different names for this option.
        "options": {"expires": 3600, "expire_seconds": 3600},
    },
}
