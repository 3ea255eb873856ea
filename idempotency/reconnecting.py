"""Writes that outlive the connection that they were sent on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from django.db import Error

Result = TypeVar("Result")


def write(
    connection: Any,
    once: Callable[[], Result],
    again: Callable[[], Result] | None = None,
    *,
    is_certain: Callable[[Error], bool] = lambda error: False,
) -> Result:
    """Write, and once more on a new connection where the first one was lost.

    ``again`` is what to do then, by default the same. It has to recognise a write that
    was done: its reply alone was lost. Whatever fails counts as lost unless
    ``is_certain`` says that it failed for certain. In a transaction nothing is
    repeated: no new connection has what came before.

    Raises what the database does.
    """
    try:
        return once()
    except Error as error:
        if connection.in_atomic_block or not connection.autocommit:
            raise
        if is_certain(error):
            raise
        with suppress(Error):
            connection.close()
        return (again or once)()
