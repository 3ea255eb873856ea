"""Requests over HTTP: throughput and p99 under gunicorn, and a storm of duplicates.

    python -m benchmarks.http --database postgresql

Sixteen clients send as fast as they get answers; bare, first-time, replay and, on
PostgreSQL, the statements of these two through the bare driver take turns. Then 100
duplicates of one slow request come at once, beside other requests at a steady pace;
and for comparison as many requests of their own, and as many bare ones.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from threading import Barrier
from typing import Any
from uuid import uuid4

from benchmarks.databases import NAMES, database
from benchmarks.figures import shown, spread, spread_of_ratios, table, tell

CLIENTS, DUPLICATES = 16, 100
WORKERS, THREADS = 2, 16
SIZE = 1024
BODY = b'{"title": "Essay on tides", "due": "2026-12-01", "points": 10}'
CREATED, IN_PROGRESS = 201, 409


class Line:
    """A way to a server; each request has a connection of its own, as behind nginx."""

    def __init__(self, address: Path) -> None:
        self.address = address

    def post(self, place: str, key: str | None, slow: float = 0) -> int:
        """Send a request, read the answer, and return its status."""
        lines = [
            f"POST {place} HTTP/1.0",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(BODY)}",
            "X-User: ada",
        ]
        if key is not None:
            lines.append(f"Idempotency-Key: {key}")
        if slow:
            lines.append(f"X-Slow: {slow}")
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(self.address))
            wire.sendall("\r\n".join([*lines, "", ""]).encode() + BODY)
            answer = b""
            while received := wire.recv(65536):
                answer += received
        return int(answer.split(maxsplit=2)[1])


@dataclass(frozen=True, slots=True)
class Turn:
    """One kind of request for some seconds."""

    per_second: float
    p99: float


def drive(address: Path, seconds: float, send: Callable[[Line], int]) -> Turn:
    """Let all clients send for so long."""
    barrier = Barrier(CLIENTS)

    def client(_number: int) -> list[float]:
        line = Line(address)
        taken = []
        barrier.wait()
        until = time.monotonic() + seconds
        while (started := time.monotonic()) < until:
            status = send(line)
            assert status == CREATED, status
            taken.append(time.monotonic() - started)
        return taken

    with ThreadPoolExecutor(CLIENTS) as pool:
        taken = [each for part in pool.map(client, range(CLIENTS)) for each in part]
    return Turn(len(taken) / seconds, quantiles(taken, n=100)[-1])


def p95_of_others(address: Path, seconds: float) -> float:
    """Send other first-time requests at a steady pace, and return their p95."""
    line = Line(address)
    taken = []
    due = time.monotonic()
    until = due + seconds
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        line.post(f"/keyed/{SIZE}/", str(uuid4()))
        taken.append(time.monotonic() - due)
        due += 0.02
    return quantiles(taken, n=20)[-1]


def storm(
    address: Path, seconds: float, send: Callable[[Line], int]
) -> tuple[float, int]:
    """Return others' p95 beside so many requests at once, and how many were refused."""
    barrier = Barrier(DUPLICATES + 1)

    def join(_number: int) -> int:
        line = Line(address)
        barrier.wait()
        return send(line)

    with ThreadPoolExecutor(DUPLICATES) as pool:
        storming = [pool.submit(join, number) for number in range(DUPLICATES)]
        barrier.wait()
        p95 = p95_of_others(address, seconds)
        statuses = [each.result() for each in storming]
    assert statuses.count(CREATED) >= 1, statuses
    return p95, statuses.count(IN_PROGRESS)


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, Path]]:
    """Serve the benchmark's views without and with ATOMIC_REQUESTS."""
    from tests.support.processes import running, wait_until  # needs settings

    with ExitStack() as stack:
        found = {}
        for name, atomic_requests in (("autocommit", "0"), ("atomic", "1")):
            address, log = folder / f"{name}.sock", folder / f"{name}.log"
            command = [
                *(sys.executable, "-m", "gunicorn", "benchmarks.wsgi"),
                *("--bind", f"unix:{address}", "--no-control-socket"),
                *("--workers", str(WORKERS), "--threads", str(THREADS)),
                *("--backlog", "1024"),
            ]
            variables = {
                "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
                "ATOMIC_REQUESTS": atomic_requests,
            }
            stack.enter_context(running(command, log, **variables))

            def answers(address: Path = address) -> bool:
                try:
                    return Line(address).post(f"/bare/{SIZE}/", None) == CREATED
                except OSError:
                    return False

            wait_until(answers, "the server", {"log": log})
            found[name] = address
        yield found


def report(told: dict[str, Any]) -> str:
    """Return the figures as two tables."""
    turns = [
        (name, shown(found["throughput"]), shown(found["p99"]))
        for name, found in told["http"].items()
    ]
    storms = [
        (name, shown(found["p95"]), found["refused"])
        for name, found in told["storm"].items()
    ]
    return "\n\n".join(
        [
            f"{told['database']}, {WORKERS} workers, {CLIENTS} clients",
            table(("request", "throughput, of bare", "p99, of bare"), turns),
            f"p95 of others over {told['window']:.0f} s, of that without:",
            table((f"beside {DUPLICATES} at once", "p95", "refused"), storms),
        ]
    )


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--database", choices=NAMES, default="postgresql")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each turn")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    known = str(uuid4())
    kinds: dict[str, tuple[str, Callable[[Line], int]]] = {
        "bare": ("atomic", lambda line: line.post(f"/bare/{SIZE}/", None)),
        "first-time": (
            "autocommit",
            lambda line: line.post(f"/keyed/{SIZE}/", str(uuid4())),
        ),
        "replay": ("autocommit", lambda line: line.post(f"/keyed/{SIZE}/", known)),
    }
    if arguments.database == "postgresql":
        floor = f"/floor/{SIZE}/"
        kinds["floor of first-time"] = (
            "autocommit",
            lambda line: line.post(floor, str(uuid4())),
        )
        kinds["floor of replay"] = ("autocommit", lambda line: line.post(floor, known))
    window = 4 * arguments.seconds

    def duplicate(key: str) -> Callable[[Line], int]:
        # The first of them takes nearly all of the time.
        return lambda line: line.post(f"/keyed/{SIZE}/", key, slow=0.8 * window)

    turns: dict[str, list[Turn]] = {name: [] for name in kinds}
    storms: dict[str, list[tuple[float, int]]] = {
        "duplicates of a slow request": [],
        "first-time requests": [],
        "bare requests": [],
    }
    with (
        database(arguments.database, urls="benchmarks.views") as folder,
        serving(folder) as addresses,
    ):
        line = Line(addresses["autocommit"])
        for each in kinds:
            assert kinds[each][1](line) == CREATED
        for _round in range(arguments.rounds):
            for name, (address, send) in kinds.items():
                turn = drive(addresses[address], arguments.seconds, send)
                turns[name].append(turn)
        address = addresses["autocommit"]
        for _round in range(arguments.rounds):
            quiet = p95_of_others(address, window)
            sends = (duplicate(str(uuid4())), kinds["first-time"][1], kinds["bare"][1])
            for found, send in zip(storms.values(), sends, strict=True):
                p95, refused = storm(address, window, send)
                found.append((p95 / quiet, refused))
    bare = turns["bare"]
    figures = {
        "database": arguments.database,
        "http": {
            name: {
                "throughput": spread_of_ratios(
                    [turn.per_second for turn in found],
                    [turn.per_second for turn in bare],
                ),
                "p99": spread_of_ratios(
                    [turn.p99 for turn in found], [turn.p99 for turn in bare]
                ),
            }
            for name, found in turns.items()
        },
        "window": window,
        "storm": {
            name: {
                "p95": spread([p95 for p95, _refused in found]),
                "refused": max(refused for _p95, refused in found),
            }
            for name, found in storms.items()
        },
    }
    tell(figures, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
