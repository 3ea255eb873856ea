"""The commands that prove things: they see what is wrong, and what was left out."""

from __future__ import annotations

import ast
import json
import sys
from typing import Any, ClassVar

import pytest

from idempotency.models import State
from tests import crash_matrix, race_matrix
from tests.breaks import BREAKS, ROOT, Break
from tests.soak.ledger import Attempt, Fault, Ledger, Story
from tests.soak.load import LAST_RETRY
from tests.soak.verdict import Found, judge_attempt, judge_story
from tests.support import atomic_crashes, resumed_crashes
from tests.support.charge_ledger import Charge
from tests.support.database_servers import NotInstalled
from tests.support.http_servers import Answer
from tests.support.leased_outcomes import Moment, Step
from tests.support.sleep_counter import LONGEST


def test_crashes_of_a_database_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """E1: Without its server a database is named, and the command fails."""

    def run(name: str, *others: Any) -> tuple[int, list[str]]:
        if name == "mariadb":
            raise NotInstalled("no server")
        return 1, []

    monkeypatch.setattr(crash_matrix, "run_apart", run)
    monkeypatch.setattr(sys, "argv", ["crash_matrix"])
    assert crash_matrix.main() == 1
    assert capsys.readouterr().out == "mariadb was left out: no server\n"
    monkeypatch.setattr(sys, "argv", ["crash_matrix", "--database", "sqlite"])
    assert crash_matrix.main() == 0


def test_races_of_a_database_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """E1: The race matrix fails if a database does not answer."""
    tally = race_matrix.Tally(
        requests=1, effects=1, doubled=0, lost=0, stuck=0, unexpected=0
    )
    noted = race_matrix.properties("sqlite", "race", tally, atomic_requests=False)
    row = {name: str(value) for name, value in noted}
    monkeypatch.setattr(race_matrix, "run_races", lambda suite, work: ([row], True))
    # An empty address leaves a service alone.
    monkeypatch.setenv("TEST_MARIADB_URL", "")
    sqlite = ["race_matrix", "--database", "sqlite"]
    monkeypatch.setattr(sys, "argv", [*sqlite, "--database", "mariadb"])
    assert race_matrix.main() == 1
    assert "mariadb was left out: " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", sqlite)
    assert race_matrix.main() == 0


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_breaks_fit(broken: Break) -> None:
    """E1: Each break on purpose finds what it breaks, and the test that notices."""
    assert (ROOT / broken.file).read_text().count(broken.old) == 1
    path, *names = broken.test.split("::")
    found: Any = ast.parse((ROOT / path).read_text())
    for name in names:
        (found,) = (n for n in found.body if getattr(n, "name", None) == name)
    assert found.name.startswith("test_")


class TestCrashes:
    """How the crash matrix judges answers."""

    @staticmethod
    def faults(*, first: int | None = None, sleeps: int = 0, took: float = 0.1) -> Any:
        headers = {"X-Sleeps": "0", "X-Took": "0.1"}
        waited = {"X-Sleeps": f"{sleeps}", "X-Took": f"{took}"}
        body = b'{"effects": [1]}'
        outcome = atomic_crashes.Outcome(
            handler=atomic_crashes.HANDLERS["plain"],
            first=first and Answer(first, headers, b"{}"),  # type: ignore[arg-type]
            first_effects={1},
            retry=Answer(201, waited, body),
            retry_effects=set(),
            again=Answer(201, {**headers, "Idempotent-Replayed": "true"}, body),
        )
        return [kind for kind, _why in outcome.faults()]

    def test_good(self) -> None:
        """E1: A failed first request and a prompt retry are no fault."""
        assert self.faults() == self.faults(first=500) == self.faults(first=503) == []

    def test_waits(self) -> None:
        """E1: A retry that had to wait is stuck."""
        assert self.faults(sleeps=1) == self.faults(took=LONGEST + 1) == ["stuck"]

    @pytest.mark.parametrize("status", [200, 409, 422, 502])
    def test_first_answers(self, status: int) -> None:
        """E1: Any other status of a first request that was cut off is a fault."""
        assert self.faults(first=status) == ["unexpected"]


class TestResumed:
    """How the crash matrix judges runs in steps."""

    HEADERS: ClassVar = {"X-Sleeps": "0", "X-Took": "0.1"}
    BODY = b'{"order": 1, "receipt": 2, "run": "a"}'

    def answer(self, status: int = 201, *, replayed: bool = False) -> Answer:
        headers = {**self.HEADERS, "Idempotent-Replayed": "true" if replayed else ""}
        return Answer(status, headers, self.BODY if status == 201 else b"{}")

    def faults(
        self,
        *,
        first: Answer | None = None,
        retry: Answer | None = None,
        runs: str = "a",
        keys: str = "k",
        receipts: tuple[int, ...] = (2,),
        policy: str = "rerun",
        went_on: bool = False,
    ) -> set[str]:
        """Judge a run that was cut after its order."""
        charges = [
            Charge(of="", key=key, run=run) for run, key in zip(runs, keys, strict=True)
        ]
        ordered = Moment(
            state=State.ABANDONED, is_leased=False, charges=[], rows={"order": [1]}
        )
        rows = {"order": [1], "receipt": [*receipts]} if receipts else {"order": [1]}
        finished = Moment(
            state=State.COMPLETED, is_leased=False, charges=charges, rows=rows
        )
        outcome = resumed_crashes.Outcome(
            policy=policy,
            handler=resumed_crashes.HANDLERS["plain"],
            went_on=went_on,
            before=Moment(state=None, is_leased=False, charges=[]),
            first=Step(first, ordered),
            early=None,
            retry=Step(retry or self.answer(), finished),
            again=Step(self.answer(replayed=True), finished),
        )
        return {kind for kind, _why in outcome.judge()}

    def test_good(self) -> None:
        """E12: A retry that finishes what was cut off is no fault."""
        assert self.faults() == set()
        assert self.faults(runs="ab", keys="kk") == set()

    def test_doubled(self) -> None:
        """E12, E13: A second row, key or held call is a fault."""
        assert "doubled" in self.faults(receipts=(2, 3))
        assert self.faults(runs="ab", keys="kl") == {"doubled"}
        assert self.faults(runs="ab", keys="kk", policy="hold") == {"doubled"}

    def test_lost(self) -> None:
        """E12, E13: A row or charge that is missing is a fault."""
        assert self.faults(receipts=()) == {"lost"}
        assert self.faults(runs="", keys="") == {"lost"}

    def test_stuck(self) -> None:
        """E12: A retry that does not finish it is a fault."""
        assert "stuck" in self.faults(retry=self.answer(409))

    def test_unexpected(self) -> None:
        """E7: A process that goes on must not give up between two steps."""
        assert self.faults(first=self.answer(500)) == set()
        assert self.faults(first=self.answer(500), went_on=True) == {"unexpected"}
        assert self.faults(first=self.answer(409)) == {"unexpected"}


IN_PROGRESS = (409, "idempotency_in_progress")
FAILED = (503, "idempotency_transaction_failed")
DEADLOCK = {"error": "OperationalError", "detail": "deadlock detected"}
LOST = {"error": "OperationalError", "detail": "the connection is lost"}


class TestVerdict:
    """How the long run judges answers."""

    def setup_method(self) -> None:
        self.ledger = Ledger()
        self.story = Story(label="a", path="/", keyed=True, payloads=[{"do": "act"}])

    def ask(
        self,
        started: float,
        ended: float,
        told: tuple[int, str] | tuple[int, dict[str, str]] | None,
        how: str = "alone",
    ) -> Attempt:
        """Enter a request and its answer."""
        attempt = Attempt(number=0, how=how, started=started, ended=ended)
        if told is not None:
            attempt.status, said = told
            said = {"code": said} if isinstance(said, str) else said
            attempt.body = json.dumps(said).encode()
        attempt.headers = {"Retry-After": "1"}
        self.story.attempts.append(attempt)
        return attempt

    def judge(self, attempt: Attempt) -> list[str]:
        return [*judge_attempt(self.story, attempt, self.ledger)]

    def cut(self) -> None:
        self.ledger.faults.append(Fault("connections cut", 0, 9))

    def test_in_progress(self) -> None:
        """E3: A 409 needs another request that may be running."""
        told = ["In progress, though nobody else asked"]
        assert self.judge(self.ask(5, 6, IN_PROGRESS)) == told
        self.ask(1, 2, (500, "on_purpose"))
        assert self.judge(self.story.attempts[0]) == told
        self.ask(4, 5, (500, "on_purpose"))
        assert self.judge(self.story.attempts[0]) == []

    @pytest.mark.parametrize("told", [None, (500, LOST)])
    def test_in_progress_after_a_cut(self, told: Any) -> None:
        """E3: A request without its client may run on for any time."""
        self.cut()
        self.ask(1, 2, told)
        assert self.judge(self.ask(5, 6, IN_PROGRESS)) == []

    def test_in_progress_after_an_answer(self) -> None:
        """R6: A 409 after the response was given is a fault."""
        self.ask(1, 2, (409, "idempotency_response_not_kept"))
        self.ask(4, 7, None)
        told = ["In progress, though its answer had been given before"]
        assert self.judge(self.ask(5, 6, IN_PROGRESS)) == told

    def test_failed_transactions(self) -> None:
        """E4: There must be a reason."""
        told = ["A transaction failed while nothing was broken"]
        failed = self.ask(1, 2, FAILED)
        undone = self.ask(1, 2, (503, {"code": FAILED[1], "cause": DEADLOCK["detail"]}))
        assert self.judge(failed) == self.judge(undone) == told
        self.story.payloads[0]["do"] = "contend"
        assert self.judge(failed) == told
        assert self.judge(undone) == []
        self.cut()
        assert self.judge(failed) == []

    def test_no_database(self) -> None:
        """E4: A database that is not available has been cut off, or has crashed."""
        away = self.ask(1, 2, (503, "idempotency_database_unavailable"))
        assert "No Retry-After" in self.judge(away)
        away.headers = {"Retry-After": "5"}
        assert self.judge(away) == ["No database while nothing was broken"]
        self.cut()
        assert self.judge(away) == []

    def test_failures(self) -> None:
        """E4, O3: A deadlock is no 500, whatever is broken meanwhile."""
        lost, undone = self.ask(1, 2, (500, LOST)), self.ask(1, 2, (500, DEADLOCK))
        assert self.judge(lost) == ["A 500 while nothing was broken"]
        self.cut()
        assert self.judge(lost) == []
        told = ["A 500 for a transaction that the database has undone"]
        assert self.judge(undone) == told

    @pytest.mark.parametrize("told", [IN_PROGRESS, FAILED, None])
    def test_last_retries(self, told: Any) -> None:
        """E1: The last retry is the last, whatever the response."""
        self.ask(1, 2, told, LAST_RETRY)
        effects = [Found(1, 0)]
        found = [*judge_story(self.story, effects, effects)]
        assert found == ["Stuck: the last retry has no success"]
