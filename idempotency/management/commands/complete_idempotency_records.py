"""``manage.py complete_idempotency_records``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from idempotency.completing import LIMIT, MAX_ATTEMPTS, complete_abandoned
from idempotency.management.commands.purge_idempotency_records import (
    database,
    positive,
)


class Command(BaseCommand):
    """Complete abandoned requests."""

    help = (
        "Completes abandoned requests by the completers of their endpoints, those "
        "first that have waited longest."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--limit",
            type=positive,
            metavar="RECORDS",
            default=LIMIT,
            help=f"maximum of records (default: {LIMIT})",
        )
        parser.add_argument(
            "--max-attempts",
            type=positive,
            metavar="RUNS",
            default=MAX_ATTEMPTS,
            help="leave records with that many runs to a person "
            f"(default: {MAX_ATTEMPTS})",
        )
        parser.add_argument(
            "--database",
            type=database,
            metavar="ALIAS",
            help="the database (default: the one that stores records)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Complete, and print what became of the records."""
        report = complete_abandoned(
            options["database"],
            limit=options["limit"],
            max_attempts=options["max_attempts"],
        )
        self.stdout.write(str(report))
