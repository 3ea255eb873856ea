"""Where a request that waits for another one's answer can be met, between two looks.

In the server's process ``watch_pauses`` makes the first pause of a request with the
header X-Meet-Waiting a rendezvous. It tells whether its own side of the database's
connection is in a transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import local
from types import SimpleNamespace
from typing import Any

from django.db import connection

from tests.support.rendezvous import meet

HEADER = "X-Meet-Waiting"
# A request is answered by one thread.
here = local()


class Pauses:
    """A WSGI application whose waiting requests can be met."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        here.place = environ.get("HTTP_X_MEET_WAITING")
        return self.application(environ, start)


def watch_pauses() -> None:
    """Make pauses of the app meet the test."""
    from idempotency import execution  # noqa: PLC0415  # needs Django to be set up

    # What the module uses of it.
    execution.time = SimpleNamespace(monotonic=time.monotonic, sleep=pause)


def pause(seconds: float) -> None:
    """Meet the test once, and sleep from then on."""
    place, here.place = here.place, None
    if place:
        meet(place, in_transaction=is_in_transaction())
    else:
        time.sleep(seconds)


def is_in_transaction() -> bool:
    """Tell what the driver knows; MariaDB's knows nothing, so there Django says."""
    raw: Any = connection.connection
    if connection.vendor == "sqlite":
        return bool(raw.in_transaction)
    if connection.vendor == "postgresql":
        return bool(raw.info.transaction_status)  # 0 is IDLE
    return bool(connection.in_atomic_block)
