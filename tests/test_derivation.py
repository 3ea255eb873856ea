"""Derived keys: a construction that stays, and what a key depends on."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpRequest
from django.test import override_settings
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency import fingerprints
from idempotency.context import RequestContext, context_of, derive_key
from tests.conftest import KEY, key

ARGUMENTS = {
    "secret": "secret",
    "scope": "school.teacher:1",
    "key": "7f0c1f8e-2f2c-4c0e-9f60-5f8f3d1f9b11",
    "payload": "f" * 64,
    "name": "charge",
}

# Never change one: clients that retry across an upgrade would act twice downstream.
VECTORS: list[tuple[dict[str, str], str]] = [
    ({}, "1f970867-38fb-8b1c-9f97-2d7165a280f8"),
    ({"name": ""}, "ec98c42b-f212-86ff-92d7-fdceaf677e6a"),
    (
        {"scope": "Schüler:1", "name": "gebühr €"},
        "15b7ed05-6414-8383-b389-552cd410ef87",
    ),
    ({"scope": "ab", "key": "c"}, "907a6547-3b31-8ef9-ae03-17995a63cf1b"),
    ({"scope": "a", "key": "bc"}, "fadaa588-172e-822b-932c-fc0c3d373dea"),
]


def derived(secret: str = ARGUMENTS["secret"], **changed: str) -> str:
    """Return the key that the arguments give."""
    others = {name: value for name, value in ARGUMENTS.items() if name != "secret"}
    return derive_key(secret.encode(), **{**others, **changed})


@pytest.mark.parametrize(("changed", "expected"), VECTORS)
def test_vectors(changed: dict[str, str], expected: str) -> None:
    """E10: The same key for the same arguments, in every release."""
    assert derived(**changed) == expected


def test_construction() -> None:
    """E10: HMAC-SHA256 over length-prefixed parts, as documented."""
    parts = [b"idempotency derive 1", *(ARGUMENTS[n].encode() for n in ORDER)]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    expected = hmac.new(b"secret", message, hashlib.sha256).hexdigest()[:32]
    found = uuid.UUID(derived())
    assert (found.version, found.variant) == (8, uuid.RFC_4122)
    assert [*found.hex[:12], *found.hex[13:16], *found.hex[17:]] == [
        *expected[:12],
        *expected[13:16],
        *expected[17:],
    ]


ORDER = ("scope", "key", "payload", "name")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_depends_on_everything(name: str) -> None:
    """E10: Another scope, key, payload, name or secret gives another key."""
    assert derived(**{name: ARGUMENTS[name] + "x"}) != derived()


def test_without_a_key() -> None:
    """E10: Without a key it is random, and the same within one request."""
    first, second = RequestContext(), RequestContext()
    assert first.derive("charge") == first.derive("charge") != first.derive("refund")
    assert first.derive("charge") != second.derive("charge")
    assert uuid.UUID(first.derive("charge")).version == 4


@pytest.mark.usefixtures("atomic_requests")
class TestInHandlers:
    """E10 in a view, in atomic mode."""

    @pytest.fixture
    def derive(self, client: Any, handle: Callable[..., None]) -> Callable[..., str]:
        """Return what derives in a handler that fails: every run is a first one."""

        def derive(
            data: Any, value: str = "7f0c1f8e2f2c4c0e", user: str = "ada"
        ) -> str:
            derived: list[str] = []

            def handler(request: Any) -> Response:
                derived.append(request.idempotency.derive("charge"))
                return Response(status=503)

            handle(handler)
            client.credentials(HTTP_X_USER=user)
            client.post("/function/", data, **key(value))
            return derived[0]

        return derive

    def test_runs(self, derive: Callable[..., str]) -> None:
        """E10: The same in every run; another payload, key or caller is another."""
        first = derive({"a": 1})
        assert first == derive({"a": 1})
        assert len({first, derive({"a": 2}), derive({"a": 1}, "another-key")}) == 3
        assert derive({"a": 1}, user="bob") != first

    def test_upgrade(self, derive: Callable[..., str], monkeypatch: Any) -> None:
        """E10: A newer fingerprint version changes nothing."""
        first = derive({"a": 1})
        monkeypatch.setitem(fingerprints.VERSIONS, 2, lambda request: "2" * 64)
        assert derive({"a": 1}) == first

    def test_own_fingerprint(self, derive: Callable[..., str]) -> None:
        """E10: Where the project says what the payload is, that counts."""
        with override_settings(
            IDEMPOTENCY={"FINGERPRINT": "tests.test_derivation.same"}
        ):
            assert derive({"a": 1}) == derive({"a": 2})

    def test_secret(self, derive: Callable[..., str]) -> None:
        """E10: DERIVATION_SECRET, or else SECRET_KEY."""
        first = derive({})
        with override_settings(SECRET_KEY="another"):
            second = derive({})
            with override_settings(IDEMPOTENCY={"DERIVATION_SECRET": "own"}):
                third = derive({})
        with override_settings(IDEMPOTENCY={"DERIVATION_SECRET": "own"}):
            assert derive({}) == third
        assert len({first, second, third}) == 3

    def test_secret_in_bytes(self, derive: Callable[..., str], client: Any) -> None:
        """E10, S1: SECRET_KEY may be text or bytes, which name the same secret."""
        client.credentials(HTTP_AUTHORIZATION="Bearer 1")
        client.force_authenticate(token="1")
        found = set()
        for secret in ("sécret", "sécret".encode()):
            with override_settings(SECRET_KEY=secret):
                found.add(derive({}, KEY))
                assert client.post("/function/", {}, **key()).status_code == 503
        assert len(found) == 1


def same(request: Any) -> str:
    return "same"


def test_context_for_type_checkers(client: Any, handle: Any, database: None) -> None:
    """A handler gets the same as ``request.idempotency``; others get an error."""

    def handler(request: Any) -> Response:
        assert context_of(request) is request.idempotency
        return Response({"attempt": context_of(request).attempt})

    handle(handler)
    assert client.post("/mixin-view/", {}, **key()).json() == {"attempt": 1}
    with pytest.raises(AttributeError, match="idempotency"):
        context_of(Request(HttpRequest()))
