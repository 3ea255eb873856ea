"""Cut a leased request at every boundary, and retry it before and after its lease.

``python -m tests.crash_matrix --mode leased`` prints the whole table. Needs Django to
be set up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import uuid4

from django.db.models import Q

from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord
from tests.support.charge_ledger import Ledger
from tests.support.database_servers import DatabaseServer
from tests.support.fault_points import Visit
from tests.support.faults import Cuts, Sending
from tests.support.http_servers import Answer, Server
from tests.support.leased_outcomes import (
    HANDLERS,
    Handler,
    Moment,
    Outcome,
    Step,
    expect,
)
from tests.support.rendezvous import Rendezvous

__all__ = ["COLUMNS", "HANDLERS", "POLICIES", "Crashes", "Tally"]

POLICIES = ("hold", "rerun", "ask")
COLUMNS = (
    *("policy", "boundaries", "answered", "failed", "nothing", "in progress"),
    *("replayed", "ran", "found", "unknown"),
    *("no call", "1 call", "2 calls", "more", "keys", "faults"),
)


@dataclass
class Tally:
    """What became of many requests that were cut, under one policy."""

    policy: str
    counts: Counter[str] = field(default_factory=Counter)
    most_keys: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def boundaries(self) -> int:
        """How many requests were cut."""
        return self.counts["boundaries"]

    def count(self, label: str, outcome: Outcome) -> None:
        """Count one request."""
        kind = outcome.first.kind(outcome.handler)
        told = "answered" if kind in ("ran", "found") else "failed"
        charges = outcome.again.then.charges
        self.counts["boundaries"] += 1
        self.counts["nothing" if kind == "nothing" else told] += 1
        self.counts["in progress"] += outcome.early is not None
        self.counts[outcome.retry.kind(outcome.handler)] += 1
        self.counts[calls(len(charges))] += 1
        self.most_keys = max(self.most_keys, len({charge.key for charge in charges}))
        self.faults += [f"{label}: {fault}" for fault in outcome.faults()]

    @property
    def cells(self) -> tuple[str | int, ...]:
        """What stands in the table, below COLUMNS."""
        counted = [self.counts[name] for name in COLUMNS[1:-2]]
        return (self.policy, *counted, self.most_keys, len(self.faults))


def calls(number: int) -> str:
    """Return the column for a number of outside calls."""
    return ("no call", "1 call", "2 calls")[number] if number < 3 else "more"


class Crashes(Cuts):
    """Requests in leased mode that are cut, and retried before and after the lease."""

    policies: tuple[str, ...] = POLICIES
    new_tally: type[Tally] = Tally

    def __init__(
        self,
        server: Server,
        rendezvous: Rendezvous,
        database: DatabaseServer | None = None,
    ) -> None:
        super().__init__(server, rendezvous, database)
        self.ledger = Ledger(rendezvous.address.with_name("ledger"))

    def rows(self, how: str, handlers: Iterable[Handler]) -> Iterator[Tally]:
        """Yield what became of all handlers under each policy, a row of the table."""
        handlers = [*handlers]
        for policy in self.policies:
            tally = self.new_tally(policy)
            for handler in handlers:
                self.run(policy, handler, how, tally)
            yield tally

    def run(self, policy: str, handler: Handler, how: str, tally: Tally) -> None:
        """Cut one request at each boundary."""
        labels = self.record(policy, handler).labels
        for passed, where in self.places(how, labels):
            outcome = self.cut(policy, handler, how, passed)
            view = f"{handler.name} in {handler.place}/{policy}/"
            tally.count(f"{how} of {view} at {where}", outcome)

    def record(self, policy: str, handler: Handler) -> Visit:
        """Send a request that is not cut; it tells its boundaries."""
        # After this one the server's connection is open.
        self.send(self.to_cut(self.prepare(policy, handler), handler))
        sending = self.prepare(policy, handler)
        expected = self.expect(policy, self.look(sending.key))
        answer, visit = self.send_uncut(self.to_cut(sending, handler))
        kind = Step(answer, self.look(sending.key)).kind(handler)
        assert kind == expected, answer
        return visit

    def to_cut(self, sending: Sending, handler: Handler) -> Sending:
        """Return the request that is cut before a client sends its own."""
        return sending

    def expect(self, policy: str, before: Moment) -> str:
        """Return how a request is answered, by what is there before it."""
        return expect(policy, before)

    def prepare(self, policy: str, handler: Handler) -> Sending:
        """Return a request of a new key, after the failure of an earlier one."""
        sending = Sending(
            url=f"{handler.place}/{policy}/",
            data={"handler": handler.name},
            key=str(uuid4()),
            headers=self.ledger.header,
        )
        if handler.failed:
            fails = {**sending.headers, "X-Fail": handler.failed}
            assert self.send(replace(sending, headers=fails)).status == 500
        return sending

    def cut(
        self, policy: str, handler: Handler, how: str, labels: list[str]
    ) -> Outcome:
        """Cut a request at the last of some boundaries, and retry it."""
        sending = self.prepare(policy, handler)
        before = self.look(sending.key)
        first = self.step(sending, self.send_and_cut(sending, how, labels))
        early = self.step(sending) if first.then.is_leased else None
        self.end_lease(sending.key)
        return Outcome(
            policy=policy,
            handler=handler,
            went_on=how != "kill",
            before=before,
            first=first,
            early=early,
            retry=self.step(sending),
            again=self.step(sending),
        )

    def step(self, sending: Sending, *answer: Answer | None) -> Step:
        """Send a request, unless it was answered already, and look what it did."""
        (answered,) = answer or (self.send(sending),)
        return Step(answered, self.look(sending.key))

    def look(self, key: str) -> Moment:
        """Return what is so now."""
        charges = self.ledger.charges_of(key)
        records = IdempotencyRecord.objects.filter(key=key)
        record = records.annotate(is_late=Q(lease_expires_at__lte=UTCNow())).first()
        if record is None:
            return Moment(state=None, is_leased=False, charges=charges)
        is_leased = record.lease_expires_at is not None and not record.is_late
        return Moment(state=record.state, is_leased=is_leased, charges=charges)

    def end_lease(self, key: str) -> None:
        """Let the time of a key's lease, if it has one, be over."""
        leased = IdempotencyRecord.objects.filter(
            key=key, lease_expires_at__gt=UTCNow()
        )
        leased.update(lease_expires_at=UTCNow() - timedelta(seconds=1))
