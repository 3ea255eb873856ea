"""Application servers in front of a cluster, several to each kind of project."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any

from tests.soak.run import is_up
from tests.support.processes import running, wait_until

THREADS = 8
# What each database calls its isolation levels in Django's settings.
LEVELS: dict[str, dict[str, Any]] = {
    "mysql": {"RC": "read committed", "RR": "repeatable read"},
    # The numbers of psycopg.IsolationLevel.
    "postgresql": {"RC": 2, "RR": 3},
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of project: its settings of transactions, and its way to the database."""

    atomic_requests: bool
    isolation: str
    route: str

    @classmethod
    def all(cls, routes: Sequence[str], *, few: bool) -> list[Kind]:
        """Return every kind, or a few that have each of the settings."""
        kinds = [
            cls(atomic_requests=atomic_requests, isolation=isolation, route=route)
            for route, atomic_requests, isolation in product(
                routes, (False, True), ("RC", "RR")
            )
        ]
        return (
            [k for k in kinds if k.atomic_requests == (k.isolation == "RC")]
            if few
            else kinds
        )

    def __str__(self) -> str:
        switch = "on" if self.atomic_requests else "off"
        return f"{self.route}, {self.isolation}, ATOMIC_REQUESTS {switch}"


@dataclass(frozen=True)
class Site:
    """The application servers of one kind of project."""

    kind: Kind
    addresses: list[Path] = field(default_factory=list)


def settings_of(kind: Kind, vendor: str) -> dict[str, Any]:
    """Return what a kind of project has in its settings of the database."""
    return {
        "ATOMIC_REQUESTS": kind.atomic_requests,
        "OPTIONS": {"isolation_level": LEVELS[vendor][kind.isolation]},
    }


@contextmanager
def serving(
    directory: Path,
    kinds: Sequence[Kind],
    servers: int,
    database: Callable[[Kind, int], dict[str, Any]],
    charges: Path,
) -> Iterator[list[Site]]:
    """Start so many application servers of each kind, and yield them.

    ``database`` gives Django's settings for the server of a kind and number.
    """
    numbers = count()
    sites = [Site(kind) for kind in kinds]
    logs = {}
    with ExitStack() as stack:
        for site in sites:
            for server in range(servers):
                number = next(numbers)
                address = directory / f"{number}.sock"
                logs[address] = directory / f"{number}.log"
                command = [
                    *(sys.executable, "-m", "gunicorn", "tests.wsgi"),
                    *("--bind", f"unix:{address}", "--no-control-socket"),
                    *("--threads", str(THREADS), "--graceful-timeout", "1"),
                    *("--timeout", "120"),
                ]
                variables = {
                    "DJANGO_SETTINGS_MODULE": "tests.cluster.settings",
                    # The tests' own settings want one; the cluster's have another.
                    "DATABASE_URL": f"sqlite:///{directory}/unused",
                    "CLUSTER_CHARGES": str(charges),
                    "CLUSTER_DATABASES": json.dumps(
                        {"default": database(site.kind, server)}
                    ),
                }
                stack.enter_context(running(command, logs[address], **variables))
                site.addresses.append(address)
        for address, log in logs.items():
            wait_until(lambda path=address: is_up(path), "a server", {"log": log})
        yield sites
