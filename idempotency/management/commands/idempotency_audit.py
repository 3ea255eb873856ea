"""``manage.py idempotency_audit``."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from idempotency.audit import HEAD, Finding, audit, news
from idempotency.conf import get_settings


class Command(BaseCommand):
    """List the routes for POST, unprotected ones first."""

    help = (
        "Lists the routes of Django REST framework that accept POST, unprotected ones "
        "first, and all other protected routes, with their policy."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--all",
            action="store_true",
            help="also list unprotected routes of other kinds, such as plain Django "
            "views, the admin's included",
        )
        parser.add_argument(
            "--fail-unprotected",
            action="store_true",
            help="exit with status 1 if a listed route is neither protected nor exempt "
            "(plain Django views are listed with --all)",
        )
        parser.add_argument(
            "--exclude",
            action="append",
            default=[],
            metavar="PATTERN",
            help="leave out routes whose whole path, name or view matches this shell "
            "pattern, such as '/admin/*'; can be repeated",
        )
        parser.add_argument(
            "--format",
            choices=("table", "json"),
            default="table",
            help="a table (the default), or JSON for programs",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """List the routes; fail if --fail-unprotected requires it."""
        found = audit()
        for pattern in options["exclude"]:
            if not any(finding.matches(pattern) for finding in found):
                # str: without the colour of errors
                self.stderr.write(f"Note: --exclude {pattern!r} matches no route.", str)
        left = [
            finding
            for finding in found
            if not any(map(finding.matches, options["exclude"]))
        ]
        listed = news(left, all_kinds=options["all"])
        enabled = get_settings().ENABLED
        if options["format"] == "json":
            routes = [finding.as_json() for finding in listed]
            self.stdout.write(
                json.dumps({"enabled": enabled, "routes": routes}, indent=2)
            )
        else:
            self.print_table(listed)
            if len(left) > len(listed):
                self.stdout.write(
                    f"--all lists {len(left) - len(listed)} more, of other kinds"
                )
        if not enabled:
            self.stderr.write("ENABLED is False: keys have no effect.")
        if options["fail_unprotected"]:
            self.fail(listed, enabled=enabled)

    def print_table(self, findings: list[Finding]) -> None:
        """Print one line per finding, and a summary."""
        rows = [HEAD, *(finding.as_row() for finding in findings)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = map(str.ljust, row, widths)
            self.stdout.write("  ".join(cells).rstrip())
        count = Counter(finding.via for finding in findings)
        others = count["exempt"] + count["none"]
        self.stdout.write(
            f"{len(findings) - others} protected, {count['exempt']} exempt, "
            f"{count['none']} not protected"
        )

    def fail(self, findings: list[Finding], *, enabled: bool) -> None:
        """Raise ``CommandError`` if a route is neither protected nor exempt."""
        if not enabled:
            raise CommandError("No route is protected while ENABLED is False.")
        bare = [finding.route.path for finding in findings if finding.unprotected]
        if bare:
            raise CommandError(f"Not protected: {', '.join(bare)}")
