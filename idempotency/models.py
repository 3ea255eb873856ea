"""The record of an idempotency key, and what can be asked of many."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID, uuid4

from django.db import Error, connections, models, router
from django.http import HttpResponseBase
from django.utils.translation import gettext_lazy as _

from idempotency import keys, scopes
from idempotency.conf import get_settings
from idempotency.database import (
    EXPIRES_AT_INDEX,
    InstantField,
    UTCNow,
    WhereNotNull,
    write_with_retry,
)
from idempotency.discretion import discreet, without_values
from idempotency.purging import (
    ExpiredOnDay,
    PurgeReport,
    count_by_day,
    purge_in_batches,
)
from idempotency.responses import StoredResponse


class State(models.TextChoices):
    """What the record says about the execution."""

    IN_PROGRESS = "in_progress", _("in progress")
    COMPLETED = "completed", _("completed")
    ABANDONED = "abandoned", _("abandoned")


class Status(models.TextChoices):
    """What became of a record's request: the stored state, and whether a lease lives.

    An expired record keeps its status until it is purged or taken over.
    """

    IN_PROGRESS = "in_progress", _("in progress")
    COMPLETED = "completed", _("completed")
    NOT_KEPT = "not_kept", _("completed, response not kept")
    # No response and no live lease: the outcome is unknown (E5, E9).
    ABANDONED = "abandoned", _("abandoned")

    @classmethod
    def of(cls, state: str, body_size: int | None, *, is_leased: bool) -> Status:
        """Return the status of a row with these values."""
        if state == State.COMPLETED:
            return cls.NOT_KEPT if body_size is None else cls.COMPLETED
        return cls.IN_PROGRESS if is_leased else cls.ABANDONED

    @property
    def condition(self) -> models.Q:
        """The same as ``of()``, as a condition of the database by its clock."""
        is_completed = models.Q(state=State.COMPLETED)
        has_lease = models.Q(lease_expires_at__gt=UTCNow())
        lease_is_over = models.Q(lease_expires_at__lte=UTCNow())
        # What a handler in atomic mode leaves that committed by itself has no lease.
        has_none = models.Q(lease_expires_at=None)
        return {
            Status.IN_PROGRESS: has_lease,
            Status.COMPLETED: is_completed & models.Q(body_size__isnull=False),
            Status.NOT_KEPT: is_completed & models.Q(body_size=None),
            Status.ABANDONED: (lease_is_over & ~is_completed)
            | (has_none & ~is_completed),
        }[self]


class IdempotencyRecordQuerySet(models.QuerySet["IdempotencyRecord"]):
    """Records by what they are now."""

    def expired(self, now: datetime | None = None) -> IdempotencyRecordQuerySet:
        """Return the records whose retention is over, now by the database (P1)."""
        return self.filter(expires_at__lte=now or UTCNow())

    def with_lease_state(self) -> IdempotencyRecordQuerySet:
        """Let each record know by the database's clock when it is read (``read_at``).

        And whether it ``is_leased`` then.
        """
        return self.annotate(
            read_at=UTCNow(),
            is_leased=models.Case(  # type: ignore[no-redef]  # in place of the default
                models.When(lease_expires_at__gt=UTCNow(), then=models.Value(True)),
                default=models.Value(False),
            ),
        )

    def without_live_lease(self) -> IdempotencyRecordQuerySet:
        """Return the records that no running handler holds a lease on."""
        return self.filter(
            models.Q(lease_expires_at=None) | models.Q(lease_expires_at__lte=UTCNow())
        )

    def abandoned(self) -> IdempotencyRecordQuerySet:
        """Return the records whose outcome is unknown: no answer, no live lease (E9).

        A handler in atomic mode is not among them while it runs: its record can't be
        seen before there is an answer.
        """
        return self.with_status(Status.ABANDONED)

    def with_status(self, status: Status) -> IdempotencyRecordQuerySet:
        """Return the records that have a status now, by the database's clock."""
        return self.filter(status.condition)

    def purge(
        self,
        now: datetime | None = None,
        *,
        batch_size: int | None = None,
        time_budget: timedelta | None = None,
        older_than: timedelta | None = None,
    ) -> PurgeReport:
        """Delete expired records in batches, each its own short transaction (P2).

        ``batch_size`` is the most rows of a batch (PURGE_BATCH_SIZE); it is smaller
        where that many take long. ``time_budget`` ends the work between two batches
        (PURGE_TIME_BUDGET). ``older_than`` spares expired records that were claimed
        less than that ago. Rows that other transactions hold are skipped where the
        database can, so several purges can run at once; the report's ``more`` does not
        speak of them, as they are the holders' or the next run's.

        Raises ``RuntimeError`` inside an open transaction, which would make all
        batches one, and ``ValueError`` for a batch of less than one row and for an
        ``older_than`` below 0.
        """
        reports = self.purge_in_batches(
            now, batch_size=batch_size, time_budget=time_budget, older_than=older_than
        )
        # The last one alone: of very many batches all would be a long list.
        return deque(reports, maxlen=1).pop()

    def purge_in_batches(
        self,
        now: datetime | None = None,
        *,
        batch_size: int | None = None,
        time_budget: timedelta | None = None,
        older_than: timedelta | None = None,
        rest: Callable[[float], object] | None = None,
    ) -> Iterator[PurgeReport]:
        """Do what ``purge()`` does, and yield after each batch the report so far.

        Who stops iterating stops the purge. ``rest`` waits for so many seconds between
        two batches, in place of ``time.sleep``; if it returns something true, the purge
        ends there.
        """
        limit = get_settings().PURGE_BATCH_SIZE if batch_size is None else batch_size
        if limit < 1:
            raise ValueError(f"batch_size must be at least 1, not {limit}.")
        budget = (
            get_settings().PURGE_TIME_BUDGET if time_budget is None else time_budget
        )
        return purge_in_batches(
            *self._expired_and_purgeable(now, older_than),
            batch_size=limit,
            time_budget=budget,
            rest=rest,
        )

    def count_purgeable(
        self, *, time_budget: timedelta, older_than: timedelta | None = None
    ) -> Iterator[ExpiredOnDay | None]:
        """Yield by day how many records a purge with these arguments deletes.

        None comes last if the time ended before the days did.
        """
        rows = self._expired_and_purgeable(None, older_than)
        return count_by_day(*rows, time_budget=time_budget)

    def _expired_and_purgeable(
        self, now: datetime | None, older_than: timedelta | None
    ) -> tuple[IdempotencyRecordQuerySet, IdempotencyRecordQuerySet]:
        """Return all expired records, and those of them that a purge deletes (P2).

        In the database that is written to.
        """
        alias = self._db or default_alias()  # type: ignore[attr-defined]  # not in the stubs
        by = now or UTCNow()
        expired = IdempotencyRecordQuerySet(self.model, using=alias).expired(now)
        purgeable = self.using(alias).expired(now).without_live_lease()
        if older_than is None:
            return expired, purgeable
        if older_than < timedelta(0):
            raise ValueError(f"older_than must not be negative, but is {older_than!r}.")
        return expired, purgeable.filter(created_at__lte=by - older_than)


if TYPE_CHECKING:

    class IdempotencyRecordManager(  # type: ignore[misc]  # both can be subscripted
        IdempotencyRecordQuerySet, models.Manager["IdempotencyRecord"]
    ):
        """Known to type checkers by what both can do."""

else:
    IdempotencyRecordManager = models.Manager.from_queryset(IdempotencyRecordQuerySet)


def record_id(scope: str, key: str) -> UUID:
    """Return the primary key of a scope's key (K3, S1).

    SHA-256 over both, length-prefixed, in the layout of a name-based UUID (RFC 9562
    section 5.5): uniqueness and look-up are one index, and no collation can make two
    keys one. The layout matters: MariaDB 10.11 takes one in 70 values of version 8,
    and more of no version, for malformed, and its INSERT IGNORE stores another value.
    """
    digest = hashlib.sha256()
    for part in (scope.encode(), key.encode()):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    octets = bytearray(digest.digest()[:16])
    octets[6] = octets[6] & 0x0F | 0x50
    octets[8] = octets[8] & 0x3F | 0x80
    return UUID(bytes=bytes(octets))


def default_alias() -> str:
    """Return the alias of the database that records are written to by default."""
    return get_settings().policy.using or router.db_for_write(IdempotencyRecord)


class RecordChanged(Exception):
    """A record is no longer what it was when it was read, or a handler holds it."""


class IdempotencyRecord(models.Model):
    """One key of one caller: what was asked, and what was answered."""

    id = models.UUIDField(_("id"), primary_key=True, editable=False)
    scope = models.CharField(_("scope"), max_length=scopes.MAX_LENGTH)
    key = models.CharField(_("idempotency key"), max_length=keys.MAX_LENGTH)
    method = models.CharField(_("method"), max_length=16)
    path = models.TextField(_("path"))
    fingerprint = models.CharField(_("fingerprint"), max_length=64)
    fingerprint_version = models.PositiveSmallIntegerField(_("fingerprint version"))
    state = models.CharField(_("state"), max_length=11, choices=State.choices)
    attempt = models.PositiveIntegerField(_("attempt"), default=1)
    token = models.UUIDField(_("claim token"))
    lease_expires_at = InstantField(_("lease expires at"), null=True)
    status_code = models.PositiveSmallIntegerField(_("HTTP status"), null=True)
    headers = models.JSONField(_("headers"), null=True)
    body = models.BinaryField(_("body"), null=True)
    # NULL without an answer, and where the answer was not kept.
    body_size = models.PositiveIntegerField(_("body size"), null=True)
    created_at = InstantField(_("created at"))
    completed_at = InstantField(_("completed at"), null=True)
    expires_at = InstantField(_("expires at"))

    objects: ClassVar[IdempotencyRecordManager] = IdempotencyRecordManager()

    class Meta:
        verbose_name = _("idempotency record")
        verbose_name_plural = _("idempotency records")
        default_permissions = ("view",)
        permissions = (
            ("view_response_body", _("Can view stored answers")),
            ("release_key", _("Can release a key: the next request acts again")),
            ("resolve_record", _("Can store the answer of an abandoned record")),
            ("purge_records", _("Can purge expired records")),
            ("view_overview", _("Can see sums over all records")),
        )
        indexes = (
            models.Index(fields=("expires_at",), name=EXPIRES_AT_INDEX),
            models.Index(fields=("key",), name="idempotency_key"),
            # Only running and abandoned records of leased mode have a lease.
            WhereNotNull("lease_expires_at", name="idempotency_lease"),
        )

    def __str__(self) -> str:
        return str(self.pk)

    def __repr__(self) -> str:
        # Whatever the text is: this stands in reports of errors (X1).
        return f"<{type(self).__name__}: {self.pk}>"

    # When the row was read, by the database's clock, and whether a lease was live then.
    # Records do not know from every QuerySet.
    read_at: datetime
    is_leased = False

    @discreet
    def resolve(self, response: HttpResponseBase) -> None:
        """Store a rendered response as the answer of an abandoned record (E9).

        A handler that is late all the same has lost its claim by that.

        Raises ``RecordChanged`` if the record is not abandoned any more or its
        retention is over, so that its key is new (P1), and ``ValueError`` for a
        response that can't be kept to be replayed (R4).
        """
        stored = StoredResponse.from_http(response, keep=True)
        if stored.body is None:
            raise ValueError(
                "Every retry is to get this answer, so it must not be streamed, nor "
                "longer than MAX_RESPONSE_BYTES."
            )
        values = {
            **stored.as_fields(),
            "state": State.COMPLETED,
            "completed_at": UTCNow(),
            "lease_expires_at": None,
            "token": uuid4(),
        }
        row = self._unchanged().abandoned().filter(expires_at__gt=UTCNow())
        mine = self._rows().filter(token=values["token"])
        self._decide(lambda: row.update(**values), mine.exists)
        for name, value in values.items():
            setattr(self, name, value)
        del self.completed_at  # the database knows it, if anybody asks

    @discreet
    def release(self) -> None:
        """Delete the record, which makes the key new: the next request acts again.

        For completed records and for abandoned ones.

        Raises ``RecordChanged`` if the record has a live lease, or is not what it was
        when it was read.
        """
        # delete() would read the row for its signals, and delete whatever it is then.
        row = self._unchanged().without_live_lease()
        self._decide(
            lambda: row._raw_delete(self._alias()), lambda: not self._rows().exists()
        )

    def _decide(self, write: Callable[[], int], is_done: Callable[[], bool]) -> None:
        """Write, also if that has to be repeated on a new connection (E7)."""
        try:
            found = write_with_retry(
                connections[self._alias()], write, lambda: write() or is_done()
            )
        except Error as error:
            failure: Exception = without_values(error)
        else:
            if found:
                return
            failure = RecordChanged(self.pk)
        raise failure

    def _rows(self) -> IdempotencyRecordQuerySet:
        """Return the row of the record's key, whichever run it is by now."""
        rows = IdempotencyRecordQuerySet(type(self), using=self._alias())
        return rows.filter(pk=self.pk)

    def _unchanged(self) -> IdempotencyRecordQuerySet:
        """Return the record's row if it still is the run that was read."""
        return self._rows().filter(token=self.token, state=self.state)

    def _alias(self) -> str:
        return self._state.db or router.db_for_write(type(self), instance=self)

    @property
    def is_in_force(self) -> bool:
        """Whether the key is not new, as of ``read_at``: unexpired (P1), or leased.

        The record must come from a claim or from ``with_lease_state()``.
        """
        return self.expires_at > self.read_at or self.is_leased

    @property
    def status(self) -> Status:
        """What became of the request, as of ``read_at`` (E3, E5, E9, R4).

        The record must come from a claim or from ``with_lease_state()``.
        """
        return Status.of(self.state, self.body_size, is_leased=self.is_leased)

    @property
    def stored_response(self) -> StoredResponse | None:
        """The answer to replay, or None before there is one."""
        if self.status_code is None:
            return None
        return StoredResponse(
            status_code=self.status_code,
            headers=self.headers or [],
            body=None if self.body is None else bytes(self.body),
        )
