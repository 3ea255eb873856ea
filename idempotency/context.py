"""What ``request.idempotency`` is."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from idempotency.client_warnings import ClientWarning


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """What a handler can know about its own protection.

    Present in every protected handler, key or not. ``attempt`` counts the executions
    of this record, from 1. ``executing`` is true until the answer is decided.
    """

    key: str | None = None
    scope: str | None = None
    record_id: UUID | None = None
    attempt: int | None = None
    warnings: tuple[ClientWarning, ...] = ()
    executing: bool = False
