"""What a request in leased mode that was cut, and its retries, must leave behind.

What a retry must get follows from its policy and from what is there: the record, and
the outside calls in the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from idempotency.exceptions import ClaimLost, InProgress, OutcomeUnknown
from idempotency.models import State
from tests.support.charge_ledger import Charge
from tests.support.http_servers import Answer, is_replayed
from tests.support.sleep_counter import waits_in

REFUSALS = {
    str(refusal.default_detail): kind
    for refusal, kind in (
        (InProgress, "in progress"),
        (OutcomeUnknown, "unknown"),
        (ClaimLost, "claim lost"),
    )
}


@dataclass(frozen=True)
class Handler:
    """A handler of ``tests.support.charging_views``, and what one run of it does."""

    name: str
    status: int = 201
    calls: int = 1
    # What its run leaves of the record; None if the key is free again.
    leaves: str | None = State.COMPLETED
    # Where an earlier run of the key has failed, if there was one.
    failed: str | None = None
    # Where its views are; each policy has one.
    place: str = ""
    # Whether what is cut is the run of a completer, after one that has failed.
    is_completed: bool = False


HANDLERS = {
    "plain": Handler("plain"),
    "renewing": Handler("renewing"),
    "refused": Handler("refusing", status=404, leaves=State.ABANDONED),
    "released": Handler("releasing", status=402, calls=0, leaves=None),
    "failed-before": Handler("plain", failed="before"),
    "failed-after": Handler("plain", failed="after"),
    # Functions that take Django's own request.
    "django-view": Handler("plain", place="/django"),
    "django-refused": Handler(
        "refusing", status=404, leaves=State.ABANDONED, place="/django"
    ),
    # Views of Django REST framework's own, in protected().
    "third-party": Handler("plain", place="/third-party"),
}


@dataclass(frozen=True)
class Moment:
    """What is so after a request: the record's state, and the outside calls."""

    # None if there is no record.
    state: str | None
    is_leased: bool
    charges: list[Charge]
    # Of handlers with steps: the rows of each, and whether a call is in doubt.
    rows: dict[str, list[int]] = field(default_factory=dict)
    is_in_doubt: bool = False


@dataclass(frozen=True)
class Step:
    """A request, and what has come of it."""

    answer: Answer | None
    then: Moment

    def kind(self, handler: Handler) -> str:
        """Return what sort of answer it was."""
        if self.answer is None:
            return "nothing"
        said = said_in(self.answer)
        if refusal := REFUSALS.get(str(said.get("detail"))):
            return refusal
        if is_replayed(self.answer):
            return "replayed"
        if "found" in said:
            return "found"
        is_own = self.answer.status == handler.status
        return "ran" if is_own else str(self.answer.status)


@dataclass(frozen=True)
class Outcome:
    """What a request that was cut, and its retries, have left behind."""

    policy: str
    handler: Handler
    # Whether the process of the first request went on.
    went_on: bool
    before: Moment
    first: Step
    # The retry while the lease of the first request was live, if it was.
    early: Step | None
    retry: Step
    again: Step

    def faults(self) -> Iterator[str]:
        """Yield what is not as the policy promises (E7, E9)."""
        yield from self._faults_of_first()
        yield from self._faults_of_going_on()
        for step in filter(None, (self.early, self.retry, self.again)):
            if step.answer and (why := waits_in(step.answer)):
                yield why
        if self.early is not None:
            if self.early.kind(self.handler) != "in progress":
                yield f"a live lease was answered with {self.early.answer}"
            if self.early.then != self.first.then:
                yield "the retry during the lease changed something"
        yield from self._faults_of_retry(self.retry, self.first.then)
        yield from self._faults_of_retry(self.again, self.retry.then)
        if len(stored := {*self._stored()}) > 1:
            yield f"more than one stored answer: {stored}"
        charges = self.again.then.charges
        if len({charge.key for charge in charges}) > 1:
            yield f"more than one derived key: {charges}"
        if self.policy != "rerun" and len(charges) > 1:
            yield f"{len(charges)} outside calls"

    def _stored(self) -> Iterator[bytes]:
        """Yield what a client was told that was stored."""
        for step in (self.first, self.retry, self.again):
            is_own = step.kind(self.handler) in ("ran", "found", "replayed")
            if step.answer and is_own and step.then.state == State.COMPLETED:
                yield step.answer.body

    def _faults_of_first(self) -> Iterator[str]:
        """What the first client was told is so."""
        kind, then = self.first.kind(self.handler), self.first.then
        if kind not in (expect(self.policy, self.before), "nothing", "500", "503"):
            yield f"the first request got {self.first.answer}"
        made = len(then.charges) - len(self.before.charges)
        if made > self.handler.calls:
            yield f"{made} outside calls of one run"
        if kind == "found" and then.state != State.COMPLETED:
            yield "an answer that was found is not stored"
        if kind == "ran" and then.state != self.handler.leaves:
            yield f"an answer of its own left the record {then.state}"
        if then.charges and then.state is None:
            yield "a charge was forgotten"

    def _faults_of_going_on(self) -> Iterator[str]:
        """Whatever else was lost, a process that goes on runs its handler (E7)."""
        kind = self.first.kind(self.handler)
        if not self.went_on or kind in (expect(self.policy, self.before), "nothing"):
            return
        made = len(self.first.then.charges) - len(self.before.charges)
        # The handler's own statement, after its outside call, may have failed.
        if not self.handler.calls or made != self.handler.calls:
            yield f"the first request was {kind} with {made} outside calls"

    def _faults_of_retry(self, step: Step, before: Moment) -> Iterator[str]:
        """The answer, its outside call and its record follow from what was there."""
        expected = expect(self.policy, before)
        kind = step.kind(self.handler)
        if kind != expected:
            yield f"{kind} instead of {expected}: {step.answer}"
            return
        assert step.answer is not None
        made = len(step.then.charges) - len(before.charges)
        if made != (self.handler.calls if kind == "ran" else 0):
            yield f"{made} outside calls when the retry was {kind}"
        leaves = {"ran": self.handler.leaves, "found": State.COMPLETED}
        if step.then.state != leaves.get(kind, before.state):
            yield f"the retry was {kind} and left the record {step.then.state}"
        run = said_in(step.answer).get("run")
        if run and run not in {charge.run for charge in step.then.charges}:
            yield f"{run} was never charged"


def said_in(answer: Answer) -> dict[str, Any]:
    """Return what an answer says: nothing if it is not the API's own."""
    try:
        said: dict[str, Any] = json.loads(answer.body)
    except ValueError:
        return {}
    return said


def expect(policy: str, before: Moment) -> str:
    """Return how a retry is answered, by what is there before it (E9)."""
    if before.state == State.COMPLETED:
        return "replayed"
    if before.state is None:
        return "ran"
    by_policy = {"hold": "unknown", "rerun": "ran"}
    return by_policy.get(policy, "found" if before.charges else "ran")
