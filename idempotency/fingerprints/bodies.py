"""Record a request's body while others read it (contract F3)."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from django.conf import settings
from django.http import UnreadablePostError

CHUNK_SIZE = 64 * 1024


def record_body(http_request: Any) -> Recording | None:
    """Record what is read of a request's body from now on, and return the recording.

    Read nothing, because the view's permissions have not been checked yet. Return None
    if something has read the body already.
    """
    stream = http_request._stream
    if isinstance(stream, Recording):
        return stream
    if http_request._read_started:
        return None
    stream = http_request._stream = Recording(stream)
    weakref.finalize(http_request, stream.copy.close)
    return stream


def is_hidden(http_request: Any) -> bool:
    """Return whether the request has a body that Django does not see.

    Under WSGI Django reads nothing without Content-Length, and several servers pass on
    chunked bodies without one. Something else may have read the body, and kept it.
    """
    meta = http_request.META
    return (
        "wsgi.input" in meta
        and "HTTP_TRANSFER_ENCODING" in meta
        and not meta.get("CONTENT_LENGTH")
        and not getattr(http_request, "_body", b"")
    )


def body_length(http_request: Any) -> int:
    """Return the length in bytes of an unread body, or raise ``ValueError``."""
    named = http_request.META.get("CONTENT_LENGTH")
    if named:
        return int(named)
    try:
        # Under ASGI a body may come without its length, and is in a file.
        length: int = http_request._stream.seek(0, io.SEEK_END)
    except OSError:
        return 0  # WSGI: no length means no body
    http_request._stream.seek(0)
    return length


class Recording(io.IOBase):
    """A replacement for a request's stream that copies what is read from it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        # Its position is the position of the request's reader.
        self.copy: IO[bytes] = SpooledTemporaryFile(  # noqa: SIM115  # closed with the request
            # 0 would mean no limit.
            max_size=max(1, settings.FILE_UPLOAD_MAX_MEMORY_SIZE),
            dir=settings.FILE_UPLOAD_TEMP_DIR,
        )
        self.is_complete = False

    def read(self, *args: Any) -> bytes:
        """Read as from the stream itself."""
        chunk: bytes = self._source.read(*args)
        return chunk if self.is_complete else self._keep(chunk)

    def readline(self, *args: Any) -> bytes:
        """Read a line as from the stream itself."""
        line: bytes = self._source.readline(*args)
        return line if self.is_complete else self._keep(line)

    def seekable(self) -> bool:
        """Return whether Django can seek to find out the body's length."""
        if self.copy.tell():
            return False  # the copy must be written in order
        # The temporary files of Python 3.10 have no seekable().
        return hasattr(self._source, "seekable") and self._source.seekable()

    def seek(self, *args: int) -> int:
        """Move in the stream itself; Django seeks only to find out the length."""
        position: int = self._source.seek(*args)
        return position

    def close(self) -> None:
        """Close the stream and the copy, once Django has the whole body in memory."""
        self.stream.close()
        self.copy.close()
        super().close()

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has been read so far."""
        return not self.is_complete and self.copy.tell() == 0

    @contextmanager
    def whole(
        self, http_request: Any, listen: Callable[[bytes], object] = bool
    ) -> Iterator[IO[bytes]]:
        """Give the whole body as a file, then restore the position of the reader.

        ``listen`` gets what is read from the stream meanwhile, chunk by chunk.
        Raise ``OSError`` if the client is gone or the disk is full. The request then
        counts as read, because what came before is lost.
        """
        position = self.copy.tell()
        if not self.is_complete:
            was_read, http_request._read_started = http_request._read_started, True
            while chunk := self._keep(self._read_chunk()):
                listen(chunk)
            http_request._read_started = was_read
            self.is_complete = True
        self.copy.seek(0)
        try:
            yield self.copy
        finally:
            self.copy.seek(position)

    @property
    def _source(self) -> Any:
        return self.copy if self.is_complete else self.stream

    def _read_chunk(self) -> bytes:
        try:
            chunk: bytes = self.stream.read(CHUNK_SIZE)
        except OSError as error:
            # Django's own error, which it does not report as a server error.
            raise UnreadablePostError(*error.args) from error
        return chunk

    def _keep(self, chunk: bytes) -> bytes:
        self.copy.write(chunk)
        return chunk
