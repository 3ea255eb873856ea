"""Warn about writes outside of a step in handlers that resume (contract E12)."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connections
from django.http import HttpResponseBase

from idempotency.exceptions import WriteOutsideStep
from idempotency.keyed_request import Handler, KeyedRequest
from idempotency.models import IdempotencyRecord, default_alias

WRITE = re.compile(
    r"""\s*(INSERT|UPDATE|DELETE|MERGE|REPLACE|TRUNCATE)\b
    (?:\s+(?:OR\s+\w+|IGNORE|INTO|FROM|ONLY|TABLE)\b)*
    \s+(?:["`\[]?\w+["`\]]?\.)?["`\[]?(\w+)""",
    re.IGNORECASE | re.VERBOSE,
)
STRAY = """\
{view} writes outside of a step ({statement}), so a run that resumes writes again. Put \
it into request.idempotency.step("a name", function)."""
# Frames of a statement between the code that writes and this module.
BETWEEN = ("django", "idempotency")


def write_in(sql: Any) -> str | None:
    """Return a statement in short, such as "INSERT shop_order", if it is a write.

    Statements that a driver's own classes compose are not recognised.
    """
    match = WRITE.match(sql) if isinstance(sql, str) else None
    return None if match is None else f"{match[1].upper()} {match[2]}"


def project_write_in(sql: Any) -> str | None:
    """Return a write in short, unless it is one to the app's own table."""
    write = write_in(sql)
    own = IdempotencyRecord._meta.db_table
    return None if write is None or write.endswith(f" {own}") else write


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayWrite:
    """A write outside of a step: the view, the statement in short, and its line."""

    view: str
    statement: str
    filename: str
    line: int

    def warn(self) -> None:
        """Issue a Python warning, which its filters show once, always or as error."""
        warnings.warn_explicit(
            STRAY.format(view=self.view, statement=self.statement),
            WriteOutsideStep,
            self.filename,
            self.line,
            registry=_warned,
        )


# What Python's warnings keep, to show each of them once.
_warned: dict[Any, int] = {}
# Set by the test kit, which reports stray writes without DEBUG, too.
_reporter: ContextVar[Callable[[StrayWrite], object] | None] = ContextVar(
    "reporter", default=None
)


@contextmanager
def stray_writes_reported(
    report: Callable[[StrayWrite], object] = StrayWrite.warn,
) -> Iterator[None]:
    """Report stray writes of the handlers that run inside, at the outermost place."""
    token = _reporter.set(_reporter.get() or report)
    try:
        yield
    finally:
        _reporter.reset(token)


def with_stray_writes_reported(handler: Handler, keyed: KeyedRequest) -> Handler:
    """Return the handler; with DEBUG or in the test kit, one that reports its writes.

    Only handlers with ``on_abandoned="resume"`` are watched, with a key and without.
    """
    policy = keyed.policy
    if policy.on_abandoned != "resume":
        return handler
    report = _reporter.get() or (StrayWrite.warn if settings.DEBUG else None)
    if report is None:
        return handler

    def watch(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        steps = keyed.context.steps
        write = project_write_in(sql)
        if write is not None and not (steps is not None and steps.is_in_step):
            filename, line = _writing_line()
            report(
                StrayWrite(
                    view=keyed.view_name,
                    statement=write,
                    filename=filename,
                    line=line,
                )
            )
        return execute(sql, params, many, context)

    def run() -> HttpResponseBase:
        with connections[policy.using or default_alias()].execute_wrapper(watch):
            return handler()

    return run


def _writing_line() -> tuple[str, int]:
    """Return the file and the line of the code that has Django write."""
    frame: Any = sys._getframe()
    while str(frame.f_globals.get("__name__")).partition(".")[0] in BETWEEN:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
