"""A way to a server that loses answers, as networks and load balancers do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from threading import Thread
from typing import Any

from tests.support.http_servers import Answer, Server, read

# What happens to a request on its way: what the client gets, or None to hang up.
Way = Callable[[Callable[[], Answer]], Answer | None]


def pass_on(ask: Callable[[], Answer]) -> Answer | None:
    """Bring the server's answer."""
    return ask()


def lose(ask: Callable[[], Answer]) -> Answer | None:
    """Lose the server's answer: what it did is committed by then."""
    ask()
    return None


def never_arrive(ask: Callable[[], Answer]) -> Answer | None:
    """Lose the request itself."""
    return None


def be_unavailable(ask: Callable[[], Answer]) -> Answer | None:
    """Answer as a load balancer without servers does."""
    return Answer(503, {"Retry-After": "1"}, b"")


class Proxy:
    """What came by, and what is to happen to the next requests; then all pass."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.ways: list[Way] = []
        self.keys: list[str] = []


@contextmanager
def proxied(server: Server, paths: dict[str, str] | None = None) -> Iterator[Proxy]:
    """Give a server a port; ``paths`` are those that it has under another name."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            own = {k: v for k, v in self.headers.items() if k.startswith("X-")}
            key = self.headers["Idempotency-Key"]
            path = (paths or {}).get(self.path, self.path)
            proxy.keys.append(key)
            way = proxy.ways.pop(0) if proxy.ways else pass_on
            answer = way(lambda: read(server.start(path, body, key, **own)))
            if answer is None:
                self.close_connection = True
                self.connection.shutdown(SHUT_RDWR)
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name not in ("Connection", "Transfer-Encoding", "Content-Length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with listening(Handler) as port:
        proxy = Proxy(port)
        yield proxy


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve from a thread on a free port, which is returned."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listener:
        thread = Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()
