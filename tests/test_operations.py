"""What the page about operations tells people to do."""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import connection
from rest_framework.response import Response

from benchmarks import purge
from idempotency.claims import claims_in
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import code_of, key
from tests.support.record_factories import RETENTION, left, make_record, make_records
from tests.test_docs import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def statements(word: str) -> str:
    """Return the one SQL block of the page that has a word."""
    (found,) = (
        block
        for block in re.findall(r"```sql\n(.+?)```", PAGE, re.DOTALL)
        if word in block
    )
    return str(found)


@pytest.fixture
def cursor() -> Any:
    if connection.vendor != "postgresql":
        pytest.skip("The page's SQL is PostgreSQL's.")
    with connection.cursor() as cursor:
        yield cursor


def shape(cursor: Any) -> dict[str, list[str]]:
    """Return what indexes and constraints hold for the table, names of keys aside."""
    table = "'idempotency_idempotencyrecord'::regclass"
    cursor.execute(
        "SELECT indexdef FROM pg_indexes WHERE tablename = "
        "'idempotency_idempotencyrecord'"
    )
    # A partitioned table's is said to be ON ONLY it.
    indexes = [re.sub(r" ON (ONLY )?", " ON ", row[0]) for row in cursor.fetchall()]
    cursor.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = " + table
    )
    constraints = [row[0] for row in cursor.fetchall()]
    return {"indexes": sorted(indexes), "constraints": sorted(constraints)}


SETTINGS = "ALTER TABLE idempotency_idempotencyrecord SET ("
OPTIONS = ["fillfactor=80", "autovacuum_vacuum_scale_factor=0.01"]
# Of each table that has rows: its own settings, and how it compresses bodies.
STORAGE = """
    SELECT relname, reloptions, attcompression::text FROM pg_class
    JOIN pg_attribute ON attrelid = pg_class.oid AND attname = 'body'
    WHERE relkind = 'r' AND relname LIKE 'idempotency%' ORDER BY relname
"""


@pytest.mark.django_db
def test_settings_of_the_table(cursor: Any) -> None:
    """P2: PostgreSQL takes them."""
    cursor.execute(statements(SETTINGS))
    cursor.execute(
        "SELECT reloptions FROM pg_class WHERE oid = "
        "'idempotency_idempotencyrecord'::regclass"
    )
    assert "fillfactor=80" in cursor.fetchone()[0]


@pytest.mark.parametrize("found", [None, (False,)], ids=["13", "built without"])
def test_servers_without_lz4(found: Any, capsys: Any) -> None:
    """R2: The migration says so, and leaves the table as it is."""
    migration = import_module("idempotency.migrations.0002_body_compression")
    editor = MagicMock()
    editor.connection.vendor = "postgresql"
    cursor = editor.connection.cursor().__enter__()
    cursor.fetchone.return_value = found
    migration.compress_bodies(apps, editor)
    assert cursor.execute.call_count == 1
    assert "no lz4" in capsys.readouterr().out


@pytest.mark.parametrize("is_beside", [False, True], ids=["literal", "parameter"])
def test_large_answers(
    transactional_db: None,
    cursor: Any,
    is_beside: bool,
    client: Any,
    handle: Any,
    monkeypatch: Any,
) -> None:
    """R2: The bytes are the same, whichever way they are sent and kept."""
    options = {**connection.settings_dict["OPTIONS"], "server_side_binding": is_beside}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    connection.close()
    text = "".join(map(chr, range(1, 256))) * 1000
    handle(lambda request: Response({"text": text, "new": str(uuid4())}, status=201))
    answers = [client.post("/function/", {}, **key()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert answers[1]["Idempotent-Replayed"] == "true"
    with connection.cursor() as again:
        again.execute(
            "SELECT pg_column_compression(body), pg_column_size(body) < body_size "
            "FROM idempotency_idempotencyrecord"
        )
        assert again.fetchall() == [("lz4", True)]
    connection.close()


KEPT = purge.Figures(
    kept=(50, 50 * purge.BODY),
    sizes=(None, None),
    alone={"longest": 0.1, "memory_early": 90, "memory_late": 91, "batches": 20},
    beside={"longest": 0.1, "deleted": 1200, "seconds": 1},
    purged=purge.Deletion(25, 1, None),
    deleted=purge.Deletion(25, 1, None),
    purge_p95=(1.25, 1.2, 10.0),
    delete_p95=2,
    turns=[(0.01, 0.012), (0.01, 0.0125), (0.01, 0.1)],
    backlog={
        "alone": {"longest": 0.1, "deleted": 2800, "seconds": 1},
        "beside": {"longest": 0.1, "deleted": 2800, "seconds": 1},
        "p95": (2.0, 1.9, 2.1),
        "hours": 0.99,
    },
    share=0.9,
)
BEHIND = KEPT.backlog or {}


@pytest.mark.parametrize(
    ("figures", "failure"),
    [
        (KEPT, None),
        (replace(KEPT, kept=(49, 49 * purge.BODY)), "of 50 records in force"),
        (replace(KEPT, kept=(50, 49 * purge.BODY)), "of 50 records in force"),
        (replace(KEPT, beside={**KEPT.beside, "longest": 1}), "took 1.000 s"),
        (replace(KEPT, alone={**KEPT.alone, "longest": 2}), "took 2.000 s"),
        (replace(KEPT, purge_p95=(1.26, 1.2, 1.6)), "requests beside the purge"),
        (replace(KEPT, backlog=None, share=None), None),
        (replace(KEPT, backlog={**BEHIND, "hours": 1.01}), "a backlog took 1.0 hours"),
        (
            replace(
                KEPT, backlog={**BEHIND, "beside": {**BEHIND["alone"], "longest": 1}}
            ),
            "took 1.000 s",
        ),
        (replace(KEPT, share=0.8), "only 960 first requests a second"),
        (replace(KEPT, alone={**KEPT.alone, "memory_late": 99}), "memory grew to 1.10"),
    ],
)
def test_promises_of_the_purge(
    figures: purge.Figures, failure: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    """P2: The command that measures the purge fails where a promise is not kept."""
    pools = []

    def database(name: str, *, pool: int | None) -> Any:
        pools.append(pool)
        return nullcontext(tmp_path)

    monkeypatch.setattr(purge, "database", database)
    monkeypatch.setattr(purge, "measure", lambda records, folder: figures)
    told = tmp_path / "told.json"
    arguments = ["--records=100", "--pool=512", f"--json={told}"]
    monkeypatch.setattr(sys, "argv", ["purge", *arguments])
    output = StringIO()
    with redirect_stdout(output):
        assert purge.main() == (0 if failure is None else 1)
    assert output.getvalue().count("FAILED") == (0 if failure is None else 1)
    assert failure is None or failure in output.getvalue()
    assert pools == [512]
    assert len(json.loads(told.read_text())["turns"]) == len(figures.turns)


@pytest.mark.django_db
def test_hash_partitions(cursor: Any, client: Any) -> None:
    """E1, F4, P1, P2: On a partitioned table everything is as on a plain one."""
    make_records(50)
    make_record(RETENTION + timedelta(seconds=1), key="an-expired-key")
    before = shape(cursor)
    cursor.execute(statements(SETTINGS))
    cursor.execute(STORAGE)
    assert cursor.fetchall() == [("idempotency_idempotencyrecord", OPTIONS, "l")]
    cursor.execute(statements("PARTITION BY HASH"))
    cursor.execute(STORAGE)
    assert cursor.fetchall() == [
        (f"idempotency_record_{number}", OPTIONS, "l") for number in range(4)
    ]
    assert shape(cursor) == before
    assert len(left()) == 51
    answers = [client.post("/function/", {"n": 1}, **key()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert answers[1]["Idempotent-Replayed"] == "true"
    reused = client.post("/function/", {"n": 2}, **key())
    assert code_of(reused) == "idempotency_key_reused"
    assert IdempotencyRecord.objects.purge().deleted == 1
    assert len(left()) == 51
    # Another run after the retention: the take-over's UPDATE, too, finds its partition.
    IdempotencyRecord.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert client.post("/function/", {"n": 2}, **key()).status_code == 201
    assert IdempotencyRecord.objects.purge().deleted == 50
    cursor.execute(
        "SELECT COUNT(*) FROM pg_inherits WHERE inhparent = "
        "'idempotency_idempotencyrecord'::regclass"
    )
    assert cursor.fetchone()[0] == 4


# A primary key must contain the column that tells the partitions apart.
BY_EXPIRY = """
    ALTER TABLE idempotency_idempotencyrecord RENAME TO idempotency_before;
    CREATE TABLE idempotency_idempotencyrecord (
        LIKE idempotency_before INCLUDING DEFAULTS, PRIMARY KEY (id, expires_at)
    ) PARTITION BY RANGE (expires_at);
    CREATE TABLE idempotency_record_past PARTITION OF idempotency_idempotencyrecord
        FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
    CREATE TABLE idempotency_record_rest PARTITION OF idempotency_idempotencyrecord
        DEFAULT;
"""


@pytest.mark.django_db
@pytest.mark.urls("tests.test_leased")
@pytest.mark.parametrize("by_expiry", [False, True], ids=["one table", "by expiry"])
@pytest.mark.parametrize("path", ["/leased/", "/function/"])
def test_no_partitions_by_time(
    cursor: Any, client: Any, path: str, by_expiry: bool, monkeypatch: Any
) -> None:
    """E1, E7: Such partitions let each retry act, because no index forbids a record."""
    assert "In partitions by `expires_at`, nothing keeps a key from having two" in PAGE
    # Atomic mode without pipelines. Leased mode has none.
    claims = claims_in("default")
    monkeypatch.setattr(claims, "why_one_by_one", lambda: "a test says so")
    if by_expiry:
        cursor.execute(BY_EXPIRY)
    answers = [client.post(path, {}, **key()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    replayed = [answer.get("Idempotent-Replayed") for answer in answers]
    assert replayed == [None, None if by_expiry else "true"]
    assert IdempotencyRecord.objects.count() == Effect.objects.count()
    assert Effect.objects.count() == (2 if by_expiry else 1)
