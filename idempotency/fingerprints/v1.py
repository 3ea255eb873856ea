"""Fingerprint version 1, which never changes (F4, E10).

Records are compared by it and derived keys are made from it. If a request had another
digest after an upgrade, its retry would get 422, or act again at a provider. So this
file has everything that decides the digest, and tests/golden/fingerprint_1.json pins
it. A change needs a new version.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
from collections.abc import Iterable
from datetime import date, time
from decimal import Decimal
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

from django.conf import settings
from django.core.files.uploadhandler import FileUploadHandler
from django.http import QueryDict
from django.http.multipartparser import MultiPartParser
from django.http.request import RawPostDataException
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Empty

from idempotency.conf import get_settings
from idempotency.fingerprints.bodies import body_length, record_body

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
CHUNK_SIZE = 64 * 1024
# Above these limits, a body's meaning would cost several times the view's own parsing.
MAX_VALUES = 20_000
MAX_ESCAPES = 50_000
MAX_DIGITS = 100
# By Python's names. Other charsets may be a thousand times slower.
CHARSETS = {
    *("utf-8", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"),
    *("ascii", "iso8859-1", "cp1252"),
}
CSRF_FIELD = "csrfmiddlewaretoken"
PRECONDITIONS = (
    *("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"),
    *("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE"),
)

# How a body is digested ("json", "form", "multipart", "bytes" or "unread"), and what.
Body = tuple[str, Any]
Pairs = list[tuple[str, list[str]]]


def fingerprint(request: Any) -> str:
    """Return the digest, SHA-256 over length-prefixed parts (F1).

    ``request`` is Django REST framework's or Django's.
    """
    http_request = getattr(request, "_request", request)
    meta = http_request.META
    content_type = meta.get("CONTENT_TYPE", meta.get("HTTP_CONTENT_TYPE")) or ""
    media_type = content_type.partition(";")[0].strip().lower()
    kind, content = _read(request, http_request, media_type)
    # Without a scheme, a middleware may use the attribute "version" for something else.
    scheme = getattr(request, "versioning_scheme", None)
    version = None if scheme is None else request.version
    headers = [meta.get(name) for name in PRECONDITIONS]
    if media_type != MULTIPART:
        headers.append(meta.get("HTTP_CONTENT_DISPOSITION"))
    return _digest(
        [
            (http_request.method or "").encode(),
            http_request.path.encode(errors="backslashreplace"),
            _canonical(_query(meta.get("QUERY_STRING", ""))),
            _canonical([version, headers], _with_text),
            # With a body of "bytes", the charset or boundary counts too.
            (content_type if kind == "bytes" else media_type).encode(
                errors="backslashreplace"
            ),
            kind.encode(),
            content if isinstance(content, bytes) else _canonical(content),
        ]
    )


def _query(text: str) -> list[tuple[str, str]]:
    if not text:
        return []
    # UTF-8, unlike request.GET, which uses the body's charset. Invalid bytes stay
    # distinct, because they differ in another charset.
    pairs = parse_qsl(text, keep_blank_values=True, errors="surrogateescape")
    key_name = get_settings().QUERY_PARAM
    return sorted((pair for pair in pairs if pair[0] != key_name), key=itemgetter(0))


def _encoder(default: Any = None) -> json.JSONEncoder:
    return json.JSONEncoder(
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        # The results of json.loads() have no cycles; others end in RecursionError.
        check_circular=False,
        default=default,
    )


_as_it_is = _encoder().encode
_with_text = _encoder(str).encode


def _canonical(value: object, encode: Any = _as_it_is) -> bytes:
    text: str = encode(value)
    return text.encode(errors="surrogatepass")


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _read(request: Any, http_request: Any, media_type: str) -> Body:
    """Return the body by its meaning (F2), and leave it readable (F3).

    Raise ``RawPostDataException`` if something has read the body and kept nothing.
    """
    if hasattr(http_request, "_body"):
        return _from_bytes(http_request, media_type, http_request._body)
    if not http_request._read_started:
        if not _is_taken(request, media_type):
            return "unread", http_request.META.get("CONTENT_LENGTH") or "0"
        if media_type != MULTIPART and _fits_in_memory(http_request):
            return _from_bytes(http_request, media_type, http_request.body)
    recording = record_body(http_request)
    if recording is None:
        return _from_what_is_left(request, http_request, media_type)
    if media_type == MULTIPART or not recording.is_untouched:
        with recording.whole(http_request) as body:
            return _from_file(http_request, media_type, body)
    # Most likely too large for its meaning: to read it once more would cost.
    digest = hashlib.sha256()
    with recording.whole(http_request, digest.update) as body:
        return _from_file(http_request, media_type, body, digest)


def _is_taken(request: Any, media_type: str) -> bool:
    """Return whether the view has a parser; Django's requests have none."""
    if not hasattr(request, "parsers"):
        return True
    negotiator, parsers = request.negotiator, request.parsers
    if type(negotiator).select_parser is DefaultContentNegotiation.select_parser:
        # The same result as select_parser(), but much faster.
        for parser in parsers:
            if parser.media_type == media_type:
                return True
    return negotiator.select_parser(request, parsers) is not None


def _fits_in_memory(http_request: Any) -> bool:
    try:
        return _is_small(body_length(http_request))
    except ValueError:
        return False  # request.body would fail, too


def _is_small(length: int) -> bool:
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    return limit is None or length <= limit


def _charset(http_request: Any) -> str:
    name: str = codecs.lookup(http_request.encoding or settings.DEFAULT_CHARSET).name
    if name not in CHARSETS:
        raise ValueError("counts by bytes (F3)")
    return name


def _from_bytes(http_request: Any, media_type: str, content: bytes) -> Body:
    try:
        if media_type == "application/json" or media_type.endswith("+json"):
            return "json", _json(content, _charset(http_request))
        if media_type == FORM:
            return "form", _form(content, _charset(http_request))
        if media_type == MULTIPART:
            return "multipart", _multipart(http_request, io.BytesIO(content))
    except Exception:  # noqa: BLE001, S110  # F2: what can't be parsed counts by its bytes
        pass
    return "bytes", hashlib.sha256(content).digest()


def _from_file(
    http_request: Any, media_type: str, body: Any, digest: Any = None
) -> Body:
    if media_type == MULTIPART:
        try:
            return "multipart", _multipart(http_request, body)
        except OSError:
            raise  # the copy on the disk can't be read
        except Exception:  # noqa: BLE001  # F2, as above
            body.seek(0)
    elif _is_small(body.seek(0, io.SEEK_END)):
        body.seek(0)
        return _from_bytes(http_request, media_type, body.read())
    if digest is None:
        body.seek(0)
        digest = hashlib.sha256()
        while chunk := body.read(CHUNK_SIZE):
            digest.update(chunk)
    return "bytes", digest.digest()


def _json(content: bytes, charset: str) -> bytes:
    if len(content) - len(content.translate(None, b",[{")) > MAX_VALUES:
        raise ValueError("counts by bytes (F3)")
    return _canonical(json.loads(content.decode(charset), parse_int=_integer))


def _integer(literal: str) -> int:
    if len(literal) > MAX_DIGITS:
        raise ValueError("counts by bytes (F3)")
    return int(literal)


def _form(content: bytes, charset: str) -> Pairs:
    if content.count(b"%") + content.count(b"&") > MAX_ESCAPES:
        raise ValueError("counts by bytes (F3)")
    return _fields(QueryDict(content, encoding=charset))


def _fields(data: QueryDict) -> Pairs:
    return sorted((n, list(values)) for n, values in data.lists() if n != CSRF_FIELD)


class _HashingHandler(FileUploadHandler):
    """Keep the field, name, type and SHA-256 of each file."""

    chunk_size = CHUNK_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[Any]] = []

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if start == 0:
            self.digest = hashlib.sha256()
        self.digest.update(raw_data)

    def file_complete(self, file_size: int) -> None:
        digest = self.digest if file_size else hashlib.sha256()
        self.found.append(
            [self.field_name, self.file_name, self.content_type, digest.hexdigest()]
        )


def _multipart(http_request: Any, stream: Any) -> list[Any]:
    handler = _HashingHandler()
    charset = _charset(http_request)
    fields, _files = MultiPartParser(
        http_request.META, stream, [handler], charset
    ).parse()
    if not fields and not handler.found:
        raise ValueError("never an empty fingerprint (F3)")
    files = sorted(handler.found, key=lambda found: str(found[0]))
    return [_fields(fields), files]


def _from_what_is_left(request: Any, http_request: Any, media_type: str) -> Body:
    """Return a body that was read, from what the reader made of it."""
    parsed, files = getattr(request, "_data", Empty), getattr(request, "_files", Empty)
    if parsed is Empty and hasattr(http_request, "_post"):
        parsed, files = http_request.POST, http_request.FILES
    if isinstance(parsed, QueryDict):
        # A failed parse leaves empty data, too.
        if media_type == FORM and parsed:
            return "form", _fields(parsed)
        if parsed or files or (media_type == MULTIPART and _has_no_part(http_request)):
            return "multipart", [_fields(parsed), _uploads(files)]
    elif isinstance(parsed, bytes):
        return "bytes", hashlib.sha256(parsed).digest()
    elif parsed is not Empty:
        try:
            content = _canonical(parsed, _encoder(_plain).encode)
        except (TypeError, ValueError, RecursionError):
            pass
        else:
            if files:
                return "multipart", [json.loads(content), _uploads(files)]
            return "json", content
    raise RawPostDataException(
        "The body was read before the view's handler and can't be read again, so the "
        "idempotency key can't be tied to it. Let whatever reads it (a middleware, a "
        "permission) use request.body or request.data."
    )


def _plain(value: object) -> dict[str, str]:
    """Return a value of a project's own parser with its type."""
    if isinstance(value, date | time | Decimal | UUID):
        return {"type": type(value).__name__, "value": str(value)}
    if isinstance(value, bytes):
        return {"type": "bytes", "value": value.hex()}
    raise TypeError(type(value))


def _has_no_part(http_request: Any) -> bool:
    """Return whether a multipart body can only have its last boundary."""
    last = f"\r\n--{http_request.content_params.get('boundary', '')}--\r\n"
    try:
        return 0 < int(http_request.META.get("CONTENT_LENGTH") or 0) <= len(last)
    except ValueError:
        return False


def _uploads(files: Any) -> list[list[Any]]:
    found = []
    for name, values in sorted(_file_lists(files)):
        for upload in values:
            digest = hashlib.sha256()
            for chunk in upload.chunks():
                digest.update(chunk)
            upload.seek(0)
            found.append([name, upload.name, upload.content_type, digest.hexdigest()])
    return found


def _file_lists(files: Any) -> Any:
    if hasattr(files, "lists"):
        return files.lists()
    # DRF's FileUploadParser returns a plain dict.
    return [(name, [upload]) for name, upload in files.items()]
