"""The demo's steps about payments: each policy for a run that was abandoned."""

from __future__ import annotations

import time
from pathlib import Path

from django.urls import reverse

from testproject.demo_client import (
    Answer,
    Client,
    Payload,
    check,
    new_key,
    say,
    show_answer,
    show_request,
    title,
    wait_for,
    with_key,
)
from testproject.demo_pause import kill_paused, pause_next, wait_for_pause
from testproject.demo_urls import LEASE

IN_PROGRESS = ["IDEMPOTENCY_IN_PROGRESS"]
UNKNOWN = ["IDEMPOTENCY_OUTCOME_UNKNOWN"]
TITLE = "Kill the server process when a card is charged, and retry: "
TIMES = ("never", "once", "twice")


class PaymentSteps:
    """A card is charged, and the process that had it charged is killed."""

    def __init__(self, client: Client, provider_port: int, var_dir: Path) -> None:
        self.client = client
        self.provider = Client(provider_port)
        self.var_dir = var_dir

    def show(self, first_number: int) -> None:
        """Go through the steps; raises ``DemoFailed`` where one does not hold."""
        for number, step in enumerate((self.hold, self.rerun, self.ask), first_number):
            step(number)

    def hold(self, number: int) -> None:
        """Show a retry that is refused until a person decides."""
        title(number, f'{TITLE}"hold"')
        say(
            "No rollback takes a charge back: the claim is committed first, and leased."
        )
        payment = Payment(self, "hold", "Excursion to the zoo")
        payment.lose()
        retry = payment.retry()
        check(retry.status == 409, "the retry is refused")
        check(codes_of(retry) == UNKNOWN, "and $errors says that nobody knows")
        again = payment.send()
        check(codes_of(again) == UNKNOWN, "so it stays, until a person decides")
        payment.check_ledger(requests=1)

    def rerun(self, number: int) -> None:
        """Show a retry that runs the handler again."""
        title(number, f'{TITLE}"rerun"')
        say(
            "The handler runs again, and derive() gives it the first run's key to send."
        )
        payment = Payment(self, "rerun", "Excursion to the museum")
        payment.lose()
        payment.retry_and_replay("by running the handler: nothing was stored")
        payment.check_ledger(requests=2)

    def ask(self, number: int) -> None:
        """Show a retry that finds out what became of the first run."""
        title(number, f"{TITLE}ask the provider")
        say("A function asks the provider for that key's charge, and makes the answer.")
        payment = Payment(self, "ask", "Excursion to the sea")
        payment.lose()
        payment.retry_and_replay("by finding out: nothing was stored")
        payment.check_ledger(requests=1)

    def invite(self) -> None:
        """Say how to pay, and where the ledger is."""
        say("Something to pay once:")
        payment = Payment(self, "ask", "Excursion to the lake")
        say(self.client.as_curl(payment.address, payment.payload))
        say(f"The provider's ledger: http://127.0.0.1:{self.provider.port}/charges")


class Payment:
    """One payment under one key."""

    def __init__(self, steps: PaymentSteps, policy: str, reference: str) -> None:
        self.steps = steps
        self.client = steps.client
        self.address = with_key(reverse(policy), new_key())
        self.payload: Payload = {
            "amount": "12.50",
            "currency": "EUR",
            "card": "tok_visa",
            "reference": reference,
        }

    def send(self) -> Answer:
        """Send it and return the answer, showing both."""
        return self.client.send("POST", self.address, self.payload)

    def lose(self) -> None:
        """Send it, and kill the process that has charged the card."""
        var_dir = self.steps.var_dir
        self.sent_at = time.monotonic()
        pause_next(var_dir)
        connection = self.client.start("POST", self.address, self.payload)
        kill_paused(wait_for_pause(var_dir), connection, "the card is charged")

    def retry(self) -> Answer:
        """Send it again until the lease is over, and return the answer."""
        answer = self.send()
        if time.monotonic() - self.sent_at < LEASE.total_seconds():
            check(codes_of(answer) == IN_PROGRESS, "the first run's lease holds")
        if codes_of(answer) != IN_PROGRESS:
            say("  ... the first run's lease is over: this machine is slow.")
            return answer
        check("Retry-After" in answer.headers, "and Retry-After says when to try again")
        say("  ... the client waits for as long, until the lease is over.")
        seconds = float(answer.headers["Retry-After"])

        def ask_later() -> Answer | None:
            time.sleep(seconds)
            later = self.client.post_silently(self.address, self.payload)
            return None if codes_of(later) == IN_PROGRESS else later

        answer = wait_for(ask_later, "the lease is over")
        show_request("POST", self.address, self.payload)
        show_answer(answer)
        return answer

    def retry_and_replay(self, how: str) -> None:
        """Check that a retry succeeds, and that another one gets the same answer."""
        retry = self.retry()
        check(retry.status == 201, "the retry gets the payment")
        check(not retry.is_replay, how)
        again = self.send()
        check(again.status == 201 and again.is_replay, "a further retry is a replay")
        check(again.body == retry.body, "in the same bytes, $request included")

    def check_ledger(self, requests: int) -> None:
        """Check that the card was charged once, and how often that was asked for."""
        reference = self.payload["reference"]
        answer = self.steps.provider.get_silently("/charges")
        found = [one for one in answer.content if one["reference"] == reference]
        for one in found:
            say(
                f"  ... the ledger: {one['id']} {one['status']} {one['amount']} "
                f'{one["currency"]} "{reference}"'
            )
        check(len(found) == 1, "the provider's ledger has one charge")
        asked = f"for which it was asked {TIMES[requests]}"
        check(found[0]["requests"] == requests, asked)


def codes_of(answer: Answer) -> list[str]:
    """Return the codes in ``$errors``."""
    return [error["code"] for error in answer.content.get("$errors", [])]
