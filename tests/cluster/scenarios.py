"""What is done to a cluster, one scenario after another."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from django.db import DatabaseError, OperationalError, connections
from django.utils import timezone

from idempotency.completing import complete_abandoned
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, RecordChanged, State
from tests.app.models import Effect
from tests.cluster.clients import MODES, Asking, Clients
from tests.cluster.galera import Galera, Node
from tests.cluster.sites import Kind, Site
from tests.cluster.standbys import Standbys
from tests.cluster.tables import Fault, Loses, Report, Row, Tally
from tests.cluster.verdict import Found, Judge, is_bare_500
from tests.soak.ledger import Attempt
from tests.soak.run import end_leases
from tests.support.processes import PAUSE_FOR_INNODB, wait_until

# How long an executing handler takes, so that others come meanwhile.
OVERLAP = 0.05
# How long a paused node is paused, and one that is cut off stays alone: longer than
# the others wait for it.
ABSENCE = 6.0
# How long a standby hears nothing before the primary dies.
SILENCE = 0.7
# How long nobody is the primary.
VACANCY = 0.5


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is asked: keys of each mode and kind, and seconds around a fault."""

    keys: int
    seconds: float
    expired: int


class Scenarios:
    """Scenarios on one cluster, with its application servers."""

    def __init__(
        self,
        cluster: str,
        sites: Sequence[Site],
        charges: Path,
        size: Size,
        seed: int,
        aliases: Sequence[str],
    ) -> None:
        self.cluster = cluster
        self.sites = sites
        self.charges = charges
        self.size = size
        self.aliases = aliases
        self.clients = Clients(seed)
        self.report = Report()
        self.draw = random.Random(f"{seed}/scenarios")

    @contextmanager
    def judged(
        self,
        scenario: str,
        loses: Loses = Loses.NOTHING,
        *,
        breaks: Callable[[], int] = lambda: 0,
        steady: bool = False,
    ) -> Iterator[list[tuple[str, str]]]:
        """Judge all that is asked in the block.

        The block gets a list for what else went wrong, as pairs of a mode and words.
        """
        clients = self.clients
        first = len(clients.asked)
        wrong: list[tuple[str, str]] = []
        yield wrong
        asked = clients.asked[first:]
        self.settle_down()
        before = Found.now(asked)
        connections.close_all()
        clients.retry_all(asked)
        self.settle_down()
        after = Found.now(asked)
        judge = Judge(before, after, self.charges, loses, steady=steady)
        self.add_rows(scenario, asked, judge, breaks())
        for _mode, what in wrong:
            self.report.faults.append(Fault(what, scenario))
        self.compare_nodes(scenario)

    def add_rows(
        self, scenario: str, asked: Sequence[Asking], judge: Judge, breaks: int
    ) -> None:
        """Add a row for each mode and kind."""
        tallies: dict[tuple[str, Kind], Tally] = {}
        for asking in asked:
            tally, found = judge.judge(asking)
            place = asking.mode, asking.site.kind
            tallies[place] = tallies.get(place, Tally()) + tally
            where = f"{scenario}, {mode_and_kind(asking)}"
            for attempt in filter(is_bare_500, asking.attempts):
                self.report.bare_500[f"{asking.mode}, {cause_of(attempt)}"] += 1
            self.report.faults += [replace(each, where=where) for each in found]
        for (mode, kind), tally in sorted(
            tallies.items(), key=lambda item: (MODES.index(item[0][0]), str(item[0][1]))
        ):
            self.report.rows.append(
                Row(
                    cluster=self.cluster,
                    scenario=scenario,
                    mode=mode,
                    kind=str(kind),
                    breaks=breaks,
                    tally=tally,
                )
            )

    def settle_down(self) -> None:
        """Wait for the end of what still runs, and let an hour pass for leases."""
        wait_until(
            lambda: not self.is_busy(),
            "the end of all transactions",
            pause=PAUSE_FOR_INNODB,
        )
        end_leases()

    def is_busy(self) -> bool:
        """Return whether a transaction is open somewhere."""
        sql = {
            "postgresql": (
                "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ),
            "mysql": (
                "SELECT count(*) FROM information_schema.innodb_trx "
                "WHERE trx_mysql_thread_id NOT IN (0, CONNECTION_ID())"
            ),
        }
        for alias in self.aliases:
            with connections[alias].cursor() as cursor:
                cursor.execute(sql[connections[alias].vendor])
                if cursor.fetchone()[0]:
                    return True
        return False

    def compare_nodes(self, scenario: str) -> None:
        """See that all nodes have the same rows."""
        told = {alias: contents_of(alias) for alias in self.aliases}
        if len({*told.values()}) > 1:
            self.report.faults.append(Fault("The nodes differ", scenario, f"{told}"))

    def of_each(
        self, times: int, modes: Sequence[str] = MODES
    ) -> list[tuple[Site, str]]:
        """Return each kind and mode so many times, in an order of chance."""
        found = [(site, mode) for site in self.sites for mode in modes] * times
        self.draw.shuffle(found)
        return found

    # On several nodes that all take writes.

    def same_key(self) -> None:
        """Ask all servers for one thing at one moment, twice each; then once more."""

        def play(place: tuple[Site, str]) -> None:
            site, mode = place
            asking = self.clients.new(site, mode, seconds=OVERLAP)
            draw = random.Random(asking.label)
            servers = [*range(len(site.addresses))] * 2
            draw.shuffle(servers)
            self.clients.ask_at_once(asking, servers)
            self.clients.settle(draw, asking)

        with self.judged("the same key on all nodes at once", steady=True):
            self.clients.in_parallel(play, self.of_each(self.size.keys))

    def stale_reads(self) -> None:
        """Ask the other nodes right after one has answered."""

        def play(place: tuple[Site, str]) -> None:
            site, mode = place
            asking = self.clients.new(site, mode)
            draw = random.Random(asking.label)
            first, *others = draw.sample(
                range(len(site.addresses)), len(site.addresses)
            )
            self.clients.ask(asking, first)
            self.clients.ask_at_once(asking, others, "right after the answer")
            self.clients.settle(draw, asking)

        with self.judged("a retry on another node, at once", steady=True):
            self.clients.in_parallel(play, self.of_each(2 * self.size.keys))

    def under_load(
        self,
        scenario: str,
        fault: Callable[[], int],
        loses: Loses = Loses.NOTHING,
    ) -> None:
        """Break something while clients ask, who then go on for a while."""
        count = 0
        with self.judged(scenario, loses, breaks=lambda: count):
            over = threading.Event()
            load = threading.Thread(
                target=self.clients.ask_until, args=(over, self.sites)
            )
            load.start()
            try:
                time.sleep(self.size.seconds)
                count = fault()
                time.sleep(self.size.seconds)
            finally:
                over.set()
                load.join()
            connections.close_all()

    def nodes_fail(self, galera: Galera, which: Sequence[str]) -> None:
        """Let one node after another be killed, paused or cut off, and come back."""

        def killed(node: Node) -> None:
            node.kill()
            time.sleep(self.size.seconds)
            node.rejoin()

        def paused(node: Node) -> None:
            node.pause()
            time.sleep(ABSENCE)
            node.resume()

        def cut_off(node: Node) -> None:
            node.cut_off()
            time.sleep(ABSENCE)
            node.connect_again()

        ways = {"killed": killed, "paused": paused, "cut off": cut_off}
        for name in which:

            def fault(way: Callable[[Node], None] = ways[name]) -> int:
                way(self.draw.choice(galera.nodes))
                return 1

            self.under_load(f"a node {name} and rejoined", fault)

    def purges(self) -> None:
        """Purge on all nodes at once, while expired keys are asked for anew."""
        clients = self.clients
        old = [
            clients.new(*place)
            for place in self.of_each(self.size.keys, ["atomic", "hold"])
        ]
        clients.in_parallel(lambda asking: clients.settle(self.draw, asking), old)
        keys = [each.key for each in old]
        IdempotencyRecord.objects.filter(key__in=keys).update(
            expires_at=UTCNow() - timedelta(hours=1)
        )
        add_expired(self.size.expired)
        with self.judged("purges on all nodes, expired keys anew") as wrong:
            purging = threading.Thread(
                target=self.on_all_nodes, args=(purge, wrong, "purge")
            )
            purging.start()

            def play(before: Asking) -> None:
                asking = clients.new(before.site, before.mode, key=before.key)
                servers = range(len(asking.site.addresses))
                clients.ask_at_once(asking, servers)
                clients.settle(random.Random(asking.label), asking)

            clients.in_parallel(play, old)
            purging.join()
            left = IdempotencyRecord.objects.filter(expires_at__lt=UTCNow()).count()
            if left:
                wrong.append(("purge", f"Purges have left {left} expired records"))

    def releases(self) -> None:
        """Give keys back on all nodes at once; then they are asked for anew."""
        clients = self.clients
        modes = ["atomic", "hold"]
        old = [clients.new(*place) for place in self.of_each(self.size.keys, modes)]
        clients.in_parallel(lambda asking: clients.settle(self.draw, asking), old)
        with self.judged("releases on all nodes") as wrong:
            for before in old:
                told = self.on_all_nodes(release_of(before.key), wrong, "release")
                if not told["done"]:
                    wrong.append(("release", f"Nobody has released a key: {told}"))

            def play(before: Asking) -> None:
                asking = clients.new(before.site, before.mode, key=before.key)
                clients.ask_at_once(asking, range(len(asking.site.addresses)))
                clients.settle(random.Random(asking.label), asking)

            clients.in_parallel(play, old)

    def completers(self) -> None:
        """Complete on all nodes at once what handlers have left, beside retries."""
        clients = self.clients
        with self.judged("completers and retries on all nodes") as wrong:

            def leave(place: tuple[Site, str]) -> Asking:
                asking = clients.new(*place)
                servers = len(asking.site.addresses)
                clients.ask(asking, self.draw.randrange(servers), "given up")
                return asking

            left = [leave(place) for place in self.of_each(self.size.keys, ["resume"])]
            end_leases()
            completing = threading.Thread(
                target=self.on_all_nodes, args=(complete_all, wrong, "completer")
            )
            completing.start()

            def play(asking: Asking) -> None:
                clients.ask_at_once(asking, range(len(asking.site.addresses)))

            # The others are completed without their clients.
            clients.in_parallel(play, left[::2])
            completing.join()

    def on_all_nodes(
        self,
        function: Callable[[str], str],
        wrong: list[tuple[str, str]],
        name: str,
    ) -> Counter[str]:
        """Call with each node's alias at once; count the words that come back."""
        told: Counter[str] = Counter()

        def call(alias: str) -> None:
            try:
                word = function(alias)
            except DatabaseError as error:
                word = "refused"
                if not is_transient(error):
                    wrong.append((name, f"A {name} ended with {error}"))
                elif name != "release":
                    wrong.append((name, f"A {name} ended with a conflict: {error}"))
            finally:
                connections.close_all()
            told[word] += 1

        threads = [
            threading.Thread(target=call, args=(alias,)) for alias in self.aliases
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return told

    # A primary and its standbys.

    def failover(self, standbys: Standbys, standby: str, loses: Loses) -> None:
        """Kill the primary and promote a standby."""

        def fault() -> int:
            if loses is not Loses.NOTHING:
                standbys.primary.silence(standby)
                time.sleep(SILENCE)
            standbys.fail_over(standby, after=VACANCY)
            return 1

        names = {
            Loses.NOTHING: "the primary killed, the synchronous standby promoted",
            Loses.CLAIMS: "the primary killed, an asynchronous standby promoted",
            Loses.COMMITS: "the same, with synchronous_commit = local in sessions",
        }
        self.under_load(names[loses], fault, loses)


def mode_and_kind(asking: Asking) -> str:
    """Return what a row of the table is of."""
    return f"{asking.mode}, {asking.site.kind}"


def cause_of(attempt: Attempt) -> str:
    """Return what a 500 says of its cause."""
    told = attempt.told or {}
    return f"{told.get('error')}: {told.get('detail')}".splitlines()[0][:120]


def contents_of(alias: str) -> tuple[int, int]:
    """Return how many rows a node has."""
    records = IdempotencyRecord.objects.using(alias).count()
    return records, Effect.objects.using(alias).count()


def is_transient(error: DatabaseError) -> bool:
    """Return whether it is a failed certification, or a deadlock."""
    return isinstance(error, OperationalError) and error.args[0] in (1213, 1205, 1020)


def purge(alias: str) -> str:
    IdempotencyRecord.objects.using(alias).purge(time_budget=timedelta(minutes=2))
    return "done"


def release_of(key: str) -> Callable[[str], str]:
    """Return what releases a key on a node."""

    def release(alias: str) -> str:
        record = IdempotencyRecord.objects.using(alias).filter(key=key).first()
        if record is None:
            return "gone"
        try:
            record.release()
        except RecordChanged:
            return "changed"
        return "done"

    return release


def complete_all(alias: str) -> str:
    """Complete as long as there is something to complete."""
    for _ in range(20):
        report = complete_abandoned(alias)
        if not report.completed and not report.failed:
            break
    return "done"


def add_expired(count: int) -> None:
    """Add records that are expired, with an answer of 1 KiB each."""
    now = timezone.now()
    for start in range(0, count, 500):
        IdempotencyRecord.objects.bulk_create(
            IdempotencyRecord(
                id=uuid4(),
                scope="expired",
                key=uuid4().hex,
                method="POST",
                path="/atomic/",
                fingerprint="0" * 64,
                fingerprint_version=1,
                state=State.COMPLETED,
                token=uuid4(),
                status_code=201,
                headers={},
                body=b" " * 1024,
                body_size=1024,
                created_at=now - timedelta(days=40),
                completed_at=now - timedelta(days=40),
                expires_at=now - timedelta(days=10),
            )
            for _ in range(min(500, count - start))
        )
