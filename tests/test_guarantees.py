"""The table of what each mode and policy guarantees: each cell is tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.app.views import behave
from tests.conftest import key
from tests.support.processes import ROOT
from tests.test_docs import code, table

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]

HEAD = ("mode", "effects in the record's database", "external calls")
CONTRACT, README = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("docs/contract.md", "README.md")
)
ROWS = {row["mode"]: row for row in table(*HEAD, document=CONTRACT)}
# Where a run ends: before, between and after what it does, or not at all.
ENDS = (
    "at once",
    *("before the call", "after the call", "after its record"),
    *("after the effect", "after its step"),
    None,
)
RETRIES = 3
Handle = Callable[[Callable[[Request], Any]], None]
BOUNDS = {"exactly once": (1, 1), "at most once": (0, 1), "at least once": (1, None)}


class Killed(BaseException):
    """Ends a run as nothing that a handler could catch by mistake."""


class World:
    """The outside, which no transaction undoes, and where the next run ends."""

    calls: list[str]
    end: str | None
    acts: Callable[[], Any]

    @classmethod
    def begin(cls, end: str | None) -> None:
        cls.calls = []
        cls.end = end

    @classmethod
    def reach(cls, moment: str) -> None:
        if cls.end == moment:
            cls.end = None
            raise Killed


def pay(request: Request) -> Response:
    context: Any = request.idempotency  # type: ignore[attr-defined]
    World.reach("at once")
    derived = context.derive("charge")
    World.reach("before the call")
    World.calls.append(derived)
    World.reach("after the call")
    Effect.objects.create(note=derived)
    World.reach("after the effect")
    return Response({"charge": derived, "run": context.attempt}, 201)


def find_out(record: IdempotencyRecord, request: Request) -> Response | None:
    """Ask the outside: was there a call?"""
    return Response({"charge": World.calls[0]}, 201) if World.calls else None


class Atomic(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Response:
        return pay(request)


class Hold(Atomic):
    idempotency_atomic = False
    idempotency_lease = timedelta(seconds=30)
    idempotency_on_abandoned = "hold"


class Rerun(Hold):
    idempotency_on_abandoned = "rerun"


class Asking(Hold):
    idempotency_on_abandoned = find_out


class Resume(Hold):
    idempotency_on_abandoned = "resume"
    call_on_abandoned = "rerun"

    def post(self, request: Request) -> Response:
        context: Any = request.idempotency  # type: ignore[attr-defined]

        def charge(derived: str) -> str:
            World.reach("before the call")
            World.calls.append(derived)
            World.reach("after the call")
            return derived

        def confirm() -> None:
            Effect.objects.create(note=derived)
            World.reach("after the effect")

        World.reach("at once")
        derived = context.call("charge", charge, on_abandoned=self.call_on_abandoned)
        World.reach("after its record")
        context.step("confirm", confirm)
        World.reach("after its step")
        return Response({"charge": derived, "run": context.attempt}, 201)


class HeldCall(Resume):
    call_on_abandoned = "hold"


class Silent(Hold):
    def post(self, request: Request) -> Any:
        return behave(request)


VIEWS = {
    "atomic": Atomic,
    'leased, `"hold"`': Hold,
    'leased, `"rerun"`': Rerun,
    'leased, `"resume"`': Resume,
    'leased, `"resume"`, a call with `"hold"`': HeldCall,
    "leased, a callable": Asking,
}
PLACES = {name: f"/{view.__name__.lower()}/" for name, view in VIEWS.items()}
urlpatterns = [
    *(path(PLACES[name][1:], view.as_view()) for name, view in VIEWS.items()),
    path("silent/", Silent.as_view()),
]


def try_everything(client: APIClient, place: str) -> Iterator[tuple[int, list[str]]]:
    """Yield effects and calls of one key, for each end of its first run."""
    for number, end in enumerate(ENDS):
        Effect.objects.all().delete()
        World.begin(end)
        stored = set()
        for _request in range(1 + RETRIES):
            try:
                answer = client.post(place, **key(f"key-of-case-{number}"))
            except Killed:
                connection.close()  # as the process would have
                continue
            if answer.status_code == 201:
                stored.add(answer.content)
        assert len(stored) <= 1, f"two stored answers: {stored}"
        yield Effect.objects.count(), World.calls


def bounds(cell: str) -> tuple[int, int | None] | None:
    """Return what a cell's first words promise, or None: they promise no number."""
    found = re.match(r"(exactly|at most|at least) once", cell)
    return BOUNDS[found[0]] if found else None


def judge(numbers: list[int], promised: tuple[int, int | None]) -> None:
    """Hold numbers against a promise that must be kept, and be no weaker than it is."""
    least, most = promised
    assert all(least <= n and (most is None or n <= most) for n in numbers), numbers
    if least == 0:
        assert 0 in numbers, f"never none, so it is exactly once: {numbers}"
    if most is None:
        assert max(numbers) > 1, f"never twice, so it is exactly once: {numbers}"


def test_every_row_is_tried() -> None:
    """E1, E9, E12: Each mode and policy stands in the table."""
    assert ROWS.keys() == VIEWS.keys()


def test_readers_of_both_pages_get_the_same_promise() -> None:
    """E1, E9: README has the contract's table, and what stands below it."""
    marked = re.compile(r"<!-- guarantees -->.+?<!-- /guarantees -->", re.DOTALL)
    promises = marked.findall(README)
    assert promises == marked.findall(CONTRACT)
    assert len(promises) == 1


def test_acting_without_a_sign(client: APIClient, handle: Handle) -> None:
    """E9: A refusal without derive() or renew() frees the key."""
    calls = []

    def handler(request: Request) -> Response:
        calls.append(request)
        return Response(status=404)

    handle(handler)
    for _request in range(2):
        assert client.post("/silent/", **key()).status_code == 404
    assert len(calls) == 2


@pytest.mark.parametrize("name", VIEWS)
def test_effects(name: str, client: APIClient) -> None:
    """E1, E9, E12: Effects are as many as it says, wherever the first run ends."""
    promised = bounds(ROWS[name][HEAD[1]])
    tried = [*try_everything(client, PLACES[name])]
    if promised is None:
        assert ROWS[name][HEAD[1]] == "as the callable finds out"
        # It found the call, not the effect that was to follow.
        found_too_early = {"after the call"}
        assert [effects for effects, _calls in tried] == [
            end not in found_too_early for end in ENDS
        ]
    else:
        judge([effects for effects, _calls in tried], promised)


@pytest.mark.parametrize("name", VIEWS)
def test_calls(name: str, client: APIClient) -> None:
    """E9, E10, E13: Outside calls and their keys are as many as it says."""
    cell = ROWS[name][HEAD[2]]
    promised = bounds(cell)
    assert promised is not None
    calls = [made for _effects, made in try_everything(client, PLACES[name])]
    judge([len(made) for made in calls], promised)
    if "; exactly once for a provider that recognises a derived key" in cell:
        assert {len(set(made)) for made in calls} == {1}
    if "retries get" in cell:
        told = re.search(r"retries get (`[^`]+`)", cell)
        assert told
        World.begin("after the call")
        with pytest.raises(Killed):
            client.post(PLACES[name], **key("key-of-another-case"))
        connection.close()
        answer = client.post(PLACES[name], **key("key-of-another-case"))
        assert answer.data["detail"].code == code(told[1])
