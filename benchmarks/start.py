"""What the app costs a process: seconds of its start, and memory.

    python -m benchmarks.start

Starts the same small project of Django REST framework without the app and with it, turn
by turn, up to its first answer. Celery counts for the app, which imports it; a second
ratio is for projects that have it anyway.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.requests import spread

PROJECT = """
import json, resource, sys, time
began = time.perf_counter()
apps, doors = json.loads(sys.argv[1])
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth",
                    "rest_framework", *apps],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": []},
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x" * 50,
)
if "celery" in doors:
    from celery import shared_task
django.setup()
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.response import Response
def view(request):
    return Response({})
if "app" in doors:
    from idempotency.decorators import idempotent
    view = idempotent(view)
urlpatterns = [path("", api_view(["POST"])(view))]
from django.test import Client
assert Client().post("/").status_code == 200
seconds = time.perf_counter() - began
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(seconds, memory, len(sys.modules))
"""
KINDS: dict[str, tuple[list[str], list[str]]] = {
    "without": ([], []),
    "Celery alone": ([], ["celery"]),
    "with the app": (["idempotency"], ["app"]),
}


def start(kind: str) -> tuple[float, float, int]:
    """Return seconds, MiB and modules of one process up to its first answer."""
    command = [sys.executable, "-c", PROJECT, json.dumps(KINDS[kind])]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, memory, modules = told.split()
    return float(seconds), float(memory), int(modules)


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
    print("| process | start, of that without | MiB | modules |\n|---|---|---|---|")
    figures = {}
    for kind, rounds in found.items():
        pairs = zip(rounds, found["without"], strict=True)
        ratio, low, high = spread([one[0] / bare[0] for one, bare in pairs])
        memory, modules = median(one[1] for one in rounds), rounds[0][2]
        figures[kind] = {
            "start": [ratio, low, high],
            "memory": memory,
            "modules": modules,
        }
        print(
            f"| {kind} | {ratio:.2f} ({low:.2f}-{high:.2f}) "
            f"| {memory:.1f} | {modules} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"start": figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
