"""The demo's steps, with real requests."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from pathlib import Path

from django.contrib.auth.models import User
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from rest_framework.authtoken.models import Token

from idempotency.models import IdempotencyRecord
from idempotency.tasks import purge_expired_records
from testproject.demo_client import (
    LONGEST_WAIT,
    Client,
    Payload,
    Response,
    check,
    new_key,
    read,
    say,
    show_request,
    title,
    wait_for,
    with_key,
)
from testproject.demo_pause import kill_paused, pause_next, wait_for_pause
from testproject.demo_payments import PaymentSteps
from testproject.school.models import SchoolClass

DUPLICATES = 20
# Far more than a retry needs.
AT_ONCE = 5.0
SWAGGER_UI = "drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
COUNTS = ("no assignment", "one assignment")


class Demo:
    """The steps of a teacher with one class."""

    def __init__(self, port: int, provider_port: int, var_dir: Path) -> None:
        ada = User.objects.create_user("ada")
        algebra = SchoolClass.objects.create(name="Algebra", teacher=ada)
        self.client = Client(port, Token.objects.create(user=ada).key)
        self.payments = PaymentSteps(self.client, provider_port, var_dir)
        self.var_dir = var_dir
        self.assignments = reverse("assignments", args=[algebra.pk])
        self.first_key = new_key()
        self.first_payload = {"title": "Read chapter 1", "due_date": "2030-01-31"}
        self.first_address = ""

    def show(self) -> None:
        """Run the steps, or raise ``DemoFailed``."""
        say("A school API on gunicorn and SQLite; > is a request, < a response.")
        self.create()
        self.hang_up()
        self.duplicate()
        self.reuse()
        self.get()
        self.kill()
        self.purge()
        self.payments.show(first_number=8)
        say("\nAll of it held.", "bold")

    def create(self) -> None:
        """Show a first request."""
        title(1, "Create an assignment")
        say("The client chooses a random key and sends it as $idempotency.")
        response = self.post(self.first_payload, self.first_key)
        check(response.status == 201, "the assignment was created")
        check(not response.is_replay, "by this request, not by an earlier one")
        check("Idempotency-Expires" in response.headers, "the response is stored")
        self.first_address = response.headers["Location"]
        expires = response.headers["Idempotency-Expires"]
        days = (parsedate_to_datetime(expires) - timezone.now()) / timedelta(days=1)
        check(29.9 < days <= 30, "for 30 days")
        self.check_count(self.first_payload, 1)

    def hang_up(self) -> None:
        """Show a retry after a lost response."""
        title(2, "Lose the connection before the response arrives, and retry")
        say("The client can't know whether the request succeeded, and retries.")
        key, payload = new_key(), {"title": "Read chapter 2"}
        connection, paused = self.post_and_pause(payload, key)
        say("  ... the assignment is being saved, and the client hangs up.")
        connection.close()
        paused.unlink()
        retry = self.post(payload, key)
        check(retry.status == 201, "the retry gets the lost response")
        check(retry.is_replay, "as a replay")
        again = self.post(payload, key)
        check(again.status == 201 and again.is_replay, "as does a second retry")
        check(again.body == retry.body, "in the same bytes, $request included")
        self.check_count(payload, 1)

    def duplicate(self) -> None:
        """Show concurrent requests with one key."""
        title(3, f"Send the same request {DUPLICATES} times at once")
        say("All are sent before the first one is done.")
        key, payload = new_key(), {"title": "Read chapter 3"}
        address = with_key(self.assignments, key)
        all_sent = threading.Barrier(DUPLICATES + 1, timeout=LONGEST_WAIT)

        def send_one(_number: int) -> Response:
            connection = self.client.start_silently("POST", address, payload)
            all_sent.wait()
            return read(connection)

        show_request("POST", address, payload, note=f"    {DUPLICATES} times")
        pause_next(self.var_dir)
        with ThreadPoolExecutor(DUPLICATES) as pool:
            coming = pool.map(send_one, range(DUPLICATES))
            all_sent.wait()
            wait_for_pause(self.var_dir).unlink()
            responses = list(coming)
        executed = [a for a in responses if a.status == 201 and not a.is_replay]
        replayed = [a for a in responses if a.status == 201 and a.is_replay]
        refused = [a for a in responses if a.status == 409]
        say(f"< {len(executed)} times 201", "yellow")
        say(f"< {len(replayed)} times 201, Idempotent-Replayed: true", "yellow")
        say(f"< {len(refused)} times 409, retry later", "yellow")
        check(len(executed) == 1, "one request was executed")
        rest = len(replayed) + len(refused)
        check(rest == DUPLICATES - 1, "the others got its response, or 409")
        bodies = {response.body for response in (*executed, *replayed)}
        check(len(bodies) == 1, "in the same bytes")
        self.check_count(payload, 1)

    def reuse(self) -> None:
        """Show that a key belongs to one request."""
        title(4, "Send a different request with a used key")
        say("The key is the one of the first step.")
        payload = {"title": "Read chapter 4"}
        response = self.post(payload, self.first_key)
        check(response.status == 422, "the request is refused")
        codes = response.codes("$errors")
        check(codes == ["IDEMPOTENCY_KEY_REUSED"], "and $errors says why")
        self.check_count(payload, 0)
        self.check_count(self.first_payload, 1)

    def get(self) -> None:
        """Show the warning about a key that has no effect."""
        title(5, "Send a key with a GET")
        say("A GET can be repeated anyway, so the key is ignored, with a warning.")
        address = with_key(self.first_address, new_key())
        response = self.client.send("GET", address)
        check(response.status == 200, "the response is as without a key")
        codes = response.codes("$warnings")
        check(codes == ["IDEMPOTENCY_KEY_IGNORED"], "and $warnings names the key")

    def kill(self) -> None:
        """Show a retry after a crash between INSERT and COMMIT."""
        title(6, "Kill the server process in the middle of a request, and retry")
        say("Key, assignment and response are one transaction: all are kept, or none.")
        key, payload = new_key(), {"title": "Read chapter 5"}
        connection, paused = self.post_and_pause(payload, key)
        kill_paused(paused, connection, "the assignment is inserted")
        self.check_count(payload, 0)
        started = time.monotonic()
        retry = self.post(payload, key)
        seconds = time.monotonic() - started
        check(retry.status == 201, "the retry creates the assignment")
        check(not retry.is_replay, "by running the handler: nothing was stored")
        check(seconds < AT_ONCE, f"at once, in {seconds:.2f} s")
        self.check_count(payload, 1)

    def purge(self) -> None:
        """Show the task that Celery Beat sends every ten minutes."""
        title(7, "Purge a record that is older than 30 days")
        say("The demo makes the first step's record 31 days older, and runs the task.")
        records = IdempotencyRecord.objects.all()
        aged = records.filter(key=self.first_key)
        others = records.exclude(key=self.first_key).count()
        record, month = aged.get(), timedelta(days=31)
        aged.update(
            created_at=record.created_at - month, expires_at=record.expires_at - month
        )
        name = purge_expired_records.name
        say(f"  ... one of {others + 1} records is expired. The task is {name}")
        purge_expired_records.delay()
        claim = "the worker deletes the expired record"
        check(wait_for(lambda: not aged.exists(), claim), claim)
        check(records.count() == others, f"and keeps the other {others}")
        self.check_count(self.first_payload, 1)

    def invite(self) -> None:
        """Print where to look around, after a check that the pages work."""
        password = secrets.token_urlsafe(9)
        User.objects.create_superuser("demo", password=password)
        css = self.client.send_silently("GET", "/static/admin/css/base.css")
        check(css.status == 200, "the admin has its style sheets")
        swagger = self.client.send_silently("GET", static(SWAGGER_UI))
        check(swagger.status == 200, "the API documentation has its scripts")
        server = f"http://127.0.0.1:{self.client.port}"
        records = reverse("admin:idempotency_idempotencyrecord_changelist")
        say("\nServing until Ctrl-C", "bold")
        say(f"The records: {server}{records}")
        say(f"To log in: user demo, password {password}")
        say(f"The API documentation: {server}{reverse('docs')}")
        say("Something to run twice:")
        address = with_key(self.assignments, new_key())
        say(self.client.as_curl(address, {"title": "Read chapter 6"}))
        self.payments.invite()

    def post(self, payload: Payload, key: str) -> Response:
        """Post an assignment with a key."""
        address = with_key(self.assignments, key)
        return self.client.send("POST", address, payload)

    def post_and_pause(self, payload: Payload, key: str) -> tuple[HTTPConnection, Path]:
        """Post an assignment, and return between its INSERT and its COMMIT."""
        pause_next(self.var_dir)
        address = with_key(self.assignments, key)
        connection = self.client.start("POST", address, payload)
        return connection, wait_for_pause(self.var_dir)

    def check_count(self, payload: Payload, expected: int) -> None:
        """Check how many assignments of this title the API lists."""
        listed = self.client.send_silently("GET", self.assignments).content["$data"]
        found = [one for one in listed if one["title"] == payload["title"]]
        claim = f'the API lists {COUNTS[expected]} "{payload["title"]}"'
        check(len(found) == expected, claim)
