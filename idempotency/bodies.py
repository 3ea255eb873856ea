"""A request's body, read so that the handler finds it as if nobody had (contract F3).

What DRF and Django keep of a body that was read before is theirs and private: this is
the one module that knows it.
"""

from __future__ import annotations

import hashlib
import io
import json
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler
from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest, QueryDict
from django.http.multipartparser import MultiPartParser
from django.http.request import RawPostDataException
from rest_framework.request import Empty

if TYPE_CHECKING:
    from rest_framework.request import Request

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
CHUNK_SIZE = 64 * 1024

Pairs = list[tuple[str, list[str]]]
Kind = Literal["json", "form", "multipart", "bytes"]


@dataclass(frozen=True, slots=True)
class Body:
    """A body by its meaning: JSON-able content, or the SHA-256 of its bytes."""

    kind: Kind
    content: Any


def read_body(request: Request, media_type: str) -> Body:
    """Return the body by its meaning (F2) and leave it as it was.

    Bodies beyond DATA_UPLOAD_MAX_MEMORY_SIZE that are not multipart count by their
    bytes: their meaning would need them in memory (F3).

    Raises ``RawPostDataException`` where something read the body before and kept
    nothing of it.
    """
    http_request: Any = request._request
    if hasattr(http_request, "_body"):
        return _from_bytes(http_request, media_type, http_request._body)
    if http_request._read_started:
        return _from_what_is_left(request, media_type)
    if media_type == MULTIPART:
        return _from_multipart_stream(http_request)
    if _fits_in_memory(http_request):
        return _from_bytes(http_request, media_type, http_request.body)
    with_copy = _Spool(http_request)
    with_copy.drain()
    with_copy.give_back()
    return Body("bytes", with_copy.digest.digest())


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")


def _encoding(http_request: HttpRequest) -> str:
    return http_request.encoding or settings.DEFAULT_CHARSET


def _fits_in_memory(http_request: HttpRequest) -> bool:
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    try:
        return limit is None or _length(http_request) <= limit
    except ValueError:
        return False  # request.body would not have it either


def _length(http_request: Any) -> int:
    """Return the bytes of a body that was not read, or raise ``ValueError``."""
    named = http_request.META.get("CONTENT_LENGTH")
    if named:
        return int(named)
    try:
        # Under ASGI a body may come without its length, and is in a file by now.
        length: int = http_request._stream.seek(0, io.SEEK_END)
    except OSError:
        return 0  # under WSGI it is none then
    http_request._stream.seek(0)
    return length


def _from_bytes(http_request: HttpRequest, media_type: str, content: bytes) -> Body:
    try:
        if _is_json(media_type):
            return Body("json", _json(content.decode(_encoding(http_request))))
        if media_type == FORM:
            return _form(QueryDict(content, encoding=_encoding(http_request)))
        if media_type == MULTIPART:
            return _multipart(http_request, io.BytesIO(content))
    except Exception:  # noqa: BLE001, S110  # F2: what can't be parsed counts by its bytes
        pass
    return Body("bytes", hashlib.sha256(content).digest())


def _json(text: str) -> bytes:
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()


def _lists(data: QueryDict) -> Pairs:
    return sorted((name, list(values)) for name, values in data.lists())


def _form(data: QueryDict) -> Body:
    return Body("form", _lists(data))


def _from_what_is_left(request: Any, media_type: str) -> Body:
    """Fingerprint a stream that was read: from what the reader made of it."""
    http_request = request._request
    parsed, files = request._data, request._files
    if parsed is Empty and hasattr(http_request, "_post"):
        parsed, files = http_request.POST, http_request.FILES
    if isinstance(parsed, QueryDict):
        # Empty is also what a failed parse leaves, whatever was sent.
        if media_type == FORM and parsed:
            return _form(parsed)
        if parsed or files or (media_type == MULTIPART and _has_no_part(http_request)):
            return Body("multipart", [_lists(parsed), _uploads(files)])
    elif isinstance(parsed, bytes):
        return Body("bytes", hashlib.sha256(parsed).digest())
    elif parsed is not Empty:
        try:
            content = _json(json.dumps(parsed, cls=DjangoJSONEncoder))
        except (TypeError, ValueError):
            pass
        else:
            if files:
                return Body("multipart", [json.loads(content), _uploads(files)])
            return Body("json", content)
    raise RawPostDataException(
        "The body was read before the view's handler and can't be read again, so the "
        "idempotency key can't be tied to it. Let whatever reads it (a middleware, a "
        "permission) use request.body or request.data."
    )


def _has_no_part(http_request: HttpRequest) -> bool:
    """Tell whether a multipart body has room for its last boundary alone."""
    params: Any = http_request.content_params
    last = f"\r\n--{params.get('boundary', '')}--\r\n"
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


def _file_lists(files: Any) -> Iterable[tuple[str, list[UploadedFile[Any]]]]:
    if hasattr(files, "lists"):
        return files.lists()  # type: ignore[no-any-return]  # a MultiValueDict
    # DRF's FileUploadParser gives a plain dictionary.
    return [(name, [upload]) for name, upload in files.items()]


class _HashingHandler(FileUploadHandler):
    """Keep of each file its field, name, type and SHA-256."""

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


def _multipart(http_request: HttpRequest, stream: Any) -> Body:
    handler = _HashingHandler()
    parser = MultiPartParser(
        http_request.META, stream, [handler], _encoding(http_request)
    )
    fields, _files = parser.parse()
    if not fields and not handler.found:
        raise ValueError("never an empty fingerprint (F3)")
    files = sorted(handler.found, key=lambda found: str(found[0]))
    return Body("multipart", [_lists(fields), files])


def _from_multipart_stream(http_request: HttpRequest) -> Body:
    spool = _Spool(http_request)
    try:
        body = _multipart(http_request, spool)
    except OSError:
        raise  # the client is gone, or the disk is full
    except Exception:  # noqa: BLE001  # F2: what can't be parsed counts by its bytes
        body = None
    spool.drain()
    spool.give_back()
    return body or Body("bytes", spool.digest.digest())


class _Spool:
    """Copies the request's stream while it is read, and puts the copy in its place."""

    def __init__(self, http_request: Any) -> None:
        self.http_request = http_request
        self.digest = hashlib.sha256()
        self.copy: IO[bytes] = SpooledTemporaryFile(  # noqa: SIM115  # closed with the request
            # 0 would mean that all of it may be in memory.
            max_size=max(1, settings.FILE_UPLOAD_MAX_MEMORY_SIZE),
            dir=settings.FILE_UPLOAD_TEMP_DIR,
        )
        weakref.finalize(http_request, self.copy.close)

    def read(self, size: int = CHUNK_SIZE) -> bytes:
        chunk: bytes = self.http_request.read(size)
        self.copy.write(chunk)
        self.digest.update(chunk)
        return chunk

    def drain(self) -> None:
        while self.read():
            pass

    def give_back(self) -> None:
        self.copy.seek(0)
        self.http_request._stream = self.copy
        self.http_request._read_started = False
