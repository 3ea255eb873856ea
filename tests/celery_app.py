"""The demo project's Celery app with a queue of its own, and Beat in a hurry."""

from __future__ import annotations

import os
from datetime import timedelta

from idempotency.schedules import BEAT_SCHEDULE
from testproject.celery import app

app.conf.task_default_queue = os.environ["TEST_QUEUE"]
# For all tasks, as many projects have it: less than the purge would take for itself.
app.conf.task_time_limit = 60
app.conf.beat_schedule = {
    name: {**entry, "schedule": timedelta(seconds=1)}
    for name, entry in BEAT_SCHEDULE.items()
}
