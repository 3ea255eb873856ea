"""Writes of leased mode, which survive a lost connection (contract E7)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import DatabaseError, DataError, Error, IntegrityError

from idempotency.claims.base import Claims
from idempotency.database import write_with_retry
from idempotency.database_errors import is_read_only
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, State
from idempotency.responses import StoredResponse

# Errors of a statement that the database has certainly not executed. Other classes
# include errors of the driver.
REFUSED = (DataError, IntegrityError)
# Seconds before each look-up. The server may still execute a statement of the lost
# connection, and hold the key meanwhile.
PAUSES = (0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


class Leases:
    """Claims with a lease, whose writes commit one by one.

    After a lost connection a write is repeated once on a new one, unless it turns out
    that only the reply was lost.
    """

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        # The stubs do not know all of its attributes.
        self.connection: Any = claims.connection

    def look_up(self, record_id: UUID) -> IdempotencyRecord | None:
        """Return the visible record."""
        return self.claims.look_up(record_id)

    def claim(
        self, new_record: IdempotencyRecord, retention: timedelta, lease: timedelta
    ) -> IdempotencyRecord | None:
        """Return the key's record, as ``Claims.claim()`` does."""

        def claim() -> IdempotencyRecord | None:
            seen = None
            if self.claims.select_before_insert:
                seen = self.claims.look_up(new_record.pk)
            return self.claims.claim(new_record, retention, seen, lease=lease)

        return self._win(claim, new_record, lease)

    def take_over(
        self,
        abandoned: IdempotencyRecord,
        new_record: IdempotencyRecord,
        lease: timedelta,
    ) -> bool:
        """Replace an abandoned record by ``new_record`` (E9)."""

        def take_over() -> IdempotencyRecord | None:
            return (
                new_record
                if self.claims.take_over(abandoned, new_record, lease)
                else None
            )

        return self._win(take_over, new_record, lease) is not None

    def renew(self, claimed: IdempotencyRecord, lease: timedelta) -> None:
        """Extend the lease to ``lease`` from now (E8)."""
        self._write(lambda: self.claims.renew(claimed, lease))

    def record_steps(
        self, claimed: IdempotencyRecord, token: UUID, steps: str, lease: timedelta
    ) -> None:
        """Store the steps, with a new token and a lease of ``lease`` from now (E12)."""

        def record() -> None:
            self.claims.record_steps(claimed, token, steps, lease)

        def record_again() -> None:
            try:
                record()
            except ClaimLost:
                found = self.claims.look_up(claimed.pk)
                if found is None or found.token != token:
                    raise

        self._write(record, record_again)

    def is_recorded(self, claimed: IdempotencyRecord, token: UUID) -> bool:
        """Return whether a step's transaction was committed, if its reply was lost.

        It has given the record that ``token``, or the response.
        """
        if self.connection.in_atomic_block:
            return False
        with suppress(Error):
            self.connection.close()
            found = self.claims.look_up(claimed.pk)
            if found is not None and found.state == State.COMPLETED:
                return found.token == claimed.token
            return found is not None and found.token == token
        return False

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response."""
        self._write(lambda: self.claims.complete(claimed, stored))

    def abandon(self, claimed: IdempotencyRecord) -> None:
        """Mark the record as abandoned, its outcome unknown (E9)."""
        self._write(lambda: self.claims.abandon(claimed))

    def release(self, claimed: IdempotencyRecord) -> None:
        """Delete the record, which frees the key."""

        def release_again() -> None:
            try:
                self.claims.release(claimed)
            except ClaimLost:
                if self.claims.look_up(claimed.pk) is not None:
                    raise

        self._write(lambda: self.claims.release(claimed), release_again)

    def _write(
        self, once: Callable[[], None], again: Callable[[], None] | None = None
    ) -> None:
        write_with_retry(self.connection, once, again)

    def _win(
        self,
        claim: Callable[[], IdempotencyRecord | None],
        new_record: IdempotencyRecord,
        lease: timedelta,
    ) -> IdempotencyRecord | None:
        """Claim; before a repetition, look for the first claim."""

        def look_and_claim() -> IdempotencyRecord | None:
            found = self.claims.look_up(new_record.pk)
            if found is None or found.token != new_record.token:
                return claim()
            if found.is_leased or self.claims.take_over(found, found, lease):
                return found
            return None

        def claim_again() -> IdempotencyRecord | None:
            for pause in PAUSES:
                time.sleep(pause)
                try:
                    record = look_and_claim()
                except DatabaseError as error:
                    if not self.claims.is_busy(error):
                        raise
                else:
                    if record is not None:
                        return record
            return None

        return write_with_retry(
            self.connection, claim, claim_again, is_certain=self._is_refused
        )

    def _is_refused(self, error: Error) -> bool:
        """Return whether a claim has certainly failed, and changed nothing."""
        return isinstance(error, REFUSED) or (
            isinstance(error, DatabaseError)
            and (
                self.claims.is_busy(error)
                or self.claims.is_transient(error)
                or is_read_only(error)
            )
        )
