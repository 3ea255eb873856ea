"""``manage.py idempotency_encryption_key``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from idempotency.encryption import new_entry


class Command(BaseCommand):
    """Print a new key for ENCRYPTION_KEYS."""

    help = (
        "Prints a new random key, as an entry of ENCRYPTION_KEYS, and stores nothing."
    )
    # A project without its database, or with wrong keys, can still make one.
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the key."""
        self.stdout.write(new_entry())
