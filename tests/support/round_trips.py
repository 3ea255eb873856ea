"""What is sent to PostgreSQL: round trips, and the statements in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any


class RoundTrips:
    """How often the client waited for the server, on one connection."""

    count = 0


@contextmanager
def counting_round_trips(connection: Any) -> Iterator[RoundTrips]:
    """Count by libpq's own trace: a simple query, or all up to a Sync, is one."""
    connection.ensure_connection()
    pgconn, trips = connection.connection.pgconn, RoundTrips()
    with TemporaryFile("w+") as trace:
        pgconn.trace(trace.fileno())
        try:
            yield trips
        finally:
            pgconn.untrace()
        trace.seek(0)
        sent = [line.split() for line in trace]
    trips.count = sum(
        "F" in m[2:3] and ("Query" in m[4:5] or "Sync" in m[4:5]) for m in sent
    )
