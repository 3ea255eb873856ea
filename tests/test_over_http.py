"""What clients meet on the wire, through a real server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection

from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.support.http_servers import (
    SERVER_KEY,
    Answer,
    Server,
    UnixConnection,
    is_replayed,
    read,
)
from tests.support.rendezvous import Rendezvous

DOORS = ["/mixin-view/", "/mixin-viewset/", "/function/", "/method/", "/action/"]


def send_lines(server: Server, path: str, *lines: tuple[str, str]) -> Answer:
    """POST with these header lines, a name as often as it stands there."""
    post = UnixConnection(server.address)
    body = json.dumps({"title": "Essay"}).encode()
    post.putrequest("POST", path)
    for name, value in (
        *(("Content-Type", "application/json"), ("Content-Length", str(len(body)))),
        *lines,
    ):
        post.putheader(name, value)
    post.endheaders(body)
    return read(post)


def refusal_of(answer: Answer) -> tuple[int, str, Any]:
    return (
        answer.status,
        answer.headers["Idempotency-Error"],
        json.loads(answer.body)["code"],
    )


def is_refusal(answer: Answer, status: int, code: str) -> bool:
    code = f"idempotency_{code}"
    return refusal_of(answer) == (status, code, code)


@pytest.mark.parametrize("door", DOORS)
def test_header_lines(server: Server, door: str) -> None:
    """K1: A server joins lines of one name: equal values are one key, others two."""
    ada = ("X-User", "ada")
    key = ("Idempotency-Key", SERVER_KEY)
    quoted = ("Idempotency-Key", f'"{SERVER_KEY}"')
    first = send_lines(server, door, ada, key, key)
    assert first.status == 201
    for lines in ((key,), (quoted, quoted), (key, quoted), (key, key, key)):
        again = send_lines(server, door, ada, *lines)
        assert (again.status, again.body, is_replayed(again)) == (201, first.body, True)
    other = send_lines(server, door, ada, key, ("Idempotency-Key", "another-key"))
    assert is_refusal(other, 400, "key_ambiguous")
    assert Effect.objects.count() == 1


@pytest.mark.parametrize("name", ["X-Idempotency-Key", "x-idempotency-key"])
def test_misspelled(server: Server, name: str) -> None:
    """K1: A header that nearly is the key's is told of, and the request acts."""
    for _attempt in "12":
        answer = server.send("/function/", {}, None, **{name: SERVER_KEY})
        assert answer.status == 201
        said = answer.headers["Idempotency-Warning"]
        assert said.startswith("IDEMPOTENCY_KEY_MISSPELLED;message=")
        assert "Idempotency-Key" in said
    assert Effect.objects.count() == 2
    assert IdempotencyRecord.objects.count() == 0


def test_in_progress(server: Server, rendezvous: Rendezvous) -> None:
    """X1, E3: A duplicate of a running request is told so, and when to retry."""
    if connection.vendor == "sqlite":
        pytest.skip("There a duplicate waits for the writer")
    slow = server.start("/rendezvous/", {}, **rendezvous.header)
    handler = rendezvous.wait()
    duplicate = server.send("/rendezvous/", {})
    assert is_refusal(duplicate, 409, "in_progress")
    assert duplicate.headers["Retry-After"] == "1"
    handler.let_go()
    assert read(slow).status == 201
    assert is_replayed(server.send("/rendezvous/", {}))
    assert Effect.objects.count() == 1


def test_refusals(server: Server) -> None:
    """X1: Machines see which refusal it is, in the header and beside the detail."""
    assert server.send("/function/", {}).status == 201
    assert is_refusal(server.send("/function/", {"b": 1}), 422, "key_reused")
    IdempotencyRecord.objects.update(body=None, body_size=None)
    not_kept = server.send("/function/", {})
    assert is_refusal(not_kept, 409, "response_not_kept")
    assert "Retry-After" not in not_kept.headers
    assert is_refusal(server.send("/required/", {}, None), 400, "key_required")
    assert Effect.objects.count() == 1


def test_strangers(server: Server) -> None:
    """S1, K6: Without credentials a key must look random."""
    for key in ("short", "2026-11-29", "20261129", "a" * 40, "1700000000000"):
        answer = send_lines(server, "/function/", ("Idempotency-Key", key))
        assert is_refusal(answer, 400, "key_weak"), key
    # A header that no authenticator has accepted names nobody.
    for token in ("one", "another"):
        answer = send_lines(
            server,
            "/function/",
            ("Idempotency-Key", SERVER_KEY),
            ("Authorization", f"Bearer {token}"),
        )
        assert answer.status == 201
    assert Effect.objects.count() == 1


def test_no_warning_where_nothing_acts(server: Server) -> None:
    """K5: Neither a 405 nor a 404 of the resolver can act again."""
    for path, status in (("/mixin-viewset/search/", 201), ("/nowhere/", 404)):
        answer = server.send(path, {})
        assert answer.status == status
        assert ("Idempotency-Warning" in answer.headers) == (status == 201)
    put = UnixConnection(server.address)
    headers = {"Idempotency-Key": SERVER_KEY, "X-User": "ada"}
    put.request("PUT", "/mixin-view/", "{}", headers)
    not_allowed = read(put)
    assert not_allowed.status == 405
    assert "Idempotency-Warning" not in not_allowed.headers
