"""The demo's steps: real requests, each shown and checked."""

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
    Answer,
    Client,
    Payload,
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
    """What is shown to a teacher with one class, in this order."""

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
        """Go through the steps; raises ``DemoFailed`` where one does not hold."""
        say("A school API on gunicorn and SQLite. A client sends > and gets <.")
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
        say("The client makes up a random key and sends it as $idempotency.")
        answer = self.post(self.first_payload, self.first_key)
        check(answer.status == 201, "the assignment was created")
        check(not answer.is_replay, "by this request, not by an earlier one")
        check("Idempotency-Expires" in answer.headers, "its answer is kept")
        self.first_address = answer.headers["Location"]
        expires = answer.headers["Idempotency-Expires"]
        days = (parsedate_to_datetime(expires) - timezone.now()) / timedelta(days=1)
        check(29.9 < days <= 30, "and is in force for 30 days")
        self.check_count(self.first_payload, 1)

    def hang_up(self) -> None:
        """Show a retry after an execution whose answer was lost."""
        title(2, "Lose the connection before the answer arrives, and retry")
        say("The client can't know what became of its request, and sends it again.")
        key, payload = new_key(), {"title": "Read chapter 2"}
        connection, paused = self.post_and_pause(payload, key)
        say("  ... the assignment is being saved, and the client hangs up.")
        connection.close()
        paused.unlink()
        retry = self.post(payload, key)
        check(retry.status == 201, "the retry gets the answer that was lost")
        check(retry.is_replay, "which is replayed, not made again")
        again = self.post(payload, key)
        check(again.status == 201 and again.is_replay, "as does a second retry")
        check(again.body == retry.body, "in the same bytes, $request included")
        self.check_count(payload, 1)

    def duplicate(self) -> None:
        """Show many requests with one key while the first is being executed."""
        title(3, f"Send the same request {DUPLICATES} times at once")
        say("All are on their way before the first one is done.")
        key, payload = new_key(), {"title": "Read chapter 3"}
        address = with_key(self.assignments, key)
        all_sent = threading.Barrier(DUPLICATES + 1, timeout=LONGEST_WAIT)

        def send_one(_number: int) -> Answer:
            connection = self.client.start_silently("POST", address, payload)
            all_sent.wait()
            return read(connection)

        show_request("POST", address, payload, note=f"    {DUPLICATES} times")
        pause_next(self.var_dir)
        with ThreadPoolExecutor(DUPLICATES) as pool:
            coming = pool.map(send_one, range(DUPLICATES))
            all_sent.wait()
            wait_for_pause(self.var_dir).unlink()
            answers = list(coming)
        executed = [a for a in answers if a.status == 201 and not a.is_replay]
        replayed = [a for a in answers if a.status == 201 and a.is_replay]
        refused = [a for a in answers if a.status == 409]
        say(f"< {len(executed)} times 201", "yellow")
        say(f"< {len(replayed)} times 201, Idempotent-Replayed: true", "yellow")
        say(f"< {len(refused)} times 409, come back later", "yellow")
        check(len(executed) == 1, "one request was executed")
        rest = len(replayed) + len(refused)
        check(rest == DUPLICATES - 1, "the others got its answer, or a 409")
        bodies = {answer.body for answer in (*executed, *replayed)}
        check(len(bodies) == 1, "in the same bytes")
        self.check_count(payload, 1)

    def reuse(self) -> None:
        """Show that a key stands for one request."""
        title(4, "Send something else under a key that was used before")
        say("The key is that of the first step.")
        payload = {"title": "Read chapter 4"}
        answer = self.post(payload, self.first_key)
        check(answer.status == 422, "the request is refused")
        codes = [error["code"] for error in answer.content.get("$errors", [])]
        check(codes == ["IDEMPOTENCY_KEY_REUSED"], "and $errors says why")
        self.check_count(payload, 0)
        self.check_count(self.first_payload, 1)

    def get(self) -> None:
        """Show the warning about a key that has no effect."""
        title(5, "Send a key with a GET")
        say("Only a POST could take effect twice: the key is ignored, with a warning.")
        address = with_key(self.first_address, new_key())
        answer = self.client.send("GET", address)
        check(answer.status == 200, "the request is answered as always")
        codes = [warning["code"] for warning in answer.content.get("$warnings", [])]
        check(codes == ["IDEMPOTENCY_KEY_IGNORED"], "and $warnings names the key")

    def kill(self) -> None:
        """Show a retry after an execution that died between INSERT and COMMIT."""
        title(6, "Kill the server process in the middle of a request, and retry")
        say("Key, assignment and answer are one transaction: all are kept, or none.")
        key, payload = new_key(), {"title": "Read chapter 5"}
        connection, paused = self.post_and_pause(payload, key)
        kill_paused(paused, connection, "the assignment is inserted")
        self.check_count(payload, 0)
        started = time.monotonic()
        retry = self.post(payload, key)
        seconds = time.monotonic() - started
        check(retry.status == 201, "the retry creates the assignment")
        check(not retry.is_replay, "by executing it: there was nothing to replay")
        check(seconds < AT_ONCE, f"at once: in {seconds:.2f} s")
        self.check_count(payload, 1)

    def purge(self) -> None:
        """Show the task that Celery Beat sends every hour."""
        title(7, "Purge a record that is older than 30 days")
        say("The first step's record is made 31 days older; a worker gets the task.")
        records = IdempotencyRecord.objects.all()
        aged = records.filter(key=self.first_key)
        others = records.exclude(key=self.first_key).count()
        record, month = aged.get(), timedelta(days=31)
        aged.update(
            created_at=record.created_at - month, expires_at=record.expires_at - month
        )
        say(
            f"  ... one record of {others + 1} is expired: {purge_expired_records.name}"
        )
        purge_expired_records.delay()
        claim = "the worker deletes the expired record"
        check(wait_for(lambda: not aged.exists(), claim), claim)
        check(records.count() == others, f"and spares the other {others}")
        self.check_count(self.first_payload, 1)

    def invite(self) -> None:
        """Say how to look around, after a look at whether it works."""
        password = secrets.token_urlsafe(9)
        User.objects.create_superuser("demo", password=password)
        css = self.client.get_silently("/static/admin/css/base.css")
        check(css.status == 200, "the admin has its style sheets")
        swagger = self.client.get_silently(static(SWAGGER_UI))
        check(swagger.status == 200, "so has the description of the API")
        server = f"http://127.0.0.1:{self.client.port}"
        records = reverse("admin:idempotency_idempotencyrecord_changelist")
        say("\nServing until Ctrl-C", "bold")
        say(f"The records: {server}{records}")
        say(f"To log in: demo, password {password}")
        say(f"The API, described: {server}{reverse('docs')}")
        say("Something to run twice:")
        address = with_key(self.assignments, new_key())
        say(self.client.as_curl(address, {"title": "Read chapter 6"}))
        self.payments.invite()

    def post(self, payload: Payload, key: str) -> Answer:
        """Send an assignment under a key."""
        address = with_key(self.assignments, key)
        return self.client.send("POST", address, payload)

    def post_and_pause(self, payload: Payload, key: str) -> tuple[HTTPConnection, Path]:
        """Send an assignment and return when it is inserted, and not yet committed."""
        pause_next(self.var_dir)
        address = with_key(self.assignments, key)
        connection = self.client.start("POST", address, payload)
        return connection, wait_for_pause(self.var_dir)

    def check_count(self, payload: Payload, expected: int) -> None:
        """Check how many assignments of this title the API lists."""
        listed = self.client.get_silently(self.assignments).content["$data"]
        found = [one for one in listed if one["title"] == payload["title"]]
        claim = f'the API lists {COUNTS[expected]} "{payload["title"]}"'
        check(len(found) == expected, claim)
