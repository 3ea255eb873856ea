"""The demo's steps about payments and rides: each policy for abandoned runs."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from django.urls import reverse

from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, State
from idempotency.tasks import complete_abandoned_records
from testproject.demo_client import (
    Client,
    Payload,
    Response,
    check,
    new_key,
    say,
    show_request,
    show_response,
    title,
    wait_for,
    with_key,
)
from testproject.demo_pause import kill_paused, pause_next, wait_for_pause
from testproject.demo_urls import LEASE

IN_PROGRESS = ["IDEMPOTENCY_IN_PROGRESS"]
UNKNOWN = ["IDEMPOTENCY_OUTCOME_UNKNOWN"]
TITLE = "Kill the server process after it charged a card, and retry: "
TIMES = ("never", "once", "twice")


class PaymentSteps:
    """Charge a card, kill the process that did it, and retry."""

    def __init__(self, client: Client, provider_port: int, var_dir: Path) -> None:
        self.client = client
        self.provider = Client(provider_port)
        self.var_dir = var_dir

    def show(self, first_number: int) -> None:
        """Run the steps, or raise ``DemoFailed``."""
        steps = (self.hold, self.rerun, self.ask, self.resume)
        for number, step in enumerate(steps, first_number):
            step(number)

    def hold(self, number: int) -> None:
        """Show a retry that is refused until a person decides."""
        title(number, f'{TITLE}"hold"')
        say("A rollback can't undo a charge, so the claim is committed first, leased.")
        payment = Payment(self, "hold", "Excursion to the zoo")
        payment.lose()
        retry = payment.retry()
        check(retry.status == 409, "the retry is refused")
        check(retry.codes("$errors") == UNKNOWN, "$errors says: outcome unknown")
        again = payment.send()
        check(again.codes("$errors") == UNKNOWN, "and so on, until a person decides")
        payment.check_ledger(requests=1)

    def rerun(self, number: int) -> None:
        """Show a retry that runs the handler again."""
        title(number, f'{TITLE}"rerun"')
        say("The handler runs again, and derive() returns the first run's key.")
        payment = Payment(self, "rerun", "Excursion to the museum")
        payment.lose()
        payment.retry_and_replay("by running the handler: nothing was stored")
        payment.check_ledger(requests=2)

    def ask(self, number: int) -> None:
        """Show a retry that asks the provider about the first run."""
        title(number, f"{TITLE}ask the provider")
        say("A function asks the provider for the key's charge, and responds with it.")
        payment = Payment(self, "ask", "Excursion to the sea")
        payment.lose()
        payment.retry_and_replay("by finding out: nothing was stored")
        payment.check_ledger(requests=1)

    def resume(self, number: int) -> None:
        """Show a retry, and then a worker, that continue where a run ended."""
        title(number, "Kill the server process between charge and receipt: steps")
        say("Ride, charge and receipt are recorded: a later run continues after them.")
        ride = Ride(self, "Zoo")
        ride.lose()
        ride.check_status("booked")
        ride.retry_and_replay("by continuing: the card is charged already")
        ride.check_status("paid")
        ride.check_ledger(requests=1)
        say("Another client does not retry. A worker has the task to finish its ride.")
        ride = Ride(self, "Castle")
        ride.lose()
        say("  ... the demo makes this an hour older, instead of waiting a minute.")
        record = IdempotencyRecord.objects.filter(key=ride.key)
        record.update(lease_expires_at=UTCNow() - timedelta(hours=1))
        say(f"  ... the task is {complete_abandoned_records.name}")
        complete_abandoned_records.delay()
        claim = "the worker stores the response"
        completed = record.filter(state=State.COMPLETED)
        check(wait_for(completed.exists, claim), claim)
        ride.check_status("paid")
        ride.check_ledger(requests=1)
        late = ride.send()
        check(late.status == 201 and late.is_replay, "a late retry would get it")

    def invite(self) -> None:
        """Print how to pay, and where the ledger is."""
        say("Something to pay once:")
        payment = Payment(self, "ask", "Excursion to the lake")
        say(self.client.as_curl(payment.address, payment.payload))
        say(f"The provider's ledger: http://127.0.0.1:{self.provider.port}/charges")


class Payment:
    """One payment with one key."""

    # What the provider knows as the reference.
    subject = "reference"

    def __init__(self, steps: PaymentSteps, policy: str, reference: str) -> None:
        self.steps = steps
        self.client = steps.client
        self.key = new_key()
        self.address = with_key(reverse(policy), self.key)
        self.payload: Payload = {
            "amount": "12.50",
            "currency": "EUR",
            "card": "tok_visa",
            self.subject: reference,
        }

    def send(self) -> Response:
        """Send the payment and return the response."""
        return self.client.send("POST", self.address, self.payload)

    def lose(self) -> None:
        """Send the payment, and kill the process after it charged the card."""
        var_dir = self.steps.var_dir
        self.sent_at = time.monotonic()
        pause_next(var_dir)
        connection = self.client.start("POST", self.address, self.payload)
        kill_paused(wait_for_pause(var_dir), connection, "the card is charged")

    def retry(self) -> Response:
        """Send the payment again until the lease is over, and return the response."""
        response = self.send()
        is_leased = response.codes("$errors") == IN_PROGRESS
        if time.monotonic() - self.sent_at < LEASE.total_seconds():
            check(is_leased, "the first run's lease holds")
        if not is_leased:
            say("  ... the first run's lease is over: this machine is slow.")
            return response
        check("Retry-After" in response.headers, "and Retry-After says when to retry")
        say("  ... the client waits and retries until the lease is over.")
        seconds = float(response.headers["Retry-After"])

        def ask_later() -> Response | None:
            time.sleep(seconds)
            later = self.client.send_silently("POST", self.address, self.payload)
            return None if later.codes("$errors") == IN_PROGRESS else later

        response = wait_for(ask_later, "the lease is over")
        show_request("POST", self.address, self.payload)
        show_response(response)
        return response

    def retry_and_replay(self, how: str) -> None:
        """Check that a retry succeeds, and that the next one gets a replay."""
        retry = self.retry()
        check(retry.status == 201, "the retry gets the payment")
        check(not retry.is_replay, how)
        again = self.send()
        check(again.status == 201 and again.is_replay, "a further retry is a replay")
        check(again.body == retry.body, "in the same bytes, $request included")

    def check_ledger(self, requests: int) -> None:
        """Check that the card was charged once, and the number of requests for it."""
        reference = self.payload[self.subject]
        response = self.steps.provider.send_silently("GET", "/charges")
        found = [one for one in response.content if one["reference"] == reference]
        for one in found:
            say(
                f"  ... the ledger: {one['id']} {one['status']} {one['amount']} "
                f'{one["currency"]} "{reference}"'
            )
        check(len(found) == 1, "the provider's ledger has one charge")
        asked = f"for which it was asked {TIMES[requests]}"
        check(found[0]["requests"] == requests, asked)


class Ride(Payment):
    """A ride, and its payment, with one key."""

    subject = "destination"

    def __init__(self, steps: PaymentSteps, destination: str) -> None:
        super().__init__(steps, "resume", destination)

    def check_status(self, expected: str) -> None:
        """Check that there is one ride, and how far it is."""
        destination = self.payload[self.subject]
        response = self.client.send_silently("GET", reverse("resume"))
        found = [
            ride["status"]
            for ride in response.content["$data"]
            if ride["destination"] == destination
        ]
        claim = f'the API lists one ride "{destination}", which is {expected}'
        check(found == [expected], claim)
