"""What a dump, the database's files and logs have of a run with encryption: nothing."""

from __future__ import annotations

import base64
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.utils import Error
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency.context import context_of
from idempotency.database import UTCNow
from idempotency.decorators import idempotent
from idempotency.encryption import new_entry
from idempotency.models import IdempotencyRecord, State
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]

SECRETS = 100
TABLE = IdempotencyRecord._meta.db_table


class Killed(BaseException):
    """The end of a process."""


class Plan:
    """The secrets that the views return, all with one mark in front."""

    def __init__(self) -> None:
        self.mark = f"planted{uuid4().hex[:12]}"
        self.planted = 0

    def secret(self) -> str:
        self.planted += 1
        return f"{self.mark}-{self.planted:03}"

    def found_in(self, octets: bytes) -> set[bytes]:
        """Return the secrets in some bytes, and encodings of the mark."""
        mark = self.mark.encode()
        encoded = [mark.hex().encode(), mark.hex().upper().encode()]
        # The parts of base64 that do not depend on what is around the mark.
        encoded += [base64.b64encode(b"-" * n + mark)[4:-4] for n in range(3)]
        found = {*re.findall(mark + rb"-\d{3}", octets)}
        return found | {each for each in encoded if each in octets}


plan = Plan()


@api_view(["POST"])
@idempotent
def atomic(request: Request) -> Response:
    return Response({"said": plan.secret()}, 201, headers={"X-Said": plan.secret()})


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="hold")
def leased(request: Request) -> Response:
    return Response({"said": plan.secret()}, 201, headers={"X-Said": plan.secret()})


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="resume")
def resuming(request: Request) -> Response:
    steps = context_of(request)
    steps.step(request.data["name"], plan.secret)
    found = steps.call("call", lambda key: {"secret": plan.secret()}, "hold")
    if steps.attempt == 1:
        raise Killed
    return Response(found, 201)


urlpatterns = [
    *usual_urls,
    path("atomic/", atomic),
    path("leased/", leased),
    path("resuming/", resuming),
]


@pytest.fixture
def client() -> APIClient:
    client = APIClient()
    client.credentials(HTTP_X_USER="ada")
    return client


def run_all(client: APIClient) -> None:
    """Let records come into being in every way, until all secrets are planted."""
    global plan  # noqa: PLW0603  # the views of this module use it
    plan = Plan()
    number = 0
    while plan.planted < SECRETS:
        number += 1
        key = {"headers": {"Idempotency-Key": str(uuid4())}}
        for _time in range(2):
            assert client.post("/atomic/", {}, **key).status_code == 201
            assert client.post("/leased/", {}, **key).status_code in (201, 422)
        key = {"headers": {"Idempotency-Key": str(uuid4())}}
        assert client.post("/leased/", {}, **key).status_code == 201
        key = {"headers": {"Idempotency-Key": str(uuid4())}}
        # Projects make names of what was sent.
        data = {"name": plan.secret()}
        with pytest.raises(Killed):
            client.post("/resuming/", data, **key)
        record = IdempotencyRecord.objects.filter(key=key["headers"]["Idempotency-Key"])
        record.update(state=State.ABANDONED, lease_expires_at=UTCNow())
        if number % 2:
            found = record.with_lease_state().get()
            found.resolve(HttpResponse(plan.secret(), headers={"X": plan.secret()}))
        elif number % 4:
            assert client.post("/resuming/", data, **key).status_code == 201


def dumped() -> bytes:
    """Return the table as a dump has it: each column of each row."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {TABLE}")
        rows = cursor.fetchall()
    assert rows
    return b"\n".join(
        bytes(value) if isinstance(value, memoryview | bytes) else str(value).encode()
        for row in rows
        for value in row
    )


def test_dump(
    client: APIClient, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """P5: Without keys a dump has each of 100 secrets, with keys none."""
    fixture = tmp_path / "records.json"
    caplog.set_level(logging.DEBUG)
    with override_settings(IDEMPOTENCY={"ENCRYPTION_KEYS": [new_entry()]}):
        run_all(client)
        call_command("dumpdata", "idempotency", output=str(fixture), verbosity=0)
        assert plan.planted >= SECRETS
        assert plan.found_in(dumped()) == set()
        assert plan.found_in(fixture.read_bytes()) == set()
        assert plan.found_in(caplog.text.encode()) == set()
        for record in IdempotencyRecord.objects.all():
            assert not record.unreadable
            shown = f"{record.headers}{record.body!r}{record.steps}"
            assert plan.found_in(shown.encode())
    # The same run shows that they would be found. Results of steps go by themselves.
    IdempotencyRecord.objects.all().delete()
    run_all(client)
    assert len(plan.found_in(dumped())) > SECRETS / 2


# The database's own files and logs, where the tests may read them.


def positions() -> dict[Path, int]:
    """Return the files that the server writes content to, and their present sizes."""
    files: list[Path] = []
    with connection.cursor() as cursor, transaction.atomic():
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA database_list")
            name = Path(cursor.fetchone()[2])
            files = [name, *(Path(f"{name}-{end}") for end in ("wal", "journal"))]
        elif connection.vendor == "postgresql":
            cursor.execute("SELECT CURRENT_SETTING('data_directory')")
            data = Path(cursor.fetchone()[0])
            server = (data / "postmaster.pid").read_text().split()[0]
            files = [Path(os.path.realpath(f"/proc/{server}/fd/2"))]
        else:
            cursor.execute("SELECT @@datadir, DATABASE()")
            data, name = map(Path, cursor.fetchone())
            files = [data / name / f"{TABLE}.ibd", data / "ib_logfile0"]
    return {file: file.stat().st_size for file in files if file.exists()}


def log_segments(start: str) -> list[Path]:
    """Return PostgreSQL's write-ahead log from a position until now."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT CURRENT_SETTING('data_directory'), PG_WALFILE_NAME(%s), "
            "PG_WALFILE_NAME(PG_CURRENT_WAL_LSN())",
            [start],
        )
        data, first, last = cursor.fetchone()
    # Segments that are recycled for later have names beyond the last one.
    segments = sorted((Path(data) / "pg_wal").iterdir())
    return [each for each in segments if first <= each.name <= last]


def written(client: APIClient) -> Iterator[bytes]:
    """Run all, and yield what the server has written meanwhile, file by file."""
    before, start = positions(), ""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT PG_CURRENT_WAL_LSN()::text")
            start = cursor.fetchone()[0]
            # What a server writes that logs statements, with their values.
            cursor.execute("SET log_statement = 'all'")
    try:
        run_all(client)
        for file in [*before, *(log_segments(start) if start else ())]:
            with file.open("rb") as opened:
                if file.suffix == ".log":
                    opened.seek(before[file])
                yield opened.read()
    finally:
        connection.close()


def test_files(client: APIClient) -> None:
    """P5: Neither the write-ahead log nor the server's log has any of 100 secrets."""
    with suppress(Error):
        connection.close()
    try:
        for file in positions():
            file.open("rb").close()
        if connection.vendor == "postgresql":
            log_segments("0/0")
    except (OSError, Error) as error:
        pytest.skip(f"The server's files can't be read: {type(error).__name__}")
    with override_settings(IDEMPOTENCY={"ENCRYPTION_KEYS": [new_entry()]}):
        found = [plan.found_in(octets) for octets in written(client)]
    assert plan.planted >= SECRETS
    assert found
    assert not any(found), found
    # The same run shows that they would be found.
    found = [plan.found_in(octets) for octets in written(client)]
    assert len(set().union(*found)) > SECRETS / 2
    assert connection.vendor != "postgresql" or len([*filter(None, found)]) > 1
