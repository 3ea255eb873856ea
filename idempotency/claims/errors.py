"""What the databases' errors are, whatever their drivers have wrapped them in."""

from __future__ import annotations

from idempotency.discretion import causes

__all__ = ["causes", "error_classes"]


def error_classes(error: BaseException) -> str:
    """Return the classes of an error and its causes.

    For the log: databases put values of rows, and so of bodies, into what they say.
    """
    return ", ".join(type(each).__name__ for each in causes(error))
