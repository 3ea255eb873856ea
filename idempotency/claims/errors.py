"""What the databases' errors are, whatever their drivers have wrapped them in."""

from __future__ import annotations

from collections.abc import Iterator


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, to the driver's own."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def kind_of(error: BaseException) -> str:
    """Return the classes of an error and its causes.

    For the log: databases put values of rows, and so of bodies, into what they say.
    """
    return ", ".join(type(each).__name__ for each in causes(error))
