"""The demo shows what it says, and leaves nothing; its API is fit to be copied."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode, urljoin
from urllib.request import HTTPCookieProcessor, Request, build_opener, urlopen
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from rest_framework.authtoken.models import Token
from rest_framework.exceptions import ValidationError
from rest_framework.settings import api_settings
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.completing import complete
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, State
from testproject import settings as demo_settings
from testproject.school import provider as provider_client
from testproject.school.exceptions import exception_handler
from testproject.school.models import Assignment, Ride, SchoolClass
from testproject.school.views import PaymentView
from tests.conftest import KEY, key, once
from tests.support.processes import PATIENCE, ROOT, wait_until

UNKNOWN = "7e54203d-d4d9-4eb5-8b05-60fd4539100d"

# The demo, in processes and on a database of its own.

# What a shell may have set for other work must not reach the demo.
ELSEWHERE = {
    "ATOMIC_REQUESTS": "1",
    "CELERY_BROKER_URL": "amqp://127.0.0.1:1//",
    "DATABASE_URL": "postgres://nobody@127.0.0.1:1/nothing",
    "DEMO_VAR_DIR": "/nonexistent",
    "DJANGO_ALLOWED_HOSTS": "example.com",
    "DJANGO_DEBUG": "0",
    "DJANGO_SETTINGS_MODULE": "tests.settings",
    "PAYMENT_PROVIDER_TIMEOUT": "0.000001",
    "PAYMENT_PROVIDER_URL": "http://127.0.0.1:1",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return where the demo makes its directory: short, since sockets are in it."""
    with TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


@pytest.fixture
def heard() -> Iterator[None]:
    """Let SIGINT reach what is started, also where a shell's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def running_demo(
    folder: Path, stdio: int = subprocess.PIPE, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Run the demo during a block, and check that it leaves neither file nor process.

    ``stdio`` is a terminal, or else the demo's output comes through pipes.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "testproject.demo"],
        cwd=ROOT,
        env={**os.environ, **ELSEWHERE, "TMPDIR": str(folder), **variables},
        stdin=subprocess.DEVNULL if stdio == subprocess.PIPE else stdio,
        stdout=stdio,
        stderr=stdio,
        text=True,
    )
    with process:
        try:
            yield process
            process.wait(PATIENCE)
        finally:
            process.terminate()
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


def processes_of(folder: Path) -> list[str]:
    """Return the processes whose files are in a folder, where /proc tells."""
    mark = f"DEMO_VAR_DIR={folder}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:
            continue  # gone, or somebody else's
    return found


@once
def test_demo_shows_every_promise(folder: Path) -> None:
    with running_demo(folder) as process:
        transcript, errors = process.communicate(timeout=2 * PATIENCE)
    assert (process.returncode, errors) == (0, ""), transcript
    assert "\033" not in transcript
    _, *steps = re.split(r"\n\d+\. ", transcript)
    create, hang_up, duplicate, reuse, get, kill, purge, *payments = steps
    assert "< 201 Created" in create
    assert "Idempotency-Expires: " in create
    assert "Idempotent-Replayed" not in create
    assert "the client hangs up" in hang_up
    assert hang_up.count("< Idempotent-Replayed: true") == 2
    bodies = re.findall(r'< (\{"\$request".*)', hang_up)
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    assert "20 times" in duplicate
    assert "< 1 times 201\n" in duplicate
    assert "< 422 " in reuse
    assert '"$errors":[{"code":"IDEMPOTENCY_KEY_REUSED",' in reuse
    assert "> GET " in get
    assert '"$warnings":[{"code":"IDEMPOTENCY_KEY_IGNORED",' in get
    assert "gets a SIGKILL" in kill
    assert kill.count("< 201 Created") == 1
    assert "Idempotent-Replayed" not in kill
    assert "idempotency.tasks.purge_expired_records" in purge
    assert "the worker deletes the expired record" in purge
    for chapter, step in enumerate([create, hang_up, duplicate], start=1):
        assert f'the API lists one assignment "Read chapter {chapter}"' in step
    assert 'the API lists no assignment "Read chapter 4"' in reuse
    assert 'the API lists one assignment "Read chapter 5"' in kill
    check_payments(*payments)
    assert transcript.endswith("\nAll of it held.\n")


def check_payments(*steps: str) -> None:
    hold, rerun, ask, resume = steps
    for step in steps:
        assert "the card is charged, and process" in step
        refused = step.count('"IDEMPOTENCY_IN_PROGRESS"')
        assert refused == step.count("< Retry-After: 1")
        assert refused or "this machine is slow" in step
        assert "ok  the provider's ledger has one charge\n" in step
    assert hold.count('"IDEMPOTENCY_OUTCOME_UNKNOWN"') == 2
    assert "< 201 " not in hold
    for step in (rerun, ask):
        bodies = re.findall(r'< (\{"\$request".*"\$data".*)', step)
        assert len(bodies) == 2
        assert bodies[0] == bodies[1]
        assert step.count("< Idempotent-Replayed: true") == 1
    asked = [re.findall(r"for which it was asked (\w+)", step) for step in steps]
    assert asked == [["once"], ["twice"], ["once"], ["once", "once"]]
    retried, completed = resume.split("Another client does not retry.")
    assert retried.index('one ride "Zoo", which is booked') < retried.index("< 201 ")
    for part, destination in ((retried, "Zoo"), (completed, "Castle")):
        assert f'ok  the API lists one ride "{destination}", which is paid\n' in part
        assert part.count("gets a SIGKILL") == 1
    assert retried.count("< 201 ") == 2
    assert "idempotency.tasks.complete_abandoned_records" in completed
    assert "ok  the worker stores the response\n" in completed
    assert (
        completed.count("< 201 ") == completed.count("Idempotent-Replayed: true") == 1
    )


@once
def test_demo_fails_where_something_does_not_hold(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from idempotency import conf\n"
        "conf.get_settings = lambda: conf.Settings(ENABLED=False)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with running_demo(folder, PYTHONPATH=path) as process:
        transcript, errors = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 1
    assert "  NO  the response is stored" in transcript
    assert "All of it held" not in transcript
    assert "end of server.log" in errors
    assert errors.endswith("\nThis check failed: the response is stored\n")


@once
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_demo_can_be_stopped_in_the_middle(
    folder: Path,
    number: signal.Signals,
    status: int,
    heard: None,
) -> None:
    with running_demo(folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("2."):
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (status, "")


@once
def test_demo_can_be_stopped_while_it_connects(folder: Path, tmp_path: Path) -> None:
    # Where a socket has been made, and nothing has a name for it yet.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, socket, sys\n"
        "connect = socket.create_connection\n"
        "def connect_and_end(*args, **kwargs):\n"
        "    made = connect(*args, **kwargs)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return made\n"
        "if 'testproject.demo' in sys.orig_argv:\n"
        "    socket.create_connection = connect_and_end\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with running_demo(folder, PYTHONPATH=path) as process:
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (143, "")


class Screen:
    """What a process wrote to a terminal."""

    def __init__(self, terminal: int) -> None:
        self.terminal = terminal
        self.text = ""

    def wait_for(self, pattern: str) -> str:
        """Return the first group of a pattern, as soon as it is there."""
        give_up_at = time.monotonic() + 2 * PATIENCE
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < give_up_at, self.text
            if select.select([self.terminal], [], [], 0.1)[0]:
                self.text += os.read(self.terminal, 65536).decode()
        return found[1]


@once
def test_demo_keeps_serving_on_a_terminal(folder: Path, heard: None) -> None:
    terminal, end = pty.openpty()
    try:
        with running_demo(folder, end) as process:
            screen = Screen(terminal)
            records = screen.wait_for(r"The records: (\S+)\s")
            password = screen.wait_for(r"password (\S+)\s")
            screen.wait_for(r'(-d \'{"title": "Read chapter 6"}\')')
            ledger = screen.wait_for(r"ledger: (http\S+)\s")
            page = log_in(records, "demo", password)
            assert "8 idempotency records" in page
            command = screen.wait_for(r"Something to pay once:\s+curl -i (.+\s.+\s.+)")
            first, again = pay(command), pay(command)
            assert first == again
            assert "ch_" in first
            with urlopen(ledger, timeout=PATIENCE) as response:
                charges = json.load(response)
            assert [charge["requests"] for charge in charges] == [1, 2, 1, 1, 1, 1]
            # Ctrl-C there goes to everybody in the foreground: here, to the demo.
            process.send_signal(signal.SIGINT)
        assert process.returncode == 0
        assert "\033[32m  ok  " in screen.text
        for address in (records, ledger):
            with pytest.raises(URLError):
                urlopen(address, timeout=PATIENCE)
    finally:
        os.close(terminal)
        os.close(end)


def log_in(address: str, username: str, password: str) -> str:
    """Return a page of the admin, having fetched its style sheets."""
    browser = build_opener(HTTPCookieProcessor(CookieJar()))
    with browser.open(address, timeout=PATIENCE) as response:
        form, form_address = response.read().decode(), response.url
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert token is not None
    filled = {
        "csrfmiddlewaretoken": token[1],
        "username": username,
        "password": password,
    }
    with browser.open(form_address, urlencode(filled).encode()) as response:
        assert response.url == address
        page: str = response.read().decode()
    sheets = re.findall(r'<link rel="stylesheet" href="([^"]+)"', page)
    assert sheets
    for sheet in sheets:
        with browser.open(urljoin(address, sheet)) as response:
            assert response.headers["Content-Type"].startswith("text/css")
    return page


def pay(command: str) -> str:
    """Send what a command for curl says, and return the answer."""
    found = re.findall(r"'([^']+)'", command)
    address, *headers, payload = found
    request = Request(address, payload.encode())
    for header in headers:
        request.add_header(*header.split(": "))
    with urlopen(request, timeout=PATIENCE) as response:
        assert response.status == 201
        body: str = response.read().decode()
        return body


@once
def test_demo_project_has_no_secret_key_without_debug() -> None:
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "testproject.settings"}
    env.pop("DJANGO_SECRET_KEY", None)
    check = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**env, "DJANGO_DEBUG": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode != 0
    assert "DJANGO_SECRET_KEY" in check.stderr


# Its API, under its own settings on the tests' database.


@pytest.fixture
def ada(
    atomic_requests: bool, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[APIClient]:
    """Return the client of a teacher."""
    for name in ("REST_FRAMEWORK", "IDEMPOTENCY", "MIDDLEWARE", "ROOT_URLCONF"):
        setattr(settings, name, getattr(demo_settings, name))
    # Views have read these settings when they were imported.
    for name in ("authentication", "permission", "parser", "renderer"):
        default = getattr(api_settings, f"DEFAULT_{name.upper()}_CLASSES")
        monkeypatch.setattr(APIView, f"{name}_classes", default)
    yield client_of("ada")
    User.objects.all().delete()


def client_of(name: str) -> APIClient:
    client = APIClient(raise_request_exception=False)
    token = Token.objects.create(user=User.objects.create_user(name))
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token.key}")
    return client


@pytest.fixture
def algebra(ada: APIClient) -> str:
    """Return the address of the teacher's class."""
    teacher = User.objects.get(username="ada")
    school_class = SchoolClass.objects.create(name="Algebra", teacher=teacher)
    return f"/api/v2/user/classes/{school_class.pk}"


def data_of(response: Any, status: int = 200) -> Any:
    """Check the envelope of a success and return what is in it."""
    body = response.json()
    assert response.status_code == status, body
    assert response["Content-Type"] == "application/json"
    assert UUID(body["$request"])
    assert body.keys() - {"$warnings"} == {"$request", "$data"}
    return body["$data"]


def errors_of(response: Any) -> list[str]:
    """Check the envelope of an error and return its codes."""
    body = response.json()
    assert response["Content-Type"] == "application/json"
    assert UUID(body["$request"])
    assert body.keys() - {"$warnings"} == {"$request", "$errors"}
    for error in body["$errors"]:
        assert error.keys() == {"code", "message"}
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", error["code"])
        assert error["message"]
    return [error["code"] for error in body["$errors"]]


def test_api_from_create_to_delete(ada: APIClient, algebra: str) -> None:
    created = ada.post(f"{algebra}/assignments", {"title": "Read"})
    assignment = data_of(created, 201)
    address = created["Location"]
    assert address == f"{algebra}/assignments/{assignment['id']}"
    assert data_of(ada.get(address)) == assignment
    changed = data_of(ada.patch(address, {"due_date": "2030-01-31"}))
    assert changed == {**assignment, "due_date": "2030-01-31"}
    assert data_of(ada.get(f"{algebra}/assignments")) == [changed]
    deleted = ada.delete(address)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert "Content-Type" not in deleted
    assert errors_of(ada.get(address)) == ["NOT_FOUND"]
    assert data_of(ada.get(f"{algebra}/assignments")) == []


def test_api_lists_own_classes_only(ada: APIClient, algebra: str) -> None:
    bob = client_of("bob")
    assert data_of(bob.get("/api/v2/user/classes")) == []
    (own,) = data_of(ada.get("/api/v2/user/classes"))
    assert data_of(ada.get(algebra)) == own == {**own, "name": "Algebra"}
    for response in (
        bob.get(algebra),
        bob.get(f"{algebra}/assignments"),
        bob.post(f"{algebra}/assignments", {"title": "Read"}),
    ):
        assert response.status_code == 404
        assert errors_of(response) == ["NOT_FOUND"]
    assert not Assignment.objects.exists()


@pytest.mark.parametrize("where", ["query", "header"])
def test_api_replays_a_retry(ada: APIClient, algebra: str, where: str) -> None:
    """R2: The client gets the answer that it should have had, $request included."""
    in_query = where == "query"
    address = f"{algebra}/assignments" + (f"?$idempotency={KEY}" if in_query else "")
    headers = {} if in_query else key()
    first = ada.post(address, {"title": "Read"}, **headers)
    again = ada.post(address, {"title": "Read"}, **headers)
    assert data_of(first, 201) == data_of(again, 201)
    assert again.content == first.content
    assert again["Location"] == first["Location"]
    assert "Idempotent-Replayed" not in first
    assert again["Idempotent-Replayed"] == "true"
    assert Assignment.objects.count() == 1
    other = ada.post(address, {"title": "Write"}, **headers)
    assert other.status_code == 422
    assert errors_of(other) == ["IDEMPOTENCY_KEY_REUSED"]
    assert Assignment.objects.count() == 1


def test_api_warns_in_the_envelope(ada: APIClient, algebra: str) -> None:
    """K5, K6, K7: Warnings stand beside the data, and beside errors."""
    assignments = f"{algebra}/assignments"
    address = data_of(ada.post(assignments, {"title": "Read"}), 201)["id"]
    cases = [
        (ada.get(f"{assignments}?$idempotency={KEY}"), "KEY_IGNORED"),
        (
            ada.patch(f"{assignments}/{address}?$idempotency={KEY}", {"title": "Go"}),
            "KEY_IGNORED",
        ),
        (ada.get(f"{algebra}?$idempotency={KEY}"), "KEY_IGNORED"),
        (ada.get(f"{assignments}/{UNKNOWN}?$idempotency={KEY}"), "KEY_IGNORED"),
        (ada.post(f"{assignments}?$idempotency=abc", {"title": "Go"}), "KEY_WEAK"),
        (ada.post(f"{assignments}?$idempotency=def", {}), "KEY_WEAK"),
    ]
    for response, expected in cases:
        (warning,) = response.json()["$warnings"]
        assert warning.keys() == {"code", "message"}
        assert warning["code"] == f"IDEMPOTENCY_{expected}"
        assert warning["code"] in response["Idempotency-Warning"]
    assert "$warnings" not in ada.get(assignments).json()
    not_allowed = ada.post(f"{algebra}?$idempotency={KEY}", {})
    assert not_allowed.status_code == 405
    assert "$warnings" not in not_allowed.json()


Send = Callable[[APIClient, str], Any]
ERRORS: dict[str, tuple[Send, int, list[str]]] = {
    "several fields": (
        lambda ada, url: ada.post(url, {"title": "", "due_date": "soon"}),
        400,
        ["BLANK", "INVALID"],
    ),
    "no JSON": (
        lambda ada, url: ada.post(url, "{", content_type="application/json"),
        400,
        ["PARSE_ERROR"],
    ),
    "no object": (lambda ada, url: ada.post(url, []), 400, ["INVALID"]),
    "two keys": (
        lambda ada, url: ada.post(f"{url}?$idempotency={KEY}", {}, **key("other-key")),
        400,
        ["IDEMPOTENCY_KEY_AMBIGUOUS"],
    ),
    "bad key": (
        lambda ada, url: ada.post(f"{url}?$idempotency=", {}),
        400,
        ["IDEMPOTENCY_KEY_INVALID"],
    ),
    "no token": (
        lambda ada, url: APIClient().get(url),
        401,
        ["NOT_AUTHENTICATED"],
    ),
    "unknown token": (
        lambda ada, url: APIClient().get(url, HTTP_AUTHORIZATION="Bearer 123"),
        401,
        ["AUTHENTICATION_FAILED"],
    ),
    "unknown assignment": (
        lambda ada, url: ada.get(f"{url}/{UNKNOWN}"),
        404,
        ["NOT_FOUND"],
    ),
    "unknown class": (
        lambda ada, url: ada.post(
            f"/api/v2/user/classes/{UNKNOWN}/assignments", {"title": "Read"}
        ),
        404,
        ["NOT_FOUND"],
    ),
    "no id": (lambda ada, url: ada.get(f"{url}/first"), 404, ["NOT_FOUND"]),
    "nothing there": (
        lambda ada, url: ada.delete("/api/v2/user/schools"),
        404,
        ["NOT_FOUND"],
    ),
    "other method": (lambda ada, url: ada.put(url, {}), 405, ["METHOD_NOT_ALLOWED"]),
    "other format": (
        lambda ada, url: ada.get(url, HTTP_ACCEPT="text/csv"),
        406,
        ["NOT_ACCEPTABLE"],
    ),
    "other media type": (
        lambda ada, url: ada.post(url, "a=1", content_type="text/plain"),
        415,
        ["UNSUPPORTED_MEDIA_TYPE"],
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_api_answers_errors_in_the_envelope(
    ada: APIClient, algebra: str, case: str
) -> None:
    """X1: Every refusal has its stable code, in this project's own error format."""
    send, status, codes = ERRORS[case]
    response = send(ada, f"{algebra}/assignments")
    assert (response.status_code, errors_of(response)) == (status, codes)
    assert ("WWW-Authenticate" in response) == (status == 401)
    assert not Assignment.objects.exists()


def test_api_names_the_field_of_an_error() -> None:
    error = ValidationError(
        {
            "title": ["Too long.", "Too dull."],
            "questions": [{"text": ["Missing."]}, {}],
            "non_field_errors": ["Unfair."],
        },
        code="bad",
    )
    response = exception_handler(error, {})
    assert response is not None
    assert response.data == [
        {"code": "BAD", "message": "title: Too long."},
        {"code": "BAD", "message": "title: Too dull."},
        {"code": "BAD", "message": "questions.text: Missing."},
        {"code": "BAD", "message": "Unfair."},
    ]


def test_api_leaves_other_exceptions_alone() -> None:
    assert exception_handler(ValueError(uuid4()), {}) is None


# Its payments, with the demo's provider as a process of its own.

PAYMENTS = "/api/v2/user/payments"
PAYMENT = {
    "amount": "12.50",
    "currency": "EUR",
    "card": "tok_visa",
    "reference": "Excursion",
}
DECLINED = {**PAYMENT, "card": "tok_declined"}


class Provider:
    """A running payment provider."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = process

    @property
    def charges(self) -> list[dict[str, Any]]:
        """The ledger."""
        with urlopen(f"{self.url}/charges", timeout=PATIENCE) as response:
            charges: list[dict[str, Any]] = json.load(response)
        return charges

    @contextmanager
    def silenced(self, settings: Any) -> Iterator[None]:
        """Let it accept connections and answer nothing, and be waited for briefly."""
        before = settings.PAYMENT_PROVIDER_TIMEOUT
        settings.PAYMENT_PROVIDER_TIMEOUT = 0.2
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)
        settings.PAYMENT_PROVIDER_TIMEOUT = before


@pytest.fixture
def provider(ada: APIClient, settings: Any, tmp_path: Path) -> Iterator[Provider]:
    """Start a payment provider and tell the API where it is."""
    command = [sys.executable, "-m", "testproject.demo_provider"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file, port = listener.fileno(), listener.getsockname()[1]
        process = subprocess.Popen(
            [*command, f"--fd={file}", f"--ledger={tmp_path / 'ledger.sqlite3'}"],
            cwd=ROOT,
            pass_fds=[file],
            stderr=subprocess.DEVNULL,
        )
    with process:
        try:
            started = Provider(port, process)
            settings.PAYMENT_PROVIDER_URL = started.url
            settings.PAYMENT_PROVIDER_TIMEOUT = PATIENCE
            yield started
        finally:
            process.kill()


@contextmanager
def unreachable(settings: Any) -> Iterator[None]:
    """Let nobody listen where the provider should be."""
    before = settings.PAYMENT_PROVIDER_URL
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings.PAYMENT_PROVIDER_URL = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        yield
    settings.PAYMENT_PROVIDER_URL = before


def state() -> str:
    """Return the state of the one record."""
    return IdempotencyRecord.objects.get().state


def test_payment_is_charged_once(ada: APIClient, provider: Provider) -> None:
    """E10: The provider gets a key that no client can guess, the same every time."""
    first, again = (ada.post(PAYMENTS, PAYMENT, **key()) for _ in range(2))
    (charge,) = provider.charges
    paid = {name: PAYMENT[name] for name in ("amount", "currency", "reference")}
    assert data_of(first, 201) == {"id": charge["id"], **paid}
    assert (again.status_code, again.content) == (201, first.content)
    assert again["Idempotent-Replayed"] == "true"
    assert charge == {**charge, **PAYMENT, "status": "charged", "requests": 1}
    assert UUID(charge["key"])
    assert charge["key"] != KEY
    data_of(ada.post(PAYMENTS, PAYMENT, **key("another-key")), 201)
    assert len({charge["key"] for charge in provider.charges}) == 2


def test_payment_is_declined(ada: APIClient, provider: Provider) -> None:
    """O1: To be declined is an outcome: it is replayed, and another key may try."""
    first, again = (ada.post(PAYMENTS, DECLINED, **key()) for _ in range(2))
    assert (first.status_code, errors_of(first)) == (402, ["CARD_DECLINED"])
    assert (again.status_code, again.content) == (402, first.content)
    (charge,) = provider.charges
    assert (charge["status"], charge["requests"]) == ("declined", 1)
    assert data_of(ada.post(PAYMENTS, PAYMENT, **key("another-key")), 201)


def test_payment_without_a_provider(
    ada: APIClient, provider: Provider, settings: Any
) -> None:
    """E9: A run that could send nothing gives the key back."""
    with unreachable(settings):
        response = ada.post(PAYMENTS, PAYMENT, **key())
    assert response.status_code == 503
    assert errors_of(response) == ["PAYMENT_PROVIDER_UNREACHABLE"]
    assert response["Retry-After"] == "5"
    assert not IdempotencyRecord.objects.exists()
    # The key is new, so it may stand for another payment.
    data_of(ada.post(PAYMENTS, {**PAYMENT, "amount": "13.00"}, **key()), 201)
    assert [charge["amount"] for charge in provider.charges] == ["13.00"]


def test_payment_with_a_silent_provider(
    ada: APIClient, provider: Provider, settings: Any
) -> None:
    """E9: After a timeout the outcome is unknown, until the provider can be asked."""
    with provider.silenced(settings):
        for _ in range(2):
            response = ada.post(PAYMENTS, PAYMENT, **key())
            assert (response.status_code, errors_of(response)) == (
                504,
                ["PAYMENT_UNKNOWN"],
            )
            assert response["Retry-After"] == "5"
            assert state() == State.ABANDONED
    wait_until(lambda: provider.charges, "the request that nobody waits for any more")
    with unreachable(settings):
        response = ada.post(PAYMENTS, PAYMENT, **key())
    assert errors_of(response) == ["PAYMENT_PROVIDER_UNREACHABLE"]
    assert state() == State.ABANDONED
    found = data_of(ada.post(PAYMENTS, PAYMENT, **key()), 201)
    (charge,) = provider.charges
    assert (charge["id"], charge["requests"]) == (found["id"], 1)


def test_payment_is_not_given_back_by_a_later_run(
    ada: APIClient, provider: Provider, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E9: What a later run could not send says nothing about the first one."""
    with provider.silenced(settings):
        ada.post(PAYMENTS, PAYMENT, **key())
        with unreachable(settings), monkeypatch.context() as patch:
            # The provider had not got to the first request when it was asked.
            patch.setattr(provider_client, "find_charge", lambda key: None)
            response = ada.post(PAYMENTS, PAYMENT, **key())
        assert errors_of(response) == ["PAYMENT_PROVIDER_UNREACHABLE"]
        assert state() == State.ABANDONED
    data_of(ada.post(PAYMENTS, PAYMENT, **key()), 201)
    assert len(provider.charges) == 1


@pytest.mark.parametrize("where", ["before the charge", "after it"])
@pytest.mark.parametrize(("payment", "status"), [(PAYMENT, 201), (DECLINED, 402)])
def test_payment_whose_run_ended(
    ada: APIClient,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    payment: dict[str, str],
    status: int,
) -> None:
    """E9: A retry answers with the charge that it finds, or makes it."""
    after = where == "after it"
    with monkeypatch.context() as patch:
        owner, name = (
            (PaymentView, "should_store_response")
            if after
            else (provider_client, "charge")
        )
        patch.setattr(owner, name, end_the_process)
        with pytest.raises(KeyboardInterrupt):
            ada.post(PAYMENTS, payment, **key())
    assert len(provider.charges) == after
    first, again = (ada.post(PAYMENTS, payment, **key()) for _ in range(2))
    assert first.status_code == again.status_code == status
    assert first.content == again.content
    assert "Idempotent-Replayed" not in first
    assert again["Idempotent-Replayed"] == "true"
    (charge,) = provider.charges
    assert charge["requests"] == 1


def end_the_process(*args: Any) -> Any:
    raise KeyboardInterrupt


def test_payment_whose_lease_holds(ada: APIClient, provider: Provider) -> None:
    """E7: While the first run may go on, a retry has to wait."""
    first = ada.post(PAYMENTS, PAYMENT, **key())
    lease = UTCNow() + PaymentView.idempotency_lease
    IdempotencyRecord.objects.update(
        state=State.IN_PROGRESS, status_code=None, lease_expires_at=lease
    )
    response = ada.post(PAYMENTS, PAYMENT, **key())
    assert (response.status_code, response["Retry-After"]) == (409, "1")
    assert errors_of(response) == ["IDEMPOTENCY_IN_PROGRESS"]
    past = UTCNow() - PaymentView.idempotency_lease
    IdempotencyRecord.objects.update(lease_expires_at=past)
    assert data_of(ada.post(PAYMENTS, PAYMENT, **key()), 201) == data_of(first, 201)
    assert [charge["requests"] for charge in provider.charges] == [1]


@pytest.mark.parametrize(
    ("payload", "codes"),
    [
        ({}, ["REQUIRED"] * 4),
        ([], ["INVALID"]),
        ("{", ["PARSE_ERROR"]),
        ({**PAYMENT, "amount": "0.00"}, ["MIN_VALUE"]),
        ({**PAYMENT, "amount": "1.001"}, ["MAX_DECIMAL_PLACES"]),
        ({**PAYMENT, "currency": "XYZ", "card": ""}, ["INVALID_CHOICE", "BLANK"]),
    ],
)
def test_payment_that_is_malformed(
    ada: APIClient, provider: Provider, payload: Any, codes: list[str]
) -> None:
    """O2: A request refused before the charge may be fixed under the same key."""
    if isinstance(payload, str):
        response = ada.post(PAYMENTS, payload, content_type="application/json", **key())
    else:
        response = ada.post(PAYMENTS, payload, **key())
    assert (response.status_code, errors_of(response)) == (400, codes)
    assert not IdempotencyRecord.objects.exists()
    assert provider.charges == []
    data_of(ada.post(PAYMENTS, PAYMENT, **key()), 201)


def test_payment_needs_a_key(ada: APIClient, provider: Provider) -> None:
    response = ada.post(PAYMENTS, PAYMENT)
    assert response.status_code == 400
    assert errors_of(response) == ["IDEMPOTENCY_KEY_REQUIRED"]
    assert provider.charges == []


def test_payment_with_unusable_answers(
    ada: APIClient, provider: Provider, settings: Any
) -> None:
    """E9: An answer of another kind says nothing about the charge."""
    url = settings.PAYMENT_PROVIDER_URL
    settings.PAYMENT_PROVIDER_URL += "/elsewhere"
    for _ in range(2):
        response = ada.post(PAYMENTS, PAYMENT, **key())
        assert (response.status_code, errors_of(response)) == (504, ["PAYMENT_UNKNOWN"])
        assert state() == State.ABANDONED
    settings.PAYMENT_PROVIDER_URL = url
    data_of(ada.post(PAYMENTS, PAYMENT, **key()), 201)


RIDES = "/api/v2/user/rides"
RIDE = {"amount": "12.50", "currency": "EUR", "card": "tok_visa", "destination": "Zoo"}


class TestRides:
    """The API's rides, in steps."""

    @staticmethod
    def rides(ada: APIClient) -> list[str]:
        return [ride["status"] for ride in data_of(ada.get(RIDES), 200)]

    def test_booked_once(self, ada: APIClient, provider: Provider) -> None:
        """E12, E13: One ride, one charge, and a replay."""
        first, again = (ada.post(RIDES, RIDE, **key()) for _ in range(2))
        assert data_of(first, 201)["status"] == "paid"
        assert again.content == first.content
        (charge,) = provider.charges
        assert charge == {**charge, "reference": "Zoo", "amount": "12.50"}
        assert (charge["status"], charge["requests"]) == ("charged", 1)
        assert self.rides(ada) == ["paid"]

    def test_declined(self, ada: APIClient, provider: Provider) -> None:
        """E13, E15: The ride is cancelled together with the response."""
        declined = {**RIDE, "card": "tok_declined"}
        first, again = (ada.post(RIDES, declined, **key()) for _ in range(2))
        assert (first.status_code, errors_of(first)) == (402, ["CARD_DECLINED"])
        assert again.content == first.content
        assert self.rides(ada) == ["cancelled"]

    def test_unreachable(
        self, ada: APIClient, provider: Provider, settings: Any
    ) -> None:
        """E15: After a step the key is not free; the retry continues."""
        with unreachable(settings):
            response = ada.post(RIDES, RIDE, **key())
        assert errors_of(response) == ["PAYMENT_PROVIDER_UNREACHABLE"]
        assert (state(), self.rides(ada)) == (State.ABANDONED, ["booked"])
        assert data_of(ada.post(RIDES, RIDE, **key()), 201)
        assert (len(provider.charges), self.rides(ada)) == (1, ["paid"])

    @pytest.mark.parametrize("card", ["tok_visa", "tok_declined"])
    def test_completer(
        self,
        ada: APIClient,
        provider: Provider,
        monkeypatch: pytest.MonkeyPatch,
        card: str,
    ) -> None:
        """E17: It finishes the ride, in the project's envelope."""
        with monkeypatch.context() as patch:
            # After the charge.
            patch.setattr(Ride.objects, "get", lambda **_: end_the_process())
            with pytest.raises(KeyboardInterrupt):
                ada.post(RIDES, {**RIDE, "card": card}, **key())
        complete(IdempotencyRecord.objects.get())
        is_paid = card == "tok_visa"
        assert self.rides(ada) == ["paid" if is_paid else "cancelled"]
        late = ada.post(RIDES, {**RIDE, "card": card}, **key())
        assert late["Idempotent-Replayed"] == "true"
        if is_paid:
            assert data_of(late, 201)["status"] == "paid"
        else:
            assert (late.status_code, errors_of(late)) == (402, ["CARD_DECLINED"])
        (charge,) = provider.charges
        assert charge["requests"] == 1

    @pytest.mark.parametrize(
        ("change", "code"), [({"amount": "0.00"}, "MIN_VALUE"), ({"card": ""}, "BLANK")]
    )
    def test_malformed(
        self, ada: APIClient, provider: Provider, change: dict[str, str], code: str
    ) -> None:
        """O2: Before the first step a refusal frees the key."""
        response = ada.post(RIDES, {**RIDE, **change}, **key())
        assert (response.status_code, errors_of(response)) == (400, [code])
        assert not IdempotencyRecord.objects.exists()
        assert self.rides(ada) == []


def test_provider_has_keys_of_its_own(provider: Provider) -> None:
    first, again = (provider_client.charge(PAYMENT, "k") for _ in range(2))
    assert (first["requests"], again["requests"]) == (1, 2)
    assert {**first, "requests": 2} == again
    with pytest.raises(provider_client.PaymentUnknown):
        provider_client.charge({**PAYMENT, "amount": "13.00"}, "k")
    assert [charge["amount"] for charge in provider.charges] == ["12.50"]
    assert provider_client.find_charge("another") is None
