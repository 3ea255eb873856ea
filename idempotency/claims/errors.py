"""Find out what a database error is, through the layers around it."""

from __future__ import annotations

from idempotency.discretion import causes

__all__ = ["causes", "error_classes"]


def error_classes(error: BaseException) -> str:
    """Return the classes of an error and its causes.

    For the log, because messages of databases may quote values of rows.
    """
    return ", ".join(type(each).__name__ for each in causes(error))
