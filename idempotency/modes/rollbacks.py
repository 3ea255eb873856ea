"""Find out whether the handler asked for a rollback."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class RollbackWish:
    """Note whether a handler calls ``set_rollback(True)`` for its whole transaction.

    Django marks a transaction whose effects are lost without that call, and keeps no
    other sign of the difference: ``rollback_exc`` is set by some errors only, and stays
    when a savepoint has undone what they broke.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.is_wanted = False
        self._depth = len(connection.savepoint_ids)
        self._set_rollback = connection.set_rollback
        # Set by an outer request in the same thread.
        self._outer = vars(connection).get("set_rollback")

    def __enter__(self) -> RollbackWish:
        self.connection.set_rollback = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self.connection.set_rollback
        if self._outer is not None:
            self.connection.set_rollback = self._outer

    def __call__(self, rollback: bool) -> None:
        """Stand in for the connection's own ``set_rollback``."""
        self._set_rollback(rollback)
        # Inside a savepoint, the mark does not reach the transaction.
        if not any(self.connection.savepoint_ids[self._depth :]):
            self.is_wanted = rollback
