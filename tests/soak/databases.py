"""A new database for a run of its own, on a server that nobody else uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import django
from django.test.utils import setup_databases

from tests.database_servers import DatabaseServer, mariadb, postgresql

SERVERS = {"postgresql": postgresql, "mariadb": mariadb}
DATABASES = (*SERVERS, "sqlite")


@contextmanager
def database(name: str, directory: Path) -> Iterator[DatabaseServer | None]:
    """Set Django up with an empty database; yield its server, if it has one."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    os.environ["DEMO_VAR_DIR"] = str(directory)
    for variable in ("DATABASE_URL", "ATOMIC_REQUESTS"):
        os.environ.pop(variable, None)
    if name == "sqlite":
        set_up()
        yield None
        return
    with SERVERS[name]() as server:
        os.environ["DATABASE_URL"] = server.url
        set_up()
        yield server


def set_up() -> None:
    """Make the database that the tests would have."""
    django.setup()
    setup_databases(verbosity=0, interactive=False)
