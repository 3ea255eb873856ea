"""Run the demo project's worker and Beat: ``make beat``.

The schedule is the one of the settings, so a purge runs every hour; ``--every 10`` runs
it every ten seconds, to see it happen. The broker is CELERY_BROKER_URL's, by default
one that needs no server. Where django-celery-beat is installed, the schedule is in the
admin of ``manage.py runserver``, too.
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
    """Migrate, then run both in one process until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--every", type=int, metavar="SECONDS", help="instead of hourly"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.settings")
    django.setup()
    call_command("migrate", verbosity=0)
    # Beat is another process: SQLite does not stand a connection that it takes along.
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
