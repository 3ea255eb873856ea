"""Any number of records, made by the database itself."""

from __future__ import annotations

from typing import Any

from django.db import connection

from benchmarks.databases import TABLE

# Hexadecimal digits of one MD5: a body is a multiple of it.
DIGEST = 32
CHUNK = 100_000
SPAN_DAYS = 30

SERIES = {
    "postgresql": "generate_series({first}, {last}) AS numbers(n)",
    "mysql": "(SELECT seq AS n FROM seq_{first}_to_{last}) AS numbers",
    "sqlite": "(WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 "
    "FROM numbers WHERE n < {last}) SELECT n FROM numbers)",
}
# It has no lateral subqueries, which would name it.
DIGEST_IN_MARIADB = (
    "SHA2(CONCAT(UNHEX(LPAD(HEX(LENGTH({scope})), 8, '0')), {scope},"
    " UNHEX(LPAD(HEX(LENGTH({key})), 8, '0')), {key}), 256)"
)
VALUES = {
    "postgresql": {
        "scope": "'user:auth.user:' || n % 1000",
        "key": "{prefix} || n",
        "id": "(SELECT encode(set_byte(set_byte(digest, 6, (get_byte(digest, 6) & 15)"
        " | 80), 8, (get_byte(digest, 8) & 63) | 128), 'hex')::uuid"
        " FROM substr(sha256(int4send(octet_length({scope}))"
        " || convert_to({scope}, 'UTF8') || int4send(octet_length({key}))"
        " || convert_to({key}, 'UTF8')), 1, 16) AS digest)",
        "body": "convert_to(repeat(md5(n::text), {repeats}), 'UTF8')",
        "token": "md5('token' || n)::uuid",
        "at": "now() + ({offset} - {days} * (1 - n::float / {count}))"
        " * interval '1 day'",
        "headers": """'[["Content-Type", "application/json"]]'::jsonb""",
    },
    "mysql": {
        "scope": "CONCAT('user:auth.user:', n % 1000)",
        "key": "CONCAT({prefix}, n)",
        "id": "CAST(INSERT(INSERT(LEFT("
        + DIGEST_IN_MARIADB
        + ", 32), 13, 1, '5'), 17, 1, SUBSTR("
        "'89ab89ab89ab89ab', CONV(SUBSTR("
        + DIGEST_IN_MARIADB
        + ", 17, 1), 16, 10) + 1, 1)) AS UUID)",
        "body": "REPEAT(MD5(n), {repeats})",
        "token": "CAST(INSERT(INSERT(MD5(CONCAT('token', n)), 13, 1, '5'), 17, 1, '8')"
        " AS UUID)",
        "at": "UTC_TIMESTAMP(6) + INTERVAL CAST(({offset} - {days} * (1 - "
        "n / {count})) * 86400 AS INT) SECOND",
        "headers": """'[["Content-Type", "application/json"]]'""",
    },
    "sqlite": {
        "scope": "'user:auth.user:' || (n % 1000)",
        "key": "{prefix} || n",
        "id": "record_id({scope}, {key})",
        "body": "CAST(printf('%.*c', {repeats} * 32, 'x') AS BLOB)",
        "token": "lower(hex(randomblob(16)))",
        "at": "strftime('%Y-%m-%d %H:%M:%f', 'now', ({offset} - {days} * (1 - "
        "n * 1.0 / {count})) || ' days')",
        "headers": """'[["Content-Type", "application/json"]]'""",
    },
}


def fill(
    count: int,
    prefix: str,
    *,
    expired: bool,
    days: float = SPAN_DAYS,
    ago: float = 0,
    body_size: int = 1024,
    like: Any = None,
) -> None:
    """Store completed records that expire over some days, before now or after.

    What is expired has been so for at least ``ago`` days.

    Their keys are the prefix, a hyphen and the numbers from 1. Requests that are
    ``like`` those of a record of the same caller find them, and replay.
    """
    vendor = connection.vendor
    if vendor == "sqlite":
        _teach_sqlite()
    # Not within the next day: what is in force now shall be so in the end.
    offset = -ago if expired else SPAN_DAYS + 1
    for first in range(1, count + 1, CHUNK):
        last = min(first + CHUNK - 1, count)
        given = {
            "prefix": f"'{prefix}-'",
            "repeats": body_size // DIGEST,
            "days": days,
            "count": count,
        }
        own: dict[str, str] = {}
        for name, text in VALUES[vendor].items():
            own[name] = text.format(**given, offset="{offset}", **own)
            if name == "scope" and like is not None:
                own[name] = f"'{like.scope}'"
        at = own.pop("at")
        columns = {
            **own,
            "method": "'POST'",
            "path": f"'{like.path if like else '/api/v2/user/assignments'}'",
            "route": f"'{like.route if like else '/api/v2/user/assignments'}'",
            "fingerprint": f"'{like.fingerprint if like else 'f' * 64}'",
            "fingerprint_version": str(like.fingerprint_version if like else 1),
            "state": "'completed'",
            "attempt": "1",
            "status_code": "201",
            "body_size": str(body_size // DIGEST * DIGEST),
            "expires_at": at.format(offset=offset),
            "created_at": at.format(offset=offset - SPAN_DAYS),
            "completed_at": at.format(offset=offset - SPAN_DAYS),
        }
        names = ", ".join(connection.ops.quote_name(name) for name in columns)
        series = SERIES[vendor].format(first=first, last=last)
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {TABLE} ({names}) "
                f"SELECT {', '.join(columns.values())} FROM {series}"
            )


def _teach_sqlite() -> None:
    from idempotency.models import record_id  # needs the settings

    def stored(scope: str, key: str) -> str:
        return record_id(scope, key).hex

    connection.ensure_connection()
    raw: Any = connection.connection
    raw.create_function("record_id", 2, stored, deterministic=True)
