"""``gunicorn tests.hostile.measured`` says of each answer what it took."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.wsgi import application as served

CPU_HEADER, MEMORY_HEADER = "X-CPU-Nanoseconds", "X-Memory-KiB"
STATUS = Path("/proc/self/status")
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer with this request's CPU time, and the most memory so far."""
    # What earlier requests have left is not this one's.
    gc.collect()
    began = time.process_time_ns()

    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        took = time.process_time_ns() - began
        (peak,) = PEAK.findall(STATUS.read_text())
        more = [(CPU_HEADER, str(took)), (MEMORY_HEADER, peak)]
        return start_response(status, [*headers, *more], *rest)

    return served(environ, start)
