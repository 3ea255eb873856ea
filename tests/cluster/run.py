"""One run on one cluster, in a process of its own: Django knows one at a time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.cluster.galera import NODES, Galera, galera
from tests.cluster.standbys import ASYNCHRONOUS, SYNCHRONOUS, standbys

if TYPE_CHECKING:
    from tests.cluster import sites
    from tests.cluster.scenarios import Report, Scenarios

# What is played on each cluster, by the names of the command line.
GALERA = (
    *("same-key", "stale-reads", "killed", "paused", "cut-off"),
    *("purges", "releases", "completers"),
)
POSTGRESQL = ("synchronous", "asynchronous", "local")
CLUSTERS = {"galera": GALERA, "postgresql": POSTGRESQL}
# Application servers of each kind in front of PostgreSQL.
SERVERS = 2


def run_apart(cluster: str, **arguments: Any) -> Report:
    """Run scenarios on a cluster that is started for them.

    Raise ``NotInstalled``.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, cluster, **arguments).result()


def run(
    cluster: str, *, wanted: Sequence[str], few: bool, seed: int, **size: Any
) -> Report:
    """Run scenarios; those that end a primary need a cluster of their own."""
    if cluster == "galera":
        return run_galera(wanted, few=few, seed=seed, **size)
    (name,) = wanted
    return run_postgresql(name, few=few, seed=seed, **size)


def run_galera(wanted: Sequence[str], *, few: bool, seed: int, **size: Any) -> Report:
    """Start three nodes and all servers, and play what is wanted."""
    with TemporaryDirectory(prefix="idem") as folder, galera() as nodes:
        aliases = [f"node{number}" for number in range(NODES)]
        reading = {"init_command": "SET SESSION wsrep_sync_wait = 1"}
        databases = {
            alias: nodes.settings(number, OPTIONS=reading, CONN_MAX_AGE=0)
            for number, alias in enumerate(aliases)
        }
        set_up(Path(folder), {"default": databases["node0"], **databases})
        from tests.cluster.sites import Kind, settings_of  # noqa: PLC0415

        def database(kind: Kind, server: int) -> dict[str, Any]:
            return nodes.settings(server, **settings_of(kind, "mysql"))

        kinds = Kind.all(["a node each"], few=few)
        with playing(
            "galera", folder, kinds, NODES, database, seed, aliases, size
        ) as scenarios:
            for name in (name for name in GALERA if name in wanted):
                play_on_galera(scenarios, nodes, name)
            return scenarios.report


def play_on_galera(scenarios: Scenarios, nodes: Galera, name: str) -> None:
    """Play one scenario."""
    plays: dict[str, Callable[[], None]] = {
        "same-key": scenarios.same_key,
        "stale-reads": scenarios.stale_reads,
        "purges": scenarios.purges,
        "releases": scenarios.releases,
        "completers": scenarios.completers,
    }
    for way in ("killed", "paused", "cut off"):
        plays[way.replace(" ", "-")] = partial(scenarios.nodes_fail, nodes, [way])
    plays[name]()


def run_postgresql(name: str, *, few: bool, seed: int, **size: Any) -> Report:
    """Start a primary, its standbys and all servers, and let the primary die."""
    with TemporaryDirectory(prefix="idem") as folder, standbys() as servers:
        set_up(Path(folder), {"default": servers.settings(CONN_MAX_AGE=0)})
        from tests.cluster.sites import Kind, settings_of  # noqa: PLC0415

        if name == "local":
            servers.primary.execute(
                "ALTER ROLE postgres SET synchronous_commit TO local"
            )

        def database(kind: Kind, server: int) -> dict[str, Any]:
            return servers.settings(kind.route, **settings_of(kind, "postgresql"))

        routes = ["hosts", *(["PgBouncer"] if servers.bouncer else [])]
        kinds = Kind.all(routes, few=few)
        with playing(
            "postgresql", folder, kinds, SERVERS, database, seed, ["default"], size
        ) as scenarios:
            from tests.cluster.tables import Loses  # noqa: PLC0415

            standby, loses = {
                "synchronous": (SYNCHRONOUS, Loses.NOTHING),
                "asynchronous": (ASYNCHRONOUS, Loses.CLAIMS),
                "local": (SYNCHRONOUS, Loses.COMMITS),
            }[name]
            scenarios.failover(servers, standby, loses)
            return scenarios.report


@contextmanager
def playing(
    cluster: str,
    folder: str,
    kinds: Sequence[sites.Kind],
    servers: int,
    database: Callable[[sites.Kind, int], dict[str, Any]],
    seed: int,
    aliases: Sequence[str],
    size: dict[str, Any],
) -> Iterator[Scenarios]:
    """Start the application servers for the block."""
    from tests.cluster.scenarios import Scenarios, Size  # noqa: PLC0415
    from tests.cluster.sites import serving  # noqa: PLC0415

    directory = Path(folder)
    charges = directory / "charges"
    with serving(directory, kinds, servers, database, charges) as found:
        yield Scenarios(cluster, found, charges, Size(**size), seed, aliases)


def set_up(directory: Path, databases: dict[str, Any]) -> None:
    """Set Django up, and make the tables."""
    os.environ.pop("DATABASE_URL", None)
    os.environ.update(
        DJANGO_SETTINGS_MODULE="tests.cluster.settings",
        DEMO_VAR_DIR=str(directory),
        CLUSTER_CHARGES=str(directory / "charges"),
        CLUSTER_DATABASES=json.dumps(databases),
    )
    import django  # noqa: PLC0415

    django.setup()
    logging.getLogger("idempotency").setLevel(logging.CRITICAL)

    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connections  # noqa: PLC0415

    call_command("migrate", run_syncdb=True, verbosity=0)
    connections.close_all()
