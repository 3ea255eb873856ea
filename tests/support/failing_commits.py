"""COMMITs that fail, before or after the database has executed them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from django.db import connection

from idempotency.claims.multi_statements import COMMIT_IF_WRITTEN


@contextmanager
def commit_fails_with(error: Exception, *, is_done: bool = False) -> Iterator[None]:
    """Let COMMITs fail, Django's and those that the app sends with a response."""
    commit = connection._commit

    def fail() -> None:
        if is_done:
            commit()
        raise error

    def watch(execute: Any, sql: str, *others: Any) -> Any:
        if not sql.endswith(COMMIT_IF_WRITTEN):
            return execute(sql, *others)
        if is_done:
            execute(sql, *others)
        raise error

    with patch.object(connection, "_commit", fail), connection.execute_wrapper(watch):
        yield
