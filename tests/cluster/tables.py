"""What came of a run, in numbers; needs no Django."""

# ruff: noqa: T201  # its output is for people

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import ClassVar


@dataclass(frozen=True)
class Fault:
    """Something that must not be, where, and the whole history of its key."""

    what: str
    where: str
    history: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.where}\n{self.history}".rstrip()


class Loses(Enum):
    """What a failover may lose of what was committed."""

    NOTHING = "nothing"
    # Each commit that waits for no standby; a claim of leased mode waits for one.
    COMMITS = "commits but claims"
    # No commit waits.
    CLAIMS = "commits, claims, too"


@dataclass(kw_only=True)
class Tally:
    """What became of some keys; ``faults`` are the columns that must be 0."""

    keys: int = 0
    # Requests that were answered, and those that were not.
    answers: int = 0
    no_answer: int = 0
    # Refusals that a client may retry, and Django's own 500.
    refused: int = 0
    bare_500: int = 0
    # Runs of handlers beyond the first of each key, most of which were undone.
    reruns: int = 0
    # Keys whose committed effect and record are both lost by a failover (allowed only
    # where it loses commits), and handlers that acted outside again because of that.
    gone: int = 0
    again: int = 0
    # Keys with more effects than their mode allows.
    doubled: int = 0
    # Keys without an effect that a client was told of.
    lost: int = 0
    # Keys of which one is there without the other: the record, the effect.
    torn: int = 0
    # Keys whose last retry, when all is well, gets nothing to keep.
    stuck: int = 0
    # Answers that the rules do not allow.
    wrong: int = 0

    FAULTS: ClassVar = ("doubled", "lost", "torn", "stuck", "wrong")

    @property
    def faults(self) -> int:
        """The sum of what must be 0."""
        return sum(getattr(self, name) for name in self.FAULTS)

    def __add__(self, other: Tally) -> Tally:
        both = Counter(asdict(self))
        both.update(asdict(other))
        return Tally(**both)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table."""

    cluster: str
    scenario: str
    mode: str
    kind: str
    # How often something was broken on purpose.
    breaks: int
    tally: Tally


@dataclass
class Report:
    """The rows of all scenarios, and what is wrong in them."""

    rows: list[Row] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    # What Django's own 500 were, and how often.
    bare_500: Counter[str] = field(default_factory=Counter)


def print_table(rows: list[Row]) -> None:
    """Print the rows of each scenario below headings, and their sum."""
    for scenario in dict.fromkeys(row.scenario for row in rows):
        own = [row for row in rows if row.scenario == scenario]
        breaks = f", {own[0].breaks} broken" if own[0].breaks else ""
        print(f"\n{own[0].cluster}: {scenario}{breaks}")
        numbers = [each.name for each in fields(Tally)]
        table = [["mode", "servers", *(name.replace("_", " ") for name in numbers)]]
        tallies = [(row.mode, row.kind, row.tally) for row in own]
        tallies.append(("all", "", sum((row.tally for row in own), Tally())))
        for mode, kind, tally in tallies:
            table.append([mode, kind, *(str(getattr(tally, n)) for n in numbers)])
        print_aligned(table)
    sys.stdout.flush()


def print_aligned(table: list[list[str]]) -> None:
    """Print a table, the words of its first two columns to the left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        aligned = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(aligned).rstrip())
