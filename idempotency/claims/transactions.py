"""The transaction of one run in atomic mode: it claims, stores and ends (E1)."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from django.db import transaction

if TYPE_CHECKING:
    from idempotency.claims.base import Claims
    from idempotency.models import IdempotencyRecord
    from idempotency.responses import StoredResponse


class Transaction:
    """A transaction, or a savepoint of an open one, that holds claim and effects.

    This one sends each statement by itself, as every database can.
    """

    # Whether the response is written, so that an error is one of the COMMIT's.
    is_ending = False

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        # The stubs do not know all of its attributes.
        self.connection: Any = claims.connection
        self.atomic = transaction.atomic(using=claims.connection.alias)

    def __enter__(self) -> Transaction:
        self.atomic.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.atomic.__exit__(kind, error, traceback)

    def claim(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        seen: IdempotencyRecord | None,
    ) -> IdempotencyRecord | None:
        """Return the record that stands for the key, as ``Claims.claim()`` does."""
        return self.claims.claim(new_record, retention, seen)

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response; nothing may be written after it.

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.claims.complete(claimed, stored)

    def release(self, claimed: IdempotencyRecord) -> None:
        """Give the key back with nothing stored.

        Raises ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.claims.release(claimed)
