"""Bodies that are dear to understand, with a key and without."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from uuid import uuid4

from tests.hostile.measured import CPU_HEADER, MEMORY_HEADER
from tests.support.http_servers import Server, UnixConnection, serving

PATH, UNREAD = "/costs/", "/costs/?unread"
# The least of so many counts: what else the machine does only adds to it.
TIMES = 5
# The rule (F3): what a key adds is at most so many times the view's own parsing. Where
# that takes nothing, so many milliseconds.
MOST_TIMES, SLACK = 1.3, 10.0
# A worker's memory in MiB, where the handler leaves the bodies alone.
MOST_MEMORY = 200.0
# Just below what request.body takes by default.
SIZE = 2_600_000
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one body took, in milliseconds of the worker's CPU."""

    name: str
    bare: float
    keyed: float
    # To copy and to hash it once, which a key may cost whatever the view does.
    hashing: float

    @property
    def is_too_much(self) -> bool:
        """Return whether a key makes a weapon of the body, or a better one."""
        added = self.keyed - self.bare - self.hashing
        return added > MOST_TIMES * self.bare + SLACK

    def __str__(self) -> str:
        return (
            f"{self.name:24} {self.bare:8.1f} {self.keyed:8.1f} {self.hashing:8.1f}"
            f" {self.keyed / (self.bare + self.hashing):8.2f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What all of them took."""

    costs: list[Cost]
    memory: float

    @property
    def is_fair(self) -> bool:
        """Return whether the rule holds."""
        too_much = any(cost.is_too_much for cost in self.costs)
        return not too_much and self.memory < MOST_MEMORY

    def __str__(self) -> str:
        lines = [
            "bodies, in ms of CPU: without a key, with one, to copy and hash it once,",
            "and with a key by the sum of the view's own and hashing",
        ]
        lines += [
            f"{cost}{' TOO MUCH' if cost.is_too_much else ''}" for cost in self.costs
        ]
        lines.append(f"a worker's memory over all of them: {self.memory:.0f} MiB")
        lines.append(f"verdict: {'green' if self.is_fair else 'red'}")
        return "\n".join(lines)


def make_bill(directory: Path) -> Bill:
    """Send them all to servers on the tests' own database."""
    memory = measure_memory(directory / "memory")
    return Bill(costs=measure(directory / "costs"), memory=memory)


def json_of(piece: bytes) -> bytes:
    return b"[" + (piece + b",") * (SIZE // (len(piece) + 1) - 1) + piece + b"]"


def parts(count: int, content: bytes, name: bytes = b"a", more: bytes = b"") -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="' + name + b'"' + more
    return (head + b"\r\n\r\n" + content + b"\r\n") * count + b"--x--\r\n"


def file_of(content: bytes, more: bytes = b"", count: int = 1) -> bytes:
    return parts(count, content, more=b'; filename="f"' + more)


NOT_READ = "no parser takes it"
BASE64 = b"\r\nContent-Transfer-Encoding: base64"
BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lists": (JSON, lambda: json_of(b"[]")),
    "objects": (JSON, lambda: json_of(b"{}")),
    "rows": (JSON, lambda: json_of(b'{"a":1,"b":[1,2.5,"x"],"c":{"d":null}}')),
    "integers": (JSON, lambda: json_of(b"1")),
    "long integers": (JSON, lambda: json_of(b"1" * 4000)),
    "one long integer": (JSON, lambda: b"1" * 4300),
    "fractions": (JSON, lambda: json_of(b"0.1234567890123456")),
    "exponents": (JSON, lambda: json_of(b"1e300")),
    "strings": (JSON, lambda: json_of(b'""')),
    "one string": (JSON, lambda: b'"' + b"x" * SIZE + b'"'),
    "escapes": (JSON, lambda: b'"' + rb"\u00e9" * (SIZE // 6) + b'"'),
    "names": (JSON, lambda: b"{%s}" % b",".join(b'"%d":1' % n for n in range(200_000))),
    "just below the bound": (JSON, lambda: b"[" + b"0.12345678," * 19_998 + b"1]"),
    "depth": (JSON, lambda: json_of(b"[" * 400 + b"]" * 400)),
    "too much depth": (JSON, lambda: b"[" * SIZE),
    "white space": (JSON, lambda: b"[" + b" " * SIZE + b"]"),
    "UTF-16": (
        f"{JSON}; charset=utf-16",
        lambda: json_of(b"1").decode().encode("utf-16")[:SIZE],
    ),
    "punycode": (
        f"{JSON}; charset=punycode",
        lambda: b'"' + b"-" + b"a" * 100_000 + b'"',
    ),
    "beyond memory": (JSON, lambda: b'"' + b"x" * 20_000_000 + b'"'),
    "form of escapes": (FORM, lambda: b"a=" + b"%41" * (SIZE // 3)),
    "form of percents": (FORM, lambda: b"a=" + b"%" * SIZE),
    "form of fields": (FORM, lambda: b"&".join([b"a=" + b"x" * 2000] * 999)),
    "form in punycode": (
        f"{FORM}; charset=punycode",
        lambda: b"a=" + b"-" + b"a" * 100_000,
    ),
    "large file": (MULTIPART, lambda: file_of(bytes(range(256)) * 200_000)),
    "file of newlines": (MULTIPART, lambda: file_of(b"\r\n" * 10_000_000)),
    "file of near boundaries": (MULTIPART, lambda: file_of(b"\r\n--" * 5_000_000)),
    "file in base64": (MULTIPART, lambda: file_of(b"QUFB" * 5_000_000, BASE64)),
    "files": (MULTIPART, lambda: file_of(b"1", count=99)),
    "fields": (MULTIPART, lambda: parts(999, b"1")),
    "field in base64": (MULTIPART, lambda: parts(1, b"QUFB" * 600_000, more=BASE64)),
    "parts in punycode": (
        f"{MULTIPART}; charset=punycode",
        lambda: parts(1, b"-" + b"a" * 100_000),
    ),
    NOT_READ: ("application/xml", lambda: b"<" * 200_000_000),
}


def measure_memory(directory: Path) -> float:
    """Return the most MiB that a worker has had over all of them, each with a key."""
    with measured_server(directory) as server:
        return max(
            _send(server, kind, make(), keyed=True, path=UNREAD)[1]
            for kind, make in BODIES.values()
        )


def measure(directory: Path) -> list[Cost]:
    """Return what each body costs a worker."""
    with measured_server(directory) as server:
        # What any key costs, whatever the body.
        bare, keyed = _took(server, JSON, b"{}", times=20)
        fixed = keyed - bare
        found = []
        for name, (kind, make) in BODIES.items():
            content = make()
            bare, keyed = _took(server, kind, content)
            hashing = _hashing(content) if name != NOT_READ else 0.0
            cost = Cost(name=name, bare=bare, keyed=keyed - fixed, hashing=hashing)
            found.append(cost)
    return found


@contextmanager
def measured_server(directory: Path) -> Iterator[Server]:
    """Serve the views from one worker that has done nothing yet."""
    directory.mkdir(parents=True, exist_ok=True)
    with serving(
        directory,
        "tests.hostile.measured",
        workers=1,
        threads=1,
        DJANGO_SETTINGS_MODULE="tests.hostile.settings",
    ) as server:
        yield server


def _hashing(content: bytes) -> float:
    took = []
    for _ in range(TIMES):
        began = time.thread_time()
        with SpooledTemporaryFile(max_size=SIZE) as copy:
            copy.write(content)
            hashlib.sha256(content).digest()
        took.append((time.thread_time() - began) * 1e3)
    return min(took)


def _took(
    server: Server, kind: str, content: bytes, times: int = TIMES
) -> tuple[float, float]:
    """Return the least milliseconds without and with a key, by turns."""
    turns = [
        (
            _send(server, kind, content, keyed=False)[0],
            _send(server, kind, content, keyed=True)[0],
        )
        for _ in range(times)
    ]
    bare, keyed = zip(*turns, strict=True)
    return min(bare), min(keyed)


def _send(
    server: Server, kind: str, content: bytes, *, keyed: bool, path: str = PATH
) -> tuple[float, float]:
    """Return the milliseconds of one request, and the worker's peak in MiB so far."""
    headers = {"Content-Type": kind, "X-User": "ada"}
    if keyed:
        headers["Idempotency-Key"] = str(uuid4())
    with closing(UnixConnection(server.address)) as connection:
        # A body that nobody reads is not taken off the wire either.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, content, headers)
        response = http.client.HTTPResponse(connection.sock, method="POST")
        response.begin()
        cpu, memory = (int(response.headers[n]) for n in (CPU_HEADER, MEMORY_HEADER))
        return cpu / 1e6, memory / 1024
