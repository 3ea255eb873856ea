"""Fixtures for pytest: ``pytest_plugins = ["idempotency.testing.fixtures"]``.

They are not an entry point, so that pytest does not load them in other projects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from idempotency import testing

if TYPE_CHECKING:
    from idempotency.models import IdempotencyRecord
    from idempotency.testing.clients import IdempotentClient


@pytest.fixture
def idempotency_key() -> str:
    """Return a fresh idempotency key."""
    from idempotency.testing.sending import new_key  # noqa: PLC0415  # as all of these: needs the settings

    return new_key()


@pytest.fixture
def idempotent_client() -> IdempotentClient:
    """Return a client that sends a fresh key with each POST, and can ``retry()``."""
    return testing.IdempotentClient()


@pytest.fixture
def age_records() -> Callable[..., int]:
    """Return ``idempotency.testing.age_records``."""
    return testing.age_records


@pytest.fixture
def abandoned_record() -> Callable[..., IdempotencyRecord]:
    """Return ``idempotency.testing.abandon_record``."""
    return testing.abandon_record
