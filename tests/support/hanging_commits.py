"""Leased requests that lose their connection while the server is at their COMMIT.

On a database server of the run's own: what makes commits hang there does so for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.database_servers import mariadb, postgresql

SERVERS = {"postgresql": postgresql, "mariadb": mariadb}
# What waits, but for the one that was sent to see whether commits hang already.
HANGING = {
    "postgresql": "SELECT pid FROM pg_stat_activity "
    "WHERE wait_event = 'SyncRep' AND query NOT LIKE '%%probe%%'",
    "mysql": "SELECT id FROM information_schema.processlist "
    "WHERE state LIKE '%%backup lock%%' AND info LIKE '%%idempotency%%'",
}
END = {
    "postgresql": "SELECT pg_terminate_backend(%s)",
    "mysql": "KILL CONNECTION %s",
}
STAGES = ("START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT")


@dataclass(frozen=True)
class Found:
    """What a request and its retry have left behind."""

    statuses: list[int]
    is_replayed: bool
    charges: int
    state: str


def try_apart(name: str, situation: str) -> Found:
    """Try a situation in this process, in which Django is not set up yet.

    Raises ``NotInstalled``.
    """
    with TemporaryDirectory(prefix="idem") as folder, SERVERS[name]() as database:
        os.environ.update(
            DJANGO_SETTINGS_MODULE="tests.settings",
            DEMO_VAR_DIR=folder,
            ATOMIC_REQUESTS="0",
            DATABASE_URL=database.url,
        )
        import django  # noqa: PLC0415  # the environment says now which database

        django.setup()
        return _try(situation, Path(folder))


def _try(situation: str, folder: Path) -> Found:
    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connection, connections  # noqa: PLC0415

    from idempotency.database import UTCNow  # noqa: PLC0415
    from idempotency.models import IdempotencyRecord  # noqa: PLC0415
    from tests.support.faults import serving  # noqa: PLC0415
    from tests.support.http_servers import is_replayed, read  # noqa: PLC0415
    from tests.support.leased_crashes import HANDLERS, Crashes  # noqa: PLC0415
    from tests.support.processes import wait_until  # noqa: PLC0415
    from tests.support.rendezvous import Rendezvous  # noqa: PLC0415

    def hanging() -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(HANGING[connection.vendor])
            return [row[0] for row in cursor.fetchall()]

    call_command("migrate", run_syncdb=True, verbosity=0)
    with Rendezvous(folder) as rendezvous, serving() as server:
        crashes = Crashes(server, rendezvous)
        is_new = situation != "take-over"
        handler = HANDLERS["plain" if is_new else "failed-before"]
        sending = crashes.prepare("hold" if is_new else "rerun", handler)
        before = 0
        if situation == "expired":
            assert crashes.send(sending).status == 201
            before = 1
            IdempotencyRecord.objects.update(expires_at=UTCNow())
        with commits_hang(connection):
            request = server.start(
                sending.url, sending.data, sending.key, **sending.headers
            )
            wait_until(hanging, "a COMMIT that hangs")
            with connection.cursor() as cursor:
                cursor.execute(END[connection.vendor], hanging())
        first, retry = read(request), crashes.send(sending)
        found = Found(
            statuses=[first.status, retry.status],
            is_replayed=is_replayed(retry) and retry.body == first.body,
            charges=len(crashes.ledger.charges_of(sending.key)) - before,
            state=IdempotencyRecord.objects.get(key=sending.key).state,
        )
    connections.close_all()
    return found


@contextmanager
def commits_hang(connection: Any) -> Iterator[None]:
    """Let commits hang on the server for as long as the block lasts."""
    by_vendor = {"postgresql": _without_standby, "mysql": _in_backup}
    with by_vendor[connection.vendor](connection):
        yield


@contextmanager
def _without_standby(connection: Any) -> Iterator[None]:
    """Wait for a standby that is not there."""
    import psycopg  # noqa: PLC0415  # of one database

    from tests.support.processes import wait_until  # noqa: PLC0415

    def set_standby(how: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER SYSTEM {how}")
            cursor.execute("SELECT pg_reload_conf()")

    own = connection.settings_dict
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE probe (number integer)")
    with psycopg.connect(
        host=own["HOST"], user=own["USER"], dbname=own["NAME"], autocommit=True
    ) as line:
        probe = line.pgconn

        def hangs() -> bool:
            """Send one commit after another, until one is not answered."""
            probe.consume_input()
            if not probe.is_busy():
                while probe.get_result():
                    pass
                probe.send_query(b"INSERT INTO probe VALUES (1)")
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT 1 FROM pg_stat_activity "
                    "WHERE wait_event = 'SyncRep' AND pid = %s",
                    [line.info.backend_pid],
                )
                return cursor.fetchone() is not None

        set_standby("SET synchronous_standby_names = 'nobody'")
        try:
            wait_until(hangs, "commits to hang")
            yield
        finally:
            set_standby("RESET synchronous_standby_names")
            while probe.get_result():
                pass


@contextmanager
def _in_backup(connection: Any) -> Iterator[None]:
    """Be at that part of a backup which holds commits back."""
    other = connection.copy()
    with other.cursor() as cursor:
        for stage in STAGES:
            cursor.execute(f"BACKUP STAGE {stage}")
        try:
            yield
        finally:
            cursor.execute("BACKUP STAGE END")
    other.close()
