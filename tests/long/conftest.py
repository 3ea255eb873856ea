"""What the long tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from tests.support.faults import serving
from tests.support.http_servers import Server


@pytest.fixture(scope="module")
def crash_servers(django_db_setup: None) -> Iterator[Callable[[bool], Server]]:
    """Start a server for each kind of project, once."""
    with ExitStack() as stack:

        @cache
        def start(atomic_requests: bool) -> Server:
            return stack.enter_context(serving())

        yield start
