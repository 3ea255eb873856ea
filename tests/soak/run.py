"""One run: load and faults, then peace, the last retries and the verdict."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from django.db import connections

from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.soak.faults import DatabaseServer, Faults, wait_until_idle
from tests.soak.ledger import Ledger
from tests.soak.load import ROWS, Load
from tests.soak.verdict import Violation, judge, read_effects
from tests.soak.views import CHARGES, SHARED
from tests.support import charge_ledger
from tests.support.http_servers import UnixConnection
from tests.support.processes import running, wait_until

WORKERS, THREADS = 2, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one run did and found."""

    seed: int
    seconds: float
    scenarios: Counter[str]
    answers: Counter[str]
    faults: Counter[str]
    keys: int
    lost_answers: int
    undone: int
    resumed: int
    violations: list[Violation]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.seconds:.0f} s of load, {self.keys} keys"]
        for title, counts in (
            ("scenarios", self.scenarios),
            ("answers", self.answers),
            ("faults", self.faults),
        ):
            lines.append(f"{title}, {counts.total()} in all:")
            lines += [f"  {count:8}  {name}" for name, count in counts.most_common()]
        lines.append(
            f"keys whose effect was there though no success had arrived: "
            f"{self.lost_answers}"
        )
        lines.append(f"transactions that the database undid: {self.undone}")
        lines.append(f"keys whose handler was resumed after a step: {self.resumed}")
        kinds = Counter(violation.what for violation in self.violations)
        lines += [f"  {count:8}  {name}" for name, count in kinds.most_common()]
        verdict = "red" if self.violations else "green"
        lines.append(f"verdict: {verdict}, {len(self.violations)} violations")
        return "\n".join(lines)


def soak(
    directory: Path,
    *,
    seed: int,
    minutes: float | None = None,
    scenarios: int | None = None,
    requests_between: tuple[int, int],
    server: DatabaseServer | None = None,
) -> Report:
    """Run for so many minutes or scenarios on the tests' own, empty database.

    A fault comes each time that between so many requests were sent; ``server`` is
    the database server, if it may be crashed.
    """
    for row in range(ROWS):
        Effect.objects.create(name=SHARED.format(row))
    connections.close_all()
    ledger = Ledger()
    folders = [directory / "autocommit", directory / "atomic"]
    load = Load(ledger, [folder / "server.sock" for folder in folders], seed)
    started = time.monotonic()
    with serving(folders):
        workers = [folder / "workers" for folder in folders]
        faults = Faults(
            load, ledger, workers, server, requests_between=requests_between
        )
        with ThreadPoolExecutor(1) as pool:
            breaking = pool.submit(faults.run)
            try:
                until = None if minutes is None else started + 60 * minutes
                load.run(until=until, scenarios=scenarios)
            finally:
                breaking.result()
    seconds = time.monotonic() - started
    wait_until_idle()
    end_leases()
    before = read_effects()
    connections.close_all()
    acknowledged = {s.label for s in ledger.stories if s.acknowledged}
    keyed = {s.label for s in ledger.stories if s.keyed and not s.refuses}
    with serving(folders):
        load.retry_everything()
    wait_until_idle()
    return Report(
        seed=seed,
        seconds=seconds,
        scenarios=load.played,
        answers=ledger.counts(),
        faults=faults.happened,
        keys=sum(story.keyed for story in ledger.stories),
        lost_answers=len(keyed & {*before} - acknowledged),
        undone=sum(attempt.is_undone for _story, attempt in ledger.attempts()),
        resumed=IdempotencyRecord.objects.filter(attempt__gt=1).count(),
        violations=judge(ledger, before, read_effects(), charges_in(folders)),
    )


def end_leases() -> None:
    """Let an hour pass: the leases of killed workers are over."""
    running = IdempotencyRecord.objects.filter(state=State.IN_PROGRESS)
    running.update(lease_expires_at=UTCNow() - timedelta(hours=1))


def meetings_of(folders: list[Path]) -> Path:
    """Return where handlers meet, and the provider has its books."""
    return folders[0].parent / "meetings"


def charges_in(folders: list[Path]) -> list[charge_ledger.Charge]:
    """Return what the provider has charged."""
    return charge_ledger.Ledger(meetings_of(folders) / CHARGES.path.name).charges()


@contextmanager
def serving(folders: list[Path]) -> Iterator[None]:
    """Serve without and with ATOMIC_REQUESTS, from several processes each."""
    with ExitStack() as stack:
        for folder, atomic_requests in zip(folders, "01", strict=True):
            workers = folder / "workers"
            workers.mkdir(parents=True, exist_ok=True)
            meetings = meetings_of(folders)
            meetings.mkdir(exist_ok=True)
            for path in workers.iterdir():
                path.unlink()
            address, log = folder / "server.sock", folder / "server.log"
            address.unlink(missing_ok=True)
            command = [
                *(sys.executable, "-m", "gunicorn", "tests.wsgi"),
                *("--config", "python:tests.soak.gunicorn_hooks", "--preload"),
                *("--bind", f"unix:{address}", "--no-control-socket"),
                *("--workers", str(WORKERS), "--threads", str(THREADS)),
            ]
            variables = {
                "DJANGO_SETTINGS_MODULE": "tests.soak.settings",
                "ATOMIC_REQUESTS": atomic_requests,
                "SOAK_WORKERS": str(workers),
                "SOAK_MEETINGS": str(meetings),
            }
            stack.enter_context(running(command, log, **variables))
            wait_until(lambda path=address: is_up(path), "a server", {"log": log})
        yield


def is_up(address: Path) -> bool:
    """Return whether a server answers."""
    connection = UnixConnection(address)
    try:
        connection.request("GET", "/nowhere/")
        return connection.getresponse().status == 404
    except OSError:
        return False
    finally:
        connection.close()
