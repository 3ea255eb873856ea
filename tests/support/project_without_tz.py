"""A project with USE_TZ = False; as a program it tells what it finds in the database.

Its zone has summer time.
"""

# ruff: noqa: T201  # its output is for the test

from __future__ import annotations

import json
from datetime import datetime, timezone
from io import StringIO
from typing import Any

from tests.settings import *  # noqa: F403

USE_TZ = False
TIME_ZONE = "Europe/Berlin"
ALLOWED_HOSTS = ["testserver"]


def main() -> None:
    """Look around, and send requests."""
    import django  # noqa: PLC0415  # these are its settings

    django.setup()

    from django.core import checks  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415
    from rest_framework.test import APIClient  # noqa: PLC0415

    from idempotency.models import IdempotencyRecord  # noqa: PLC0415
    from tests.conftest import KEY  # noqa: PLC0415

    def post(key: str, data: dict[str, int]) -> list[str]:
        client = APIClient()
        headers: Any = {"HTTP_X_USER": "ada", "HTTP_IDEMPOTENCY_KEY": key}
        answer: Any = client.post("/mixin-view/", data, **headers)
        return [answer.content.decode(), answer["Idempotency-Expires"]]

    said = StringIO()
    call_command("makemigrations", "idempotency", check=True, dry_run=True, stdout=said)
    call_command("migrate", "idempotency", verbosity=0)
    records = IdempotencyRecord.objects
    instants = {record.key: record.expires_at.isoformat() for record in records.all()}
    found = checks.run_checks(databases=["default"])
    replay, first = post(KEY, {"a": 1}), post("of-the-naive-project", {"a": 2})
    # A quarter past two in winter time; half past two in summer time was before.
    records.purge(now=datetime(2025, 10, 26, 1, 15, tzinfo=timezone.utc))
    left = {record.key for record in records.all()}
    told = {
        "checks": [message.id for message in found if message.id[:4] == "idem"],
        "migrations": said.getvalue(),
        "instants": instants,
        "replay": replay,
        "first": first,
        "purged": [*({*instants} - left)],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
