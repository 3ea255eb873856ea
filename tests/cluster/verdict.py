"""What clients were told against what the tables say, and the outside ledger."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.cluster.clients import Asking
from tests.cluster.tables import Fault, Loses, Tally
from tests.cluster.views import GaveUp
from tests.soak.ledger import Attempt
from tests.soak.load import LAST_RETRY
from tests.soak.verdict import (
    CLAIM_LOST,
    IN_PROGRESS,
    TRANSACTION_FAILED,
)
from tests.soak.views import ORDER
from tests.support.charge_ledger import Ledger

OUTCOME_UNKNOWN = "idempotency_outcome_unknown"
UNAVAILABLE = "idempotency_database_unavailable"
REFUSALS = {(409, IN_PROGRESS), (503, TRANSACTION_FAILED), (503, UNAVAILABLE)}
LEASED_REFUSALS = {(409, CLAIM_LOST)}


@dataclass(frozen=True)
class Found:
    """What the tables say of all keys at one time."""

    receipts: dict[str, list[int]]
    orders: dict[str, int]
    completed: set[str]

    @classmethod
    def now(cls, asked: Iterable[Asking]) -> Found:
        """Read the tables."""
        receipts: dict[str, list[int]] = defaultdict(list)
        rows = Effect.objects.filter(name=None).order_by("pk")
        for pk, note in rows.values_list("pk", "note").iterator():
            receipts[note].append(pk)
        ordered = Effect.objects.filter(name__startswith=ORDER.format(""))
        records = IdempotencyRecord.objects.filter(state=State.COMPLETED)
        keys = set(records.values_list("key", flat=True).iterator())
        return cls(
            receipts=receipts,
            orders=Counter(ordered.values_list("note", flat=True)),
            completed={each.note for each in asked if each.key in keys},
        )


class Judge:
    """Judges keys; ``before`` and ``after`` are around the last retries.

    ``steady`` says that nothing has failed meanwhile.
    """

    def __init__(
        self,
        before: Found,
        after: Found,
        charges: Path,
        loses: Loses,
        *,
        steady: bool = False,
    ) -> None:
        self.before = before
        self.after = after
        self.loses = loses
        self.steady = steady
        self.runs: dict[str, set[str]] = defaultdict(set)
        self.derived: dict[str, set[str]] = defaultdict(set)
        for charge in Ledger(charges).charges():
            self.runs[charge.of].add(charge.run)
            self.derived[charge.of].add(charge.key)

    def judge(self, asking: Asking) -> tuple[Tally, list[Fault]]:
        """Say what became of one key, and what is wrong with that."""
        attempts, note = asking.attempts, asking.note
        answered = [each for each in attempts if each.status is not None]
        earlier = [each for each in asking.acknowledged if each.how != LAST_RETRY]
        # Some answer tells of an effect that is not there any more.
        is_gone = any(
            json.loads(each.body)["effect"] not in self.before.receipts.get(note, [])
            for each in earlier
        )
        tally = Tally(
            keys=1,
            answers=len(answered),
            no_answer=len(attempts) - len(answered),
            refused=sum(is_refusal(each) for each in attempts),
            bare_500=sum(is_bare_500(each) for each in attempts),
            reruns=max(0, len(self.runs[note]) - 1),
            gone=is_gone and self.loses is not Loses.NOTHING,
        )
        faults = []
        for column, what in self._faults(asking, earlier, is_gone=is_gone):
            if column == "again":
                tally.again += 1
                continue
            # Keys, not faults.
            setattr(tally, column, 1)
            told = f"receipts {self.before.receipts.get(note)}, then "
            told += f"{self.after.receipts.get(note)}; orders {self.after.orders[note]}"
            told += f"; charges {len(self.runs[note])}"
            faults.append(Fault(what, "", f"{asking.history()}\n    {told}"))
        return tally, faults

    def _faults(
        self, asking: Asking, earlier: list[Attempt], *, is_gone: bool
    ) -> Iterator[tuple[str, str]]:
        note, mode = asking.note, asking.mode
        receipts = self.after.receipts.get(note, [])
        is_allowed_loss = is_gone and self.loses is not Loses.NOTHING
        if mode in ("atomic", "resume", "hold") and len(receipts) > 1:
            yield "doubled", f"Doubled: {len(receipts)} effects of one key"
        if self.after.orders[note] > 1:
            yield "doubled", "Doubled: more than one order of one key"
        if mode == "hold" and len(self.runs[note]) > 1:
            if self.loses is Loses.CLAIMS:
                yield "again", "Acted outside again after a lost claim"
            else:
                yield "doubled", "Doubled: a held handler acted outside again"
        if self.steady and mode != "atomic" and len(self.runs[note]) > 1:
            yield "wrong", "Ran more than once, though its claim was committed before"
        if len(self.derived[note]) > 1:
            yield "doubled", "Doubled: more than one derived key"
        if is_gone and not is_allowed_loss:
            yield "lost", "Lost: an acknowledged key without its effect"
        yield from self._torn(asking)
        # Without a transaction around both, the effect may outlive the answer.
        may_differ = is_allowed_loss or (
            self.loses is not Loses.NOTHING and mode in ("hold", "rerun")
        )
        yield from self._stuck(asking, may_differ=may_differ)
        yield from self._wrong(asking, may_differ=may_differ)

    def _torn(self, asking: Asking) -> Iterator[tuple[str, str]]:
        """E1, E12: the effect and the answer are committed together."""
        if asking.mode not in ("atomic", "resume"):
            return
        for found in (self.before, self.after):
            if bool(found.receipts.get(asking.note)) != (
                asking.note in found.completed
            ):
                yield "torn", "An effect without its record, or the other way round"

    def _stuck(self, asking: Asking, *, may_differ: bool) -> Iterator[tuple[str, str]]:
        (last,) = [each for each in asking.attempts if each.how == LAST_RETRY]
        if last.is_acknowledged:
            return
        if asking.mode == "hold" and last.code == OUTCOME_UNKNOWN:
            in_doubt = any(left_in_doubt(each) for each in asking.attempts)
            if not in_doubt and not may_differ:
                yield "stuck", "Held, though no run has failed"
            return
        yield "stuck", "Stuck: the last retry has no success"

    def _wrong(self, asking: Asking, *, may_differ: bool) -> Iterator[tuple[str, str]]:
        allowed = {(201, ""), *REFUSALS}
        if asking.mode != "atomic":
            allowed |= LEASED_REFUSALS
        if asking.mode == "hold":
            allowed.add((409, OUTCOME_UNKNOWN))
        for each in asking.attempts:
            answer = (each.status, each.code)
            if each.status not in (None, 500) and answer not in allowed:
                yield "wrong", f"{each.status} {each.code} is not allowed here"
            if is_refusal(each) and "Retry-After" not in each.headers:
                yield "wrong", "No Retry-After"
        if may_differ:
            return
        told = asking.acknowledged
        if len({each.body for each in told}) > 1:
            yield "wrong", "Answers with different bytes"
        if sum(not each.replayed for each in told) > 1:
            yield "wrong", "Executed more than once, by the answers"
        receipts = self.after.receipts.get(asking.note, [])
        for body in {each.body for each in told}:
            answer_of = json.loads(body)
            if answer_of["note"] != asking.note or answer_of["effect"] not in receipts:
                yield "wrong", "An answer about another effect"


def is_refusal(attempt: Attempt) -> bool:
    """Return whether an answer is a refusal that asks for a retry."""
    return (attempt.status, attempt.code) in REFUSALS | LEASED_REFUSALS


def is_bare_500(attempt: Attempt) -> bool:
    """Return whether an answer is Django's own, and not meant."""
    return attempt.status == 500 and attempt.code != GaveUp.__name__


def left_in_doubt(attempt: Attempt) -> bool:
    """Return whether a leased run may have ended without its client knowing how."""
    return attempt.status is None or attempt.status >= 500 or attempt.code == CLAIM_LOST
