"""Steps that are recorded with the claim, so that a later run resumes (E12 to E16)."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django.db import DatabaseError, transaction
from django.http import HttpResponseBase

from idempotency.claims.leases import Leases
from idempotency.database import UTC
from idempotency.discretion import discreet
from idempotency.exceptions import TransactionFailed
from idempotency.models import IdempotencyRecord
from idempotency.responses import StoredResponse
from idempotency.steps import (
    Entry,
    Kind,
    Steps,
    as_text,
    fresh,
    from_text,
    held_entry,
    limited,
    new_entry,
    through_json,
    without_result,
)

AFTER_THE_END = """\
{name!r} comes after the step that returned the response, which is stored. Return it."""
ANOTHER_KIND = """\
{name!r} was recorded by {kind}(). A name stands for one result: choose another one."""

# Finishes a response, and returns what to store of it.
Finish = Callable[[HttpResponseBase], tuple[HttpResponseBase, StoredResponse | None]]


class Recorded(UserDict[str, Any]):
    """Results by name, which notes the names of those that are read."""

    def __init__(self, results: dict[str, Any], read: set[str]) -> None:
        super().__init__(results)
        self.read = read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return fresh(super().__getitem__(name))


class RecordedSteps(Steps):
    """Runs each step once per key, and keeps its result in the claimed record.

    Each write gives the record a new token and a new lease. So a retry that read the
    record earlier can't take it over, and a look-up of the token says whether a write
    of which the reply was lost has been committed.
    """

    def __init__(
        self,
        claimed: IdempotencyRecord,
        *,
        leases: Leases,
        alias: str,
        lease: timedelta,
        derive: Callable[[str], str],
        finish: Finish,
    ) -> None:
        super().__init__(alias, derive, is_durable=True)
        self.claimed = claimed
        self.leases = leases
        self.claims = leases.claims
        self.lease = lease
        self.finish = finish
        # The names of results that were read in ``recorded``.
        self.read: set[str] = set()
        # Stored by the last step.
        self.response: HttpResponseBase | None = None
        self.payload, entries = from_text(claimed.steps)
        self.entries = {entry["name"]: entry for entry in entries}

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The recorded results by name."""
        found = {n: e["result"] for n, e in self.entries.items() if "result" in e}
        return Recorded(found, self.read)

    @property
    def skipped(self) -> list[str]:
        """The recorded names that this run has not asked for (E16)."""
        asked = self.names | self.read
        return [name for name in self.entries if name not in asked]

    def admit(self, kind: Kind, name: str) -> None:
        """Raise an error also after the end, and for the name of another kind."""
        super().admit(kind, name)
        if self.response is not None:
            raise RuntimeError(AFTER_THE_END.format(name=name))
        found = self.entries.get(name)
        if found is not None and found["kind"] != kind:
            raise RuntimeError(ANOTHER_KIND.format(name=name, kind=found["kind"]))

    @discreet
    def step(self, name: str, function: Callable[[], Any]) -> Any:
        """Run a function, and commit its writes together with its result (E12, E15)."""
        self.admit("step", name)
        if name in self.entries:
            return fresh(self.entries[name]["result"])
        entry, token = new_entry("step", name, datetime.now(UTC)), uuid4()
        note: Callable[[], None] | None = None
        is_noted = False

        def note_commit() -> None:
            nonlocal is_noted
            if note is not None:
                note()
                is_noted = True

        try:
            with self.transaction():
                # First, because another on_commit function may raise (O5).
                transaction.on_commit(note_commit, using=self.alias)
                result = self._run(function)
                if isinstance(result, HttpResponseBase):
                    result, note = self._end(result, entry)
                else:
                    result = through_json("step", name, result)
                    entries = self._with_result(entry, result)
                    self.claims.record_steps(
                        self.claimed, token, self._text(entries), self.lease
                    )
                    note = partial(self._note, token, entries)
        except DatabaseError as error:
            if is_noted:
                raise  # by another on_commit function
            if note is None or not self.leases.is_recorded(self.claimed, token):
                if self.claims.is_transient(error):
                    raise TransactionFailed from error
                raise
        note_commit()
        return result

    @discreet
    def call(
        self,
        name: str,
        function: Callable[[str], Any],
        on_abandoned: str | Callable[[str, IdempotencyRecord], Any],
    ) -> Any:
        """Call something outside, and commit its result (E13)."""
        self.admit("call", name)
        if name in self.entries:
            return fresh(self.entries[name]["result"])
        key, began = self.derive(name), datetime.now(UTC)
        result = None
        if callable(on_abandoned) and self.claimed.attempt > 1:
            result = on_abandoned(key, self.claimed)
        elif on_abandoned == "hold":
            self._commit({**self.entries, name: held_entry(name, began)})
        if result is None:
            result = function(key)
        result = through_json("call", name, result)
        self._commit(self._with_result(new_entry("call", name, began), result))
        return result

    def forget_results(self) -> None:
        """Keep only names and times with the response (E14)."""
        self.claimed.steps = self._text(without_results(self.entries))

    def _run(self, function: Callable[[], Any]) -> Any:
        """Run a step's function; raise the error that has undone what it wrote.

        The function may have caught it without a savepoint, and would record a result
        without its writes.
        """
        if not self.claims.undoes_all:
            return function()
        undone: list[DatabaseError] = []

        def watch(execute: Any, *args: Any) -> Any:
            try:
                return execute(*args)
            except DatabaseError as error:
                if self.claims.is_transient(error):
                    undone.append(error)
                raise

        with self.connection.execute_wrapper(watch):
            result = function()
        if undone:
            raise undone[0]
        return result

    def _end(
        self, response: HttpResponseBase, entry: Entry
    ) -> tuple[HttpResponseBase, Callable[[], None] | None]:
        """Store the response, unless it is an error, which undoes the step."""
        stored = None
        if response.status_code < 500:
            response, stored = self.finish(response)
        if stored is None:
            transaction.set_rollback(True, using=self.alias)
            return response, None
        entries = without_results(self._with_result(entry, None))
        self.claimed.steps = self._text(entries)
        self.claims.end_steps(self.claimed, stored)
        return response, partial(setattr, self, "response", response)

    def _with_result(self, entry: Entry, result: Any) -> dict[str, Entry]:
        ended = {
            **entry,
            "ended": datetime.now(UTC).isoformat(),
            "result": fresh(result),
        }
        return {**self.entries, entry["name"]: ended}

    def _commit(self, entries: dict[str, Entry]) -> None:
        token = uuid4()
        self.leases.record_steps(self.claimed, token, self._text(entries), self.lease)
        self._note(token, entries)

    def _text(self, entries: dict[str, Entry]) -> str:
        """Return the entries as a record stores them.

        Raise ``ValueError`` if they are too long.
        """
        return limited(as_text(self.payload, entries.values()))

    def _note(self, token: UUID, entries: dict[str, Entry]) -> None:
        self.claimed.token = token
        self.entries = entries


def without_results(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Return the entries with their names, kinds and times alone."""
    return {name: without_result(entry) for name, entry in entries.items()}
