"""What the app costs a process: seconds of its start, and memory.

    python -m benchmarks.start

Starts the same small project of Django REST framework without the app and with it, turn
by turn, up to its first answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import shown, spread_of_ratios, table, tell

PROJECT = """
import json, resource, sys, time
began = time.perf_counter()
apps = json.loads(sys.argv[1])
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth",
                    "rest_framework", *apps],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": []},
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x" * 50,
)
django.setup()
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.response import Response
def view(request):
    return Response({})
if apps:
    from idempotency.decorators import idempotent
    view = idempotent(view)
urlpatterns = [path("", api_view(["POST"])(view))]
from django.test import Client
assert Client().post("/").status_code == 200
seconds = time.perf_counter() - began
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(seconds, memory, len(sys.modules))
"""
KINDS: dict[str, list[str]] = {"without": [], "with the app": ["idempotency"]}


def start(kind: str) -> tuple[float, float, int]:
    """Return seconds, MiB and modules of one process up to its first answer."""
    command = [sys.executable, "-c", PROJECT, json.dumps(KINDS[kind])]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, memory, modules = told.split()
    return float(seconds), float(memory), int(modules)


def report(told: dict[str, Any]) -> str:
    """Return the figures as a table."""
    rows = [
        (kind, shown(found["start"]), f"{found['memory']:.1f}", found["modules"])
        for kind, found in told["start"].items()
    ]
    return table(("process", "start, of that without", "MiB", "modules"), rows)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        start(kind)  # bytecode
    for _round in range(arguments.rounds):
        for kind, rounds in found.items():
            rounds.append(start(kind))
    without = [one[0] for one in found["without"]]
    figures = {
        kind: {
            "start": spread_of_ratios([one[0] for one in rounds], without),
            "memory": median(one[1] for one in rounds),
            "modules": rounds[0][2],
        }
        for kind, rounds in found.items()
    }
    tell({"start": figures}, report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
