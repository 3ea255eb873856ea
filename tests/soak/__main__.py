"""Mixed load while workers, connections and the database server die: ``make soak``.

    python -m tests.soak --database postgresql --minutes 20 --seed 1

Clients send first requests, retries, duplicates at once, other payloads under used
keys, reads and requests without a key through several worker processes, half of them
under ATOMIC_REQUESTS. Meanwhile workers are killed, database connections terminated
and the database server crashed, at random from the seed. The clients' ledger is then
held against the database: every acknowledged key has one effect and one answer, every
other key at most one effect, no key is stuck, and no answer is one that the contract
does not allow. The database server is the run's own; nothing leaves this machine.
"""

# ruff: noqa: T201  # its output is for people

from __future__ import annotations

import argparse
import secrets
import signal
import sys

from tests.soak.databases import DATABASES, soak_alone

SHOWN = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--scenarios", type=int, help="so many instead of minutes")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument(
        "--between",
        type=int,
        nargs=2,
        default=(50, 250),
        metavar=("LEAST", "MOST"),
        help="how many requests come between two faults (default: 50 250)",
    )
    return parser.parse_args()


def main() -> int:
    """Run, and say what came of it."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(f"{arguments.database}, seed {arguments.seed}", flush=True)
    timed = arguments.scenarios is None
    report = soak_alone(
        arguments.database,
        seed=arguments.seed,
        minutes=arguments.minutes if timed else None,
        scenarios=arguments.scenarios,
        requests_between=tuple(arguments.between),
    )
    for violation in report.violations[:SHOWN]:
        print(violation)
    print(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
