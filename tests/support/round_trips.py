"""How often a request waits for the database server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile
from typing import Any
from unittest.mock import patch

from django.db import connections


class RoundTrips:
    """How often the client waited for the server, on one connection."""

    count = 0


def trips_of(client: Any, place: str, **headers: Any) -> int:
    """Return how often a POST waits for the default database."""
    with counting_round_trips(connections["default"]) as trips:
        client.post(place, {}, **headers)
    return trips.count


@contextmanager
def counting_round_trips(connection: Any) -> Iterator[RoundTrips]:
    """Count how often the driver's connection waits for the server."""
    connection.ensure_connection()
    count = {"postgresql": _counting_messages, "mysql": _counting_calls}
    with count[connection.vendor](connection) as trips:
        yield trips


@contextmanager
def _counting_calls(connection: Any) -> Iterator[RoundTrips]:
    """Count the driver's calls; none of them sends more than one message."""
    driver, trips = type(connection.connection), RoundTrips()

    def counted(name: str) -> Any:
        call = getattr(driver, name)

        def method(self: Any, *args: Any) -> Any:
            is_sent = name != "autocommit" or self.get_autocommit() != args[0]
            trips.count += is_sent
            return call(self, *args)

        return method

    with ExitStack() as stack:
        for name in ("query", "commit", "rollback", "autocommit", "ping"):
            stack.enter_context(patch.object(driver, name, counted(name)))
        yield trips


@contextmanager
def _counting_messages(connection: Any) -> Iterator[RoundTrips]:
    """Count by libpq's own trace: a simple query, or all up to a Sync, is one."""
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
