"""A network between application and store: a relay that delays, and counts trips.

It runs in a process of its own, so that it takes no turn of the application's. What
travels is delayed by half a round trip each way; how much may travel is not limited.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any

LARGEST = 1 << 20


class Relay:
    """What the benchmark knows of the relay's process."""

    def __init__(self, port: int, delay: Any, trips: Any) -> None:
        self.port = port
        self._delay = delay
        self._trips = trips

    def set_round_trip(self, milliseconds: float) -> None:
        """Let everything that comes from now on take so long, there and back."""
        self._delay.value = milliseconds / 2000

    @property
    def trips(self) -> int:
        """How often the application has waited for a reply so far."""
        return int(self._trips.value)


@contextmanager
def relay(place: str) -> Iterator[Relay]:
    """Run a relay to a server: a Unix socket's path, or a host, a colon and a port."""
    context = get_context("spawn")
    delay, trips = context.Value("d", 0.0), context.Value("q", 0)
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, place, delay, trips), daemon=True
    )
    process.start()
    try:
        yield Relay(ours.recv(), delay, trips)
    finally:
        process.terminate()
        process.join()


def _connect(place: str) -> socket.socket:
    if place.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        server.connect(place)
        return server
    host, _, port = place.rpartition(":")
    server = socket.create_connection((host, int(port)))
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def _serve(ready: Any, place: str, delay: Any, trips: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ready.send(listener.getsockname()[1])
    while True:
        client, _address = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Line(client, _connect(place), delay, trips)


class Line:
    """One connection through the relay."""

    def __init__(self, client: Any, server: Any, delay: Any, trips: Any) -> None:
        self.delay = delay
        self.trips = trips
        # A trip begins with what the application sends after it has heard a reply.
        self.is_waiting = False
        for one, other in ((client, server), (server, client)):
            travelling: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for work in (self._take, self._give):
                arguments = (one, other, travelling, one is client)
                threading.Thread(target=work, args=arguments, daemon=True).start()

    def _take(self, one: Any, other: Any, travelling: Any, is_client: bool) -> None:
        try:
            while data := one.recv(LARGEST):
                if is_client and not self.is_waiting:
                    with self.trips.get_lock():
                        self.trips.value += 1
                self.is_waiting = is_client
                travelling.put((time.perf_counter() + self.delay.value, data))
        except OSError:
            pass  # the other side has closed both
        travelling.put((0, b""))

    def _give(self, one: Any, other: Any, travelling: Any, is_client: bool) -> None:
        try:
            while True:
                arrives_at, data = travelling.get()
                if not data:
                    break
                time.sleep(max(0, arrives_at - time.perf_counter()))
                other.sendall(data)
        except OSError:
            pass
        for side in (one, other):
            # While a thread waits for data, closing alone would tell nobody.
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
