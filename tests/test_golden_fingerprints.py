"""Fingerprint version 1 is sealed: golden digests and derived keys of every body."""

from __future__ import annotations

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIRequest
from django.test import RequestFactory
from rest_framework import parsers
from rest_framework.request import Request

from idempotency.context import derive_key
from idempotency.fingerprints import derivation_payload, fingerprint_in
from tests.conftest import once

pytestmark = once

GOLDEN = json.loads(
    (Path(__file__).parent / "golden" / "fingerprint_1.json").read_text()
)
KINDS = {
    *("JSON", "+json", "form", "multipart with files", "bytes", "XML", "oversized"),
    *("empty", "parsed before", "with a charset", "without a charset", "not read"),
}


class StreamParser(parsers.BaseParser):
    """Reads the stream itself, as Django REST framework 3.16 does, or msgpack's."""

    media_type = "application/json"

    def parse(self, stream: Any, *args: Any, **kwargs: Any) -> Any:
        return json.loads(stream.read(), parse_float=Decimal)


class BytesParser(parsers.BaseParser):
    media_type = "*/*"

    def parse(self, stream: Any, *args: Any, **kwargs: Any) -> Any:
        return stream.read()


PARSERS = {
    "usual": [parsers.JSONParser, parsers.FormParser, parsers.MultiPartParser],
    "stream": [StreamParser],
    "bytes": [BytesParser],
    "file": [parsers.FileUploadParser],
}
READ_BEFORE = {
    "no": lambda request: None,
    "body": lambda request: request._request.body,
    "data": lambda request: request.data,
    "POST": lambda request: request._request.POST,
}


def request_of(case: dict[str, Any]) -> Request:
    """Return the request of a golden case, read before as it says."""
    body = case["body"].encode("latin-1") * case["times"]
    http_request = RequestFactory().generic(
        case["method"],
        case["path"],
        body,
        content_type=case["content_type"],
        **case["headers"],
    )
    parser_list = [parser() for parser in PARSERS[case["parsers"]]]
    request = Request(http_request, parsers=parser_list)
    if case["version"] is not None:
        request.version, request.versioning_scheme = case["version"], object()
    READ_BEFORE[case["read_before"]](request)
    return request


def results_of(request: Request) -> tuple[str, str]:
    """Return the digest and the key that a handler derives from it."""
    fingerprint = fingerprint_in(request, 1)
    payload = derivation_payload(request, fingerprint)
    return fingerprint.digest, derive_key(b"secret", "scope", "key", payload, "charge")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden(case: dict[str, Any], settings: Any) -> None:
    """F4, E10: Each body has the digest and the derived key that it always had."""
    for name, value in case["settings"].items():
        setattr(settings, name, value)
    request = request_of(case)
    assert results_of(request) == (case["digest"], case["derived"])
    assert results_of(request) == (case["digest"], case["derived"])
    request._request.close()
    if isinstance(request._files, dict):
        for upload in request._files.values():
            upload.close()


def test_every_kind() -> None:
    """F4: No kind of body is left out, and the file says what it is."""
    assert {kind for case in GOLDEN["cases"] for kind in case["kinds"]} == KINDS
    assert "never edited" in GOLDEN["about"]


def test_plain_django() -> None:
    """F1, F2: A request of Django's own counts as the one around it does."""
    environ = RequestFactory()._base_environ(
        REQUEST_METHOD="POST",
        PATH_INFO="/pay/",
        CONTENT_TYPE="application/json",
        CONTENT_LENGTH="8",
        **{"wsgi.input": io.BytesIO(b'{"a": 1}')},
    )
    request = WSGIRequest(environ)
    assert fingerprint_in(request, 1) == fingerprint_in(  # type: ignore[arg-type]
        Request(request, parsers=[parsers.JSONParser()]), 1
    )
