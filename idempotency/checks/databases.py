"""Check the databases that store records."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Error
from django.db import connections, router

from idempotency.checks.endpoints import default_alias, find_endpoints
from idempotency.claims import claims_in
from idempotency.models import IdempotencyRecord

TESTED = ("postgresql", "sqlite")
# What a purge that runs at least daily does not leave.
MOST_OVERDUE = timedelta(days=2)

# The table's character set, or the database's before there is a table, and whether a
# time-out rolls back the whole transaction.
SERVER_SQL = """\
SELECT COALESCE(MIN(character_set_name), @@character_set_database),
    @@innodb_rollback_on_timeout
FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = %s
    AND column_name IN ('scope', 'path')"""

# How far a COMMIT is from loss, and the values for which it is far enough.
DURABILITY_SQL = {
    "postgresql": (
        "SELECT name, setting FROM pg_settings WHERE name = 'synchronous_commit'"
    ),
    "mysql": (
        "SHOW VARIABLES WHERE variable_name IN "
        "('innodb_flush_log_at_trx_commit', 'wsrep_on')"
    ),
}
DURABLE = {
    "synchronous_commit": ("on", "remote_apply"),
    "innodb_flush_log_at_trx_commit": ("1", "3"),
}


def aliases_in_use() -> list[str]:
    """Return the databases that store records, the default one first."""
    used = (endpoint.alias for endpoint in find_endpoints())
    return list(dict.fromkeys([default_alias(), *used]))


def _asked(databases: Collection[str] | None) -> list[str]:
    """Return those of the databases in use that a check may query."""
    return [alias for alias in aliases_in_use() if alias in (databases or ())]


@checks.register("idempotency")
def check_databases(**kwargs: Any) -> list[CheckMessage]:
    """Report database settings that do not fit, without a query."""
    return [message for alias in aliases_in_use() for message in _mistakes_in(alias)]


def _mistakes_in(alias: str) -> Iterator[CheckMessage]:
    if not router.allow_migrate_model(alias, IdempotencyRecord):
        yield Error(
            f"The app stores records in the database {alias!r}, but the routers do not "
            "allow their table there.",
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
            f"The database {alias!r} shows uncommitted data, so a request could replay "
            "an uncommitted response.",
            hint='Set "OPTIONS": {"isolation_level": "read committed"}.',
            id="idempotency.E010",
        )
    if connection.vendor == "sqlite" and connection.settings_dict["ATOMIC_REQUESTS"]:
        mode = connection.settings_dict["OPTIONS"].get("transaction_mode")
        if (mode or "").upper() not in ("IMMEDIATE", "EXCLUSIVE"):
            yield checks.Warning(
                f"Under ATOMIC_REQUESTS, transactions of the SQLite database {alias!r} "
                "begin without the write lock.",
                hint=(
                    "If a request reads before another one writes, it is refused as if "
                    "its key were in progress, whatever the timeout. Set "
                    '"OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20}.'
                ),
                id="idempotency.W003",
            )


@checks.register("idempotency", checks.Tags.database)
def check_tested_databases(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn about databases on which the app is not tested.

    Only the server knows whether it is MariaDB or MySQL, so the check needs
    ``check --database`` or ``migrate``.
    """
    return [
        checks.Warning(
            f"The app stores records in the database {alias!r}, but is not tested on "
            f"{connections[alias].display_name}.",
            hint=(
                "PostgreSQL, MariaDB and SQLite are tested. On other databases a "
                "duplicate may wait until the first request ends. Silence this check "
                "if your own tests pass."
            ),
            id="idempotency.W004",
        )
        for alias in _asked(databases)
        if not _is_tested(alias)
    ]


@checks.register("idempotency", checks.Tags.database)
def check_round_trips(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report databases where atomic mode makes extra round trips, and why."""
    claims = {alias: claims_in(alias) for alias in _asked(databases)}
    return [
        checks.Info(
            f"In the database {alias!r} the app can't use {found.TOGETHER_BY}: "
            f"{reason}.",
            hint=(
                "A keyed request makes two or three round trips more than it could. "
                f"docs/databases.md says what {found.TOGETHER_BY} need."
            ),
            id="idempotency.I001",
        )
        for alias, found in claims.items()
        if (reason := found.why_one_by_one(ask_server=True))
    ]


@checks.register("idempotency", checks.Tags.database)
def check_servers(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report settings of MySQL or MariaDB servers that harm records."""
    return [
        message
        for alias in _asked(databases)
        if connections[alias].vendor == "mysql"
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
            "which can't store every scope and path.",
            hint=(
                f"If the table exists: ALTER TABLE {table} CONVERT TO CHARACTER SET "
                "utf8mb4. Otherwise: ALTER DATABASE CHARACTER SET utf8mb4, which does "
                "not change existing tables."
            ),
            id="idempotency.E012",
        )
    if undoes_all and connection.settings_dict["ATOMIC_REQUESTS"]:
        yield checks.Warning(
            f"Under ATOMIC_REQUESTS, the server of the database {alias!r} rolls back "
            "whole transactions after a lock wait time-out.",
            hint=(
                "A request that finds its key in progress loses earlier writes, such "
                "as a permission class's. Set innodb_rollback_on_timeout to OFF, its "
                "default."
            ),
            id="idempotency.W007",
        )


@checks.register("idempotency", checks.Tags.database)
def check_backlog(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn if a purge has not run for days, or does not keep up."""
    behind = ((alias, _overdue(alias)) for alias in _asked(databases))
    return [
        checks.Warning(
            f"The oldest expired record in the database {alias!r} expired "
            f"{overdue.days} days ago.",
            hint=(
                "Find out whether the purge runs, and what its log lines say. "
                "docs/operations.md says how it keeps up. If you purge with "
                "older_than, silence this check."
            ),
            id="idempotency.W015",
        )
        for alias, overdue in behind
        if overdue > MOST_OVERDUE
    ]


def _overdue(alias: str) -> timedelta:
    connection = connections[alias]
    table = IdempotencyRecord._meta.db_table
    if table not in connection.introspection.table_names():
        return timedelta(0)  # not migrated yet
    records: Any = IdempotencyRecord.objects.using(alias)
    overdue: timedelta = records.overdue()
    return overdue


@checks.register("idempotency", checks.Tags.database)
def check_durability(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn if a crash or failover can lose commits of leased endpoints (E7)."""
    leased = {
        endpoint.alias
        for endpoint in find_endpoints()
        if not endpoint.protection.policy.atomic
    }
    return [
        checks.Warning(
            f"The database {alias!r} has leased endpoints, but {name} is {value}.",
            hint=(
                "After a crash or failover, committed writes can be lost: responses, "
                "and on MariaDB claims, too. A retry can then act again. "
                f"Set {name} to {right}."
            ),
            id="idempotency.W016",
        )
        for alias in _asked(databases)
        if alias in leased
        for name, value, right in _risks_of(alias)
    ]


def _risks_of(alias: str) -> Iterator[tuple[str, str, str]]:
    """Yield the setting by which commits may be lost, its value, and the right one."""
    connection = connections[alias]
    asked = DURABILITY_SQL.get(connection.vendor)
    if asked is None:
        return
    with connection.cursor() as cursor:
        cursor.execute(asked)
        found = dict(cursor.fetchall())
    if found.get("wsrep_on") == "ON":
        return  # the other nodes of Galera have them
    for name, value in found.items():
        right = DURABLE.get(name, (value,))
        if value not in right:
            yield name, value, right[0]


def _is_tested(alias: str) -> bool:
    connection: Any = connections[alias]
    if connection.vendor == "mysql":
        return bool(connection.mysql_is_mariadb)
    return connection.vendor in TESTED
