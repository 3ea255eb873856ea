"""The purge command, stopped at a boundary of ``tests.support.fault_points``.

    python -m tests.support.interrupted_purge NUMBER PLACE [ARGUMENTS]

Number 0 stops it when all is done.
"""

from __future__ import annotations

import signal
import sys

import django

django.setup()

from django.core.management import call_command  # noqa: E402  # set up now

from tests.support.fault_points import Boundaries, Passage, watch  # noqa: E402

COMMAND = "purge_idempotency_records"


def main() -> None:
    """Run the command on its way through the boundaries."""
    number, place, *arguments = sys.argv[1:]
    # A shell's background job ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch()
    passage = Boundaries.passage = Passage(int(number), place)
    call_command(COMMAND, *arguments)
    if not passage.stop_at:
        passage.tell()


if __name__ == "__main__":
    main()
