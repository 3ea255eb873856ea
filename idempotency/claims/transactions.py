"""The transaction of one run in atomic mode (contract E1)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import transaction

if TYPE_CHECKING:
    from idempotency.claims.base import Claims
    from idempotency.models import IdempotencyRecord
    from idempotency.responses import StoredResponse


class Transaction:
    """A transaction, or a savepoint in an open one, for the claim and the effects.

    This class sends each statement in a round trip of its own.
    """

    # Whether an error may be one of the COMMIT, whose outcome is then unknown.
    is_ending = False

    def __init__(self, claims: Claims) -> None:
        self.claims = claims
        # The stubs do not know all of its attributes.
        self.connection: Any = claims.connection
        self.atomic = transaction.atomic(using=claims.connection.alias)

    def __enter__(self) -> Transaction:
        self.atomic.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.atomic.__exit__(*error)

    def claim(
        self,
        new_record: IdempotencyRecord,
        retention: timedelta,
        seen: IdempotencyRecord | None,
    ) -> IdempotencyRecord | None:
        """Return the key's record, as ``Claims.claim()`` does."""
        return self.claims.claim(new_record, retention, seen)

    def complete(self, claimed: IdempotencyRecord, stored: StoredResponse) -> None:
        """Store the response, as the last write of the transaction.

        Raise ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.claims.complete(claimed, stored)

    def release(self, claimed: IdempotencyRecord) -> None:
        """Free the key.

        Raise ``ClaimLost`` if the record no longer has the claim's token.
        """
        self.claims.release(claimed)
