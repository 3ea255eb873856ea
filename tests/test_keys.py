"""Finding and validating the key of a request."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency.client_warnings import key_misspelled
from idempotency.exceptions import KeyAmbiguous, KeyInvalid
from idempotency.keys import ClientKey, find_key, find_near_miss
from tests.app.models import Effect
from tests.conftest import KEY, assert_refused
from tests.support.http_servers import (
    Answer,
    Server,
    UnixConnection,
    is_replayed,
    read,
)

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
        meta(header="abcdefgh,abcdefgh"),
        meta(header="abcdefgh, abcdefgh ,\tabcdefgh"),
        meta(header='abcdefgh, "abcdefgh"'),
        meta(header='"abcdefgh" ,abcdefgh,"abcdefgh"'),
        meta("$idempotency=abcdefgh", "abcdefgh, abcdefgh"),
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
        meta(header='"abcdefgh", "abcdefgi"'),
        meta(header='abcdefgh, "abcdefgi"'),
        meta(header='"abcdefgh", abcdefgi'),
        meta(header='"abcdefgh,abcdefgh", abcdefgh'),
        meta(header="abcdefgh, abcdefgh, ABCDEFGH"),
        meta("$idempotency=abcdefgi", "abcdefgh, abcdefgh"),
    ],
)
def test_ambiguous(request_meta: dict[str, Any]) -> None:
    """K1: Different values are refused, whatever joined them."""
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
        meta(header='"abc", "def'),
        meta(header='"abc";q=1'),
        meta(header='"abc"   ;q=1, "abc"'),
        meta(header="abc,"),
        meta(header="abc, , abc"),
        meta(header=", abc"),
        meta(header="abc, a b"),
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


@given(st.lists(st.sampled_from(["a,b", "a", '"', "b", "\\"]), min_size=1), st.data())
def test_members_may_be_bare_or_quoted(keys: list[str], data: st.DataObject) -> None:
    """K1, K2: Joined members are one key if all of them name it."""
    members = []
    for value in keys:
        bare = "," not in value and not value.startswith('"')
        if bare and data.draw(st.booleans()):
            members.append(value)
        else:
            members.append('"{}"'.format(re.sub(r'(["\\])', r"\\\1", value)))
    request_meta = meta(
        header=data.draw(st.sampled_from([",", ", ", "\t,"])).join(members)
    )
    if len({*keys}) == 1:
        assert find_key(request_meta) == ClientKey(keys[0], in_query=False)
    else:
        with pytest.raises(KeyAmbiguous):
            find_key(request_meta)


NEAR_MISSES = [
    "$idempotency[]=abcdefgh",
    "$idempotency[0]=abcdefgh",
    "%24idempotency%5B12%5D=abcdefgh",
    "$Idempotency=abcdefgh",
    "$IDEMPOTENCY[]=abcdefgh",
    "idempotency=abcdefgh",
    "x=1&Idempotency=",
    "idempotency[]",
    "_idempotency=abcdefgh",
    "$$idempotency=abcdefgh",
    "$idempotency+=abcdefgh",
    # Encoded twice.
    "%2524idempotency=abcdefgh",
    "%24%69dempotency%5B%5D=abcdefgh",
]


@pytest.mark.parametrize("query", NEAR_MISSES)
def test_near_misses_in_the_query(query: str) -> None:
    """K1: Another case, brackets and other signs around it do not make it the name."""
    assert find_key(meta(query)) is None
    assert find_near_miss(meta(query)) == "query"


def test_near_miss_in_the_header() -> None:
    """K1: The prefix X- makes the header a near miss."""
    assert find_near_miss({"HTTP_X_IDEMPOTENCY_KEY": ""}) == "header"


@pytest.mark.parametrize(
    "request_meta",
    [
        {},
        meta(""),
        meta("a=1"),
        meta("a=idempotency&b=$idempotency"),
        meta("idempotency_key=abcdefgh"),
        meta("no$idempotency=abcdefgh"),
        meta("idempotency[key]=abcdefgh"),
        meta("filter[idempotency]=abcdefgh"),
        {"HTTP_IDEMPOTENCY": "abcdefgh", "HTTP_X_IDEMPOTENCY_KEYS": "abcdefgh"},
    ],
)
def test_no_near_miss(request_meta: dict[str, Any]) -> None:
    """K1: Other names are the endpoint's own."""
    assert find_near_miss(request_meta) is None


def test_near_misses_follow_the_names(settings: Any) -> None:
    """K1: A near miss is one of the project's own names; None has none."""
    settings.IDEMPOTENCY = {"QUERY_PARAM": "meta[key]", "HEADER": "X-Retry"}
    assert find_near_miss(meta("Meta[Key]=a")) == "query"
    assert find_near_miss(meta("meta[key][]=a")) == "query"
    assert find_near_miss(meta("meta[page]=a&meta=b")) is None
    assert find_near_miss(meta("idempotency=a")) is None
    assert find_near_miss({"HTTP_RETRY": "a"}) == "header"
    assert find_near_miss({"HTTP_X_X_RETRY": "a"}) is None
    settings.IDEMPOTENCY = {"QUERY_PARAM": "$"}
    assert find_near_miss(meta("=a&$$=b&-=c")) is None
    settings.IDEMPOTENCY = {"QUERY_PARAM": None}
    assert find_near_miss(meta("idempotency=a")) is None
    settings.IDEMPOTENCY = {"HEADER": None}
    assert find_near_miss({"HTTP_X_IDEMPOTENCY_KEY": "a"}) is None


def test_right_spelling_is_fit_for_a_header(settings: Any) -> None:
    """K1, K7: Whatever the name is, the warning is one well-formed ASCII member."""
    assert "is $idempotency." in key_misspelled("query").message
    assert "is Idempotency-Key." in key_misspelled("header").message
    settings.IDEMPOTENCY = {"QUERY_PARAM": 'schlüssel "\\"'}
    warning = key_misspelled("query")
    assert "is schl%C3%BCssel%20%22%5C%22." in warning.message
    assert warning.as_header().isascii()
    assert warning.as_header().count('"') == 2


@pytest.mark.parametrize("url", ["/mixin-view/", "/function/"])
@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("?$idempotency=", {}, "idempotency_key_invalid"),
        ("", {"HTTP_IDEMPOTENCY_KEY": "x" * 256}, "idempotency_key_invalid"),
        ("", {"HTTP_IDEMPOTENCY_KEY": "a,b"}, "idempotency_key_ambiguous"),
        ("", {"HTTP_IDEMPOTENCY_KEY": "a,"}, "idempotency_key_invalid"),
        (
            "?$idempotency=abcdefgh",
            {"HTTP_IDEMPOTENCY_KEY": "other-key"},
            "idempotency_key_ambiguous",
        ),
    ],
)
@pytest.mark.usefixtures("atomic_requests")
def test_bad_keys_run_nothing(
    client: Any, url: str, query: str, headers: dict[str, str], code: str
) -> None:
    """K1, K3: A refused key has no effect and leaves no record."""
    response = client.post(url + query, {}, **headers)
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
    for value in ("abcdefgh", "ABCDEFGH", "abcdefgH"):
        assert client.post(f"/function/?$idempotency={value}").status_code == 201
    assert Effect.objects.count() == 3


def send_lines(server: Server, path: str, *keys: str) -> Answer:
    """POST with a header line for each key."""
    post = UnixConnection(server.address)
    post.putrequest("POST", path)
    for name, value in (
        *(("Content-Type", "application/json"), ("Content-Length", "2")),
        *(("X-User", "ada"), *(("Idempotency-Key", key) for key in keys)),
    ):
        post.putheader(name, value)
    post.endheaders(b"{}")
    return read(post)


@pytest.mark.parametrize(
    "path", ["/mixin-view/", "/mixin-viewset/", "/function/", "/method/", "/action/"]
)
def test_header_lines(server: Server, path: str) -> None:
    """K1, E1: A server joins header lines; equal keys in them are one key."""
    first = send_lines(server, path, KEY, KEY)
    assert first.status == 201
    quoted = f'"{KEY}"'
    for keys in ([KEY], [quoted, quoted], [KEY, quoted], [KEY, KEY, KEY]):
        retry = send_lines(server, path, *keys)
        assert (retry.status, retry.body, is_replayed(retry)) == (201, first.body, True)
    other = send_lines(server, path, KEY, "another-key")
    assert other.status == 400
    assert other.headers["Idempotency-Error"] == "idempotency_key_ambiguous"
    assert Effect.objects.count() == 1
