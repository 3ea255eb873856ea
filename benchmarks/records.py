"""Any number of records, made by the database itself."""

from __future__ import annotations

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
VALUES = {
    "postgresql": {
        "id": "md5({prefix} || n)::uuid",
        "scope": "'user:auth.user:' || n % 1000",
        "key": "{prefix} || n",
        "body": "convert_to(repeat(md5(n::text), {repeats}), 'UTF8')",
        "token": "md5('token' || n)::uuid",
        "at": "now() + ({offset} - {days} * (1 - n::float / {count}))"
        " * interval '1 day'",
        "headers": """'[["Content-Type", "application/json"]]'::jsonb""",
    },
    "mysql": {
        "id": "CAST(INSERT(INSERT(MD5(CONCAT({prefix}, n)), 13, 1, '5'), 17, 1, '8')"
        " AS UUID)",
        "scope": "CONCAT('user:auth.user:', n % 1000)",
        "key": "CONCAT({prefix}, n)",
        "body": "REPEAT(MD5(n), {repeats})",
        "token": "CAST(INSERT(INSERT(MD5(CONCAT('token', n)), 13, 1, '5'), 17, 1, '8')"
        " AS UUID)",
        "at": "UTC_TIMESTAMP(6) + INTERVAL CAST(({offset} - {days} * (1 - "
        "n / {count})) * 86400 AS INT) SECOND",
        "headers": """'[["Content-Type", "application/json"]]'""",
    },
    "sqlite": {
        "id": "lower(hex(randomblob(16)))",
        "scope": "'user:auth.user:' || n % 1000",
        "key": "{prefix} || n",
        "body": "CAST(printf('%.*c', {repeats} * 32, 'x') AS BLOB)",
        "token": "lower(hex(randomblob(16)))",
        "at": "strftime('%Y-%m-%d %H:%M:%f', 'now', ({offset} - {days} * (1 - "
        "n * 1.0 / {count})) || ' days')",
        "headers": """'[["Content-Type", "application/json"]]'""",
    },
}


def fill(count: int, prefix: str, *, expired: bool, body_size: int = 1024) -> None:
    """Store completed records that expire over 30 days, before now or after."""
    vendor = connection.vendor
    # Not within the next day: what is in force now shall be so in the end.
    offset = 0 if expired else SPAN_DAYS + 1
    for first in range(1, count + 1, CHUNK):
        last = min(first + CHUNK - 1, count)
        given = {
            "prefix": f"'{prefix}-'",
            "repeats": body_size // DIGEST,
            "days": SPAN_DAYS,
            "count": count,
        }
        own = {
            name: text.format(**given, offset="{offset}")
            for name, text in VALUES[vendor].items()
        }
        at = own.pop("at")
        columns = {
            **own,
            "method": "'POST'",
            "path": "'/api/v2/user/assignments'",
            "fingerprint": f"'{'f' * 64}'",
            "fingerprint_version": "1",
            "state": "'completed'",
            "attempt": "1",
            "status_code": "201",
            "body_size": str(body_size // DIGEST * DIGEST),
            "expires_at": at.format(offset=offset),
            "created_at": at.format(offset=offset - 30),
            "completed_at": at.format(offset=offset - 30),
        }
        names = ", ".join(connection.ops.quote_name(name) for name in columns)
        series = SERIES[vendor].format(first=first, last=last)
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {TABLE} ({names}) "
                f"SELECT {', '.join(columns.values())} FROM {series}"
            )
