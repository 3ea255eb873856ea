"""The key in a request: found, validated, judged weak."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency.exceptions import KeyAmbiguous, KeyInvalid
from idempotency.keys import ClientKey, find_key, is_weak
from tests.app.models import Effect
from tests.conftest import KEY, assert_refused

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


def meta(query: str | None = None, header: str | None = None) -> dict[str, Any]:
    """Return the META of a request with a key in the query or the header."""
    found = {} if query is None else {"QUERY_STRING": query}
    return found if header is None else {**found, "HTTP_IDEMPOTENCY_KEY": header}


def test_no_key() -> None:
    """K4: A request without either name has no key."""
    assert find_key({}) is None
    assert find_key(meta("a=1&idempotency=x")) is None
    assert find_key(meta("")) is None


@pytest.mark.parametrize(
    "request_meta",
    [
        meta("$idempotency=abcdefgh"),
        meta("%24idempotency=abcdefgh"),
        meta("%24%69dempotency=abcdefgh&x=1"),
        meta("x=1&$idempotency=abcdefgh&$idempotency=abcdefgh"),
        meta("$idempotency=abcdefgh", "abcdefgh"),
        meta("$idempotency=abcdefgh", '"abcdefgh"'),
        meta(header="abcdefgh"),
        meta(header='"abcdefgh"'),
        meta(header='  "abcdefgh"\t'),
        meta(header='"abcdefgh", "abcdefgh"'),
    ],
)
def test_one_key(request_meta: dict[str, Any]) -> None:
    """K1, K2: Equal values are one key, wherever and however they are written."""
    key = find_key(request_meta)
    assert key is not None
    assert key.value == "abcdefgh"
    assert key.in_query is ("QUERY_STRING" in request_meta)


@pytest.mark.parametrize(
    "request_meta",
    [
        meta("$idempotency=abcdefgh&$idempotency=abcdefgi"),
        meta("$idempotency=abcdefgh", "ABCDEFGH"),
        meta(header="abcdefgh,abcdefgi"),
        meta(header="abcdefgh, abcdefgh"),
        meta(header='"abcdefgh", "abcdefgi"'),
        meta(header='abc, "abc"'),
    ],
)
def test_ambiguous(request_meta: dict[str, Any]) -> None:
    """K1: Different values, or a bare header that a server joined, are refused."""
    with pytest.raises(KeyAmbiguous):
        find_key(request_meta)


@pytest.mark.parametrize(
    "request_meta",
    [
        meta("$idempotency="),
        meta("$idempotency"),
        meta("$idempotency=%20"),
        meta("$idempotency=abcdefgh%20"),
        meta("$idempotency=abc+def"),
        meta("$idempotency=abc%00def"),
        meta("$idempotency=abc%0Adef"),
        meta("$idempotency=abc%7Fdef"),
        meta("$idempotency=%C3%A9t%C3%A9"),
        meta("$idempotency=%FF%FE"),
        meta("$idempotency=" + "k" * 256),
        meta("$idempotency=&$idempotency=abcdefgh"),
        meta(header=""),
        meta(header="  "),
        meta(header="abc def"),
        meta(header="k" * 256),
        meta(header="clé-du-jour"),
        meta(header='"abc'),
        meta(header='"abc"def'),
        meta(header='"a\\bc"'),
        meta(header='"abc\\"'),
        meta(header='""'),
        meta(header='"abc" "def"'),
        meta(header='"abc", def'),
        meta(header='"abc";q=1'),
        meta(header='"é"'),
    ],
)
def test_invalid(request_meta: dict[str, Any]) -> None:
    """K2, K3: Anything but 1 to 255 visible ASCII characters is refused."""
    with pytest.raises(KeyInvalid):
        find_key(request_meta)


def test_longest_key() -> None:
    """K3: 255 characters are a key."""
    assert find_key(meta("$idempotency=" + "k" * 255)) == ClientKey("k" * 255, True)


@given(VISIBLE.filter(lambda key: len(key) <= 255))
def test_every_visible_key_survives(key: str) -> None:
    """K2, K3: Every visible key is the same in the query and as a quoted header."""
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    in_query = find_key(meta(urlencode({"$idempotency": key})))
    in_header = find_key(meta(header=f'"{escaped}"'))
    assert in_query == ClientKey(key, in_query=True)
    assert in_header == ClientKey(key, in_query=False)


@given(st.text(), st.text())
def test_any_text_is_a_key_or_a_clear_refusal(query: str, header: str) -> None:
    """K3: No header and no query makes anything but a key, no key or a refusal."""
    for request_meta in (
        meta(header=header),
        meta(f"$idempotency={quote_plus(query, errors='replace')}"),
        meta(quote(query, errors="replace", safe="&=%$+"), header),
    ):
        try:
            key = find_key(request_meta)
        except (KeyAmbiguous, KeyInvalid):
            continue
        assert key is None or (key.value.isascii() and key.value.isprintable())


def test_names_can_be_changed_or_turned_off(settings: Any) -> None:
    """K1: Either name is the project's to choose, and None turns it off."""
    both = meta("$idempotency=in-the-query&key=renamed!", "in-the-header")
    settings.IDEMPOTENCY = {"QUERY_PARAM": None}
    assert find_key(both) == ClientKey("in-the-header", in_query=False)
    settings.IDEMPOTENCY = {"HEADER": None}
    assert find_key(both) == ClientKey("in-the-query", in_query=True)
    settings.IDEMPOTENCY = {"HEADER": "X-Retry", "QUERY_PARAM": "key"}
    assert find_key(both) == ClientKey("renamed!", in_query=True)
    assert find_key({"HTTP_X_RETRY": "retry-me"}) == ClientKey("retry-me", False)


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "1234567",
        "1732420800",
        "1732420800123",
        "1732420800123456",
        "1732420800123456789",
        "2026-11-24T03:41:53Z",
        "2026-11-24T03:41:53.123456+01:00",
        "20261124T034153",
        "20261124T034153,5Z",
        "2026-11-24t03:41",
        "2026-11-24T03",
    ],
)
def test_weak(key: str) -> None:
    """K6: Short keys and points in time are likely to collide."""
    assert is_weak(key)


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "12345678",
        "173242080012",
        "2026-11-24",
        "order-2026-11-24T03:41:53Z",
        "7f0c1f8e-2f2c-4c0e-9f60-5f8f3d1f9b11",
    ],
)
def test_strong(key: str) -> None:
    """K6: Everything else is the client's choice."""
    assert not is_weak(key)


@pytest.mark.parametrize("door", ["/mixin-view/", "/function/"])
@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("?$idempotency=", {}, "idempotency_key_invalid"),
        ("", {"HTTP_IDEMPOTENCY_KEY": "x" * 256}, "idempotency_key_invalid"),
        ("", {"HTTP_IDEMPOTENCY_KEY": "a,b"}, "idempotency_key_ambiguous"),
        (
            "?$idempotency=abcdefgh",
            {"HTTP_IDEMPOTENCY_KEY": "other-key"},
            "idempotency_key_ambiguous",
        ),
    ],
)
@pytest.mark.usefixtures("atomic_requests")
def test_bad_keys_run_nothing(
    client: Any, door: str, query: str, headers: dict[str, str], code: str
) -> None:
    """K1, K3: A refused key has no effect and leaves no record."""
    response = client.post(door + query, {}, **headers)
    assert_refused(response, 400, code)
    assert Effect.objects.count() == 0


@pytest.mark.usefixtures("atomic_requests")
def test_charset_of_the_body_hides_no_key(client: Any) -> None:
    """K1: The query is read as UTF-8, whatever the body says of itself."""
    for _ in range(2):
        response = client.generic(
            "POST",
            f"/function/?%24idempotency={KEY}",
            "{}".encode("utf-16"),
            content_type="application/json; charset=utf-16",
        )
        assert response.status_code == 201
    assert Effect.objects.count() == 1


@pytest.mark.usefixtures("atomic_requests")
def test_keys_are_compared_exactly(client: Any) -> None:
    """K3: Case makes another key, on every database and collation."""
    for key in ("abcdefgh", "ABCDEFGH", "abcdefgH"):
        assert client.post(f"/function/?$idempotency={key}").status_code == 201
    assert Effect.objects.count() == 3
