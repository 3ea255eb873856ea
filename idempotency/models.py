"""The record of an idempotency key, and its queryset."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID, uuid4

from django.db import Error, connections, models, router
from django.http import HttpResponseBase
from django.utils import timezone
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
from idempotency.steps import (
    HAS_ENTRIES,
    IN_DOUBT,
    IS_IN_DOUBT,
    Entry,
    as_text,
    from_text,
    limited,
    through_json,
    without_result,
)


class State(models.TextChoices):
    """The stored state of a record."""

    IN_PROGRESS = "in_progress", _("in progress")
    COMPLETED = "completed", _("completed")
    ABANDONED = "abandoned", _("abandoned")


class Status(models.TextChoices):
    """The current status of a record, from its stored state and its lease.

    An expired record keeps its status until it is purged or taken over.
    """

    # No response and no live lease: the outcome is unknown.
    ABANDONED = "abandoned", _("abandoned")
    IN_PROGRESS = "in_progress", _("in progress")
    COMPLETED = "completed", _("completed")
    NOT_KEPT = "not_kept", _("completed, response not kept")

    @classmethod
    def of(cls, state: str, body_size: int | None, *, is_leased: bool) -> Status:
        """Return the status of a row with these values."""
        if state == State.COMPLETED:
            return cls.NOT_KEPT if body_size is None else cls.COMPLETED
        return cls.IN_PROGRESS if is_leased else cls.ABANDONED

    @property
    def condition(self) -> models.Q:
        """The same as ``of()`` for a query, by the database's clock."""
        is_completed = models.Q(state=State.COMPLETED)
        lease_is_over = models.Q(lease_expires_at__lte=UTCNow())
        # An atomic handler that committed by itself leaves a record without a lease.
        has_none = models.Q(lease_expires_at=None)
        return {
            Status.IN_PROGRESS: models.Q(lease_expires_at__gt=UTCNow()),
            Status.COMPLETED: is_completed & models.Q(body_size__isnull=False),
            Status.NOT_KEPT: is_completed & models.Q(body_size=None),
            Status.ABANDONED: (lease_is_over & ~is_completed)
            | (has_none & ~is_completed),
        }[self]


class IdempotencyRecordQuerySet(models.QuerySet["IdempotencyRecord"]):
    """Queries of records by expiry, lease and status, and the purge."""

    def expired(self, now: datetime | None = None) -> IdempotencyRecordQuerySet:
        """Return the records whose retention is over (P1), by the database's clock."""
        return self.filter(expires_at__lte=now or UTCNow())

    def with_lease_state(self) -> IdempotencyRecordQuerySet:
        """Annotate ``read_at``, the database's time, and ``is_leased`` at that time."""
        return self.annotate(
            read_at=UTCNow(),
            is_leased=models.Case(  # type: ignore[no-redef]  # in place of the default
                models.When(lease_expires_at__gt=UTCNow(), then=models.Value(True)),
                default=models.Value(False),
            ),
        )

    def without_live_lease(self) -> IdempotencyRecordQuerySet:
        """Return the records without a running leased handler."""
        return self.filter(
            models.Q(lease_expires_at=None) | models.Q(lease_expires_at__lte=UTCNow())
        )

    def abandoned(self) -> IdempotencyRecordQuerySet:
        """Return the records whose outcome is unknown (E9).

        They have no response and no live lease. Records of running atomic handlers are
        invisible until they have a response.
        """
        return self.with_status(Status.ABANDONED)

    def with_status(self, status: Status) -> IdempotencyRecordQuerySet:
        """Return the records that have this status by the database's clock."""
        return self.filter(status.condition)

    def resumable(self, idle: timedelta = timedelta(0)) -> IdempotencyRecordQuerySet:
        """Return the abandoned records that ``completing.resume()`` can finish (E17).

        They have recorded steps and no call in doubt, are unexpired, and nobody has run
        them for ``idle``.
        """
        return self.abandoned().filter(
            HAS_ENTRIES,
            ~IS_IN_DOUBT,
            expires_at__gt=UTCNow(),
            lease_expires_at__lte=UTCNow() - idle,
        )

    def purge(
        self,
        now: datetime | None = None,
        *,
        batch_size: int | None = None,
        time_budget: timedelta | None = None,
        older_than: timedelta | None = None,
        no_rest: bool = False,
    ) -> PurgeReport:
        """Delete expired records in batches, each in a short transaction (P2).

        ``batch_size`` is the maximum of rows per batch (PURGE_BATCH_SIZE); slow batches
        get smaller. ``time_budget`` is the time after which no batch starts
        (PURGE_TIME_BUDGET). ``older_than`` keeps records that were claimed more
        recently. ``no_rest`` is for the night: otherwise the purge rests after each
        batch, less if it is far behind. If the database can skip locked rows, several
        purges can run at once; the report's ``more`` ignores rows that others hold.

        Raise ``RuntimeError`` inside an open transaction, and ``ValueError`` if
        ``batch_size`` is below 1 or ``older_than`` is negative.
        """
        reports = self.purge_in_batches(
            now,
            batch_size=batch_size,
            time_budget=time_budget,
            older_than=older_than,
            no_rest=no_rest,
        )
        return deque(reports, maxlen=1).pop()

    def purge_in_batches(
        self,
        now: datetime | None = None,
        *,
        batch_size: int | None = None,
        time_budget: timedelta | None = None,
        older_than: timedelta | None = None,
        no_rest: bool = False,
        rest: Callable[[float], object] | None = None,
    ) -> Iterator[PurgeReport]:
        """Purge as ``purge()`` does, and yield the report so far after each batch.

        ``rest(seconds)`` replaces ``time.sleep`` between two batches; a true result
        ends the purge, and so does the end of the iteration.
        """
        settings = get_settings()
        limit = settings.PURGE_BATCH_SIZE if batch_size is None else batch_size
        if limit < 1:
            raise ValueError(f"batch_size must be at least 1, not {limit}.")
        return purge_in_batches(
            *self._expired_and_purgeable(now, older_than),
            now=self.model._meta.get_field("expires_at").get_prep_value(now),
            batch_size=limit,
            time_budget=(
                settings.PURGE_TIME_BUDGET if time_budget is None else time_budget
            ),
            no_rest=no_rest,
            rest=rest,
        )

    def overdue(self) -> timedelta:
        """Return the time since the oldest expired record expired, zero if none has.

        This is one look-up in an index.
        """
        oldest = self.expired().order_by("expires_at")
        found = oldest.values_list("expires_at", UTCNow()).first()
        return found[1] - found[0] if found else timedelta(0)

    def count_purgeable(
        self, *, time_budget: timedelta, older_than: timedelta | None = None
    ) -> Iterator[ExpiredOnDay | None]:
        """Yield by day how many records a purge with these arguments would delete.

        The last item is None if the time budget ended before the last day.
        """
        rows = self._expired_and_purgeable(None, older_than)
        return count_by_day(*rows, time_budget=time_budget)

    def _expired_and_purgeable(
        self, now: datetime | None, older_than: timedelta | None
    ) -> tuple[IdempotencyRecordQuerySet, IdempotencyRecordQuerySet]:
        """Return all expired records, and those of them that a purge deletes (P2)."""
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
        """The manager with the queryset's methods, for type checkers."""

else:
    IdempotencyRecordManager = models.Manager.from_queryset(IdempotencyRecordQuerySet)


def record_id(scope: str, key: str) -> UUID:
    """Return the primary key of a scope and key (K3, S1).

    It is the SHA-256 of both with their lengths, as a name-based UUID (RFC 9562 section
    5.5). So one index serves uniqueness and look-up, and no collation can equate two
    keys. The version matters: MariaDB 10.11 rejects one in 70 UUIDs of version 8 as
    malformed, and its INSERT IGNORE stores another value.
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
    """Return the alias of the database that stores records by default."""
    return get_settings().policy.using or router.db_for_write(IdempotencyRecord)


class RecordChanged(Exception):
    """The record has changed since it was read, or its handler is running."""


class IdempotencyRecord(models.Model):
    """One key of one caller, with its request and response."""

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
    # NULL if there is no response, or if it was not kept.
    body_size = models.PositiveIntegerField(_("body size"), null=True)
    # JSON in text: PostgreSQL's jsonb refuses NUL. NULL (so DJ001) unless the endpoint
    # resumes.
    steps = models.TextField(_("steps"), null=True)  # noqa: DJ001
    created_at = InstantField(_("created at"))
    completed_at = InstantField(_("completed at"), null=True)
    expires_at = InstantField(_("expires at"))

    objects: ClassVar[IdempotencyRecordManager] = IdempotencyRecordManager()

    class Meta:
        verbose_name = _("idempotency record")
        verbose_name_plural = _("idempotency records")
        default_permissions = ("view",)
        permissions = (
            ("view_response_body", _("Can view stored responses")),
            ("release_key", _("Can release a key: the next request acts again")),
            ("resolve_record", _("Can store the response of an abandoned record")),
            ("purge_records", _("Can purge expired records")),
            ("view_overview", _("Can see sums over all records")),
        )
        indexes = (
            models.Index(fields=("expires_at",), name=EXPIRES_AT_INDEX),
            models.Index(fields=("key",), name="idempotency_record_key"),
            # Only running and abandoned leased records have a value.
            WhereNotNull("lease_expires_at", name="idempotency_lease"),
        )

    def __str__(self) -> str:
        return str(self.pk)

    def __repr__(self) -> str:
        # Error reports show it, so it must not depend on an overridden __str__ (X1).
        return f"<{type(self).__name__}: {self.pk}>"

    # Set by claims and with_lease_state().
    read_at: datetime
    is_leased = False

    @discreet
    def resolve(self, response: HttpResponseBase) -> None:
        """Store a rendered response for the retries of an abandoned record (E9).

        A handler that is still running loses its claim. Results of steps go (E14).

        Raise ``RecordChanged`` if the record is no longer abandoned or its retention is
        over (P1), and ``ValueError`` if the response can't be kept (R4).
        """
        stored = StoredResponse.from_http(response, keep=True)
        if stored.body is None:
            raise ValueError(
                "A response for retries must not be streamed, and not be longer than "
                "MAX_RESPONSE_BYTES."
            )
        values = {
            **stored.as_fields(),
            "state": State.COMPLETED,
            "completed_at": UTCNow(),
            "lease_expires_at": None,
            "token": uuid4(),
        }
        if self.steps is not None:
            payload, entries = from_text(self.steps)
            values["steps"] = as_text(payload, map(without_result, entries))
        row = self._unchanged().abandoned().filter(expires_at__gt=UTCNow())
        mine = self._rows().filter(token=values["token"])
        self._decide(lambda: row.update(**values), mine.exists)
        for name, value in values.items():
            setattr(self, name, value)
        del self.completed_at  # Django reloads it when needed

    @discreet
    def release(self) -> None:
        """Delete a completed or abandoned record: the next request runs the handler.

        Raise ``RecordChanged`` if the record has a live lease, or has changed since it
        was read.
        """
        # delete() would first read the row again, and delete it even if it has changed.
        row = self._unchanged().without_live_lease()
        self._decide(
            lambda: row._raw_delete(self._alias()), lambda: not self._rows().exists()
        )

    @discreet
    def call_returned(self, name: str, result: Any) -> None:
        """Record what the call in doubt has returned: the next run goes on (E13).

        Raise ``ValueError`` if it is not that call that is in doubt or the result is
        too long, ``TypeError`` if the result is not JSON, and ``RecordChanged`` as
        ``resolve()`` does.
        """
        result = through_json("call", name, result)
        ended = {"ended": timezone.now().isoformat(), "result": result}

        def settled(entry: Entry) -> list[Entry]:
            del entry[IN_DOUBT]
            return [{**entry, **ended}]

        self._settle(name, settled)

    @discreet
    def call_never_happened(self, name: str) -> None:
        """Declare that the call in doubt has not happened: the next run calls (E13).

        Raise ``ValueError`` if it is not that call that is in doubt, and
        ``RecordChanged`` as ``resolve()`` does.
        """
        self._settle(name, lambda entry: [])

    def _settle(self, name: str, settled: Callable[[Any], list[Any]]) -> None:
        if name != self.call_in_doubt:
            raise ValueError(f"The call {name!r} is not in doubt.")
        entries = [
            each
            for entry in self.entries
            for each in (settled(entry) if entry["name"] == name else [entry])
        ]
        steps, token = limited(as_text(from_text(self.steps)[0], entries)), uuid4()
        row = self._unchanged().abandoned().filter(expires_at__gt=UTCNow())
        mine = self._rows().filter(token=token)
        self._decide(lambda: row.update(steps=steps, token=token), mine.exists)
        self.steps, self.token = steps, token

    def _decide(self, write: Callable[[], int], is_done: Callable[[], bool]) -> None:
        """Write, and repeat that on a new connection if the first is lost (E7)."""
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
        """Return the row of the record's id, whichever run has it by now."""
        rows = IdempotencyRecordQuerySet(type(self), using=self._alias())
        return rows.filter(pk=self.pk)

    def _unchanged(self) -> IdempotencyRecordQuerySet:
        """Return the record's row if it is still the run that was read."""
        return self._rows().filter(token=self.token, state=self.state)

    def _alias(self) -> str:
        return self._state.db or router.db_for_write(type(self), instance=self)

    @property
    def is_in_force(self) -> bool:
        """Whether the record was unexpired (P1) or leased at ``read_at``."""
        return self.expires_at > self.read_at or self.is_leased

    @property
    def status(self) -> Status:
        """The status at ``read_at`` (E3, E5, E9, R4)."""
        return Status.of(self.state, self.body_size, is_leased=self.is_leased)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The recorded steps and calls, in their order (E12)."""
        return from_text(self.steps)[1]

    @property
    def call_in_doubt(self) -> str | None:
        """The name of the call that may have happened and must not again, or None."""
        if self.state == State.COMPLETED:
            return None
        return next((e["name"] for e in self.entries if IN_DOUBT in e), None)

    @property
    def stored_response(self) -> StoredResponse | None:
        """The response to replay, or None before there is one."""
        if self.status_code is None:
            return None
        return StoredResponse(
            status_code=self.status_code,
            headers=self.headers or [],
            body=None if self.body is None else bytes(self.body),
        )
