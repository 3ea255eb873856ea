"""Mistakes in the databases that records are kept in."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Error
from django.db import connections, router

from idempotency.checks.endpoints import default_alias, find_endpoints
from idempotency.models import IdempotencyRecord

TESTED = ("postgresql", "sqlite")

# The character set of the records, or what it will be, and what a time-out undoes.
SERVER_SQL = """\
SELECT COALESCE(MIN(character_set_name), @@character_set_database),
    @@innodb_rollback_on_timeout
FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = %s
    AND column_name IN ('scope', 'path')"""


def aliases_in_use() -> list[str]:
    """Return the databases that records are kept in, the default one first."""
    used = (endpoint.alias for endpoint in find_endpoints())
    return list(dict.fromkeys([default_alias(), *used]))


@checks.register("idempotency")
def check_databases(**kwargs: Any) -> list[CheckMessage]:
    """Report databases whose settings do not go with the records; asks none."""
    return [message for alias in aliases_in_use() for message in _mistakes_in(alias)]


def _mistakes_in(alias: str) -> Iterator[CheckMessage]:
    if not router.allow_migrate_model(alias, IdempotencyRecord):
        yield Error(
            f"Records are kept in the database {alias!r}, where the routers let "
            "migrate make no table for them.",
            hint=(
                "Let allow_migrate() of your routers return True for the app label "
                f'"idempotency" in {alias!r}, and run migrate --database {alias}.'
            ),
            id="idempotency.E009",
        )
    connection = connections[alias]
    level = str(connection.settings_dict["OPTIONS"].get("isolation_level"))
    if connection.vendor == "mysql" and level.lower() == "read uncommitted":
        yield Error(
            f"The database {alias!r} shows what is not committed, answers to replay "
            "among it.",
            hint='Write "OPTIONS": {"isolation_level": "read committed"}.',
            id="idempotency.E010",
        )
    if connection.vendor == "sqlite" and connection.settings_dict["ATOMIC_REQUESTS"]:
        mode = connection.settings_dict["OPTIONS"].get("transaction_mode")
        if (mode or "").upper() not in ("IMMEDIATE", "EXCLUSIVE"):
            yield checks.Warning(
                f"SQLite's transactions in the database {alias!r} begin without a "
                "turn to write, under ATOMIC_REQUESTS.",
                hint=(
                    "A request that read before another one wrote is refused as if "
                    "its key were in progress, whatever the timeout. Write "
                    '"OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}.'
                ),
                id="idempotency.W003",
            )


@checks.register("idempotency", checks.Tags.database)
def check_tested_databases(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn of databases on which nobody has tested the app.

    What tells MariaDB from MySQL is the server: only ``migrate`` and
    ``check --database`` ask it.
    """
    return [
        checks.Warning(
            f"Records are kept in {connections[alias].display_name}, in the database "
            f"{alias!r}, and the app is not tested there.",
            hint=(
                "PostgreSQL, MariaDB and SQLite are tested. Elsewhere a duplicate may "
                "wait until the first request ends. Silence this check if your own "
                "tests say that it is well."
            ),
            id="idempotency.W004",
        )
        for alias in aliases_in_use()
        if alias in (databases or ()) and not _is_tested(alias)
    ]


@checks.register("idempotency", checks.Tags.database)
def check_servers(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report how servers of MySQL or MariaDB are set up, where that harms records."""
    return [
        message
        for alias in aliases_in_use()
        if alias in (databases or ()) and connections[alias].vendor == "mysql"
        for message in _mistakes_of_server(alias)
    ]


def _mistakes_of_server(alias: str) -> Iterator[CheckMessage]:
    connection = connections[alias]
    table = IdempotencyRecord._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(SERVER_SQL, [table])
        charset, undoes_all = cursor.fetchone()
    if charset != "utf8mb4":
        yield Error(
            f"The character set of records in the database {alias!r} is {charset}, "
            "which can't hold every scope and path.",
            hint=(
                f"Once the table is there: ALTER TABLE {table} CONVERT TO CHARACTER "
                "SET utf8mb4. Before: ALTER DATABASE CHARACTER SET utf8mb4, which "
                "changes no table that is there."
            ),
            id="idempotency.E012",
        )
    if undoes_all and connection.settings_dict["ATOMIC_REQUESTS"]:
        yield checks.Warning(
            f"The server of the database {alias!r} undoes whole transactions where a "
            "statement waited in vain, under ATOMIC_REQUESTS.",
            hint=(
                "A request that finds its key in progress loses what was written "
                "before its handler, such as by a permission class. Set "
                "innodb_rollback_on_timeout to OFF, its default."
            ),
            id="idempotency.W007",
        )


def _is_tested(alias: str) -> bool:
    connection: Any = connections[alias]
    if connection.vendor == "mysql":
        return bool(connection.mysql_is_mariadb)
    return connection.vendor in TESTED
