"""``manage.py idempotency_erase``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from idempotency.conf import get_settings
from idempotency.management.commands.purge_idempotency_records import database
from idempotency.models import (
    IdempotencyRecord,
    IdempotencyRecordQuerySet,
    Status,
    default_alias,
)


class Command(BaseCommand):
    """Erase the records of a caller."""

    help = (
        "Erases what the idempotency records of a caller say of a person. Retries are "
        "refused, and act on nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--user",
            action="append",
            default=[],
            metavar="PK",
            help="a user's primary key, also of a deleted user; can be repeated",
        )
        parser.add_argument(
            "--scope",
            action="append",
            default=[],
            metavar="SCOPE",
            help="a scope, as the admin shows it; can be repeated",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="erase nothing; print how many records the caller has",
        )
        parser.add_argument(
            "--database",
            type=database,
            metavar="ALIAS",
            help="the database (default: the one where the app stores records)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Erase, or count for --dry-run; fail if records are left."""
        callers = [*map(_user, options["user"]), *options["scope"]]
        if not callers:
            raise CommandError("Name the caller: --user PK, or --scope SCOPE.")
        if options["user"] and get_settings().policy.scope is not None:
            self.stderr.write(
                "Note: with IDEMPOTENCY['SCOPE'], the scope of a user may be another "
                "one. Name it by --scope.",
                str,
            )
        records = IdempotencyRecord.objects.using(
            options["database"] or default_alias()
        )
        try:
            of_callers = [records.of_caller(caller) for caller in callers]
        except ValueError as error:
            raise CommandError(str(error)) from None
        try:
            (self.count if options["dry_run"] else self.erase)(of_callers)
        except Error as error:
            raise CommandError(f"Database error: {error}") from error

    def count(self, of_callers: list[IdempotencyRecordQuerySet]) -> None:
        """Print how many records would be erased."""
        found = sum(each.without_live_lease().count() for each in of_callers)
        in_progress = sum(
            each.with_status(Status.IN_PROGRESS).count() for each in of_callers
        )
        self.stdout.write(
            f"Would erase {found} idempotency records. {in_progress} are in progress."
        )

    def erase(self, of_callers: list[IdempotencyRecordQuerySet]) -> None:
        """Erase, and fail if something is left."""
        reports = [each.erase() for each in of_callers]
        erased = sum(each.erased for each in reports)
        self.stdout.write(f"Erased {erased} idempotency records.")
        in_progress = sum(each.in_progress for each in reports)
        held = sum(each.held for each in reports)
        if in_progress or held:
            raise CommandError(
                f"{in_progress} are in progress, and {held} in use by other "
                "transactions: erase again later."
            )


def _user(text: str) -> Any:
    """Return a user with this primary key, whether or not there is one by now."""
    model = get_user_model()
    key: Any = model._meta.pk
    try:
        user = model(pk=key.to_python(text))
    except ValidationError:
        label = model._meta.label
        raise CommandError(f"{text!r} is not a primary key of {label}.") from None
    user._state.adding = False
    return user
