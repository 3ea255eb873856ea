"""End a request between any two of its statements, steps and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from django.db import connections

from idempotency.context import RequestContext
from idempotency.modes.stray_writes import project_write_in, write_in
from idempotency.steps import Kind

# Statements of ``atomic()``, which end a transaction as a lost connection does.
CONTROL = ("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK")
SHOWN_CHARACTERS = 60


class Killed(BaseException):
    """The end of a process: neither Django nor the app handles it."""


class Boundaries:
    """The boundaries that a request passes; it ends at the one with number ``end_at``.

    From there on it executes no statement, like a process that was killed.
    """

    def __init__(self, end_at: int | None = None) -> None:
        self.end_at = end_at
        self.passed = 0
        # Where the request has ended, and what it would repeat there.
        self.end: str | None = None
        self.end_in: Kind | None = None
        # The steps and calls that it asked for: their kinds by name.
        self.names: dict[str, Kind] = {}
        self._inside: str | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Pass the boundaries of the requests that are sent inside, in this thread."""
        step, call = RequestContext.step, RequestContext.call

        def run_step(context: Any, name: str, function: Callable[[], Any]) -> Any:
            with self._around("step", name):
                return step(context, name, function)

        def run_call(
            context: Any,
            name: str,
            function: Callable[[str], Any],
            *args: Any,
            **kw: Any,
        ) -> Any:
            def run(key: str) -> Any:
                result = function(key)
                self._reach(
                    f"after the call {name!r}, with its result unrecorded", "call"
                )
                return result

            with self._around("call", name):
                return call(context, name, run, *args, **kw)

        with ExitStack() as stack:
            for connection in connections.all():
                stack.enter_context(connection.execute_wrapper(self._execute))
            stack.enter_context(patch.object(RequestContext, "step", run_step))
            stack.enter_context(patch.object(RequestContext, "call", run_call))
            yield

    def _reach(self, label: str, within: Kind | None = None) -> None:
        """Pass a boundary, or end there."""
        if self.end is not None:
            raise Killed
        self.passed += 1
        if self.passed == self.end_at:
            self.end, self.end_in = label, within
            raise Killed

    @contextmanager
    def _around(self, kind: Kind, name: str) -> Iterator[None]:
        self._reach(f"before the {kind} {name!r}")
        self.names[name] = kind
        self._inside = name
        try:
            yield
        finally:
            self._inside = None
        self._reach(f"after the {kind} {name!r}")

    def _execute(
        self, run: Any, sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        if str(sql).startswith(CONTROL):
            return run(sql, params, many, context)
        what = write_in(sql) or " ".join(str(sql).split())[:SHOWN_CHARACTERS]
        kind = None if self._inside is None else self.names[self._inside]
        if kind is not None:
            what += f" in the {kind} {self._inside!r}"
        self._reach(f"before {what}", kind)
        result = run(sql, params, many, context)
        # A write in a call is committed by itself, like one outside.
        is_stray = kind == "call" and project_write_in(sql) is not None
        self._reach(f"after {what}", None if is_stray else kind)
        return result
