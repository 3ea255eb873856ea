"""One run: send, read the answers, and hold effects, records and log against them."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from django.db import connection, connections
from django.urls import Resolver404, resolve

from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.hostile.requests import (
    BODY_MARK,
    EMBEDDED,
    KEY_END,
    KEY_START,
    REQUIRED,
    UNPROTECTED,
    Sent,
    make_request,
)
from tests.support.http_servers import Server, is_up
from tests.support.processes import PATIENCE, running, wait_until

CLIENTS = 8
WORKERS, THREADS = 2, 4
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
REPLAYED = b"\r\nIdempotent-Replayed: true\r\n"
FULL_KEY = re.compile(re.escape(KEY_START) + rb"[\w-]+" + re.escape(KEY_END))
# What gunicorn says by itself of requests that it takes for none or can't answer.
BY_THE_HTTP_SERVER = re.compile(
    rb"\[[^]]+\] \[\d+\] \[[A-Z]+\] (Invalid request|Error handling request) "
)
# Django names the path that it has no view for. A broken request line can make a key a
# part of that path; no view, and so nothing of the app, has seen it then.
BY_DJANGO = re.compile(rb"django\.request WARNING Not Found: (?P<path>/.*)")
SHOWN = 1000
# So many numbers are asked for at once, so that memory stays bounded.
BATCH = 5000


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be, with the bytes that caused it where known."""

    what: str
    told: str
    content: bytes = b""

    def __str__(self) -> str:
        cut = "..." if len(self.content) > SHOWN else ""
        return f"{self.what}: {self.told}\n  {self.content[:SHOWN]!r}{cut}"


@dataclass(slots=True, kw_only=True)
class Report:
    """What one run did and found."""

    seed: int
    requests: int
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    failed_without_the_app: int = 0
    effects: int = 0
    records: int = 0
    log_lines: int = 0
    violations: list[Violation] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.requests} requests, {self.seconds:.0f} s"]
        for title, counts in (("keys", self.keys), ("answers", self.statuses)):
            lines.append(f"{title}:")
            lines += [f"  {count:8}  {name}" for name, count in counts.most_common()]
        lines += [
            f"500 that the app has no part in: {self.failed_without_the_app}",
            f"effects with a record: {self.effects}, records: {self.records}",
            f"lines in the servers' logs: {self.log_lines}",
        ]
        kinds = Counter(violation.what for violation in self.violations)
        lines += [f"  {count:8}  {name}" for name, count in kinds.most_common()]
        verdict = "red" if self.violations else "green"
        lines.append(f"verdict: {verdict}, {len(self.violations)} violations")
        return "\n".join(lines)


class Run:
    """Clients, what they know of each request, and the verdict."""

    def __init__(self, addresses: list[Path], report: Report) -> None:
        self.addresses = addresses
        self.report = report
        self.answers: dict[int, list[list[int]]] = defaultdict(list)
        self.embedded_in: dict[int, int] = {}

    def send_all(self) -> None:
        """Send everything, from several clients."""
        report = self.report
        with ThreadPoolExecutor(CLIENTS) as pool:
            for start in range(0, report.requests, BATCH):
                numbers = range(start, min(start + BATCH, report.requests))
                for sent, answers in pool.map(self.send, numbers):
                    self.note(sent, answers)

    def send(self, number: int) -> tuple[Sent, list[bytes]]:
        """Send one request as often as it wants."""
        sent = make_request(self.report.seed, number)
        address = self.addresses[number % len(self.addresses)]
        answers = [exchange(address, sent) for _ in range(sent.times)]
        if sent.times > 1 and connection.vendor == "sqlite" and is_busy(answers[-1]):
            answers.append(exchange(address, sent))
        return sent, answers

    def note(self, sent: Sent, answers: list[bytes]) -> None:
        """Judge the answers by themselves, and keep what the end needs."""
        report = self.report
        report.keys[sent.key] += 1
        for answer in answers:
            statuses = [int(status) for status in STATUS.findall(answer)]
            self.answers[sent.number].append(statuses)
            if not statuses:
                report.statuses["hung up" if sent.hangs_up else "none"] += 1
            for status in statuses:
                report.statuses[str(status)] += 1
            if 500 in statuses and not self.fails_without_the_app(sent):
                self.add("A 500", str(statuses), sent)
        if sent.key == "valid" and not sent.hangs_up and len(answers) > 1:
            self.judge_retry(sent, answers[0], answers[-1])

    def judge_retry(self, sent: Sent, first: bytes, retry: bytes) -> None:
        """A success under a key is replayed to the very next retry."""
        if status_of(first) != 201:
            return
        if status_of(retry) != 201:
            self.add("A retry with another status", f"201, {status_of(retry)}", sent)
        elif sent.is_post and sent.path != UNPROTECTED:
            head, _, body = retry.partition(b"\r\n\r\n")
            if REPLAYED not in head + b"\r\n":
                self.add("A retry that was no replay", f"{head!r}", sent)
            if not first.endswith(body):
                self.add("A replay with other bytes", f"{body!r}", sent)

    def fails_without_the_app(self, sent: Sent) -> bool:
        """Return whether the same bytes fail on an endpoint that is not protected."""
        address = self.addresses[sent.number % len(self.addresses)]
        statuses = STATUS.findall(exchange(address, sent, sent.elsewhere()))
        fails = b"500" in statuses
        self.report.failed_without_the_app += fails
        return fails

    def add(self, what: str, told: str, sent: Sent | None = None) -> None:
        content = sent.content if sent else b""
        self.report.violations.append(Violation(what, told, content))

    def judge_effects(self) -> None:
        """No effect without a valid key where one is required; effects == records."""
        by_record: Counter[UUID] = Counter()
        times: Counter[int] = Counter()
        rows = Effect.objects.values_list("note", flat=True)
        for note in rows.iterator():
            told, record, route = note.rsplit(" ", 2)
            number, again = [*told.split("."), ""][:2]
            known = int(number) if number.isdigit() and number == again else None
            if record != "-":
                by_record[UUID(record)] += 1
            elif f"/{route}" in REQUIRED:
                self.add_about("An effect without a key", note, known)
            if known is not None:
                times[known] += 1
                self.judge_effect(note, known, has_record=record != "-")
        for number, count in times.items():
            if count > (2 if number >= EMBEDDED else len(self.answers[number])):
                self.add_about("More effects than requests", str(count), number)
        for record, count in by_record.items():
            if count > 1:
                self.add("Two effects of one record", str(record))
        records = set(IdempotencyRecord.objects.values_list("pk", flat=True).iterator())
        for pk in records ^ {*by_record}:
            self.add("A record without effect, or the reverse", str(pk))
        odd = IdempotencyRecord.objects.exclude(
            state=State.COMPLETED, status_code=201, scope__gt=""
        )
        for record in odd:
            self.add("A record of something else than a success", str(record))
        self.report.effects = by_record.total()
        self.report.records = len(records)

    def judge_effect(self, note: str, number: int, *, has_record: bool) -> None:
        """Hold one effect against what is known of its request."""
        if number >= EMBEDDED:
            if has_record:
                self.add("An effect with a key that was not sent", note)
            return
        sent = make_request(self.report.seed, number)
        if has_record and sent.key in ("none", "invalid"):
            self.add("An effect with a key that is none", note, sent)
        is_protected = f"/{note.rsplit(maxsplit=1)[1]}" != UNPROTECTED
        has_key = sent.is_post and sent.key in ("valid", "invalid")
        if has_key and is_protected and not has_record:
            self.add("A key was overlooked", note, sent)
        answered = [status for each in self.answers[number] for status in each]
        complete = all(self.answers[number]) and not sent.hangs_up
        if complete and 201 not in answered and 500 not in answered:
            self.add("An effect of a refused request", f"{note}, {answered}", sent)

    def add_about(self, what: str, told: str, number: int | None) -> None:
        known = number is not None and number < EMBEDDED
        sent = make_request(self.report.seed, number) if known and number else None
        self.add(what, told, sent)

    def judge_log(self, path: Path) -> None:
        """No bodies and no full keys in what the application logged."""
        with path.open("rb") as log:
            for line in log:
                self.report.log_lines += 1
                if BY_THE_HTTP_SERVER.match(line) or names_no_view(line):
                    continue
                if BODY_MARK in line or FULL_KEY.search(line):
                    found = Violation("A body or a key in the log", path.name, line)
                    self.report.violations.append(found)


def status_of(answer: bytes) -> int | None:
    """Return the status of the answer's beginning."""
    told = STATUS.match(answer)
    return int(told[1]) if told else None


def is_busy(answer: bytes) -> bool:
    """Return whether SQLite's one writer may have been somebody else for too long."""
    return status_of(answer) == 409


def names_no_view(line: bytes) -> bool:
    """Return whether Django says of a path that it has no view, and it has none."""
    told = BY_DJANGO.match(line)
    if told is None:
        return False
    try:
        resolve(told["path"].decode(errors="replace"), "tests.hostile.urls")
    except Resolver404:
        return True
    return False


def exchange(address: Path, sent: Sent, content: bytes | None = None) -> bytes:
    """Send the bytes, say that there are no more, and return all that comes back."""
    content = sent.content if content is None else content
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(PATIENCE)
        wire.connect(str(address))
        size = -(-len(content) // sent.pieces) or 1
        answer = b""
        try:
            for at in range(0, len(content), size):
                wire.sendall(content[at : at + size])
            if sent.hangs_up:
                return b""
            wire.shutdown(socket.SHUT_WR)
        except OSError:  # refused before it was all sent
            pass
        try:
            while received := wire.recv(65536):
                answer += received
        except ConnectionError:
            pass
        return answer


def attack(directory: Path, *, seed: int, requests: int) -> Report:
    """Send so many requests to servers on the tests' own, empty database."""
    report = Report(seed=seed, requests=requests)
    connections.close_all()
    started = time.monotonic()
    folders = [directory / "autocommit", directory / "atomic"]
    run = Run([folder / "server.sock" for folder in folders], report)
    with serving(folders):
        run.send_all()
    report.seconds = time.monotonic() - started
    run.judge_effects()
    for folder in folders:
        run.judge_log(folder / "server.log")
    return report


@contextmanager
def serving(folders: list[Path]) -> Iterator[None]:
    """Serve the tests' views without and with ATOMIC_REQUESTS."""
    with ExitStack() as stack:
        for folder, atomic_requests in zip(folders, "01", strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            address, log = folder / "server.sock", folder / "server.log"
            command = [
                *(sys.executable, "-m", "gunicorn", "tests.wsgi"),
                *("--bind", f"unix:{address}", "--no-control-socket"),
                *("--workers", str(WORKERS), "--threads", str(THREADS)),
            ]
            variables = {
                "DJANGO_SETTINGS_MODULE": "tests.hostile.settings",
                "ATOMIC_REQUESTS": atomic_requests,
            }
            stack.enter_context(running(command, log, **variables))
            server = Server(address)
            wait_until(lambda server=server: is_up(server), "a server", {"log": log})
        yield
