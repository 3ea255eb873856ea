"""``manage.py purge_idempotency_records``."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connections

from idempotency.models import IdempotencyRecord


def positive(text: str) -> int:
    """Return a whole number from 1; argparse reports the rest."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def database(text: str) -> str:
    """Return the alias of a database; argparse reports the rest."""
    if text not in connections.settings:
        raise ArgumentTypeError(f"{text!r} is not an alias in DATABASES")
    return text


class Command(BaseCommand):
    """Delete the records whose retention is over."""

    help = "Deletes the idempotency records whose retention is over."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the batch size and the database."""
        parser.add_argument(
            "--batch-size",
            type=positive,
            metavar="ROWS",
            help="rows to a transaction (default: PURGE_BATCH_SIZE)",
        )
        parser.add_argument(
            "--database",
            type=database,
            metavar="ALIAS",
            help="whose records (default: the one that records are written to)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Purge, and say what was done."""
        records = IdempotencyRecord.objects.using(options["database"])
        report = records.purge(batch_size=options["batch_size"])
        self.stdout.write(
            f"Deleted {report.deleted} expired idempotency records "
            f"in {report.batches} batches and {report.seconds:.1f} s."
        )
        if report.more:
            self.stdout.write("The time budget ended first: run again for the rest.")
