"""Measure all that docs/benchmarks.md shows: ``python -m benchmarks FOLDER``.

One benchmark after another, each in a process of its own: what it prints is shown and
written into the folder, beside its figures as JSON and the charts made of them. When
all have run, their figures go into the documents, too, where ``git diff`` shows them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.databases import NAMES

PARTS: dict[str, tuple[str, ...]] = {
    "network-postgresql": ("network", "--database", "postgresql"),
    "network-mariadb": ("network", "--database", "mariadb"),
    **{f"requests-{name}": ("requests", "--database", name) for name in NAMES},
    "prepared": ("prepared",),
    "floor": ("floor",),
    "bodies": ("bodies",),
    "breakdown": ("breakdown",),
    "http": ("http",),
    "start": ("start",),
    "storage": ("storage",),
    "growth": ("growth",),
    "purge-postgresql": ("purge", "--database", "postgresql"),
    "purge-mariadb": ("purge", "--database", "mariadb"),
}


def measure(folder: Path, name: str, *more: str) -> int:
    """Run one part, and return its status."""
    module, *options = PARTS[name]
    command = [sys.executable, "-m", f"benchmarks.{module}", *options, *more]
    command += ["--json", str(folder / f"{name}.json")]
    with (
        (folder / f"{name}.txt").open("w", encoding="utf-8") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running,
    ):
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            told.write(line)
    return running.returncode


def main() -> int:
    """Measure, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=PARTS, action="append", help="repeatable")
    parser.add_argument("--keep-documents", action="store_true", help="as they are")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or PARTS:
        print(f"\n=== {name}", flush=True)
        if status := measure(arguments.folder, name):
            return status
    if arguments.only:
        return 0
    steps = ["charts"] if arguments.keep_documents else ["charts", "publish"]
    for module in steps:
        command = [sys.executable, "-m", f"benchmarks.{module}", str(arguments.folder)]
        if status := subprocess.run(command, check=False).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
