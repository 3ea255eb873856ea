"""Input that nobody expects, through the whole view."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import KEY

pytestmark = pytest.mark.usefixtures("atomic_requests")

# The database is emptied by the test itself between two examples.
many = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HEADER_TEXT = st.text(st.characters(max_codepoint=255), max_size=300)
CONTENT_TYPES = st.sampled_from(
    [
        "application/json",
        "application/json; charset=utf-16",
        "application/json; charset=nonsense",
        "application/vnd.api+json",
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded; charset=idna",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=\xff",
        "text/plain",
        "",
        "/;=;",
    ]
)
BODIES = st.binary(max_size=60) | st.sampled_from(
    [
        b"{}",
        b"[]",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[" * 2000,
        b"9" * 5000,
        b'"\\ud800"',
        b"a=1&a=2&%ff=%00",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\n1',
    ]
)


def clear() -> None:
    """Forget what the last example did."""
    for model in (Effect, IdempotencyRecord):
        model._default_manager.all()._raw_delete("default")


def post(client: APIClient, path: str, **arguments: Any) -> Any:
    """POST bytes of a type."""
    body = arguments.pop("body", b"{}")
    kind = arguments.pop("kind", "application/json")
    return client.generic("POST", path, body, content_type=kind, **arguments)


@many
@given(st.text(max_size=300), st.none() | HEADER_TEXT)
def test_any_key(client: APIClient, query: str, header: str | None) -> None:
    """K1, K2, K3: Any key is taken or refused, and a refused one does nothing."""
    clear()
    headers = {} if header is None else {"HTTP_IDEMPOTENCY_KEY": header}
    path = f"/function/?$idempotency={quote(query, errors='replace')}"
    answer = post(client, path, **headers)
    assert answer.status_code in (201, 400), answer.content
    effects = Effect.objects.count()
    assert effects == IdempotencyRecord.objects.count() == (answer.status_code == 201)
    retry = post(client, path, **headers)
    assert retry.content == answer.content
    assert Effect.objects.count() == effects


@many
@given(CONTENT_TYPES, BODIES)
def test_any_body(client: APIClient, kind: str, body: bytes) -> None:
    """F3: Any body gets the answer that it gets without a key."""
    clear()
    bare = post(client, "/function/", body=body, kind=kind)
    noted = [*Effect.objects.values_list("note", flat=True)]
    clear()
    keyed = post(client, "/function/", body=body, kind=kind, HTTP_IDEMPOTENCY_KEY=KEY)
    assert keyed.status_code == bare.status_code
    assert [*Effect.objects.values_list("note", flat=True)] == noted
    retry = post(client, "/function/", body=body, kind=kind, HTTP_IDEMPOTENCY_KEY=KEY)
    assert retry.status_code == bare.status_code
    assert Effect.objects.count() == len(noted)
    assert IdempotencyRecord.objects.count() == (bare.status_code == 201)


@many
@given(st.binary(max_size=80))
def test_any_query(client: APIClient, query: bytes) -> None:
    """K1, F1: Any query is read, and what it says is part of the request."""
    clear()
    environ = {"QUERY_STRING": query.decode("latin-1"), "HTTP_IDEMPOTENCY_KEY": KEY}
    for _ in range(2):
        answer = post(client, "/function/", **environ)
        assert answer.status_code in (201, 400)
    assert Effect.objects.count() <= 1
