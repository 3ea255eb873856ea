"""The two modes of running a handler under a claim (contract E and O)."""

from __future__ import annotations

from idempotency.modes.atomic import AtomicMode
from idempotency.modes.base import Mode
from idempotency.modes.leased import LeasedMode

__all__ = ["AtomicMode", "LeasedMode", "Mode"]
