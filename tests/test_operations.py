"""What the page about operations tells people to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from rest_framework.response import Response

from idempotency.models import IdempotencyRecord
from tests.conftest import code_of, key
from tests.records import RETENTION, left, make_record, make_records
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


@pytest.fixture
def lz4(transactional_db: None, cursor: Any) -> Iterator[None]:
    """Keep answers as the page says."""
    cursor.execute(statements("lz4"))
    yield
    with connection.cursor() as again:
        again.execute(
            "ALTER TABLE idempotency_idempotencyrecord "
            "ALTER COLUMN body SET COMPRESSION default"
        )


@pytest.mark.parametrize("is_beside", [False, True], ids=["literal", "parameter"])
def test_large_answers(
    lz4: None, is_beside: bool, client: Any, handle: Any, monkeypatch: Any
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
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_column_compression(body), pg_column_size(body) < body_size "
            "FROM idempotency_idempotencyrecord"
        )
        assert cursor.fetchall() == [("lz4", True)]
    connection.close()


@pytest.mark.django_db
def test_hash_partitions(cursor: Any, client: Any) -> None:
    """E1, F4, P1, P2: On a partitioned table everything is as on a plain one."""
    make_records(50)
    make_record(RETENTION + timedelta(seconds=1), key="an-expired-key")
    before = shape(cursor)
    cursor.execute(statements(SETTINGS))
    cursor.execute(statements("lz4"))
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
