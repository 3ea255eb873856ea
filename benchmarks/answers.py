"""What the benchmark's views answer: text that compresses about as JSON does."""

from __future__ import annotations

import random

LONGEST = 1_048_576


def _text(size: int) -> str:
    draw = random.Random(1)
    parts: list[str] = []
    length = 0
    while length < size:
        parts.append(
            f"id: {draw.randrange(10**6)}, title: Essay {draw.randrange(10**9)}, "
            f"due: 2026-12-{draw.randrange(1, 29):02}, points: {draw.random():.3}, "
            f"teacher: {draw.randbytes(16).hex()}; "
        )
        length += len(parts[-1])
    return "".join(parts)[:size]


# As it would be inside a JSON string: nothing in it has to be escaped.
TEXT = _text(LONGEST)
BYTES = TEXT.encode()
