"""Fingerprints, and bodies that can still be read after them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import LimitedStream
from django.http import HttpRequest
from django.http.request import RawPostDataException
from django.test import RequestFactory
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from hypothesis import assume, given
from hypothesis import strategies as st
from rest_framework import parsers
from rest_framework.exceptions import ParseError, UnsupportedMediaType
from rest_framework.request import Request

from idempotency.exceptions import LengthRequired
from idempotency.fingerprints import (
    custom_fingerprint,
    default_fingerprint,
)
from tests.conftest import once

pytestmark = once
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


class TextParser(parsers.BaseParser):
    """Gives bytes, as the example of Django REST framework's documentation does."""

    media_type = "text/plain"

    def parse(self, stream: Any, *args: Any, **kwargs: Any) -> bytes:
        content: bytes = stream.read()
        return content


class ObjectParser(parsers.BaseParser):
    """Gives what MessagePack knows, and JSON does not."""

    media_type = "application/msgpack"

    def parse(self, stream: Any, *args: Any, **kwargs: Any) -> Any:
        return {"bytes": stream.read(), "date": date(2026, 11, 29)}


class OctetParser(TextParser):
    """Takes what is nothing else."""

    media_type = "application/octet-stream"


class APIParser(parsers.JSONParser):
    """Takes a type that ends with +json."""

    media_type = "application/vnd.api+json"


PARSERS = [
    parsers.JSONParser(),
    APIParser(),
    parsers.FormParser(),
    parsers.MultiPartParser(),
    OctetParser(),
]


class MoneyParser(parsers.BaseParser):
    """Gives numbers that JSON has no kind of."""

    media_type = JSON

    def parse(self, stream: Any, *args: Any, **kwargs: Any) -> Any:
        return json.loads(stream.read(), parse_float=Decimal)


def make_request(
    body: bytes = b"",
    content_type: str = JSON,
    *,
    path: str = "/pay/",
    method: str = "POST",
    parser_list: list[Any] = PARSERS,
    **extra: Any,
) -> Request:
    """Return a request as a view gets it, its body still on the wire."""
    http_request: HttpRequest = RequestFactory().generic(
        method, path, body, content_type=content_type, **extra
    )
    request = Request(http_request, parsers=parser_list)
    MADE.append(request)
    return request


MADE: list[Request] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close the uploads of every request, as the handler of a server does."""
    yield
    for request in MADE:
        request._request.close()
        if isinstance(request._files, dict):  # of a parser that is not for forms
            for upload in request._files.values():
                upload.close()
    MADE.clear()


def digest(*args: Any, **kwargs: Any) -> str:
    """Return the digest of such a request."""
    return default_fingerprint(make_request(*args, **kwargs)).digest


def multipart(data: dict[str, Any], boundary: str = BOUNDARY) -> tuple[bytes, str]:
    """Return a multipart body and its content type."""
    body = encode_multipart(boundary, data)
    return body, MULTIPART_CONTENT.replace(BOUNDARY, boundary)


def upload(content: bytes = b"%PDF", name: str = "a.pdf", kind: str = "x/pdf") -> Any:
    """Return a file of a form."""
    return SimpleUploadedFile(name, content, content_type=kind)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def shuffled(value: Any, randomness: random.Random) -> Any:
    """Return an equal value whose members stand in another order."""
    if isinstance(value, dict):
        names = [*value]
        randomness.shuffle(names)
        return {name: shuffled(value[name], randomness) for name in names}
    if isinstance(value, list):
        return [shuffled(member, randomness) for member in value]
    return value


class TestRequestLine:
    """F1: method, path, query."""

    @pytest.mark.parametrize(
        "other",
        [
            {"path": "/refund/"},
            {"path": "/pay/?x=1"},
            {"method": "PATCH"},
            {"body": b"{}"},
            {"content_type": "application/vnd.api+json"},
        ],
    )
    def test_differences(self, other: dict[str, Any]) -> None:
        """F1: Method, path, query, media type and content all count."""
        request: dict[str, Any] = {"body": b'{"a": 1}'}
        assert digest(**request) != digest(**{**request, **other})

    def test_query(self) -> None:
        """F1: Names come in any order, values of one name do not; the key is out."""
        here = digest(path="/pay/?b=1&a=2&$idempotency=abc&a=3")
        assert here == digest(path="/pay/?a=2&%24idempotency=def&b=1&a=3")
        assert here != digest(path="/pay/?a=3&a=2&b=1")
        assert here != digest(path="/pay/?a=2&b=1")

    def test_query_in_another_charset(self) -> None:
        """F1: A query that is no UTF-8 counts by its bytes."""
        assert digest(path="/pay/?a=%ff") != digest(path="/pay/?a=%fe")
        assert digest(path="/pay/?a=%ff") == digest(path="/pay/?a=%FF")

    @pytest.mark.parametrize(
        "name",
        [
            *("IF_MATCH", "IF_NONE_MATCH", "IF_MODIFIED_SINCE", "IF_UNMODIFIED_SINCE"),
            "CONTENT_DISPOSITION",
        ],
    )
    def test_headers_that_choose_the_effect(self, name: str) -> None:
        """F1: Conditions count, and what may name a file."""
        digests = {digest(b"{}", **{f"HTTP_{name}": value}) for value in '"a" "b"'}
        assert len({*digests, digest(b"{}")}) == len(digests) + 1 > 2
        assert digest(b"{}", HTTP_IF_MATCH="a") != digest(b"{}", HTTP_IF_NONE_MATCH="a")

    def test_headers_of_a_form(self) -> None:
        """F1: The parts of a multipart body have their own Content-Disposition."""
        body = multipart({"a": "1"})
        assert digest(*body) == digest(*body, HTTP_CONTENT_DISPOSITION="form-data")

    def test_version(self) -> None:
        """F1: What DRF's versioning has found counts, and nothing else of that name."""
        request = make_request(b"{}")
        request._request.version = object()  # type: ignore[attr-defined]
        assert default_fingerprint(request).digest == digest(b"{}")
        digests = set()
        for version in ("1", "2", None):
            request = make_request(b"{}")
            request.version, request.versioning_scheme = version, object()
            digests.add(default_fingerprint(request).digest)
        assert len(digests) == 3

    def test_negotiation_stays_outside(self) -> None:
        """F1: Accept and Accept-Language do not count."""
        french = {"HTTP_ACCEPT": "text/csv", "HTTP_ACCEPT_LANGUAGE": "fr"}
        assert digest(b"{}") == digest(b"{}", **french)


class TestJSON:
    """F2: JSON by its meaning."""

    @given(VALUES, st.randoms(use_true_random=False))
    def test_order_and_space(self, value: Any, randomness: random.Random) -> None:
        """F2: Member order, white space and escapes do not matter."""
        compact = json.dumps(value).encode()
        other = json.dumps(
            shuffled(value, randomness), indent=3, ensure_ascii=False
        ).encode(errors="replace")
        assume(json.loads(other) == json.loads(compact))
        assert digest(compact) == digest(other, "Application/JSON; charset=utf-8")

    @given(VALUES, VALUES)
    def test_meaning(self, one: Any, other: Any) -> None:
        """F2: Values that differ, also by type alone, are different requests."""
        texts = [json.dumps(value, sort_keys=True) for value in (one, other)]
        assume(texts[0] != texts[1])
        assert digest(texts[0].encode()) != digest(texts[1].encode())

    @pytest.mark.parametrize(
        "others", [(b"1", b'"1"', b"1.0", b"true"), (b"null", b"0", b'""', b"[]", b"")]
    )
    def test_types(self, others: tuple[bytes, ...]) -> None:
        """F2: 1 is not "1", nor 1.0, nor true."""
        assert len({digest(other) for other in others}) == len(others)

    @given(st.binary(min_size=1, max_size=40), st.data())
    def test_one_bit(self, body: bytes, data: Any) -> None:
        """F2: One bit of a body of bytes makes another request."""
        bit = data.draw(st.integers(0, len(body) * 8 - 1))
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        kind = "application/octet-stream"
        assert digest(body, kind) != digest(bytes(flipped), kind)

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"\xff",
            b'{"a": 1}}',
            b"[" * 100_000,
            b"9" * 5000,
            b"\xef\xbb\xbf{}",
        ],
    )
    def test_unparsable(self, body: bytes) -> None:
        """F2: What can't be parsed counts by its bytes."""
        assert digest(body) == digest(body)
        assert digest(body) != digest(body + b" ")

    @pytest.mark.parametrize("charset", ["utf-16", "latin-1", "hex", "idna", "no-such"])
    def test_charsets(self, charset: str) -> None:
        """F2, F3: Any charset that a client names gives a fingerprint."""
        kind = f"application/json; charset={charset}"
        assert digest(b'{"a":"\xe9"}', kind) != digest(b'{"a":"\xe8"}', kind)


class TestCostlyMeanings:
    """F3: where to know a meaning costs too much, bytes count."""

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            (b"[1,%s2]" % (b"[]," * 10_000), JSON),
            (b"[1%s]" % (b"9" * 100), JSON),
            (b'{"a": 1}', f"{JSON}; charset=punycode"),
            (b"a=%s&b=2" % (b"%41" * 50_001), FORM),
            (b"a=1", f"{FORM}; charset=punycode"),
            (
                multipart({"a": "1"})[0],
                f"{MULTIPART_CONTENT}; charset=punycode",
            ),
        ],
    )
    def test_bytes(self, body: bytes, kind: str) -> None:
        """F3: It is not parsed, and one byte more is another request."""
        assert digest(body, kind) == digest(body, kind)
        assert digest(body, kind) != digest(body.replace(b"1", b"2", 1), kind)
        if kind == JSON:
            assert digest(body) != digest(body.replace(b"]", b" ]", 1))

    def test_just_below(self) -> None:
        """F2: Up to then the meaning counts."""
        body = b"[%s1]" % (b"[]," * 9_999)
        assert digest(body) == digest(body.replace(b",", b", "))
        assert digest(b"9" * 100) == digest(b" " + b"9" * 100)
        assert digest(b"a=" + b"%41" * 50_000, FORM) == digest(
            b"a=" + b"A" * 50_000, FORM
        )


class TestForms:
    """F2: forms by their fields."""

    def test_url_encoded(self) -> None:
        """F2: A form counts by its fields, not by its spelling."""
        assert digest(b"a=1&b=%C3%A9", FORM) == digest(b"b=\xc3\xa9&a=1", FORM)
        assert digest(b"a=1&a=2", FORM) != digest(b"a=2&a=1", FORM)
        assert digest(b"a=1", FORM) != digest(b"a=1&b=", FORM)

    def test_token(self) -> None:
        """F2: A form that was rendered again is the same form."""
        name = "csrfmiddlewaretoken"
        token = f"{name}=1&".encode()
        assert digest(token + b"a=1", FORM) == digest(b"a=1", FORM)
        assert digest(b'{"a": 1, "%s": 1}' % name.encode()) != digest(b'{"a": 1}')
        bodies = [multipart({"a": "1", name: token}) for token in ("1", "2")]
        assert len({digest(*body) for body in bodies}) == 1
        for body in (bodies[0], (token + b"a=1", FORM)):
            request = make_request(*body)
            assert request._request.POST
            assert default_fingerprint(request).digest == digest(*body)
        file = multipart({"a": "1", name: upload()})
        assert digest(*file) != digest(*bodies[0])

    def test_too_many_fields(self) -> None:
        """F2, F3: A form that Django refuses to parse counts by its bytes."""
        body = b"&".join(b"a%d=1" % n for n in range(2000))
        assert digest(body, FORM) != digest(body + b"&b=1", FORM)

    def test_boundary(self) -> None:
        """F2: A new boundary is the same request."""
        data = {"title": "Essay", "file": upload()}
        first = multipart(data)
        data["file"].seek(0)
        second = multipart(data, "another-boundary")
        assert first[0] != second[0]
        assert digest(*first) == digest(*second)

    @pytest.mark.parametrize(
        "other",
        [
            {"title": "Essay", "file": upload(b"%PDG")},
            {"title": "Essay", "file": upload(name="b.pdf")},
            {"title": "Essay", "file": upload(kind="x/other")},
            {"title": "Essay", "other": upload()},
            {"title": "essay", "file": upload()},
            {"title": "Essay", "file": upload(b"")},
            {"title": "Essay"},
        ],
    )
    def test_files(self, other: dict[str, Any]) -> None:
        """F2: Another file, by content, name, type or field, is another request."""
        this = digest(*multipart({"title": "Essay", "file": upload()}))
        assert this != digest(*multipart(other))

    def test_two_files_of_one_field(self) -> None:
        """F2: They come in the order in which they were sent."""
        first, second = upload(b"1", name="1"), upload(b"2", name="2")
        this = digest(*multipart({"a": [first, second]}))
        for file in (first, second):
            file.seek(0)
        assert this != digest(*multipart({"a": [second, first]}))

    def test_two_files(self) -> None:
        """F2: Each file of a form counts, and an empty one is not its predecessor."""
        bodies = [
            multipart({"a": upload(b"1"), "b": upload(b"2")}),
            multipart({"a": upload(b"1"), "b": upload(b"")}),
            multipart({"a": upload(b"1"), "b": upload(b"1")}),
        ]
        assert len({digest(*body) for body in bodies}) == 3

    def test_broken_multipart(self) -> None:
        """F2, F3: A multipart body without parts or boundary counts by its bytes."""
        for kind in (MULTIPART_CONTENT, "multipart/form-data"):
            assert digest(b"nonsense", kind) != digest(b"nonsensf", kind)


@pytest.fixture
def small_uploads(settings: Any) -> Iterator[None]:
    """Let a few bytes be too many for memory."""
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 100
    return iter(())


class TestTheHandlerFindsItAll:
    """F3: the answer is what it would be without a key."""

    def test_json(self) -> None:
        """F3: The handler reads its data, its body, or both."""
        request = make_request(b'{"a": 1}')
        default_fingerprint(request)
        assert request.data == {"a": 1}
        assert request.body == b'{"a": 1}'

    def test_multipart(self) -> None:
        """F3: The handler gets fields and whole files."""
        request = make_request(*multipart({"t": "é", "f": upload(b"x" * 300_000)}))
        default_fingerprint(request)
        assert request.data["t"] == "é"
        assert request.FILES["f"].read() == b"x" * 300_000

    def test_broken_bodies_still_fail(self) -> None:
        """F3: The handler meets the very error that it meets without a key."""
        for body, kind in ((b"{", JSON), (b"x", "multipart/form-data")):
            request = make_request(body, kind)
            default_fingerprint(request)
            with pytest.raises(ParseError):
                _ = request.data

    def test_types_that_no_parser_knows(self) -> None:
        """F3: A body of an unknown type is refused only if the handler reads it."""
        request = make_request(b"<a/>", "application/xml")
        default_fingerprint(request)
        with pytest.raises(UnsupportedMediaType):
            _ = request.data

    def test_raw_stream(self) -> None:
        """F3: A handler that reads the stream itself finds it at its beginning."""
        request = make_request(*multipart({"a": "1"}))
        default_fingerprint(request)
        assert request.stream.read(2) == b"--"

    @pytest.mark.usefixtures("small_uploads")
    def test_beyond_memory(self) -> None:
        """F3: Uploads beyond DATA_UPLOAD_MAX_MEMORY_SIZE work as without a key."""
        body = b"y" * 200_000
        kind = "application/octet-stream"
        name = {"HTTP_CONTENT_DISPOSITION": 'attachment; filename="a"'}
        request = make_request(
            body, kind, parser_list=[parsers.FileUploadParser()], **name
        )
        here = default_fingerprint(request)
        assert request._request._stream is not None
        assert not hasattr(request._request, "_body")
        assert request.data["file"].read() == body
        assert here.digest != digest(body + b"y", kind)

    @pytest.mark.usefixtures("small_uploads")
    def test_always_on_disk(self, settings: Any, tmp_path: Path) -> None:
        """F3: Copies on disk are in the project's own folder."""
        settings.FILE_UPLOAD_MAX_MEMORY_SIZE = 0
        settings.FILE_UPLOAD_TEMP_DIR = str(tmp_path)
        request = make_request(b"y" * 200_000, "application/octet-stream")
        default_fingerprint(request)
        copy: Any = request._request._stream.copy
        assert copy._rolled
        assert os.fstat(copy.fileno()).st_dev == tmp_path.stat().st_dev
        settings.FILE_UPLOAD_TEMP_DIR = str(tmp_path / "missing")
        request = make_request(b"y" * 200_000, "application/octet-stream")
        with pytest.raises(FileNotFoundError):
            default_fingerprint(request)

    @pytest.mark.usefixtures("small_uploads")
    @pytest.mark.parametrize("size", [10, 200_000])
    def test_without_a_length(self, size: int) -> None:
        """F3: Under ASGI a body may come without its length, and be a large one."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"content-type", b"application/octet-stream")],
        }
        content = b"y" * size
        request = ASGIRequest(scope, BytesIO(content))
        before = default_fingerprint(Request(request, parsers=PARSERS)).digest
        assert request.read() == content
        assert hasattr(request, "_body") == (size == 10)
        other = ASGIRequest(scope, BytesIO(content + b"y"))
        changed = default_fingerprint(Request(other, parsers=PARSERS)).digest
        assert changed != before

    @pytest.mark.usefixtures("small_uploads")
    def test_multipart_beyond_memory(self) -> None:
        """F3: A large multipart upload is fingerprinted in chunks, by its meaning."""
        content = b"z" * 500_000
        data = {"file": upload(content)}
        body = multipart(data)
        request = make_request(*body)
        here = default_fingerprint(request).digest
        assert request.FILES["file"].read() == content
        data["file"].seek(0)
        assert here == digest(*multipart(data, "another-boundary"))

    def test_without_a_limit(self, settings: Any) -> None:
        """F3: A project without a limit has JSON of any size by its meaning."""
        settings.DATA_UPLOAD_MAX_MEMORY_SIZE = None
        padding = b'"' + b"x" * 3_000_000 + b'"'
        assert digest(b"[%s,1]" % padding) == digest(b"[%s, 1]" % padding)

    def test_nonsense_content_length(self) -> None:
        """F3: A Content-Length that is no number is treated as Django treats it."""
        request = make_request(b"[]")
        request._request.META["CONTENT_LENGTH"] = "many"
        assert default_fingerprint(request).digest
        assert request.data == {}

    def test_no_content_length(self) -> None:
        """F3: Under WSGI a body without a length is none."""
        request = make_request(b"[]")
        request._request._stream = LimitedStream(BytesIO(b"[]"), 0)
        del request._request.META["CONTENT_LENGTH"]
        assert default_fingerprint(request).digest == digest(CONTENT_TYPE=JSON)
        assert request.data == {}

    def test_hidden_bodies(self) -> None:
        """F3, F4: What Django does not see of a chunked body would equal any other."""
        request = make_request(b"[]", HTTP_TRANSFER_ENCODING="chunked")
        seen = default_fingerprint(request).digest
        assert seen == digest(b"[]")  # the server has told the length, too
        hidden = make_request(b"[]", HTTP_TRANSFER_ENCODING="chunked")
        hidden._request._stream = LimitedStream(BytesIO(b"[]"), 0)
        hidden._request.META["CONTENT_LENGTH"] = ""
        with pytest.raises(LengthRequired):
            default_fingerprint(hidden)
        # A project's middleware that reads it makes it visible again.
        hidden._request._body = b"[]"
        assert default_fingerprint(hidden).digest == seen


class TestReadBefore:
    """F3: a body that was read before is still fingerprinted, or it is an error."""

    def test_request_body(self) -> None:
        """F3: Reading request.body first changes nothing."""
        for body in ((b'{"a": 1}', JSON), multipart({"a": "1", "f": upload()})):
            request = make_request(*body)
            _ = request._request.body
            assert default_fingerprint(request).digest == digest(*body)

    @pytest.mark.parametrize(
        "body",
        [
            (b'{"a": [1.0, "x"]}', JSON),
            (b'["\\ud800"]', JSON),
            (b"null", JSON),
            (b"a=1&b=2", FORM),
            multipart({"a": "1", "f": upload()}),
        ],
    )
    def test_request_data(self, body: tuple[bytes, str]) -> None:
        """F3: A permission that reads request.data first changes nothing."""
        request = make_request(*body)
        data = request.data
        assert default_fingerprint(request).digest == digest(*body)
        assert request.data is data
        for file in request.FILES.values():
            assert file.read() == b"%PDF"

    @pytest.mark.parametrize(
        "body",
        [
            (b'{"a": [1.0, "x"]}', JSON),
            (b"a=1&b=2", FORM),
        ],
    )
    def test_parser_on_the_wire(self, body: tuple[bytes, str]) -> None:
        """F3: A parser that reads the stream and keeps no bytes changes nothing."""
        request = make_request(*body)
        _ = request.data
        request._request._read_started = True
        vars(request._request).pop("_body", None)
        assert default_fingerprint(request).digest == digest(*body)

    def test_request_post(self) -> None:
        """F3: A middleware that reads request.POST first changes nothing."""
        body = multipart({"a": "1", "f": upload()})
        request = make_request(*body)
        assert request._request.POST["a"] == "1"
        assert default_fingerprint(request).digest == digest(*body)
        assert request.FILES["f"].read() == b"%PDF"

    def test_file_upload_parser(self) -> None:
        """F3: A raw upload that was parsed before counts by its file."""

        def parsed(content: bytes) -> str:
            request = make_request(
                content,
                "x/pdf",
                parser_list=[parsers.FileUploadParser()],
                HTTP_CONTENT_DISPOSITION='attachment; filename="a"',
            )
            assert request.data["file"].size == len(content)
            return default_fingerprint(request).digest

        assert parsed(b"%PDF") == parsed(b"%PDF")
        assert parsed(b"%PDF") != parsed(b"%PDG")

    @pytest.mark.parametrize(
        ("parser", "content", "other"),
        [
            (TextParser(), b"hello", b"hallo"),
            (MoneyParser(), b'{"a": 1.50}', b'{"a": 1.51}'),
            (MoneyParser(), b'{"a": 1.50}', b'{"a": "1.50"}'),
            (ObjectParser(), b"1", b"2"),
        ],
    )
    def test_other_parsers(
        self, parser: parsers.BaseParser, content: bytes, other: bytes
    ) -> None:
        """F3: What other parsers make of a body can stand for it, too."""

        def parsed(body: bytes) -> str:
            request = make_request(body, parser.media_type, parser_list=[parser])
            _ = request.data
            request._request._read_started = True
            vars(request._request).pop("_body", None)
            return default_fingerprint(request).digest

        assert parsed(content) == parsed(content)
        assert parsed(content) != parsed(other)

    def test_empty_multipart(self) -> None:
        """F3: An empty form has a fingerprint after request.POST was read, too."""
        body, content_type = f"--{BOUNDARY}--\r\n".encode(), MULTIPART_CONTENT
        digests = set()
        for _ in range(2):
            request = make_request(body, content_type)
            assert not request._request.POST
            digests.add(default_fingerprint(request).digest)
        assert len(digests) == 1
        request = make_request(body, content_type)
        assert not request._request.POST
        request._request.META["CONTENT_LENGTH"] = "nonsense"
        with pytest.raises(RawPostDataException):
            default_fingerprint(request)

    def test_gone(self) -> None:
        """F3: A body that can't be read any more is an error, not an empty body."""
        request = make_request(b'{"a": 1}')
        request._request.read(3)
        with pytest.raises(RawPostDataException, match="idempotency key"):
            default_fingerprint(request)

    @pytest.mark.parametrize("kind", ["multipart/form-data", FORM])
    def test_gone_after_a_failed_parse(self, kind: str) -> None:
        """F3: What a failed parse leaves is not taken for the body."""

        class Failing(parsers.BaseParser):
            media_type = FORM

            def parse(self, *args: Any, **kwargs: Any) -> Any:
                raise ParseError

        parser_list = [Failing()] if kind == FORM else PARSERS
        body, _kind = multipart({"a": "1"})
        request = make_request(body, kind, parser_list=parser_list)
        with pytest.raises(ParseError):
            _ = request.data
        request._request._read_started = True
        with pytest.raises(RawPostDataException):
            default_fingerprint(request)

    def test_parsed_to_something_else(self) -> None:
        """F3: Other objects of a parser can't stand for the body."""

        class SetParser(parsers.BaseParser):
            media_type = "x/set"

            def parse(self, stream: Any, *args: Any, **kwargs: Any) -> set[bytes]:
                return {stream.read()}

        request = make_request(b"abc", "x/set", parser_list=[SetParser()])
        assert request.data == {b"abc"}
        with pytest.raises(RawPostDataException):
            default_fingerprint(request)


def test_client_that_leaves() -> None:
    """F3: A connection that breaks while the body is read is no fingerprint."""

    class Broken(BytesIO):
        def read(self, *args: Any) -> bytes:
            raise OSError("connection reset")

    for kind in (MULTIPART_CONTENT, "application/octet-stream", JSON):
        request = make_request(b"x" * 10, kind)
        request._request._stream = Broken()
        with pytest.raises(OSError, match="connection reset"):
            default_fingerprint(request)


def test_disk_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """F3: The handler gets no copy that could not be written."""

    class Full(BytesIO):
        """Has no room at first, so that what comes later has lost its beginning."""

        was_full = False

        def write(self, *args: Any) -> int:
            if self.was_full:
                return super().write(*args)
            self.was_full = True
            raise OSError("No space left on device")

    monkeypatch.setattr(
        "idempotency.fingerprints.bodies.SpooledTemporaryFile", lambda **kw: Full()
    )
    request = make_request(*multipart({"title": "Essay", "file": upload()}))
    with pytest.raises(OSError, match="No space left"):
        default_fingerprint(request)
    assert request._request._read_started
    with pytest.raises(RawPostDataException):
        _ = request.data


def test_disk_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """F3: A copy that can't be read makes no other fingerprint."""

    class Broken(BytesIO):
        def read(self, *args: Any) -> bytes:
            raise OSError("Input/output error")

    monkeypatch.setattr(
        "idempotency.fingerprints.bodies.SpooledTemporaryFile", lambda **kw: Broken()
    )
    with pytest.raises(OSError, match="Input/output error"):
        digest(*multipart({"title": "Essay"}))


def test_custom_fingerprints() -> None:
    """F1: A project's own fingerprint may have any length and alphabet."""
    long = custom_fingerprint("é\ud800" * 1000)
    assert (long.version, len(long.digest)) == (0, 64)
    assert custom_fingerprint(long) is long
