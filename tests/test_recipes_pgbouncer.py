"""The recipe for PgBouncer, with a real one."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Barrier, Event
from typing import Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency.decorators import idempotent
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import code_of, key
from tests.support.processes import PATIENCE, running, wait_until
from tests.support.recipe_modules import block, cooked
from tests.urls import urlpatterns as usual_urls

HEADING = "PgBouncer in transaction mode"
# Fewer than the clients that the tests have at a time.
SERVERS = 2

pytestmark = [pytest.mark.usefixtures("pooled"), pytest.mark.urls(__name__)]


@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="rerun")
def leased(request: Request) -> Response:
    # The decorated name is what tests set.
    return Leased.handler(request)


class Leased:
    handler: Callable[[Request], Any] = staticmethod(create_effect)


urlpatterns = [*usual_urls, path("leased/", leased)]


class PgBouncer:
    """A running PgBouncer and its console."""

    def __init__(self, port: int) -> None:
        self.port = port

    def is_up(self) -> bool:
        try:
            self.pool()
        except psycopg.OperationalError:
            return False
        return True

    @contextmanager
    def console(self) -> Iterator[psycopg.ClientCursor[Any]]:
        with closing(
            psycopg.connect(
                host="127.0.0.1", port=self.port, user="console", dbname="pgbouncer"
            )
        ) as console:
            console.autocommit = True
            # The console knows simple queries only.
            yield psycopg.ClientCursor(console)

    @contextmanager
    def query_wait_timeout(self, seconds: int) -> Iterator[None]:
        """Let clients wait for a server no longer than that."""
        with self.console() as cursor:
            cursor.execute(f"SET query_wait_timeout = {seconds}")
        try:
            yield
        finally:
            with self.console() as cursor:
                cursor.execute(f"SET query_wait_timeout = {PATIENCE}")

    def pool(self) -> dict[str, Any]:
        """Return what the console says of the tests' pool, nothing if there is none."""
        with self.console() as cursor:
            cursor.execute("SHOW POOLS")
            names = [column.name for column in cursor.description or ()]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        database = connections["default"].settings_dict["NAME"]
        return next((row for row in rows if row["database"] == database), {})


@pytest.fixture(scope="module")
def bouncer(
    django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PgBouncer]:
    """Start the PgBouncer of the page in front of the tests' PostgreSQL."""
    if connection.vendor != "postgresql":
        pytest.skip("PgBouncer is for PostgreSQL.")
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    own = connection.settings_dict
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = {
        "host": own["HOST"] or "/var/run/postgresql",
        "port": own["PORT"] or 5432,
        "user": own["USER"],
        "password": own["PASSWORD"],
    }
    more = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "admin_users": "console",
        "default_pool_size": SERVERS,
    }
    if os.geteuid() == 0:
        more["user"] = "nobody"  # it refuses to be root
    address = " ".join(f"{name}={value}" for name, value in server.items() if value)
    lines = [
        block(HEADING, "pgbouncer.ini"),
        *(f"{name} = {value}" for name, value in more.items()),
        f"[databases]\n* = {address}",
    ]
    folder = tmp_path_factory.mktemp("pgbouncer")
    config = folder / "pgbouncer.ini"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for place in (config, folder, *folder.parents[:2]):
        place.chmod(0o755)
    log = folder / "pgbouncer.log"
    with running([program, str(config)], log):
        found = PgBouncer(port)
        wait_until(found.is_up, "PgBouncer", {"pgbouncer": log})
        yield found


@pytest.fixture
def pooled(bouncer: PgBouncer, database: None, monkeypatch: Any) -> Iterator[PgBouncer]:
    """Let Django's connections go through PgBouncer, with the page's settings.

    Those of the alias "other" go to PostgreSQL itself.
    """
    with cooked(HEADING) as recipe:
        wanted = recipe.settings["DATABASES"]["default"]
    assert wanted.pop("ENGINE") == connection.settings_dict["ENGINE"]
    place = {"NAME": connection.settings_dict["NAME"], "PORT": str(bouncer.port)}
    connections.close_all()
    for name, value in {**wanted, **place}.items():
        monkeypatch.setitem(connections.settings["default"], name, value)
    connection.ensure_connection()
    assert bouncer.pool()["pool_mode"] == "transaction"
    yield bouncer
    connections.close_all()


@pytest.fixture
def server_sessions(handle: Any) -> list[int | None]:
    """Let handlers act, and write down in which session of the server they did."""
    seen: list[int | None] = []

    def act(request: Request) -> Any:
        response = create_effect(request)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            seen.append(cursor.fetchone()[0])
        return response

    handle(act)
    return seen


def elsewhere(*functions: Callable[[], Any]) -> list[Any]:
    """Call functions at once, each from a thread with a connection of its own."""
    barrier = Barrier(len(functions))

    def call(function: Callable[[], Any]) -> Any:
        try:
            connection.ensure_connection()
            barrier.wait(PATIENCE)
            return function()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(call, functions))


def post(path: str, data: Any, value: str) -> Any:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_X_USER="ada")
    return client.post(path, data, **key(value))


def advisory_locks() -> int:
    """Return how many advisory locks somebody has, as PostgreSQL itself says."""
    with connections["other"].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON database = "
            "pg_database.oid WHERE locktype = 'advisory' AND datname = "
            "current_database()"
        )
        return int(cursor.fetchone()[0])


@pytest.mark.parametrize("url", ["/function/", "/leased/"])
def test_run_and_replay(url: str) -> None:
    """E1, E7, R2: A retry is replayed, whichever connections both of them have had."""
    for number in range(10):  # more often than psycopg waits before it prepares
        first = post(url, {"n": number}, f"key-{number}")
        (retry,) = elsewhere(lambda n=number: post(url, {"n": n}, f"key-{n}"))
        assert (first.status_code, retry.content) == (201, first.content)
        assert retry["Idempotent-Replayed"] == "true"
        reused = post(url, {"n": "other"}, f"key-{number}")
        assert code_of(reused) == "idempotency_key_reused"
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 10
    assert advisory_locks() == 0


def test_server_side_binding(monkeypatch: Any) -> None:
    """Where psycopg could prepare statements, the page's settings keep it from it."""
    default = connections.settings["default"]
    bound = {**default["OPTIONS"], "server_side_binding": True}
    connections.close_all()
    monkeypatch.setitem(default, "OPTIONS", bound)
    test_run_and_replay("/function/")


def test_connections_are_shared(
    pooled: PgBouncer, server_sessions: list[int | None]
) -> None:
    """E1, E3: More clients than connections of the server: each acts, each once."""
    requests = [
        lambda n=number: post("/function/", {"n": n}, f"key-{n}")
        for number in range(4 * SERVERS)
    ]
    first, retries = elsewhere(*requests), elsewhere(*requests)
    assert [answer.status_code for answer in first] == [201] * len(requests)
    assert [a.content for a in retries] == [a.content for a in first]
    assert Effect.objects.count() == len(server_sessions) == len(requests)
    assert 1 <= len({*server_sessions}) <= SERVERS
    assert advisory_locks() == 0


def test_concurrent_duplicate(handle: Any) -> None:
    """E3: While the first request's transaction is open, its duplicate gets 409."""
    others = []

    def act(request: Request) -> Any:
        response = create_effect(request)
        others.extend(elsewhere(lambda: post("/function/", {}, "the-same-key")))
        assert advisory_locks() == 1
        return response

    handle(act)
    assert post("/function/", {}, "the-same-key").status_code == 201
    assert [code_of(other) for other in others] == ["idempotency_in_progress"]
    assert Effect.objects.count() == 1
    assert advisory_locks() == 0


def test_duplicates_at_once(server_sessions: list[int | None]) -> None:
    """E1, E3: Of many at once one acts; the others are refused or replayed."""
    answers = elsewhere(*[lambda: post("/function/", {}, "the-same-key")] * 8)
    assert {answer.status_code for answer in answers} <= {201, 409}
    contents = {answer.content for answer in answers if answer.status_code == 201}
    assert len(contents) == Effect.objects.count() == len(server_sessions) == 1


@pytest.mark.parametrize("url", ["/function/", "/leased/"])
def test_no_server_in_time(
    pooled: PgBouncer, server_sessions: list[int | None], url: str
) -> None:
    """E4: Who waits for a server for too long has run nothing, and may retry."""
    are_all_held, may_end = Barrier(SERVERS + 1), Event()

    def hold() -> None:
        with transaction.atomic():
            Effect.objects.count()
            are_all_held.wait(PATIENCE)
            assert may_end.wait(PATIENCE)

    with pooled.query_wait_timeout(1), ThreadPoolExecutor(1) as holders:
        held = holders.submit(elsewhere, *[hold] * SERVERS)
        try:
            are_all_held.wait(PATIENCE)
            refusal = post(url, {}, "the-same-key")
        finally:
            may_end.set()
        held.result(PATIENCE)
    assert code_of(refusal) == "idempotency_database_unavailable"
    assert (refusal.status_code, refusal["Retry-After"]) == (503, "5")
    assert server_sessions == []
    assert post(url, {}, "the-same-key").status_code == 201
    assert Effect.objects.count() == 1


def test_leased(pooled: PgBouncer, monkeypatch: Any) -> None:
    """E7, E8: The claim holds between transactions, and keeps no connection busy."""
    others = []

    def act(request: Request) -> Any:
        assert pooled.pool()["sv_active"] == 0
        others.extend(elsewhere(lambda: post("/leased/", {}, "the-same-key")))
        request.idempotency.renew()  # type: ignore[attr-defined]
        return create_effect(request)

    monkeypatch.setattr(Leased, "handler", staticmethod(act))
    assert post("/leased/", {}, "the-same-key").status_code == 201
    assert [code_of(other) for other in others] == ["idempotency_in_progress"]
    assert post("/leased/", {}, "the-same-key")["Idempotent-Replayed"] == "true"
    assert Effect.objects.count() == 1


def test_abandoned(monkeypatch: Any) -> None:
    """E9: A run that failed is abandoned, and the retry takes over."""

    def fail_first(request: Request) -> Any:
        if request.idempotency.attempt == 1:  # type: ignore[attr-defined]
            raise RuntimeError
        return create_effect(request)

    monkeypatch.setattr(Leased, "handler", staticmethod(fail_first))
    statuses = [post("/leased/", {}, "the-same-key").status_code for _ in range(3)]
    assert statuses == [500, 201, 201]
    assert Effect.objects.count() == 1


def test_cursors(pooled: PgBouncer) -> None:
    """The page's settings are what iterator() needs: its rows come in one answer."""
    Effect.objects.bulk_create(Effect(note=str(number)) for number in range(3))
    rows = Effect.objects.order_by("pk").iterator(chunk_size=1)
    assert next(rows).note == "0"
    # Others use all connections of the server between two rows.
    elsewhere(*[lambda: post("/function/", {}, "the-same-key")] * (2 * SERVERS))
    assert [row.note for row in rows] == ["1", "2"]
