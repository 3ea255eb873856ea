"""Clusters whose nodes fail, and what becomes of keys: ``make cluster``.

    python -m tests.cluster --cluster postgresql --scenario asynchronous

Starts three MariaDB servers with Galera, and a PostgreSQL primary with a synchronous
and an asynchronous standby and PgBouncer, each in a folder of its own and on loopback,
with several application servers of each kind of project: ATOMIC_REQUESTS on and off,
READ COMMITTED (RC) and REPEATABLE READ (RR). Clients ask for the same key on all nodes
at once, and on another node right after the answer; nodes are killed, paused or cut off
and come back; the primary dies and a standby is promoted; purges, releases and
completers run on all nodes at once. The handlers are in atomic mode, and in leased mode
with "hold", "rerun" and "resume".

The table says what became of the keys. The command fails unless nothing is doubled,
lost, torn (an effect without its record, or the other way round) or stuck, and no
answer is one that the rules do not allow. Where a failover loses commits, "gone" counts
the keys whose effect and record are lost together, and "again" the handlers in mode
"hold" that acted outside again, because their claim was lost.
"""

# ruff: noqa: T201  # its output is for people

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain

from tests.cluster.galera import find_provider
from tests.cluster.run import CLUSTERS, run_apart
from tests.cluster.tables import Report, print_table
from tests.support.database_servers import (
    NotInstalled,
    find_postgresql,
    find_program,
)

SHOWN = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=(__doc__ or "").split("\n\n", 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cluster", action="append", choices=CLUSTERS, help="(repeatable)"
    )
    parser.add_argument(
        "--scenario",
        action="append",
        choices=[*chain.from_iterable(CLUSTERS.values())],
        help="(repeatable)",
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument(
        "--keys", type=int, default=6, help="of each mode and kind in a race"
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="of load before and after a failure"
    )
    parser.add_argument(
        "--expired", type=int, default=20_000, help="records to purge in a race"
    )
    parser.add_argument(
        "--few", action="store_true", help="half of the kinds of projects"
    )
    return parser.parse_args()


def missing() -> dict[str, list[str]]:
    """Return what is not installed, for each cluster; and say so."""
    found: dict[str, list[str]] = {name: [] for name in CLUSTERS}
    try:
        import MySQLdb  # noqa: F401, PLC0415  # an extra
    except ImportError:
        found["galera"].append("mysqlclient: not installed: pip install mysqlclient")
    for program, package in (
        ("mariadbd", "mariadb-server"),
        ("rsync", "rsync"),
        ("lsof", "lsof"),
    ):
        try:
            find_program(program)
        except NotInstalled:
            found["galera"].append(
                f"{program}: not installed: apt-get install {package}"
            )
    for name, find in (("galera", find_provider), ("postgresql", find_postgresql)):
        try:
            find()
        except NotInstalled as reason:
            found[name].append(str(reason))
    return found


def run_all(arguments: argparse.Namespace, clusters: Iterable[str]) -> list[Report]:
    """Run what was asked for."""
    reports = []
    for cluster in clusters:
        wanted = [
            name
            for name in CLUSTERS[cluster]
            if not arguments.scenario or name in arguments.scenario
        ]
        # A primary dies once.
        runs = [wanted] if cluster == "galera" else [[name] for name in wanted]
        for names in filter(None, runs):
            print(f"{cluster}: {', '.join(names)}", flush=True)
            report = run_apart(
                cluster,
                wanted=names,
                few=arguments.few,
                seed=arguments.seed,
                keys=arguments.keys,
                seconds=arguments.seconds,
                expired=arguments.expired,
            )
            print_table(report.rows)
            reports.append(report)
    return reports


def main() -> int:
    """Run what can be run, and say what came of it."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(f"seed {arguments.seed}", flush=True)
    clusters = arguments.cluster or [*CLUSTERS]
    lacking = missing()
    for name in clusters:
        for reason in lacking[name]:
            print(f"{name} is left out. {reason}")
    ready = [name for name in clusters if not lacking[name]]
    reports = run_all(arguments, ready)
    causes: Counter[str] = sum((r.bare_500 for r in reports), Counter())
    for cause, count in causes.most_common(SHOWN):
        print(f"{count:6}  bare 500: {cause}")
    faults = [each for report in reports for each in report.faults]
    for fault in faults[:SHOWN]:
        print(fault)
    kinds = Counter(each.what for each in faults)
    for what, count in kinds.most_common():
        print(f"{count:6}  {what}")
    keys = sum(row.tally.keys for report in reports for row in report.rows)
    print(f"{keys} keys, {len(faults)} faults")
    return 1 if faults or not keys or len(ready) < len(clusters) else 0


if __name__ == "__main__":
    sys.exit(main())
