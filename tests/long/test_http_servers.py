"""HTTP servers other than gunicorn, and it, too: duplicates, replays, uploads, a kill.

A server that is not installed is skipped.
"""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from django.db import connection

from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import KEY
from tests.support.http_servers import (
    Answer,
    Server,
    UnixConnection,
    read,
)
from tests.support.other_servers import SERVERS, HTTPServer, serving_by
from tests.support.processes import wait_until
from tests.support.rendezvous import Rendezvous

DUPLICATES = 20
# One after another.
REQUESTS = 30
VIEWS = ["/function/", "/plain/function/"]
JSON = {"Content-Type": "application/json"}

pytestmark = pytest.mark.usefixtures("database")
each_view = pytest.mark.parametrize("url", VIEWS, ids=["api_view", "plain view"])


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def kind(request: pytest.FixtureRequest) -> HTTPServer:
    """Return each server that is installed."""
    found: HTTPServer = request.param
    if not found.is_installed:
        pytest.skip(f"{found.package} is not installed (the extra servers, or uwsgi)")
    return found


@pytest.fixture(scope="module")
def server(
    kind: HTTPServer, django_db_setup: None, django_db_blocker: pytest.FixtureRequest
) -> Iterator[Server]:
    """Start a server, once for all tests."""
    with (
        TemporaryDirectory(prefix="idem") as folder,
        serving_by(kind, Path(folder)) as found,
    ):
        yield found


def is_replayed(answer: Answer) -> bool:
    """Return whether it came from the record, whatever case the headers have."""
    return headers_of(answer).get("idempotent-replayed") == "true"


def headers_of(answer: Answer) -> dict[str, str]:
    """Return headers by their names in lower case."""
    return {name.lower(): value for name, value in answer.headers.items()}


def post(server: Server, url: str, body: bytes, **headers: str) -> Answer:
    """POST bytes under the key."""
    request = UnixConnection(server.address)
    own = {"X-User": "ada", "Idempotency-Key": KEY, **JSON, **headers}
    request.request("POST", url, body, own)
    return read(request)


def in_chunks(server: Server, url: str, body: bytes, key: str = KEY) -> Answer:
    """POST bytes in chunks, without their length."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (body[:5], body[5:]))
    own = {"Idempotency-Key": key, "Transfer-Encoding": "chunked", **JSON}
    return send_raw(server, url, own.items(), chunks + b"0\r\n\r\n")


def send_raw(
    server: Server, url: str, headers: Iterable[tuple[str, str]], body: bytes
) -> Answer:
    """POST in one write, which a server may answer before it has read it all."""
    lines = [f"POST {url} HTTP/1.1", "Host: localhost", "X-User: ada"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join([*lines, "", ""]).encode()
    request = UnixConnection(server.address)
    with closing(request):
        request.connect()
        request.sock.sendall(head + body)
        with closing(http.client.HTTPResponse(request.sock, method="POST")) as found:
            found.begin()
            return Answer(found.status, dict(found.getheaders()), found.read())


def upload(server: Server, content: bytes, boundary: str) -> Answer:
    """POST a form with a file."""
    body = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="title"\r\n\r\nEssay\r\n'
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="essay.bin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body += content + f"\r\n--{boundary}--\r\n".encode()
    content_type = f"multipart/form-data; boundary={boundary}"
    return post(server, "/function/", body, **{"Content-Type": content_type})


@each_view
def test_duplicates_at_once(server: Server, url: str) -> None:
    """E1, E3: Of many requests at once one acts; the others are refused or replay."""
    with ThreadPoolExecutor(DUPLICATES) as pool:
        asked = [
            pool.submit(server.send, url, {"title": "Essay"}, KEY)
            for _ in range(DUPLICATES)
        ]
        answers = [each.result() for each in asked]
    statuses = Counter(answer.status for answer in answers)
    assert {*statuses} <= {201, 409}, statuses
    last = server.send(url, {"title": "Essay"}, KEY)
    assert is_replayed(last)
    assert {a.body for a in answers if a.status == 201} == {last.body}
    assert sum(a.status == 201 and not is_replayed(a) for a in answers) == 1
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 1


@each_view
def test_replays(server: Server, url: str) -> None:
    """R2, R3, F4: A retry gets status, bytes and headers; another body is refused."""
    first = server.send(url, {"title": "Essay"}, KEY)
    again = server.send(url, {"title": "Essay"}, KEY)
    assert first.status == again.status == 201
    assert (is_replayed(first), is_replayed(again)) == (False, True)
    assert again.body == first.body
    for name in ("location", "content-type", "idempotency-expires"):
        assert headers_of(first)[name] == headers_of(again)[name]
    assert server.send(url, {"title": "Thesis"}, KEY).status == 422
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("size", [10, 5_000_000], ids=["small", "large"])
def test_uploads(server: Server, size: int) -> None:
    """F2, F3: A file counts by its content, whatever the boundary."""
    content = bytes(range(10)) * (size // 10)
    first = upload(server, content, "first")
    assert first.status == 201
    again = upload(server, content, "second")
    assert is_replayed(again)
    assert again.body == first.body
    assert upload(server, content[:-1] + b"!", "first").status == 422
    assert Effect.objects.count() == 1


def test_repeated_headers(server: Server) -> None:
    """K1: A key that comes twice is one key, and two keys are refused."""
    answers = [
        send_raw(
            server,
            "/function/",
            [
                *{"Content-Length": "2", **JSON}.items(),
                *(("Idempotency-Key", key) for key in keys),
            ],
            b"{}",
        )
        for keys in ([KEY, KEY], [KEY, f"{KEY}-2"])
    ]
    assert [answer.status for answer in answers] == [201, 400]
    assert Effect.objects.count() == 1


def test_underscores(server: Server, kind: HTTPServer) -> None:
    """K1: What a server makes of the header's name with an underscore is known."""
    request = UnixConnection(server.address)
    own = {"X-User": "ada", "Idempotency_Key": KEY, **JSON}
    request.request("POST", "/function/", b"{}", own)
    answer = read(request)
    assert answer.status in (201, 400)
    found = IdempotencyRecord.objects.filter(key=KEY).exists()
    assert found is kind.takes_underscores


@each_view
def test_chunked_bodies(server: Server, url: str) -> None:
    """F3, F4: Bodies without a length count, or are refused: none passes for another.

    A server hands over the length, or Django reads the body without (ASGI), or the
    app refuses.
    """
    body, other = b'{"title": "Essay"}', b'{"title": "Thesis"}'
    first = in_chunks(server, url, body)
    if first.status == 400:
        assert headers_of(first)["idempotency-error"] == "idempotency_length_required"
        assert not Effect.objects.exists()
        return
    assert first.status == 201
    again = in_chunks(server, url, body)
    assert is_replayed(again)
    assert again.body == first.body
    assert in_chunks(server, url, other).status == 422
    # The same in one piece, with its length.
    assert is_replayed(post(server, url, body))
    assert Effect.objects.count() == 1


def test_chunked_bodies_are_seen(server: Server, kind: HTTPServer) -> None:
    """F3: Which servers let Django see a chunked body is known."""
    answer = in_chunks(server, "/plain/function/", b'{"title": "Essay"}')
    assert (answer.status == 201) is kind.shows_chunked_bodies


def test_killed_in_the_handler(
    kind: HTTPServer, server: Server, rendezvous: Rendezvous
) -> None:
    """E1: Neither effect nor key outlives a killed process; the retry acts."""
    if not kind.has_successors:
        with TemporaryDirectory(prefix="idem") as folder:
            place = Path(folder)
            with serving_by(kind, place) as alone:
                kill_a_run(alone, rendezvous)
            with serving_by(kind, place) as alone:
                assert_acts_once(alone)
    else:
        kill_a_run(server, rendezvous)
        assert_acts_once(server)


def kill_a_run(server: Server, rendezvous: Rendezvous) -> None:
    """Kill the process that executes a request."""
    request = server.start("/rendezvous/", {}, KEY, **rendezvous.header)
    rendezvous.wait().kill()
    with suppress(http.client.HTTPException, OSError):
        assert read(request).status >= 500


def assert_acts_once(server: Server) -> None:
    """See the retry act, and its retry replay."""
    answers: list[Answer] = []

    def is_answered() -> bool:
        with suppress(http.client.HTTPException, OSError):
            answers.append(server.send("/rendezvous/", {}, KEY))
        return bool(answers)

    wait_until(is_answered, "a worker that answers")
    again = server.send("/rendezvous/", {}, KEY)
    assert [answers[0].status, is_replayed(answers[0])] == [201, False]
    assert is_replayed(again)
    assert json.loads(again.body) == json.loads(answers[0].body)
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 1


@pytest.mark.skipif(connection.vendor != "postgresql", reason="It counts sessions.")
@pytest.mark.parametrize("age", [0, 60])
def test_kept_connections_under_asgi(age: int) -> None:
    """Under ASGI each request leaves a connection behind if connections are kept."""
    uvicorn = next(each for each in SERVERS if each.name == "uvicorn")
    if not uvicorn.is_installed:
        pytest.skip("uvicorn is not installed")
    with (
        TemporaryDirectory(prefix="idem") as folder,
        serving_by(uvicorn, Path(folder), conn_max_age=age) as server,
    ):
        for number in range(REQUESTS):
            assert server.send("/function/", {}, f"{KEY}-{number}").status == 201
        if age:
            # Two workers would need two; what Python does not collect stays open.
            assert sessions() > 2
        else:
            wait_until(lambda: sessions() == 0, "the end of all sessions")


def sessions() -> int:
    """Return how many connections the server has to the tests' database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
        count: int = cursor.fetchone()[0]
        return count
