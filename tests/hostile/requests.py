"""Requests in bytes, drawn from a seed, and what is known about their keys."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

BODY_MARK = b"hostile-body"
KEY_START, KEY_END = b"hk-", b"-end"
EMBEDDED = 10**9  # the number of a request that stands within another one's body
USUAL_POOL = 40

REQUIRED = ("/required/", "/mixin-viewset/strict/")
OPTIONAL = (
    "/function/",
    "/mixin-view/",
    "/mixin-viewset/",
    "/method/",
    "/action/",
    "/waiting/",
)
UNPROTECTED = "/unprotected/"
# The same views without the app: Django answers HEAD where a class has ``get``.
UNPROTECTED_VIEW = "/unprotected-view/"
ANSWER_HEAD = ("/mixin-view/", "/mixin-viewset/", "/method/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request: its bytes, and whether its key is valid, none, invalid, unclear."""

    number: int
    path: str
    key: str
    content: bytes
    pieces: int
    hangs_up: bool
    times: int

    @property
    def is_post(self) -> bool:
        """Whether a key means something on it (K5)."""
        return self.content.startswith(b"POST ")

    def elsewhere(self) -> bytes:
        """Return the same bytes for the endpoint that the app does not protect."""
        other = UNPROTECTED_VIEW if self.path in ANSWER_HEAD else UNPROTECTED
        return self.content.replace(self.path.encode(), other.encode(), 1)


@dataclass(slots=True)
class Key:
    """What carries a key: pieces of the query and lines of the header."""

    kind: str
    query: Sequence[bytes] = ()
    lines: Sequence[bytes] = ()


def make_request(seed: int, number: int) -> Sent:
    """Return the request of a seed and number; the same in every run."""
    draw = random.Random(f"{seed}/{number}")
    path = draw.choices(
        [draw.choice(REQUIRED), draw.choice(OPTIONAL), UNPROTECTED], [60, 36, 4]
    )[0]
    key = draw.choice(KEYS)(draw, a_key(draw, seed, number))
    kind, body = draw.choice(BODIES)(draw, number)
    lines = [
        *some_host(draw),
        # Twice, so that no other number is read where the bytes are broken.
        b"X-Number: %d.%d" % (number, number),
        *some_user(draw),
        *([b"Content-Type: " + kind] if kind is not None else []),
        *key.lines,
        *some_strange(draw),
    ]
    framing, wire = draw.choices(
        [exact, *FRAMINGS], [3 * len(FRAMINGS), *[1] * len(FRAMINGS)]
    )[0](draw, body)
    lines += framing
    draw.shuffle(lines)
    query = b"&".join(shuffled(draw, [*key.query, *some_query(draw)]))
    target = path.encode() + (b"?" + query if query else b"")
    method = draw.choices([b"POST", draw.choice(METHODS)], [95, 5])[0]
    version = draw.choices([b"HTTP/1.1", draw.choice(VERSIONS)], [90, 10])[0]
    first = b" ".join((method, target, version))
    end = draw.choices([b"\r\n", b"\n"], [97, 3])[0]
    content = end.join([first, *lines, b"", b""]) + wire
    broken = draw.random() < 0.06
    if broken:
        content = spoiled(draw, content)
    return Sent(
        number=number,
        path=path,
        key="unclear" if broken else key.kind,
        content=content,
        pieces=draw.choice((1, 1, 1, 2, 5)),
        hangs_up=draw.random() < 0.03,
        times=draw.choice((1, 1, 1, 2)),
    )


def shuffled(draw: random.Random, pieces: list[bytes]) -> list[bytes]:
    draw.shuffle(pieces)
    return pieces


def a_key(draw: random.Random, seed: int, number: int) -> bytes:
    """Return a valid key, often one that others have, too."""
    own = draw.randrange(USUAL_POOL) if draw.random() < 0.2 else 1000 + number
    return KEY_START + b"%d-%d-" % (seed, own) + b"k" * draw.choice((1, 9)) + KEY_END


# Keys


def no_key(draw: random.Random, key: bytes) -> Key:
    return Key("none")


def in_header(draw: random.Random, key: bytes) -> Key:
    name = draw.choice((b"Idempotency-Key", b"idempotency-key", b"IDEMPOTENCY-KEY"))
    blank = draw.choice((b"", b" ", b"\t", b"   "))
    return Key("valid", lines=[name + b":" + blank + key + draw.choice((b"", b" "))])


def in_quotes(draw: random.Random, key: bytes) -> Key:
    return Key("valid", lines=[b'Idempotency-Key: "' + key + b'"'])


def in_query(draw: random.Random, key: bytes) -> Key:
    name = draw.choice((b"$idempotency", b"%24idempotency", b"%24%69dempotency"))
    every = b"".join(b"%%%02x" % octet for octet in key)
    return Key("valid", query=[name + b"=" + draw.choice((key, every))])


def in_both(draw: random.Random, key: bytes) -> Key:
    return Key(
        "valid",
        query=[b"$idempotency=" + key] * draw.randint(1, 3),
        lines=[b"Idempotency-Key: " + key],
    )


def in_long(draw: random.Random, key: bytes) -> Key:
    key = key + b"x" * (255 - len(key))
    kind, key = draw.choice((("valid", key), ("invalid", key + b"x")))
    return draw.choice(
        (
            Key(kind, lines=[b"Idempotency-Key: " + key]),
            Key(kind, query=[b"$idempotency=" + key]),
        )
    )


def in_two_ways(draw: random.Random, key: bytes) -> Key:
    other = b"Idempotency-Key: " + key + b"2"
    return draw.choice(
        (
            Key("invalid", query=[b"$idempotency=" + key], lines=[other]),
            Key("invalid", query=[b"$idempotency=" + key, b"$idempotency=another-key"]),
            Key("invalid", query=[b"$idempotency=" + key, b"$idempotency="]),
            Key("invalid", lines=[b"Idempotency-Key: " + key, other]),
            # As servers join repeated headers.
            Key("valid", lines=[b"Idempotency-Key: " + key + b"," + key]),
            Key("invalid", lines=[b"Idempotency-Key: " + key + b"," + key + b"2"]),
            Key("invalid", lines=[b'Idempotency-Key: "' + key + b'", "other-key"']),
        )
    )


def in_bad_header(draw: random.Random, key: bytes) -> Key:
    value = draw.choice(
        (
            b"",
            b" ",
            b'"',
            b'""',
            b'"' + key,
            key + b'"x" y',
            b'"' + key + b'";q=1',
            b"\xc3\xa9" + key,
            key + b"\xff",
            key[:4] + b" " + key,
            key[:4] + b"\t" + key,
            b"k" * 256,
            b"k" * draw.choice((4000, 8000)),
            b'"\\x' + key + b'"',
            b"=?utf-8?q?=00?= =?utf-8?q?key?=",
        )
    )
    return Key("invalid", lines=[b"Idempotency-Key: " + value])


def in_bad_query(draw: random.Random, key: bytes) -> Key:
    value = draw.choice(
        (
            b"",
            b"%00",
            key + b"%00",
            b"%0d%0aSet-Cookie:%20a=b",
            b"%ff%fe",
            b"%c3%a9" + key,
            b"+" + key,
            key + b"%20",
            b"%20",
            b"%",
            b"%zz%",
            b"%u0041" + b"%20",
            b"%f0%9f%98%80" * draw.randint(1, 100),
            b"x" * 256,
            b"x" * 3000,
            b"\xff\xfe",
            quote("ключ").encode(),
        )
    )
    # A percent sign that escapes nothing stands for itself: these two are keys.
    kind = "unclear" if value in (b"%", b"%zz%") else "invalid"
    return Key(kind, query=[b"$idempotency=" + value])


def in_wrong_name(draw: random.Random, key: bytes) -> Key:
    return draw.choice(
        (
            Key("none", lines=[b"Idempotency_Key: " + key]),
            Key("none", lines=[b"X-Idempotency-Key: " + key]),
            Key("none", lines=[b"Idempotency-Key : " + key]),
            Key("none", lines=[b"Cookie: Idempotency-Key=" + key]),
            Key("none", query=[b"$Idempotency=" + key]),
            Key("none", query=[b"$idempotency[]=" + key]),
            Key("none", query=[b"idempotency=" + key]),
            Key("none", query=[b"%20$idempotency=" + key]),
            Key("none", query=[b"a=1;$idempotency=" + key]),
            Key("none", query=[b"%26$idempotency=" + key]),
        )
    )


def in_strange_header(draw: random.Random, key: bytes) -> Key:
    octets = draw.randbytes(draw.randint(0, 40)).replace(b"\n", b"").replace(b"\r", b"")
    return Key(
        "unclear",
        lines=[
            draw.choice(
                (
                    b"Idempotency-Key: " + octets,
                    b"Idempotency-Key: " + key[:9] + b"\x00" + key,
                    b"Idempotency-Key: " + key + b"\r\n folded",
                    b"Idempotency-Key:" + key + b"\x0b",
                    b"Idempotency-Key\x00: " + key,
                    b"Idempotency-Key " + key,
                    b'Idempotency-Key: "' + octets + b'"',
                )
            )
        ],
    )


def in_strange_query(draw: random.Random, key: bytes) -> Key:
    octets = draw.randbytes(draw.randint(0, 30))
    plain = octets.translate(None, b" \t\r\n")
    return Key(
        "unclear",
        query=[
            draw.choice(
                (
                    b"$idempotency=" + plain,
                    b"$idempotency=" + quote(octets).encode(),
                    b"$idempotency=" + key + b"#" + key,
                    b"$idempotency=" + key + b"&" + plain,
                    b"$idempotency",
                    b"$idempotency==" + key,
                )
            )
        ],
    )


KEYS: Sequence[Callable[[random.Random, bytes], Key]] = (
    no_key,
    *(in_header, in_header, in_quotes, in_query, in_query, in_both, in_long),
    *(in_two_ways, in_bad_header, in_bad_header, in_bad_query, in_bad_query),
    *(in_wrong_name, in_strange_header, in_strange_query),
)

# Bodies, each with its type

Body = tuple[bytes | None, bytes]


def mark(number: int) -> bytes:
    return BODY_MARK + b"-%d" % number


def plain_json(draw: random.Random, number: int) -> Body:
    return b"application/json", b'{"mark": "' + mark(number) + b'", "a": 1}'


def strange_json(draw: random.Random, number: int) -> Body:
    kind = draw.choice(
        (
            b"application/json",
            b"application/json; charset=utf-16",
            b"application/json; charset=nonsense",
            b"application/json; charset=idna",
            b'application/json; charset="utf-8',
            b"application/vnd.api+json",
            b"Application/JSON",
        )
    )
    body = draw.choice(
        (
            b"[" * draw.choice((50, 900, 5000, 100_000)),
            b"[" * 400 + b"]" * 400,
            b"9" * draw.choice((4000, 5000)),
            b'{"' + mark(number) + b'": NaN, "b": -Infinity}',
            b'{"a": 1e999, "' + mark(number) + b'": 1E-999}',
            b'"\\ud800 ' + mark(number) + b'"',
            b'{"a": 1, "a": 2, "' + mark(number) + b'": null}',
            b'"\\u0000"',
            b"\xef\xbb\xbf{}",
            b"\xff\xfe{\x00}\x00",
            b"",
            b"null",
            b"{" + mark(number),
            draw.randbytes(50),
        )
    )
    return kind, body


def form(draw: random.Random, number: int) -> Body:
    kind = draw.choice(
        (
            b"application/x-www-form-urlencoded",
            b"application/x-www-form-urlencoded; charset=idna",
            b"application/x-www-form-urlencoded; charset=utf-16",
            b"application/x-www-form-urlencoded; charset=\xff",
        )
    )
    body = draw.choice(
        (
            b"a=1&a=2&m=" + mark(number),
            b"%ff=%00&%=%&" + mark(number),
            b"&".join([b"a=1"] * draw.choice((900, 1100))),
            b"a" * 10_000,
            draw.randbytes(60),
        )
    )
    return kind, body


def multipart(draw: random.Random, number: int) -> Body:
    kind = draw.choice(
        (
            b"multipart/form-data; boundary=x",
            b'multipart/form-data; boundary="x"',
            b"multipart/form-data",
            b"multipart/form-data; boundary=",
            b"multipart/form-data; boundary=\xff",
            b"multipart/form-data; boundary=" + b"x" * 300,
            b"multipart/form-data; boundary=x; charset=idna",
            b"multipart/mixed; boundary=x",
        )
    )
    name = draw.choice((b"a", b"", b"\xff", b'a"b', b"a\x00", b"a" * 3000))
    disposition = b'Content-Disposition: form-data; name="' + name + b'"'
    if draw.random() < 0.5:
        disposition += draw.choice(
            (
                b'; filename="f.txt"',
                b'; filename=""',
                b"; filename*=utf-8''%ff",
                b'; filename="../../' + mark(number) + b'"',
            )
        )
    extra = draw.choice(
        (
            b"",
            b"\r\nContent-Transfer-Encoding: base64",
            b"\r\nContent-Type: \xff/;=",
            b"\r\n" + b"H: " + b"x" * 2000,
        )
    )
    value = draw.choice((mark(number), b"", draw.randbytes(30), b"=" * 7))
    part = b"--x\r\n" + disposition + extra + b"\r\n\r\n" + value + b"\r\n"
    end = draw.choice((b"--x--\r\n", b"--x", b"", b"--x--\r\nepilogue"))
    return kind, part * draw.choice((1, 1, 2, 120)) + end


def strange_type(draw: random.Random, number: int) -> Body:
    kind = draw.choice(
        (
            None,
            b"",
            b"/;=;",
            b"text/plain",
            b"text/plain; charset=\x7f",
            b"application/xml",
            b"application/octet-stream",
            b"a" * 3000,
            b"json",
            b"application/json, application/json",
            b"\xff\xfe",
            b"*/*",
        )
    )
    body = draw.choice((mark(number), b"", draw.randbytes(draw.randint(0, 300))))
    return kind, body


def large(draw: random.Random, number: int) -> Body:
    size = draw.choices([70_000, 300_000, 3_000_000], [80, 18, 2])[0]
    kind = draw.choice((b"application/json", b"text/plain", b"application/json"))
    return kind, b'{"' + mark(number) + b'": "' + b"x" * size + b'"}'


BODIES: Sequence[Callable[[random.Random, int], Body]] = (
    *(plain_json, plain_json, plain_json, plain_json, plain_json, plain_json),
    *(strange_json, strange_json, form, form, multipart, multipart, strange_type),
    *(strange_type, large),
)

# How the body is framed: lines for the header, and what goes over the wire

Framing = tuple[list[bytes], bytes]


def exact(draw: random.Random, body: bytes) -> Framing:
    return [b"Content-Length: %d" % len(body)], body


def no_length(draw: random.Random, body: bytes) -> Framing:
    return [], body


def too_short(draw: random.Random, body: bytes) -> Framing:
    return [b"Content-Length: %d" % draw.randint(0, len(body))], body


def too_long(draw: random.Random, body: bytes) -> Framing:
    more = draw.choice((1, 100, 3_000_000, 10**12, 10**30))
    return [b"Content-Length: %d" % (len(body) + more)], body


def truncated(draw: random.Random, body: bytes) -> Framing:
    return [b"Content-Length: %d" % len(body)], body[: draw.randint(0, len(body))]


def no_number(draw: random.Random, body: bytes) -> Framing:
    size = b"%d" % len(body)
    values = (b"-1", b"+" + size, b"0x10", b"", b"a", size + b", " + size, b"\xb2")
    return [b"Content-Length: " + draw.choice(values)], body


def two_lengths(draw: random.Random, body: bytes) -> Framing:
    other = draw.choice((len(body), 0, 5))
    return [b"Content-Length: %d" % n for n in (len(body), other)], body


def chunked(draw: random.Random, body: bytes) -> Framing:
    size = draw.choice((1, 7, 1000, 100_000)) if len(body) < 1000 else 50_000
    extension = draw.choice((b"", b"", b";a=b", b" ; a=b", b';a="\xff"'))
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    wire = b"".join(b"%x%s\r\n%s\r\n" % (len(c), extension, c) for c in chunks)
    trailer = draw.choice((b"", b"", b"X-Trailer: 1\r\n", b"Idempotency-Key: late\r\n"))
    return [b"Transfer-Encoding: chunked"], wire + b"0\r\n" + trailer + b"\r\n"


def chunked_badly(draw: random.Random, body: bytes) -> Framing:
    lines, wire = chunked(draw, body[:200])
    bad = draw.choice(
        (
            wire[: draw.randint(0, len(wire))],
            wire.replace(b"\r\n", b"\n"),
            b"-1\r\n" + wire,
            b"zz\r\n" + wire,
            b"\r\n" + wire,
            b"f" * 30 + b"\r\n" + wire,
            b"5\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"",
        )
    )
    return lines, bad


def other_coding(draw: random.Random, body: bytes) -> Framing:
    coding = draw.choice(
        (b"gzip", b"gzip, chunked", b"xchunked", b"identity", b"chunked, chunked", b"")
    )
    _lines, wire = chunked(draw, body)
    return [b"Transfer-Encoding: " + coding], wire


def length_and_chunked(draw: random.Random, body: bytes) -> Framing:
    lines, wire = chunked(draw, body)
    return [*lines, b"Content-Length: %d" % draw.choice((0, 4, len(wire)))], wire


def another_request_within(draw: random.Random, body: bytes) -> Framing:
    number = EMBEDDED + draw.randrange(EMBEDDED)
    inner = (
        b"POST /required/ HTTP/1.1\r\nHost: localhost\r\nX-User: ada\r\n"
        b"X-Number: %d.%d\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}" % (number, number)
    )
    length = draw.choice((0, len(body), len(body) + len(inner)))
    return [b"Content-Length: %d" % length], body + inner


def compressed(draw: random.Random, body: bytes) -> Framing:
    coding = draw.choice((b"gzip", b"br", b"deflate, gzip", b"\xff"))
    return [b"Content-Encoding: " + coding, b"Content-Length: %d" % len(body)], body


def with_expectation(draw: random.Random, body: bytes) -> Framing:
    expectation = draw.choice((b"100-continue", b"200-ok", b""))
    return [b"Expect: " + expectation, b"Content-Length: %d" % len(body)], body


FRAMINGS: Sequence[Callable[[random.Random, bytes], Framing]] = (
    *(no_length, too_short, too_long, truncated, no_number, two_lengths, chunked),
    *(chunked, chunked_badly, other_coding, length_and_chunked),
    *(another_request_within, compressed, with_expectation),
)

# Everything else

METHODS = (b"GET", b"PUT", b"post", b"PoST", b"OPTIONS", b"HEAD", b"X" * 300, b"P\x00")
VERSIONS = (b"HTTP/1.0", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.10", b"")


def some_host(draw: random.Random) -> list[bytes]:
    usual = b"Host: localhost"
    strange = [[], [b"Host: \xff"], [b"Host: a", b"Host: b"], [b"Host:"]]
    return draw.choices([[usual], draw.choice(strange)], [95, 5])[0]


def some_user(draw: random.Random) -> list[bytes]:
    return draw.choice(
        (
            *[[b"X-User: ada"]] * 5,
            [b"X-User: bob"],
            [b"X-User: \xe9\xff"],
            [],
            [b"Authorization: Bearer " + draw.randbytes(9).hex().encode()],
            [b"Authorization: \xff\xfe" + b"x" * draw.choice((0, 3000))],
        )
    )


def some_strange(draw: random.Random) -> list[bytes]:
    if draw.random() < 0.8:
        return []
    return draw.choice(
        (
            [b"Accept: " + draw.choice((b"", b"*", b"text/html", b"\xff", b"a/b;q=x"))],
            [b"X-Long: " + b"x" * draw.choice((4000, 8100, 9000, 70_000))],
            [b"X-%d: 1" % n for n in range(draw.choice((50, 120)))],
            [b"X-Control: a\x01b"],
            [b"X-Nul: a\x00b"],
            [b": no name"],
            [b"no colon"],
            [b"X\xff: 1"],
            [b"Connection: keep-alive"],
            [b"Connection: close"],
            [b"X-HTTP-Method-Override: GET"],
            [b"Accept-Language: " + b"x-" * 1000],
            [b"Cookie: " + b"a=b;" * 500],
        )
    )


def some_query(draw: random.Random) -> list[bytes]:
    if draw.random() < 0.7:
        return []
    return draw.choice(
        (
            [b"a=1"] * draw.choice((1, 30, 1500)),
            [b"format=" + draw.choice((b"json", b"api", b"%00"))],
            [draw.randbytes(20).translate(None, b" \t\r\n#")],
            [b"%" * 50],
            [b"&&&==&="],
            [b"a=" + b"x" * draw.choice((3000, 4000, 9000))],
            [b"a[b][c]=%u1234;%C0%80"],
        )
    )


def spoiled(draw: random.Random, content: bytes) -> bytes:
    """Break the bytes somewhere."""
    at = draw.randrange(min(len(content), 600))
    return draw.choice(
        (
            content[:at] + draw.randbytes(draw.randint(1, 4)) + content[at:],
            content[:at] + content[at + draw.randint(1, 30) :],
            content[:at],
            b"\r\n\r\n" + content,
            b"\x16\x03\x01" + content,
            content.replace(b" /", b" http://localhost/", 1),
            content.replace(b" /", b" //", 1),
            content.replace(b" /", b" ", 1),
            content.replace(b" /", b" /../", 1),
            content.replace(b" /", b" /%2e/", 1),
            content.replace(b"/ ", b" ", 1),
            content.replace(b"\r\n", b"\r", 3),
        )
    )
