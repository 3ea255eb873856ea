"""Run the demo project's worker and Beat: ``make beat``.

The settings schedule a purge every ten minutes; ``--every 10`` runs it every ten
seconds. The default broker, CELERY_BROKER_URL, needs no server. With
django-celery-beat, the schedule is also in the admin of ``manage.py runserver``.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connections


def main() -> None:
    """Migrate, then run the worker and Beat until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--every", type=int, metavar="SECONDS", help="instead of every ten minutes"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    django.setup()
    call_command("migrate", verbosity=0)
    # Beat is another process, and must not inherit a connection to SQLite.
    connections.close_all()

    from testproject.celery import app  # noqa: PLC0415  # needs the settings

    if arguments.every:
        for entry in settings.CELERY_BEAT_SCHEDULE.values():
            entry["schedule"] = timedelta(seconds=arguments.every)
    state = settings.VAR_DIR / "beat-schedule"
    app.worker_main(
        [
            *("worker", "--beat", "--concurrency=1", "--loglevel=INFO"),
            *("--schedule-filename", str(state)),
        ]
    )


if __name__ == "__main__":
    main()
