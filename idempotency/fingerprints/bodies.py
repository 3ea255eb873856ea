"""A request's body, kept while others read it (contract F3).

What is made of a body is not decided here: a fingerprint's version owns that.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from django.conf import settings
from django.http import UnreadablePostError

CHUNK_SIZE = 64 * 1024


def record_body(http_request: Any) -> Recording | None:
    """Keep what is read of a request's body from now on, and return what keeps it.

    Reads nothing. For code that sees a request before the view's permissions do.
    Returns None where the body was read before, so that there is nothing to keep.
    """
    stream = http_request._stream
    if isinstance(stream, Recording):
        return stream
    if http_request._read_started:
        return None
    stream = http_request._stream = Recording(stream)
    weakref.finalize(http_request, stream.copy.close)
    return stream


def body_length(http_request: Any) -> int:
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


class Recording(io.IOBase):
    """Stands in for a request's stream, and copies what is read from it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        # Its position is that of whoever reads the request.
        self.copy: IO[bytes] = SpooledTemporaryFile(  # noqa: SIM115  # closed with the request
            # 0 would mean that all of it may be in memory.
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
        """Tell whether Django can find out the body's length before it reads."""
        if self.copy.tell():
            return False  # the copy is made in order
        # Python 3.10 has temporary files that do not say.
        return hasattr(self._source, "seekable") and self._source.seekable()

    def seek(self, *args: int) -> int:
        """Go to the end and come back, as who finds out the length does."""
        position: int = self._source.seek(*args)
        return position

    def close(self) -> None:
        """End it: Django does so once it has the whole body in memory."""
        self.stream.close()
        self.copy.close()
        super().close()

    @contextmanager
    def whole(self, http_request: Any) -> Iterator[IO[bytes]]:
        """Lend the whole body, and let whoever reads the request go on as before.

        Raises ``OSError`` where the client is gone or the disk is full. What was read
        till then is lost, so the request counts as read.
        """
        position = self.copy.tell()
        if not self.is_complete:
            was_read, http_request._read_started = http_request._read_started, True
            while self._keep(self._read_chunk()):
                pass
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
            # As Django says it, who takes it for no error of the server.
            raise UnreadablePostError(*error.args) from error
        return chunk

    def _keep(self, chunk: bytes) -> bytes:
        self.copy.write(chunk)
        return chunk
