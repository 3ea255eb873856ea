"""The page of concepts: what a crash at each moment leaves, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from django.db import connection
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.claims import claims_in
from idempotency.claims.multi_statements import MultiStatementTransaction
from idempotency.claims.pipelines import PipelinedTransaction
from idempotency.database import UTCNow
from idempotency.execution import Execution
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State
from idempotency.modes import LeasedMode
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.test_docs import DOCUMENTS, ROOT, table

pytestmark = [
    pytest.mark.usefixtures("atomic_requests", "each_way"),
    pytest.mark.urls(__name__),
]

ATOMIC = table("the worker dies", "effect", "record", "the next retry")
LEASED = table("the worker dies, in leased mode", "external call")
WHEN_OVER = "record after the lease"


class Killed(BaseException):
    """Ends a worker where no handler and no middleware sees it."""


class World:
    """Where the next run ends, and the external calls, which nothing undoes."""

    end: str | None = None
    calls = 0

    @classmethod
    def reach(cls, moment: str) -> None:
        if cls.end == moment:
            raise Killed


class Atomic(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Response:
        World.reach("before the handler acts")
        World.reach("before the external call")
        World.calls += 1
        World.reach("after the external call")
        Effect.objects.create()
        World.reach("after the handler acts")
        World.reach("after the handler's writes")
        return Response({}, status=201)


class Leased(Atomic):
    idempotency_atomic = False
    idempotency_on_abandoned = "hold"


urlpatterns = [
    path("atomic/", Atomic.as_view()),
    path("leased/", Leased.as_view()),
]


@pytest.fixture(autouse=True)
def end(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let a test say at which moment the worker dies."""
    claims = type(claims_in("default"))
    claim, complete = claims.claim, claims.complete
    complete_and_commit = MultiStatementTransaction.complete
    name_expiry, commit = Execution._name_expiry, connection.commit

    def dying_claim(self: Any, *args: Any, **options: Any) -> Any:
        World.reach("before the claim")
        return claim(self, *args, **options)

    def dying_complete(self: Any, *args: Any) -> None:
        complete(self, *args)
        World.reach("before the COMMIT")

    def dying_completion(self: Any, *args: Any) -> None:
        World.reach("before the COMMIT")  # which has the record with it
        complete_and_commit(self, *args)

    def dying_commit() -> None:
        commit()
        World.reach("after the COMMIT")

    def dying_later(self: Any, record: IdempotencyRecord) -> None:
        name_expiry(self, record)
        World.reach("after complete")

    monkeypatch.setattr(claims, "claim", dying_claim)
    monkeypatch.setattr(claims, "complete", dying_complete)
    if connection.vendor == "postgresql":
        die_in_pipelines(monkeypatch)
    monkeypatch.setattr(MultiStatementTransaction, "complete", dying_completion)
    monkeypatch.setattr(connection, "commit", dying_commit)
    monkeypatch.setattr(Execution, "_name_expiry", dying_later)
    # A process that is killed gives nothing up.
    monkeypatch.setattr(LeasedMode, "_give_up", lambda *args: None)

    def set_end(moment: str) -> None:
        World.end, World.calls = moment, 0

    yield set_end
    World.end = None


def die_in_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker die where statements travel together."""
    import psycopg  # noqa: PLC0415  # of one database

    execute = psycopg.Cursor.execute
    claim, complete = PipelinedTransaction.claim, PipelinedTransaction.complete

    def dying_execute(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        if query == "COMMIT":  # with the record
            World.reach("before the COMMIT")
        return execute(self, query, *args, **options)

    def dying_claim(self: Any, *args: Any) -> Any:
        World.reach("before the claim")
        return claim(self, *args)

    def dying_complete(self: Any, *args: Any) -> None:
        complete(self, *args)
        if self.is_nested:
            World.reach("before the COMMIT")

    monkeypatch.setattr(psycopg.Cursor, "execute", dying_execute)
    monkeypatch.setattr(PipelinedTransaction, "claim", dying_claim)
    monkeypatch.setattr(PipelinedTransaction, "complete", dying_complete)


def die(client: APIClient, place: str) -> None:
    with suppress(Killed):
        client.post(place, **key())
        raise AssertionError(f"No worker has come to this: {World.end}")
    World.end = None
    # Or the next request on the connection would count as sent by that handler (E6).
    assert claims_in(connection.alias).executing == {}
    connection.close()  # as the process would have


@pytest.mark.parametrize("row", ATOMIC, ids=lambda row: row["the worker dies"])
def test_atomic(
    row: dict[str, str], client: APIClient, end: Callable[[str], None]
) -> None:
    """E1: Effect and record are both there or neither, and one retry is enough."""
    end(row["the worker dies"])
    die(client, "/atomic/")
    states = [*IdempotencyRecord.objects.values_list("state", flat=True)]
    assert states == {"none": [], "completed": [State.COMPLETED]}[row["record"]]
    assert Effect.objects.count() == {"none": 0, "there": 1}[row["effect"]]
    retry = client.post("/atomic/", **key())
    assert retry.status_code == 201
    is_replay = "Idempotent-Replayed" in retry.headers
    assert (
        is_replay is {"runs": False, "gets the response": True}[row["the next retry"]]
    )
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("row", LEASED, ids=lambda row: next(iter(row.values())))
def test_leased(
    row: dict[str, str], client: APIClient, end: Callable[[str], None]
) -> None:
    """E7, E9: What a run may have done outside is unknown once its lease has ended."""
    end(row["the worker dies, in leased mode"])
    die(client, "/leased/")
    assert World.calls == {"none": 0, "made": 1}[row["external call"]]
    found = IdempotencyRecord.objects.first()
    if row[WHEN_OVER] == "abandoned":
        early = client.post("/leased/", **key())
        assert code_of(early) == "idempotency_in_progress"
        IdempotencyRecord.objects.update(lease_expires_at=UTCNow() - timedelta(1))
        assert IdempotencyRecord.objects.abandoned().exists()
    else:
        state = None if found is None else found.state
        assert state == {"none": None, "completed": State.COMPLETED}[row[WHEN_OVER]]
    retry = client.post("/leased/", **key())
    if row["the next retry"] == "`on_abandoned` decides":
        assert code_of(retry) == "idempotency_outcome_unknown"
    else:
        assert retry.status_code == 201
        is_replay = "Idempotent-Replayed" in retry.headers
        assert is_replay is (row["the next retry"] == "gets the response")


def test_every_moment_is_reached() -> None:
    """A moment that the page names is one where a worker can die in this module."""
    reached = Path(__file__).read_text(encoding="utf-8")
    for row in (*ATOMIC, *LEASED):
        moment = next(iter(row.values()))
        assert f'World.reach("{moment}")' in reached


# The pictures


def drawings() -> Any:
    place = ROOT / "docs" / "diagrams" / "draw.py"
    spec = spec_from_file_location("draw", place)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DRAW = drawings()


@pytest.mark.parametrize("name", DRAW.DRAWINGS)
def test_diagram(name: str) -> None:
    """Each picture is what the script draws, is shown, and names what it shows."""
    drawn = DRAW.DRAWINGS[name]().render()
    stored = (DRAW.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert stored == drawn, "python docs/diagrams/draw.py"
    assert f"](diagrams/{name}.svg)" in DOCUMENTS["docs/concepts.md"]
    picture = ElementTree.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    assert picture.findtext(f"{svg}title")
    assert picture.findtext(f"{svg}desc")
    _, _, _, height = map(int, picture.attrib["viewBox"].split())
    for text in picture.iter(f"{svg}text"):
        assert 0 < int(text.attrib["y"]) < height


def test_no_diagram_is_left_over() -> None:
    """There is no picture that the script does not draw."""
    assert {path.stem for path in DRAW.FOLDER.glob("*.svg")} == {*DRAW.DRAWINGS}


def test_diagram_of_states() -> None:
    """E9: The picture of the states has each of them."""
    drawn = DRAW.states().render()
    for state in State:
        assert f">{state.label}</text>" in drawn
