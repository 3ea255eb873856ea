"""The recipes for Stripe, with its own library and a stub of its API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db import connection, models
from django.test.utils import isolate_apps
from django.utils import timezone
from rest_framework.test import APIClient

from idempotency.models import IdempotencyRecord, State
from tests.conftest import code_of, key
from tests.support.lossy_proxy import listening
from tests.support.recipe_modules import Recipe, cooked, serve

stripe = pytest.importorskip("stripe", reason="stripe's library is not installed")

HEADING = "Stripe with a derived key"
IN_STEPS = "Stripe in steps"

pytestmark = pytest.mark.usefixtures("database")


class Stripe:
    """What the tests need of Stripe: intents, keys that it knows, and its moods."""

    def __init__(self) -> None:
        self.intents: list[dict[str, Any]] = []
        self.known: dict[str, dict[str, Any]] = {}
        self.creations: list[str] = []
        self.searches: list[str] = []
        self.hangs_up_before = self.hangs_up_after = 0

    def create(self, key: str, form: dict[str, list[str]]) -> tuple[int, Any] | None:
        self.creations.append(key)
        if self.hangs_up_before:
            self.hangs_up_before -= 1
            return None
        if "confirm" in form and not {"payment_method_types[0]", "return_url"} & {
            *form
        }:
            # Accounts take what their dashboard lists, some of which redirect.
            message = "You must provide a `return_url`."
            return 400, {"error": {"type": "invalid_request_error", "message": message}}
        if form["payment_method"] == ["pm_declined"]:
            message = "Your card was declined."
            return 402, {"error": {"type": "card_error", "message": message}}
        if key not in self.known:
            self.known[key] = {
                "id": f"pi_{len(self.intents)}",
                "object": "payment_intent",
                "status": "succeeded",
                "amount": int(form["amount"][0]),
                "metadata": {"reference": form["metadata[reference]"][0]},
            }
            self.intents.append(self.known[key])
        if self.hangs_up_after:
            self.hangs_up_after -= 1
            return None
        return 200, self.known[key]

    def search(self, query: str) -> tuple[int, Any]:
        self.searches.append(query)
        (reference,) = re.findall(r"^metadata\['reference'\]:'([\w-]+)'$", query)
        found = [i for i in self.intents if i["metadata"]["reference"] == reference]
        return 200, {"object": "search_result", "data": found, "has_more": False}

    def forget_keys(self) -> None:
        """Do what Stripe does with keys after a day."""
        self.known.clear()


@pytest.fixture
def provider() -> Iterator[Stripe]:
    """Let Stripe's library talk to a stub, and leave retries to the app's clients."""
    found = Stripe()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            assert self.path == "/v1/payment_intents"
            self.answer(found.create(self.headers["Idempotency-Key"], parse_qs(body)))

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            assert address.path == "/v1/payment_intents/search"
            self.answer(found.search(parse_qs(address.query)["query"][0]))

        def answer(self, answer: tuple[int, Any] | None) -> None:
            if answer is None:
                return
            body = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with listening(Handler) as port, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stripe, "api_base", f"http://127.0.0.1:{port}")
        patch.setattr(stripe, "max_network_retries", 0)
        patch.setattr(stripe, "enable_telemetry", False)
        http = stripe.RequestsClient()
        patch.setattr(stripe, "default_http_client", http)
        yield found
        http.close()


@pytest.fixture
def pay(provider: Stripe, settings: Any, client: APIClient) -> Iterator[Any]:
    """Send the payment of one key."""
    settings.STRIPE_SECRET_KEY = "sk_test_of_the_recipe"
    with cooked(HEADING) as recipe:
        yield from paying(recipe, settings, client)


@pytest.fixture
def order_model(database: None) -> Iterator[Any]:
    """Give the recipe in steps the model that it does not show."""
    with isolate_apps("tests.app"):

        class Order(models.Model):
            amount = models.IntegerField()
            payment = models.CharField(max_length=20, default="")

            class Meta:
                app_label = "app"

        with connection.schema_editor() as editor:
            editor.create_model(Order)
        yield Order
        with connection.schema_editor() as editor:
            editor.delete_model(Order)


@pytest.fixture
def pay_in_steps(
    provider: Stripe, settings: Any, client: APIClient, order_model: Any
) -> Iterator[Any]:
    """Send the payment of one key to the view in steps."""
    settings.STRIPE_SECRET_KEY = "sk_test_of_the_recipe"
    with cooked(IN_STEPS, models={"Order": order_model}) as recipe:
        yield from paying(recipe, settings, client)


def paying(recipe: Recipe, settings: Any, client: APIClient) -> Iterator[Any]:
    view = recipe.views.PaymentView
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stripe, "api_key", recipe.views.stripe.api_key)
        serve(settings, payments=view.as_view())

        def pay(card: str = "pm_card") -> Any:
            data = {"amount": 1200, "payment_method": card}
            return client.post("/payments/", data, **key())

        yield pay


def age(by: timedelta) -> None:
    """Let it be so long ago that the key was claimed."""
    record = IdempotencyRecord.objects.get()
    IdempotencyRecord.objects.update(created_at=timezone.now() - by)
    assert record.state == State.ABANDONED


def test_one_charge(pay: Any, provider: Stripe) -> None:
    """E10, R2: A retry is replayed, and Stripe is not asked."""
    first, retry = pay(), pay()
    assert (first.status_code, retry.content) == (201, first.content)
    assert first.json() == {"payment": "pi_0", "status": "succeeded"}
    assert len(provider.intents) == len(provider.creations) == 1
    assert provider.creations[0] != key()["HTTP_IDEMPOTENCY_KEY"]
    assert provider.intents[0]["metadata"]["reference"] == provider.creations[0]


def test_a_lost_answer_within_a_day(pay: Any, provider: Stripe) -> None:
    """E9, E10: The retry runs again under the same key, and Stripe replays."""
    provider.hangs_up_after = 1
    assert pay().status_code == 500
    age(timedelta(hours=22))
    answers = [pay(), pay()]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert len(provider.creations) == 2
    assert len({*provider.creations}) == len(provider.intents) == 1
    assert provider.searches == []


def test_a_lost_answer_after_a_day(pay: Any, provider: Stripe) -> None:
    """E9: When Stripe may have forgotten the key, the charge is looked up."""
    provider.hangs_up_after = 1
    assert pay().status_code == 500
    age(timedelta(hours=24))
    provider.forget_keys()
    answers = [pay(), pay()]
    assert [answer.json()["payment"] for answer in answers] == ["pi_0", "pi_0"]
    assert answers[1]["Idempotent-Replayed"] == "true"
    assert len(provider.intents) == len(provider.creations) == 1
    assert len(provider.searches) == 1


def test_why(pay: Any, provider: Stripe) -> None:
    """E9: Without looking it up, the card would be charged again after a day."""
    provider.hangs_up_after = 1
    pay()
    provider.forget_keys()
    assert pay().status_code == 201
    assert len(provider.intents) == 2


def test_a_lost_request_after_a_day(pay: Any, provider: Stripe) -> None:
    """E9: What Stripe never got is not found, and charged now."""
    provider.hangs_up_before = 1
    assert pay().status_code == 500
    age(timedelta(hours=24))
    assert pay().status_code == 201
    assert (len(provider.intents), len(provider.searches)) == (1, 1)


def test_unreachable_again(pay: Any, provider: Stripe) -> None:
    """E9: As long as nobody can find out, nothing is stored and nothing charged."""
    provider.hangs_up_before = 3
    assert [pay().status_code for _attempt in range(3)] == [500] * 3
    assert IdempotencyRecord.objects.get().state == State.ABANDONED
    assert pay().status_code == 201
    assert len(provider.intents) == 1


def test_declined(pay: Any, provider: Stripe) -> None:
    """O1: A declined card is an answer; another card needs another key."""
    answers = [pay("pm_declined"), pay("pm_declined")]
    assert [answer.status_code for answer in answers] == [402, 402]
    assert answers[1].json() == {"detail": "Your card was declined."}
    assert answers[1]["Idempotent-Replayed"] == "true"
    assert len(provider.creations) == 1
    assert code_of(pay()) == "idempotency_key_reused"


# In steps.


def payments(model: Any) -> list[str]:
    return [*model.objects.values_list("payment", flat=True)]


def test_one_order(pay_in_steps: Any, provider: Stripe, order_model: Any) -> None:
    """E12, E13, R2: One order and one charge, and a replay for the retry."""
    first, retry = pay_in_steps(), pay_in_steps()
    assert (first.status_code, retry.content) == (201, first.content)
    assert first.json()["payment"] == "pi_0"
    assert payments(order_model) == ["pi_0"]
    assert len(provider.intents) == len(provider.creations) == 1
    assert provider.intents[0]["metadata"]["reference"] == provider.creations[0]


@pytest.mark.parametrize("hours", [22, 24])
@pytest.mark.parametrize("arrives", [True, False])
def test_one_order_after_a_lost_answer(
    pay_in_steps: Any, provider: Stripe, order_model: Any, hours: int, arrives: bool
) -> None:
    """E12, E13: The retry charges the order of the first run, once."""
    if arrives:
        provider.hangs_up_after = 1
    else:
        provider.hangs_up_before = 1
    assert pay_in_steps().status_code == 500
    assert payments(order_model) == [""]
    age(timedelta(hours=hours))
    if hours == 24:
        provider.forget_keys()
    assert pay_in_steps().status_code == 201
    assert payments(order_model) == ["pi_0"]
    assert len(provider.intents) == len({*provider.creations}) == 1
    assert len(provider.searches) == (hours == 24)


def test_one_order_after_the_charge(
    pay_in_steps: Any, provider: Stripe, order_model: Any
) -> None:
    """E12: A run that fails after the charge is continued without Stripe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_model.objects, "filter", lambda **_: 1 / 0)
        assert pay_in_steps().status_code == 500
    age(timedelta(hours=24))
    provider.forget_keys()
    assert pay_in_steps().status_code == 201
    assert payments(order_model) == ["pi_0"]
    assert (len(provider.creations), provider.searches) == (1, [])


def test_declined_order(pay_in_steps: Any, provider: Stripe, order_model: Any) -> None:
    """E13, E15: The order goes with the response to a declined card."""
    answers = [pay_in_steps("pm_declined"), pay_in_steps("pm_declined")]
    assert [answer.status_code for answer in answers] == [402, 402]
    assert answers[1].json() == {"detail": "Your card was declined."}
    assert answers[1]["Idempotent-Replayed"] == "true"
    assert payments(order_model) == []
    assert len(provider.creations) == 1
