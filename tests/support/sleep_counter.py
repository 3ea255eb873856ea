"""How often a server slept over an answer, and how long it took: told in headers.

In the server's process ``watch_sleeps`` counts all pauses. A wait for
the database is none, and shows in the time alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import local
from typing import Any

from tests.support.http_servers import Answer

# In seconds. Less than anybody's patience with somebody else: wait_timeout is 5 s,
# SQLite's own 20 s, InnoDB's 50 s, and PostgreSQL waits without end.
LONGEST = 4
# A request is answered by one thread.
here = local()


class Waits:
    """A WSGI application whose answers tell what they have waited for."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        here.sleeps = 0
        started = time.monotonic()

        def start_and_tell(status: str, headers: list[Any], *more: Any) -> Any:
            took = time.monotonic() - started
            told = [("X-Sleeps", str(here.sleeps)), ("X-Took", f"{took:.3f}")]
            return start(status, [*headers, *told], *more)

        return self.application(environ, start_and_tell)


def watch_sleeps() -> None:
    """Count the sleeps of each request."""
    sleep = time.sleep

    def counted(seconds: float) -> None:
        here.sleeps = getattr(here, "sleeps", 0) + 1
        sleep(seconds)

    time.sleep = counted


def waits_in(answer: Answer) -> str:
    """Return what an answer was waited for, in words; nothing if it came at once."""
    if sleeps := int(answer.headers["X-Sleeps"]):
        return f"slept {sleeps} times over {answer}"
    if float(answer.headers["X-Took"]) > LONGEST:
        return f"waited before {answer}"
    return ""
