"""Databases for one run, and what they tell of their own work.

Servers of the run's own that keep what they have committed, as in production; SQLite
is a file. Needs no Django before ``database`` has set it up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import django
from django.core.management import call_command
from django.db import connection

from tests.support.database_servers import mariadb, postgresql

POSTGRESQL = ("fsync=on", "shared_buffers=512MB", "max_wal_size=4GB")
MARIADB = ("--innodb-buffer-pool-size=2G", "--innodb-log-file-size=1G")
TABLE = "idempotency_idempotencyrecord"
NAMES = ("postgresql", "mariadb", "sqlite")


@contextmanager
def database(
    name: str, urls: str = "tests.urls", pool: int | None = None
) -> Iterator[Path]:
    """Set Django up with an empty database of the tests' models; yield a folder.

    ``pool`` is how many MiB of its tables a server keeps in memory.
    """
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    os.environ["BENCHMARK_URLS"] = urls
    for variable in ("DATABASE_URL", "ATOMIC_REQUESTS"):
        os.environ.pop(variable, None)
    with TemporaryDirectory(prefix="idem") as folder, _server(name, pool) as url:
        os.environ["DEMO_VAR_DIR"] = folder
        if url is not None:
            os.environ["DATABASE_URL"] = url
        django.setup()
        call_command("migrate", verbosity=0, run_syncdb=True)
        try:
            yield Path(folder)
        finally:
            connection.close()


@contextmanager
def _server(name: str, pool: int | None) -> Iterator[str | None]:
    if name == "postgresql":
        own = [f"shared_buffers={pool}MB"] if pool else []
        options = [part for each in (*POSTGRESQL, *own) for part in ("-c", each)]
        with postgresql(*options) as server:
            yield server.url
    elif name == "mariadb":
        own = [f"--innodb-buffer-pool-size={pool}M"] if pool else []
        with mariadb(*MARIADB, *own) as server:
            yield server.url
    else:
        yield None


def fetch_one(sql: str) -> Any:
    """Return the last value of the first row."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[-1]


def log_position() -> int | None:
    """Return how many bytes of its log the database has written so far."""
    if connection.vendor == "postgresql":
        return int(fetch_one("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
    if connection.vendor == "mysql":
        return int(fetch_one("SHOW GLOBAL STATUS LIKE 'Innodb_os_log_written'"))
    return None


def table_size() -> int | None:
    """Return how many bytes the records take, with their indexes."""
    if connection.vendor == "postgresql":
        return int(fetch_one(f"SELECT pg_total_relation_size('{TABLE}')"))
    if connection.vendor == "mysql":
        # Of the file: the statistics know only of pages in use.
        return int(
            fetch_one(
                "SELECT file_size FROM information_schema.innodb_sys_tablespaces "
                f"WHERE name = CONCAT(DATABASE(), '/{TABLE}')"
            )
        )
    return None


def settle() -> None:
    """Let the database finish what earlier work has left it."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"VACUUM (ANALYZE) {TABLE}")
            cursor.execute("CHECKPOINT")
        elif connection.vendor == "mysql":
            cursor.execute(f"ANALYZE TABLE {TABLE}")
            cursor.fetchall()
