"""A new database for a run of its own, on a server that nobody else uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import django
from django.db import DatabaseError
from django.test.utils import setup_databases

from tests.support.database_servers import DatabaseServer, mariadb, postgresql

if TYPE_CHECKING:
    from tests.soak.run import Report

SERVERS = {
    # It looks for deadlocks soon: the load is more than handlers that wait for that.
    "postgresql": partial(postgresql, "-c", "deadlock_timeout=100ms"),
    "mariadb": mariadb,
}
DATABASES = (*SERVERS, "sqlite")


def soak_alone(name: str, **arguments: Any) -> Report:
    """Soak a database of the run's own; its server, if it has one, may be crashed.

    Needs a process in which Django is not set up. Raises ``NotInstalled``.
    """
    with (
        TemporaryDirectory(prefix="idem") as folder,
        database(name, Path(folder)) as server,
    ):
        from tests.soak.run import soak  # noqa: PLC0415  # needs the settings

        try:
            return soak(Path(folder), server=server, **arguments)
        except DatabaseError:
            if server is not None:
                sys.stderr.write(server.end_of_log())
            raise


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
