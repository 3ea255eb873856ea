"""Cut a request that runs in steps at every boundary, and let its retries finish it.

``python -m tests.crash_matrix --mode resume`` prints the whole table. Needs Django to
be set up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from django.test import override_settings

from idempotency.completing import complete
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.support import leased_crashes, leased_outcomes
from tests.support.faults import Sending
from tests.support.leased_crashes import calls
from tests.support.leased_outcomes import Handler, Moment, Step, said_in
from tests.support.sleep_counter import waits_in

__all__ = ["COLUMNS", "HANDLERS", "POLICIES", "Crashes", "Tally"]

# What becomes of a call that has begun and was not recorded.
POLICIES = ("rerun", "hold", "ask")
KINDS = ("doubled", "lost", "stuck", "unexpected")
COLUMNS = (
    *("call", "finished by", "boundaries", *KINDS, "answered", "failed", "nothing"),
    *("in progress", "completed", "replayed", "ran", "unknown"),
    *("no call", "1 call", "2 calls"),
)
HANDLERS = {
    "plain": Handler("in-steps", place="/steps"),
    # It responds after the last step.
    "apart": Handler("answering-apart", place="/steps"),
    # The provider says no, which is a result.
    "declined": Handler("declined", status=402, calls=0, place="/steps"),
    # What is cut is the run that resumes.
    "failed-before": Handler("in-steps", failed="before", place="/steps"),
    "failed-after": Handler("in-steps", failed="after", place="/steps"),
    "completer": Handler(
        "in-steps", failed="before", place="/steps", is_completed=True
    ),
    # A function that takes Django's own request.
    "django-view": Handler("in-steps", place="/django/steps"),
}


@dataclass(frozen=True)
class Outcome(leased_outcomes.Outcome):
    """What a request that was cut, its retries and a person have left behind."""

    # The retry after a person has said what became of the call, if it was held.
    decided: Step | None = None
    # What a completer has made of it before a client came back, if it could.
    completed: Moment | None = None
    comes_back: bool = True

    @property
    def parts(self) -> tuple[str, str]:
        """The rows that a finished run has written, one of each."""
        return "order", "receipt" if self.handler.calls else "cancelled"

    def judge(self) -> Iterator[tuple[str, str]]:
        """Yield doubled, lost, stuck or unexpected, and why."""
        kind, then = self.first.kind(self.handler), self.first.then
        if kind not in ("ran", "nothing", "500", "503"):
            yield "unexpected", f"the first request got {self.first.answer}"
        if self.went_on and kind != "nothing":
            yield from self._judge_going_on(kind, then)
        for step in filter(None, (self.early, self.retry, self.decided, self.again)):
            if step.answer and (why := waits_in(step.answer)):
                yield "stuck", why
        if self.early is not None:
            if self.early.kind(self.handler) != "in progress":
                yield "unexpected", f"a live lease was answered with {self.early}"
            if self.early.then != then:
                yield "unexpected", "the retry during the lease changed something"
        yield from self._judge_retries()
        yield from self._judge_effects(self.again.then)
        yield from self._judge_answers(self.again.then)

    def _judge_going_on(self, kind: str, then: Moment) -> Iterator[tuple[str, str]]:
        """A process that goes on loses no more than the step that was cut (E7, E12)."""
        if kind == "ran" and then.state != State.COMPLETED:
            yield "lost", f"an answer of its own left the record {then.state}"
        if kind != "ran" and then.state == State.COMPLETED:
            yield "unexpected", f"{self.first.answer}, though all was committed"
        # A completer that could not begin is run again.
        has_begun = not self.handler.is_completed or then != self.before
        is_ordered = has_begun and bool(then.rows.get("order"))
        if is_ordered and self.handler.calls and not then.charges:
            yield "unexpected", f"{self.first.answer} after the order, without a call"

    def _judge_retries(self) -> Iterator[tuple[str, str]]:
        """The first retry finishes it, or a person and the next one (E13)."""
        before = replace(self.first.then, is_leased=False)  # the lease has ended
        if self.completed is not None:
            before = self.completed
            if before.state != State.COMPLETED:
                yield "stuck", f"the completer has left the record {before.state}"
        for step in filter(None, (self.retry, self.decided, self.again)):
            kind, expected = step.kind(self.handler), expect(before)
            if kind != expected:
                yield "stuck", f"{kind} instead of {expected}: {step.answer}"
            if kind == "unknown" and self.policy != "hold":
                yield "stuck", f"a person must decide about {self.policy}"
            if kind in ("unknown", "replayed") and step.then != before:
                yield "unexpected", f"a retry was {kind} and changed something"
            # A person's decision is what comes after a call in doubt.
            before = replace(step.then, is_in_doubt=False)
        if self.again.kind(self.handler) != "replayed":
            yield "stuck", f"in the end: {self.again.answer}"

    def _judge_effects(self, then: Moment) -> Iterator[tuple[str, str]]:
        """Each step has acted once, and the provider has charged once (E12, E13)."""
        for part in self.parts:
            count = len(then.rows.get(part, []))
            if count != 1:
                yield "doubled" if count else "lost", f"{part}: {count} rows"
        if others := {*then.rows} - {*self.parts}:
            yield "unexpected", f"rows of {others}"
        charged = len({charge.key for charge in then.charges})
        if charged != self.handler.calls:
            lost = charged < self.handler.calls
            yield "lost" if lost else "doubled", f"charged under {charged} keys"
        if len(then.charges) > 1 and self.policy != "rerun":
            yield "doubled", f"{len(then.charges)} outside calls"

    def _judge_answers(self, then: Moment) -> Iterator[tuple[str, str]]:
        """All clients that were answered got the same bytes, about what is there."""
        own = [
            step.answer
            for step in (self.first, self.retry, self.decided, self.again)
            if step and step.answer and step.kind(self.handler) in ("ran", "replayed")
        ]
        if len({answer.body for answer in own}) > 1:
            yield "lost", f"different answers: {own}"
        for said in map(said_in, own):
            told = {part: [said.get(part)] for part in self.parts}
            if told != then.rows:
                yield "lost", f"{said} was answered, and there is {then.rows}"
            if said.get("run") not in ({c.run for c in then.charges} or {None}):
                yield "lost", f"{said} was answered, and there is {then.charges}"


def expect(before: Moment) -> str:
    """Return how a retry after the lease is answered, by what is there before it."""
    if before.state == State.COMPLETED:
        return "replayed"
    return "unknown" if before.is_in_doubt else "ran"


class Tally(leased_crashes.Tally):
    """What became of many requests that were cut, under one policy of their call."""

    def count(self, label: str, outcome: leased_outcomes.Outcome) -> None:
        """Count one request; a fault counts once, however it shows."""
        assert isinstance(outcome, Outcome)
        kind = outcome.first.kind(outcome.handler)
        self.counts["came back"] += outcome.comes_back
        self.counts["completed"] += outcome.completed is not None
        told = {"ran": "answered", "nothing": "nothing"}.get(kind, "failed")
        self.counts["boundaries"] += 1
        self.counts[told] += 1
        self.counts["in progress"] += outcome.early is not None
        self.counts[outcome.retry.kind(outcome.handler)] += 1
        self.counts[calls(len(outcome.again.then.charges))] += 1
        faults = [*outcome.judge()]
        self.counts.update({kind for kind, _why in faults})
        self.faults += [f"{label}: {kind}: {why}" for kind, why in faults]

    @property
    def cells(self) -> tuple[str | int, ...]:
        """What stands in the table, below COLUMNS."""
        by = "client" if self.counts["came back"] else "completer"
        return (self.policy, by, *(self.counts[name] for name in COLUMNS[2:]))


class Crashes(leased_crashes.Crashes):
    """Requests in steps that are cut, and retried before and after the lease."""

    policies = POLICIES
    new_tally = Tally
    # Whether clients come back by themselves, or after a completer.
    comes_back = True

    def rows(
        self, how: str, handlers: Iterable[Handler]
    ) -> Iterator[leased_crashes.Tally]:
        """Yield the rows of clients that come back, and of clients that do not."""
        handlers = [*handlers]
        for self.comes_back in (True, False):
            yield from super().rows(how, handlers)

    def to_cut(self, sending: Sending, handler: Handler) -> Sending:
        """Return the request that is cut: a client's, or that of a completer."""
        if not handler.is_completed:
            return sending
        return replace(sending, url="/complete/")

    def expect(self, policy: str, before: Moment) -> str:
        """Return how a request is answered, by what is there before it."""
        return expect(before)

    def prepare(self, policy: str, handler: Handler) -> Sending:
        """Return a request of a new key, after the failure of an earlier one."""
        sending = super().prepare(policy, handler)
        self.decide(sending.key)
        return sending

    def cut(
        self, policy: str, handler: Handler, how: str, labels: list[str]
    ) -> Outcome:
        """Cut a request at the last of some boundaries, and let retries finish it."""
        sending = self.prepare(policy, handler)
        before = self.look(sending.key)
        to_cut = self.to_cut(sending, handler)
        first = self.step(sending, self.send_and_cut(to_cut, how, labels))
        early = None
        if first.then.is_leased and self.comes_back:
            early = self.step(sending)
        self.end_lease(sending.key)
        return Outcome(
            comes_back=self.comes_back,
            completed=None if self.comes_back else self.complete(sending.key),
            policy=policy,
            handler=handler,
            went_on=how != "kill",
            before=before,
            first=first,
            early=early,
            retry=self.step(sending),
            decided=self.step(sending) if self.decide(sending.key) else None,
            again=self.step(sending),
        )

    def look(self, key: str) -> Moment:
        """Return what is so now."""
        rows = defaultdict(list)
        found = Effect.objects.filter(note__endswith=f" {key}").order_by("pk")
        for note, pk in found.values_list("note", "pk"):
            rows[note.split()[0]].append(pk)
        record = IdempotencyRecord.objects.filter(key=key).first()
        is_in_doubt = record is not None and record.call_in_doubt is not None
        return replace(super().look(key), rows=dict(rows), is_in_doubt=is_in_doubt)

    def complete(self, key: str) -> Moment | None:
        """Complete a run, as the task does, if it has recorded anything."""
        found = IdempotencyRecord.objects.resumable().filter(key=key)
        if not found:
            return None
        self.decide(key)
        with override_settings(ROOT_URLCONF="tests.support.charging_views"):
            complete(found.get())
        return self.look(key)

    def decide(self, key: str) -> bool:
        """Say what became of a call in doubt, as the provider's books have it."""
        record = IdempotencyRecord.objects.filter(key=key).first()
        if record is None or record.call_in_doubt is None:
            return False
        charges = self.ledger.charges_of(key)
        if charges:
            record.call_returned("charge", {"run": charges[0].run})
        else:
            record.call_never_happened("charge")
        return True
