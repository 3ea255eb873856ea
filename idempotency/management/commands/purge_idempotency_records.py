"""``manage.py purge_idempotency_records``."""

from __future__ import annotations

import re
import signal
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error, connections

from idempotency.models import IdempotencyRecord
from idempotency.purging import PurgeReport

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# So long ago there were no records; and a time before the first year can't be told.
LONGEST = timedelta(days=36_500)
# How long a dry run counts where no budget is given.
DRY_RUN_BUDGET = timedelta(seconds=10)


def positive(text: str) -> int:
    """Return a whole number from 1; argparse reports the rest."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def duration(text: str) -> timedelta:
    """Return how long 45d, 12h, 10m or 30s is; argparse reports the rest."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise ArgumentTypeError(
            f"must be a number and one of s, m, h and d, such as 45d, not {text!r}"
        )
    found = timedelta(**{UNITS[match[2]]: int(match[1])})
    if found > LONGEST:
        raise ArgumentTypeError(f"must be at most {LONGEST.days}d, not {text!r}")
    return found


def database(text: str) -> str:
    """Return the alias of a database; argparse reports the rest."""
    if text not in connections.settings:
        raise ArgumentTypeError(f"{text!r} is not an alias in DATABASES")
    return text


class Interruption:
    """Whether somebody has asked the command to end."""

    number: int | None = None

    def __init__(self) -> None:
        # What a signal's handler may put something into while it is waited on.
        self.noted: SimpleQueue[int] = SimpleQueue()

    def wait(self, seconds: float) -> bool:
        """Wait for it so long; return whether it came."""
        with suppress(Empty):
            self.noted.get(timeout=seconds)
        return self.number is not None

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM be noted, the second one end the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield  # where signals are somebody else's
            return
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: Any) -> None:
            self.number = number
            self.noted.put(number)
            restore()

        def restore() -> None:
            for each, handler in before.items():
                signal.signal(each, handler)

        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, note)
        try:
            yield
        finally:
            restore()


class Command(BaseCommand):
    """Delete the records whose retention is over."""

    help = "Deletes the idempotency records whose retention is over."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take how much at once, how long, how old, and from which database."""
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="delete nothing: say how many records expired on which day",
        )
        parser.add_argument(
            "--batch-size",
            type=positive,
            metavar="ROWS",
            help="rows to a transaction, at most (default: PURGE_BATCH_SIZE)",
        )
        parser.add_argument(
            "--time-budget",
            type=duration,
            metavar="DURATION",
            help="when to stop, such as 10m (default: PURGE_TIME_BUDGET; "
            f"for --dry-run {DRY_RUN_BUDGET.seconds}s)",
        )
        parser.add_argument(
            "--older-than",
            type=duration,
            metavar="DURATION",
            help="delete only those expired records that are also this old, "
            "such as 45d",
        )
        parser.add_argument(
            "--database",
            type=database,
            metavar="ALIAS",
            help="whose records (default: the one that records are written to)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Purge, or only count."""
        try:
            (self.count if options["dry_run"] else self.purge)(options)
        except Error as error:
            raise CommandError(f"The database refused to go on: {error}") from error

    def count(self, options: dict[str, Any]) -> None:
        """Say how many records a purge would delete, day by day."""
        records = IdempotencyRecord.objects.using(options["database"])
        budget = options["time_budget"]
        total, is_exact = 0, True
        for found in records.count_purgeable(
            time_budget=DRY_RUN_BUDGET if budget is None else budget,
            older_than=options["older_than"],
        ):
            if found is None:
                self.stdout.write("The time budget ended first: later days may follow.")
                is_exact = False
                continue
            more = "" if found.is_exact else "at least "
            self.stdout.write(f"{found.day}  {more}{found.rows:,}")
            total += found.rows
            is_exact = is_exact and found.is_exact
        at_least = "" if is_exact else "at least "
        self.stdout.write(f"A purge would delete {at_least}{total:,} records.")

    def purge(self, options: dict[str, Any]) -> None:
        """Delete, and say what was done; also where it could not be done to the end."""
        records = IdempotencyRecord.objects.using(options["database"])
        report = PurgeReport()
        interruption = Interruption()
        try:
            with interruption.awaited():
                for report in records.purge_in_batches(
                    batch_size=options["batch_size"],
                    time_budget=options["time_budget"],
                    older_than=options["older_than"],
                    rest=interruption.wait,
                ):
                    self.show_progress(report, options["verbosity"])
                    if interruption.number is not None:
                        break
        finally:
            self.conclude(report, options["verbosity"])
        if interruption.number is not None and report.more:
            self.stdout.write("Interrupted: run again for the rest.")
            raise SystemExit(128 + interruption.number)
        if report.more:
            self.stdout.write("The time budget ended first: run again for the rest.")

    def show_progress(self, report: PurgeReport, verbosity: int) -> None:
        """Say how far it is: in one line on a terminal, or each batch in one."""
        so_far = (
            f"{report.deleted:,} deleted, {report.batches:,} batches, "
            f"{report.seconds:.1f} s"
        )
        if verbosity >= 2:
            self.stdout.write(so_far)
        elif verbosity == 1 and self.stdout.isatty():
            self.stdout.write(f"\r{so_far}", ending="")
            self.stdout.flush()

    def conclude(self, report: PurgeReport, verbosity: int) -> None:
        """Say what was done, in place of the progress."""
        if verbosity == 1 and self.stdout.isatty():
            self.stdout.write("\r\x1b[K", ending="")
        if verbosity:
            self.stdout.write(
                f"Deleted {report.deleted} expired idempotency records "
                f"in {report.batches} batches and {report.seconds:.1f} s."
            )
