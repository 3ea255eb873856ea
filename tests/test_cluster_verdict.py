"""The judge of ``make cluster``: what it takes for a fault, and what for a loss."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clients import Asking
from tests.cluster.sites import Kind, Site
from tests.cluster.tables import Loses, Tally
from tests.cluster.verdict import Found, Judge
from tests.conftest import once
from tests.soak.ledger import Attempt
from tests.soak.load import LAST_RETRY
from tests.support.charge_ledger import Charge, Ledger

NOTE = "note"
SITE = Site(Kind(atomic_requests=False, isolation="RC", route="a node each"))

pytestmark = once


def told(effect: int = 1, *, replayed: bool = False, **more: Any) -> Attempt:
    """Return a success."""
    body = json.dumps({"note": NOTE, "effect": effect}).encode()
    return attempt(201, body, replayed=replayed, **more)


def refused(code: str, status: int = 409, **more: Any) -> Attempt:
    body = json.dumps({"code": code}).encode()
    return attempt(status, body, headers={"Retry-After": "1"}, **more)


def attempt(status: int | None, body: bytes = b"", **more: Any) -> Attempt:
    return Attempt(
        **{"number": 0, "how": "alone", "started": 0.0, **more},
        status=status,
        body=body,
    )


def last(answer: Attempt) -> Attempt:
    answer.how = LAST_RETRY
    return answer


def found(*receipts: int, completed: bool = True) -> Found:
    """Return what the tables say: effects, and whether there is a completed record."""
    return Found(
        receipts={NOTE: [*receipts]} if receipts else {},
        orders=Counter(),
        completed={NOTE} if completed else set(),
    )


ALL_IS_WELL = [told(), last(told(replayed=True))]
# The answer, too, is wrong.
LOST = {"lost": 1, "wrong": 1}
GONE = [told(1), last(told(2))]
HELD = "idempotency_outcome_unknown"
CASES: dict[str, Any] = {
    "all is well": ("atomic", ALL_IS_WELL, found(1), found(1), 1, {}),
    "undone and retried": (
        "atomic",
        [refused("idempotency_transaction_failed", 503), *ALL_IS_WELL],
        found(1),
        found(1),
        2,
        {},
    ),
    "answered as new, twice": (
        "atomic",
        [told(), last(told())],
        found(1),
        found(1),
        2,
        {"wrong": 1},
    ),
    "two effects": ("atomic", ALL_IS_WELL, found(1, 2), found(1, 2), 2, {"doubled": 1}),
    "no effect": ("atomic", GONE, found(completed=False), found(2), 2, LOST),
    "no record": (
        "atomic",
        ALL_IS_WELL,
        found(1, completed=False),
        found(1),
        1,
        {"torn": 1},
    ),
    "stuck": (
        "atomic",
        [last(refused("idempotency_in_progress"))],
        found(completed=False),
        found(completed=False),
        0,
        {"stuck": 1},
    ),
    "held without a reason": (
        "hold",
        [refused(HELD), last(refused(HELD))],
        found(completed=False),
        found(completed=False),
        1,
        {"stuck": 1},
    ),
    "held after a failure": (
        "hold",
        [attempt(None), last(refused(HELD))],
        found(completed=False),
        found(completed=False),
        1,
        {},
    ),
    "held in atomic mode": (
        "atomic",
        [refused(HELD), last(told())],
        found(completed=False),
        found(1),
        1,
        {"wrong": 1},
    ),
    "acted outside twice": ("hold", ALL_IS_WELL, found(1), found(1), 2, {"doubled": 1}),
    "may act twice": ("rerun", ALL_IS_WELL, found(1), found(1), 2, {}),
}


def judge(case: str, directory: Path, loses: Loses = Loses.NOTHING) -> dict[str, int]:
    """Return the columns of a case that are not 0, without those of mere requests."""
    mode, attempts, before, after, runs, _expected = CASES[case]
    books = Ledger(directory / "charges")
    for run in range(runs):
        books.add(Charge(of=NOTE, key="derived", run=f"{run}"))
    asking = Asking(
        label=NOTE,
        path=f"/{mode}/",
        keyed=True,
        payloads=[{"do": mode, "note": NOTE}],
        site=SITE,
        mode=mode,
        key="key",
        attempts=[*attempts],
    )
    tally, faults = Judge(before, after, books.path, loses).judge(asking)
    assert bool(faults) is bool(tally.faults)
    columns = [*Tally.FAULTS, "gone", "again"]
    return {name: getattr(tally, name) for name in columns if getattr(tally, name)}


@pytest.mark.parametrize("case", CASES)
def test_faults(case: str, tmp_path: Path) -> None:
    """E1, E3, E9: Each mode has its own faults."""
    assert judge(case, tmp_path) == CASES[case][-1]


@pytest.mark.parametrize(
    ("case", "loses", "expected"),
    [
        ("no effect", Loses.CLAIMS, {"gone": 1}),
        ("no effect", Loses.COMMITS, {"gone": 1}),
        ("no record", Loses.CLAIMS, {"torn": 1}),
        ("two effects", Loses.CLAIMS, {"doubled": 1}),
        ("acted outside twice", Loses.CLAIMS, {"again": 1}),
        ("acted outside twice", Loses.COMMITS, {"doubled": 1}),
    ],
)
def test_losses(
    case: str, loses: Loses, expected: dict[str, int], tmp_path: Path
) -> None:
    """E1, E7: What a failover may lose, it loses whole; claims it loses with all."""
    assert judge(case, tmp_path, loses) == expected
