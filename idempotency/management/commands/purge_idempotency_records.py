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
from idempotency.signals import in_seconds

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# Longer durations would lead to dates before the year 1.
LONGEST = timedelta(days=36_500)
# The default time budget of a dry run.
DRY_RUN_BUDGET = timedelta(seconds=10)


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def duration(text: str) -> timedelta:
    """Parse a duration such as 45d, 12h, 10m or 30s."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise ArgumentTypeError(
            f"must be a number followed by s, m, h or d, such as 45d, not {text!r}"
        )
    found = timedelta(**{UNITS[match[2]]: int(match[1])})
    if found > LONGEST:
        raise ArgumentTypeError(f"must be at most {LONGEST.days}d, not {text!r}")
    return found


def database(text: str) -> str:
    """Return the text if it is the alias of a database."""
    if text not in connections.settings:
        raise ArgumentTypeError(f"{text!r} is not an alias in DATABASES")
    return text


class Interruption:
    """Ctrl-C or SIGTERM; ``number`` is the signal, None before it comes."""

    number: int | None = None

    def __init__(self) -> None:
        # Its put() is safe in a signal handler.
        self.noted: SimpleQueue[int] = SimpleQueue()

    def wait(self, seconds: float) -> bool:
        """Wait for a signal for some seconds; return whether one came."""
        with suppress(Empty):
            self.noted.get(timeout=seconds)
        return self.number is not None

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Note the first signal; the second one ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield  # other threads can't set signal handlers
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
    """Delete expired records."""

    help = "Deletes expired idempotency records."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="delete nothing; print how many records expired on each day",
        )
        parser.add_argument(
            "--batch-size",
            type=positive,
            metavar="ROWS",
            help="maximum of rows per transaction (default: PURGE_BATCH_SIZE)",
        )
        parser.add_argument(
            "--time-budget",
            type=duration,
            metavar="DURATION",
            help="stop after this time, such as 10m (default: PURGE_TIME_BUDGET; "
            f"for --dry-run {DRY_RUN_BUDGET.seconds}s)",
        )
        parser.add_argument(
            "--older-than",
            type=duration,
            metavar="DURATION",
            help="keep expired records that are younger than this, such as 45d",
        )
        parser.add_argument(
            "--database",
            type=database,
            metavar="ALIAS",
            help="database to purge (default: the one where the app stores records)",
        )
        parser.add_argument(
            "--no-rest",
            action="store_true",
            help="do not rest between batches, which slows down requests beside it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Purge, or count for --dry-run."""
        try:
            (self.count if options["dry_run"] else self.purge)(options)
        except Error as error:
            raise CommandError(f"Database error: {error}") from error

    def count(self, options: dict[str, Any]) -> None:
        """Print how many records a purge would delete, day by day."""
        records = IdempotencyRecord.objects.using(options["database"])
        budget = options["time_budget"]
        total, is_exact = 0, True
        for found in records.count_purgeable(
            time_budget=DRY_RUN_BUDGET if budget is None else budget,
            older_than=options["older_than"],
        ):
            if found is None:
                self.stdout.write("The time budget is used up: more days may follow.")
                is_exact = False
                continue
            more = "" if found.is_exact else "at least "
            self.stdout.write(f"{found.day}  {more}{found.rows:,}")
            total += found.rows
            is_exact = is_exact and found.is_exact
        at_least = "" if is_exact else "at least "
        self.stdout.write(f"A purge would delete {at_least}{total:,} records.")

    def purge(self, options: dict[str, Any]) -> None:
        """Delete, and print the result, also after an error."""
        records = IdempotencyRecord.objects.using(options["database"])
        report = PurgeReport()
        interruption = Interruption()
        try:
            with interruption.awaited():
                for report in records.purge_in_batches(
                    batch_size=options["batch_size"],
                    time_budget=options["time_budget"],
                    older_than=options["older_than"],
                    no_rest=options["no_rest"],
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
            self.stdout.write("The time budget is used up: run again for the rest.")

    def show_progress(self, report: PurgeReport, verbosity: int) -> None:
        """Print the progress: one changing line on a terminal, or a line per batch."""
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
        """Replace the progress with the result."""
        if verbosity == 1 and self.stdout.isatty():
            self.stdout.write("\r\x1b[K", ending="")
        if verbosity:
            self.stdout.write(
                f"Deleted {report.deleted} expired idempotency records "
                f"in {report.batches} batches and {report.seconds:.1f} s."
            )
            if report.half_done:
                self.stdout.write(
                    f"{report.half_done} of them had recorded steps, but no response."
                )
            if report.skipped:
                self.stdout.write(
                    f"{report.skipped} batches failed and were tried again."
                )
            if report.overdue:
                expired = in_seconds(report.overdue)
                self.stdout.write(f"The oldest record left expired {expired} ago.")
