"""The guide to steps: its code runs, and what it says about that is so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, models, transaction
from django.test.utils import isolate_apps
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.response import Response
from rest_framework.serializers import ChoiceField, IntegerField, Serializer
from rest_framework.test import APIClient

from idempotency.context import context_of
from idempotency.database import UTCNow
from idempotency.decorators import idempotent
from idempotency.models import IdempotencyRecord, State
from idempotency.schedules import COMPLETING_TASK, PURGE_TASK
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.support.recipe_modules import Recipe, blocks, cooked, sections
from tests.support.recipe_modules import serve as serve_views

GUIDE = "docs/steps.md"
ORDER = {"goal": "airport", "amount": 2500, "card": "good"}

pytestmark = pytest.mark.usefixtures("database")


class Killed(BaseException):
    """The end of a process."""


class Declined(Exception):
    """The provider's final no."""


class Provider:
    """A provider that knows its keys, and at which a process may end."""

    def __init__(self) -> None:
        self.charges: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.found: list[str] = []
        self.dies = ""

    def charge(self, amount: int, card: str, *, idempotency_key: str) -> dict[str, Any]:
        self.reach("before")
        self.asked.append(idempotency_key)
        if card == "bad":
            raise Declined("No money.")
        made = {"id": f"ch_{len(self.charges)}", "amount": amount}
        self.charges.setdefault(idempotency_key, made)
        self.reach("after")
        return self.charges[idempotency_key]

    def find(self, reference: str) -> dict[str, Any] | None:
        self.found.append(reference)
        return self.charges.get(reference)

    def reach(self, place: str) -> None:
        if self.dies == place:
            self.dies = ""
            raise Killed

    def as_module(self) -> dict[str, Any]:
        return {"charge": self.charge, "find": self.find, "Declined": Declined}


class RideSerializer(Serializer[Any]):
    goal = ChoiceField(["airport", "station"])
    amount = IntegerField()
    card = ChoiceField(["good", "bad"])


@pytest.fixture
def ride_model(database: None) -> Iterator[Any]:
    """Give the guide the model that it does not show."""
    with isolate_apps("tests.app"):

        class Ride(models.Model):
            goal = models.CharField(max_length=20)
            amount = models.IntegerField()
            status = models.CharField(max_length=20, default="booked")
            charge = models.CharField(max_length=20, default="")

            class Meta:
                app_label = "app"

        with connection.schema_editor() as editor:
            editor.create_model(Ride)
        yield Ride
        with connection.schema_editor() as editor:
            editor.delete_model(Ride)


@pytest.fixture
def provider() -> Provider:
    return Provider()


def cook(stack: ExitStack, heading: str, **modules: dict[str, Any]) -> Recipe:
    return stack.enter_context(cooked(heading, GUIDE, **modules))


@pytest.fixture
def guide(ride_model: Any, provider: Provider, settings: Any) -> Iterator[Recipe]:
    """Make the example of the guide, at /rides/."""
    with ExitStack() as stack:
        recipe = cook(
            stack,
            "A ride",
            provider=provider.as_module(),
            models={"Ride": ride_model},
            serializers={"RideSerializer": RideSerializer},
        )
        serve_views(settings, rides=recipe.views.RideView.as_view())
        yield recipe


@pytest.fixture
def resuming(settings: Any) -> Any:
    """Serve a function that gets ``request.idempotency``, at /resuming/."""

    def serve(function: Any, **options: Any) -> None:
        leased = {"atomic": False, "on_abandoned": "resume"}

        @transaction.non_atomic_requests
        @api_view(["POST"])
        @idempotent(**(options or leased))
        def view(request: Any) -> Any:
            return function(context_of(request))

        serve_views(settings, resuming=view)

    return serve


def end_the_lease(ago: timedelta = timedelta(seconds=1)) -> None:
    IdempotencyRecord.objects.filter(lease_expires_at__isnull=False).update(
        lease_expires_at=UTCNow() - ago
    )


def resume(client: APIClient) -> Any:
    return client.post("/resuming/", {}, **key())


def rides(model: Any) -> list[tuple[str, str]]:
    return [*model.objects.order_by("pk").values_list("status", "charge")]


class TestPage:
    """Nothing on the page is left out here."""

    def test_every_block_is_run(self) -> None:
        """Each sample names its file, and is in a section that these tests run."""
        found = {
            heading: [each.file for each in blocks(heading, GUIDE)]
            for heading in sections(GUIDE)
            if blocks(heading, GUIDE)
        }
        assert found == {
            "A ride": ["booking.py", "views.py"],
            "Names": ["receipts.py"],
            "Providers": ["lookups.py", "decisions.py"],
            "Clients that never return": ["settings.py"],
        }


class TestRide:
    """The example."""

    def test_undisturbed(
        self, guide: Recipe, client: APIClient, ride_model: Any
    ) -> None:
        """E12, E15: One ride, one charge, and a replay for the retry."""
        first, again = (client.post("/rides/", ORDER, **key()) for _ in range(2))
        assert (first.status_code, first.content) == (201, again.content)
        assert first.json()["charge"] == "ch_0"
        assert rides(ride_model) == [("paid", "ch_0")]

    @pytest.mark.parametrize("place", ["before", "after", "confirm"])
    @pytest.mark.parametrize("returns", [True, False], ids=["client", "completer"])
    def test_cut_off(
        self,
        guide: Recipe,
        client: APIClient,
        provider: Provider,
        ride_model: Any,
        monkeypatch: Any,
        place: str,
        returns: bool,
    ) -> None:
        """E12, E13, E17: The retry or the completer continues where the run ended."""
        provider.dies = place
        with monkeypatch.context() as patch:
            if place == "confirm":
                patch.setattr(
                    guide.booking, "Response", lambda *_, **__: provider.reach(place)
                )
            with pytest.raises(Killed):
                client.post("/rides/", ORDER, **key())
        assert rides(ride_model) == [("booked", "")]
        end_the_lease(timedelta(hours=1))
        if not returns:
            call_command("complete_idempotency_records", verbosity=0)
            assert rides(ride_model) == [("paid", "ch_0")]
        answer = client.post("/rides/", ORDER, **key())
        assert answer.status_code == 201
        assert ("Idempotent-Replayed" in answer) is not returns
        assert rides(ride_model) == [("paid", "ch_0")]
        assert len(provider.asked) == (2 if place == "after" else 1)
        assert len({*provider.asked}) == len(provider.charges) == 1

    def test_refused(self, guide: Recipe, client: APIClient, ride_model: Any) -> None:
        """O2: A refusal before the first step frees the key."""
        assert client.post("/rides/", {}, **key()).status_code == 400
        assert not IdempotencyRecord.objects.exists()
        assert client.post("/rides/", ORDER, **key()).status_code == 201

    def test_declined(
        self, guide: Recipe, client: APIClient, provider: Provider, ride_model: Any
    ) -> None:
        """E13, E15: A final no is recorded, and its response stored."""
        order = {**ORDER, "card": "bad"}
        first, again = (client.post("/rides/", order, **key()) for _ in range(2))
        assert (first.status_code, first.content) == (402, again.content)
        assert first.json() == {"detail": "No money."}
        assert rides(ride_model) == [("cancelled", "")]
        assert len(provider.asked) == 1

    def test_exception_of_a_call(
        self, guide: Recipe, client: APIClient, provider: Provider, ride_model: Any
    ) -> None:
        """E13: An exception is not recorded, so the retry calls again."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guide.booking.provider, "charge", lambda *_, **__: 1 / 0)
            assert client.post("/rides/", ORDER, **key()).status_code == 500
        assert client.post("/rides/", ORDER, **key()).status_code == 201
        assert rides(ride_model) == [("paid", "ch_0")]

    def test_without_a_key(self, guide: Recipe, client: APIClient) -> None:
        """K4: The example requires one."""
        answer = client.post("/rides/", ORDER)
        assert code_of(answer) == "idempotency_key_required"

    @pytest.mark.parametrize("place", ["after", None])
    def test_atomic_mode(
        self,
        guide: Recipe,
        client: APIClient,
        provider: Provider,
        ride_model: Any,
        resuming: Any,
        place: str | None,
    ) -> None:
        """E14: The same code in atomic mode: a crash undoes all but the calls."""
        resuming(lambda steps: guide.booking.book(steps, ORDER), atomic=True)
        if place:
            provider.dies = place
            with pytest.raises(Killed):
                resume(client)
            assert (rides(ride_model), len(provider.charges)) == ([], 1)
        assert resume(client).status_code == 201
        assert rides(ride_model) == [("paid", "ch_0")]


class TestWhatBelongsWhere:
    def test_check_that_a_step_makes_untrue(
        self, client: APIClient, resuming: Any
    ) -> None:
        """E12, E15: Outside the step it fails the retry, inside it does not."""
        for inside in (False, True):
            Effect.objects.all().delete()
            IdempotencyRecord.objects.all().delete()
            dies = [True]

            def check() -> None:
                if Effect.objects.exists():
                    raise ValidationError

            def ride(inside: bool = inside) -> None:
                if inside:
                    check()
                Effect.objects.create()

            def handler(
                steps: Any, inside: bool = inside, dies: Any = dies, ride: Any = ride
            ) -> Response:
                if not inside:
                    check()
                steps.step("ride", ride)
                if dies:
                    raise dies.pop() and Killed
                return Response({}, status=201)

            resuming(handler)
            with pytest.raises(Killed):
                resume(client)
            assert resume(client).status_code == (201 if inside else 400)

    def test_check_in_the_first_step_frees_the_key(
        self, client: APIClient, resuming: Any
    ) -> None:
        """O2, E12: A step that refuses records nothing."""

        def refuse() -> None:
            Effect.objects.create()
            raise ValidationError

        resuming(lambda steps: steps.step("ride", refuse))
        assert resume(client).status_code == 400
        assert not IdempotencyRecord.objects.exists()
        assert not Effect.objects.exists()


class TestNames:
    def test_loop(self, client: APIClient, resuming: Any) -> None:
        """E16: Each round has its own name, whatever the order of the rounds."""
        sent: list[tuple[str, str]] = []
        dies = ["b"]

        def send(to: str, key: str) -> str:
            if to in dies:
                dies.remove(to)
                raise Killed
            sent.append((to, key))
            return "sent"

        with cooked("Names", GUIDE, mail={"send": send}) as recipe:

            def handler(steps: Any, addresses: str) -> Response:
                recipe.receipts.send_receipts(steps, addresses)
                return Response({}, status=201)

            resuming(lambda steps: handler(steps, "abc"))
            with pytest.raises(Killed):
                resume(client)
            resuming(lambda steps: handler(steps, "cab"))
            assert resume(client).status_code == 201
        assert [to for to, _key in sent] == ["a", "c", "b"]
        assert len({key for _to, key in sent}) == 3


class TestProviders:
    @pytest.fixture
    def recipe(self, provider: Provider) -> Iterator[Recipe]:
        with cooked("Providers", GUIDE, provider=provider.as_module()) as recipe:
            yield recipe

    @pytest.mark.parametrize("hours", [22, 24])
    @pytest.mark.parametrize("place", ["before", "after"])
    def test_forgetful(
        self,
        recipe: Recipe,
        provider: Provider,
        client: APIClient,
        resuming: Any,
        hours: int,
        place: str,
    ) -> None:
        """E13: When the provider may have forgotten the key, it is asked."""

        def charge(key: str) -> Any:
            return provider.charge(1, "good", idempotency_key=key)

        resuming(lambda steps: Response(recipe.lookups.charge_once(steps, charge)))
        provider.dies = place
        with pytest.raises(Killed):
            resume(client)
        IdempotencyRecord.objects.update(created_at=UTCNow() - timedelta(hours=hours))
        answer = resume(client)
        assert answer.json()["id"] == "ch_0"
        assert len(provider.charges) == 1
        assert len(provider.found) == (hours == 24)
        is_repeated = place == "after" and hours == 22
        assert len(provider.asked) == 1 + is_repeated

    @pytest.mark.parametrize("error", [Killed, ZeroDivisionError])
    @pytest.mark.parametrize("was_made", [True, False])
    def test_without_keys(
        self,
        recipe: Recipe,
        client: APIClient,
        resuming: Any,
        error: type[BaseException],
        was_made: bool,
    ) -> None:
        """E13: A call that ends without a result waits for a person."""
        calls = []

        def charge(key: str) -> Any:
            calls.append(key)
            if len(calls) == 1:
                raise error
            return {"id": "second"}

        def handler(steps: Any) -> Response:
            return Response(steps.call("charge", charge, on_abandoned="hold"))

        resuming(handler)
        try:
            assert resume(client).status_code == 500
        except Killed:
            assert error is Killed
        assert code_of(resume(client)) == "idempotency_outcome_unknown"
        record = IdempotencyRecord.objects.get()
        if was_made:
            recipe.decisions.charge_was_made(record.pk, "first")
        else:
            recipe.decisions.charge_was_not_made(record.pk)
        assert resume(client).json() == {"id": "first" if was_made else "second"}
        assert len(calls) == 2 - was_made


class TestCompleters:
    def test_schedule(self) -> None:
        """E17: Beat runs the purge and the completers."""
        with cooked("Clients that never return", GUIDE) as recipe:
            schedule = recipe.settings["CELERY_BEAT_SCHEDULE"]
        assert [entry["task"] for entry in schedule.values()] == [
            PURGE_TASK,
            COMPLETING_TASK,
        ]

    @pytest.mark.parametrize(
        ("name", "value"),
        [("should_store_response", lambda *_: False), ("idempotency_store", False)],
    )
    def test_what_does_not_run(
        self,
        guide: Recipe,
        client: APIClient,
        provider: Provider,
        ride_model: Any,
        monkeypatch: Any,
        name: str,
        value: Any,
    ) -> None:
        """E17: Permissions, ``should_store_response`` and ``store`` have no say."""
        view = guide.views.RideView
        provider.dies = "after"
        with pytest.raises(Killed):
            client.post("/rides/", ORDER, **key())
        end_the_lease(timedelta(hours=1))
        nobody = SimpleNamespace(has_permission=lambda *_: False)
        with monkeypatch.context() as patch:
            patch.setattr(view, "permission_classes", [lambda: nobody])
            patch.setattr(view, name, value)
            assert client.post("/rides/", ORDER, **key()).status_code == 403
            call_command("complete_idempotency_records", verbosity=0)
        record = IdempotencyRecord.objects.get()
        assert (record.state, record.body_size is None) == (State.COMPLETED, False)
        assert rides(ride_model) == [("paid", "ch_0")]

    def test_what_is_stored(
        self, guide: Recipe, client: APIClient, provider: Provider, ride_model: Any
    ) -> None:
        """E14, F5: Results are readable in the record, until there is a response."""
        provider.dies = "after"
        with pytest.raises(Killed):
            client.post("/rides/", ORDER, **key())
        record = IdempotencyRecord.objects.get()
        assert "airport" in (record.steps or "")
        client.post("/rides/", ORDER, **key())
        record.refresh_from_db()
        assert "airport" not in (record.steps or "")
