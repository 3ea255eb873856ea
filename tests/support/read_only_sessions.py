"""A session that refuses writes, as each session on a standby does."""

from __future__ import annotations

from django.db import connection

STATEMENTS = {
    "postgresql": "SET default_transaction_read_only = on",
    "mysql": "SET SESSION tx_read_only = 1",
    "sqlite": "PRAGMA query_only = ON",
}


def end_writes() -> None:
    """Make the default connection read-only until it is closed."""
    with connection.cursor() as cursor:
        cursor.execute(STATEMENTS[connection.vendor])
