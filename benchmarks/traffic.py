"""First-time requests at a steady pace, beside whatever else is going on.

    python -m benchmarks.traffic FILE PER_SECOND

Writes the start and the seconds of each request to FILE until its input ends.
"""

from __future__ import annotations

import select
import sys
import time
from pathlib import Path
from uuid import uuid4

import django

django.setup()

from rest_framework.test import APIClient  # needs the settings


def main() -> None:
    """Send one request after another, each at its time or as soon after as may be."""
    place, per_second = Path(sys.argv[1]), float(sys.argv[2])
    client = APIClient()
    client.credentials(HTTP_X_USER="ada")
    due = time.monotonic()
    with place.open("w", buffering=1) as file:
        while not select.select([sys.stdin], [], [], max(0, due - time.monotonic()))[0]:
            started = time.monotonic()
            answer = client.post(
                "/function/", {"title": "Essay"}, HTTP_IDEMPOTENCY_KEY=str(uuid4())
            )
            assert answer.status_code == 201, answer.content
            # From when it was due: who waits in a queue waits, too.
            file.write(f"{due} {time.monotonic() - min(due, started)}\n")
            due = max(due + 1 / per_second, started - 1)


if __name__ == "__main__":
    main()
