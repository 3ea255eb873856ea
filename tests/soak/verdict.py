"""The ledger against the database: what the contract does not allow."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.soak.ledger import LOST, Attempt, Ledger, Story
from tests.soak.load import LAST_RETRY
from tests.soak.views import LEASE, ORDER
from tests.support.charge_ledger import Charge

REUSED = "idempotency_key_reused"
IN_PROGRESS = "idempotency_in_progress"
NOT_KEPT = "idempotency_response_not_kept"
TRANSACTION_FAILED = "idempotency_transaction_failed"
UNAVAILABLE = "idempotency_database_unavailable"
CLAIM_LOST = "idempotency_claim_lost"
# What is welcome to retry, and after how many seconds.
RETRY_AFTER = {IN_PROGRESS: "1", TRANSACTION_FAILED: "1", UNAVAILABLE: "5"}
ON_PURPOSE = "on_purpose"
# Of which handlers a failure is meant.
FAILING = ("fail", "flaky", "book")
# After these a client does not know; a worker's end takes no other request with it.
CUTS = {"connections cut", "database crashed"}
# Whoever was told one of these has seen the record of a completed key; that of a run
# in steps is seen before.
COMPLETED = (NOT_KEPT, REUSED)


@dataclass(frozen=True, slots=True)
class Found:
    """One effect: its primary key, and the payload that it came from."""

    pk: int
    number: int


Effects = dict[str, list[Found]]


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be, with the whole history of its key."""

    what: str
    history: str

    def __str__(self) -> str:
        return f"{self.what}\n{self.history}"


def read_effects() -> Effects:
    """Return all effects in the database by the labels of their stories."""
    found: Effects = defaultdict(list)
    rows = Effect.objects.filter(name=None).order_by("pk")
    for pk, note in rows.values_list("pk", "note").iterator():
        label, number = note.split()
        found[label].append(Found(pk, int(number)))
    return found


def read_orders() -> dict[str, int]:
    """Return how many orders the handlers in steps have written, by label."""
    rows = Effect.objects.filter(name__startswith=ORDER.format(""))
    return Counter(note.split()[0] for note in rows.values_list("note", flat=True))


def judge(
    ledger: Ledger, before: Effects, after: Effects, charges: list[Charge]
) -> list[Violation]:
    """Compare; ``before`` and ``after`` are the effects around the last retries."""
    violations = []
    for story, attempt in ledger.attempts():
        for what in judge_attempt(story, attempt, ledger):
            met = [f"    {fault}" for fault in ledger.faults if fault.met(attempt)]
            lines = [story.history() if story else f"  {attempt}", *met]
            violations.append(Violation(what, "\n".join(lines)))
    for story in ledger.stories:
        told = before.get(story.label, []), after.get(story.label, [])
        check = judge_story if story.keyed else judge_without_key
        for what in check(story, *told):
            history = f"{story.history()}\n    effects {told[0]}, then {told[1]}"
            violations.append(Violation(what, history))
    known = {story.label for story in ledger.stories}
    violations += [
        Violation("An effect that nobody asked for", label)
        for label in {*before, *after} - known
    ]
    violations += judge_records(ledger, after)
    violations += judge_steps(ledger, charges)
    return violations


def judge_attempt(
    story: Story | None, attempt: Attempt, ledger: Ledger
) -> Iterator[str]:
    """Say what is wrong with one answer by itself."""
    status, code = attempt.status, attempt.code
    if status is None:
        expected = attempt.lost == "hung up"
        if not expected and "worker killed" not in ledger.faults_met(attempt):
            yield "No answer, and no worker was killed"
    elif status == 500:
        yield from judge_failure(story, attempt, ledger)
    elif not is_allowed(story, attempt):
        what = story.what if story else "read"
        yield f"{status} {code} is not allowed here: {what}"
    elif story is not None and code in RETRY_AFTER:
        if attempt.headers.get("Retry-After") != RETRY_AFTER[code]:
            yield "No Retry-After"
        judge_it = {
            IN_PROGRESS: judge_in_progress,
            TRANSACTION_FAILED: judge_transaction_failed,
            UNAVAILABLE: judge_unavailable,
        }
        yield from judge_it[code](story, attempt, ledger)
    elif story is not None and status == 201:
        yield from judge_headers(story, attempt)
    elif code == CLAIM_LOST and attempt.ended - attempt.started < LEASE.total_seconds():
        yield "A claim was lost within its lease"


def judge_failure(
    story: Story | None, attempt: Attempt, ledger: Ledger
) -> Iterator[str]:
    """E4, O3: say what is wrong with a 500."""
    is_meant = story is not None and story.what in FAILING
    if is_meant and attempt.code in (ON_PURPOSE, "OnPurpose"):
        return
    if not ledger.faults_met(attempt) & CUTS:
        yield "A 500 while nothing was broken"
    elif attempt.is_undone:
        yield "A 500 for a transaction that the database has undone"
    elif attempt.code not in LOST:
        yield f"A 500 that is not a lost connection: {attempt.code}"


def judge_in_progress(story: Story, attempt: Attempt, ledger: Ledger) -> Iterator[str]:
    """E3, R6: somebody else must be executing the key, and not be done."""
    others = [other for other in story.attempts if other is not attempt]
    completed = () if story.is_in_steps else COMPLETED
    if any(
        other.ended < attempt.started
        and (other.is_acknowledged or other.code in completed)
        for other in others
    ):
        yield "In progress, though its answer had been given before"
    elif not any(
        other.started <= attempt.ended
        and (attempt.started <= other.ended or was_cut(other, ledger))
        for other in others
    ):
        yield "In progress, though nobody else asked"


def was_cut(attempt: Attempt, ledger: Ledger) -> bool:
    """Return whether a request may have gone on after its client was left alone."""
    if attempt.status is None:
        return True
    return attempt.status >= 500 and bool(ledger.faults_met(attempt) & CUTS)


def judge_transaction_failed(
    story: Story, attempt: Attempt, ledger: Ledger
) -> Iterator[str]:
    """E4, E5: there must have been a deadlock, or a connection that was lost."""
    is_meant = story.contends and attempt.is_undone
    if not is_meant and not ledger.faults_met(attempt) & CUTS:
        yield "A transaction failed while nothing was broken"


def judge_unavailable(story: Story, attempt: Attempt, ledger: Ledger) -> Iterator[str]:
    """E4: the database must have been away."""
    if not ledger.faults_met(attempt) & CUTS:
        yield "No database while nothing was broken"


def is_allowed(story: Story | None, attempt: Attempt) -> bool:
    """Return whether the rules know such an answer to such a request."""
    if story is None:
        return attempt.status == 200
    allowed = {(400, ON_PURPOSE)} if story.refuses else {(201, "")}
    if story.keyed:
        allowed |= {(409, IN_PROGRESS), (503, TRANSACTION_FAILED), (503, UNAVAILABLE)}
        if story.what == "stream":
            allowed.add((409, NOT_KEPT))
        if story.is_in_steps:
            allowed.add((409, CLAIM_LOST))
        if len(story.payloads) > 1 and not story.refuses:
            allowed.add((422, REUSED))
    return (attempt.status, attempt.code) in allowed


def judge_headers(story: Story, attempt: Attempt) -> Iterator[str]:
    """R2, R3: what an answer says about itself."""
    has_expiry = "Idempotency-Expires" in attempt.headers
    if has_expiry != story.keyed:
        yield "Idempotency-Expires is missing, or there without a key"
    if attempt.replayed and not story.keyed:
        yield "A replay without a key"
    if story.what != "stream":
        effect = json.loads(attempt.body)["effect"]
        if attempt.headers.get("Location") != f"/effect/{effect}/":
            yield "The view's own header is missing"


def judge_without_key(
    story: Story, before: list[Found], after: list[Found]
) -> Iterator[str]:
    """K4: each request acts by itself."""
    if not len(story.acknowledged) <= len(before) <= len(story.attempts):
        yield "Without a key: more or fewer effects than requests"
    if before != after:
        yield "An effect of a request that was over"


def judge_story(story: Story, before: list[Found], after: list[Found]) -> Iterator[str]:
    """E1: one effect and one answer, or neither."""
    if story.refuses:
        yield from judge_refusals(story, after)
        return
    if len(before) > 1 or len(after) > 1:
        yield "Doubled: more than one effect"
    earlier = [a for a in story.acknowledged if a.how != LAST_RETRY]
    if earlier and not before:
        yield "Lost: an acknowledged key without its effect"
    if before and before != after:
        yield "The effect has changed"
    if after:
        yield from judge_answers(story, after[0])
        yield from judge_last(story, after[0], was_there=bool(before))
    else:
        yield "Stuck: no effect even after the last retry"


def judge_answers(story: Story, effect: Found) -> Iterator[str]:
    """E1, F4, R2: each answer is about the one effect."""
    if sum(not attempt.replayed for attempt in story.acknowledged) > 1:
        yield "Executed more than once, by the answers"
    if len({attempt.body for attempt in story.acknowledged}) > 1:
        yield "Answers with different bytes"
    about = f"{effect.pk} {story.label} {effect.number}"
    for attempt in story.acknowledged:
        if story.what == "stream":
            told = attempt.body.decode()
        else:
            told = "{effect} {note}".format(**json.loads(attempt.body))
        if attempt.number != effect.number:
            yield "A success for a payload that has no effect"
        elif told != about:
            yield "An answer about another effect"
    for attempt in story.attempts:
        if attempt.code == REUSED and attempt.number == effect.number:
            yield "The payload that won was refused as another one"


def judge_last(story: Story, effect: Found, *, was_there: bool) -> Iterator[str]:
    """Say what is wrong with the last retries, one for each payload."""
    for attempt in last_retries(story):
        if attempt.number != effect.number:
            if attempt.code != REUSED:
                yield "Another payload was not refused in the end"
        elif story.what == "stream" and was_there:
            if attempt.code != NOT_KEPT:
                yield "An answer that is not kept was given again"
        elif not attempt.is_acknowledged:
            yield "Stuck: the last retry has no success"
        elif attempt.replayed != was_there:
            yield "The last retry executed again, or replayed what was not there"


def last_retries(story: Story) -> list[Attempt]:
    """Return the last retries, one for each payload."""
    attempts = [attempt for attempt in story.attempts if attempt.how == LAST_RETRY]
    assert [a.number for a in attempts] == [*range(len(story.payloads))]
    return attempts


def judge_refusals(story: Story, after: list[Found]) -> Iterator[str]:
    """O2: every refusal leaves what the handler wrote, and the key is free."""
    if any(attempt.code != ON_PURPOSE for attempt in last_retries(story)):
        yield "Stuck: the last retry did not reach the handler"
    if story.acknowledged or any(a.replayed for a in story.attempts):
        yield "A refusal was stored"
    refused = sum(a.code == ON_PURPOSE for a in story.attempts)
    if story.what == "raise" and after:
        yield "An effect of a handler that has none"
    if story.what == "refuse" and not refused <= len(after) <= len(story.attempts):
        yield "Not every refusal was counted"


def judge_steps(ledger: Ledger, charges: list[Charge]) -> Iterator[Violation]:
    """E12, E13: each key has one order, and charges under one derived key."""
    orders, keys, runs = read_orders(), defaultdict(set), defaultdict(set)
    for charge in charges:
        keys[charge.of].add(charge.key)
        runs[charge.of].add(charge.run)
    for story in (story for story in ledger.stories if story.is_in_steps):
        label, history = story.label, story.history()
        if orders[label] != 1:
            yield Violation(f"{orders[label]} orders of one key", history)
        if len(keys[label]) != 1:
            yield Violation(f"Charged under {len(keys[label])} keys", history)
        for attempt in story.acknowledged:
            if json.loads(attempt.body)["run"] not in runs[label]:
                yield Violation("An answer about a charge that was not made", history)


def judge_records(ledger: Ledger, after: Effects) -> Iterator[Violation]:
    """One completed record for each key with an effect, and none besides."""
    acting = {s.label for s in ledger.stories if s.keyed and not s.refuses}
    expected = {label for label in after if label in acting}
    rows = IdempotencyRecord.objects.values_list("key", "state", "status_code")
    found = Counter()
    for label, state, status in rows.iterator():
        found[label] += 1
        if (state, status) != (State.COMPLETED, 201):
            yield Violation(f"A record is {state} with status {status}", label)
    histories = {story.label: story.history() for story in ledger.stories}
    for label in expected - {*found}:
        yield Violation("An effect without its record", histories[label])
    for label in {*found} - expected:
        yield Violation("A record without effect", histories.get(label, label))
    for label, count in found.items():
        if count > 1:
            yield Violation("Two records of one key", histories.get(label, label))
