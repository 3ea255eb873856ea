"""The demo project's Celery app with a queue of its own, and Beat in a hurry."""

from __future__ import annotations

import os
from datetime import timedelta

from django.conf import settings

from testproject.celery import app

app.conf.task_default_queue = os.environ["TEST_QUEUE"]
# For all tasks, as many projects have it: less than the purge would take for itself.
app.conf.task_time_limit = 60
for entry in settings.CELERY_BEAT_SCHEDULE.values():
    entry["schedule"] = timedelta(seconds=1)
