"""The record of an idempotency key, and its queryset."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID, uuid4

from django.db import Error, connections, models, router, transaction
from django.http import HttpResponseBase
from django.utils.translation import gettext_lazy as _

from idempotency import encryption, keys, routes, scopes
from idempotency.conf import get_settings
from idempotency.database import (
    EXPIRES_AT_INDEX,
    UTC,
    Exactly,
    InstantField,
    UTCNow,
    WhereNotNull,
    write_with_retry,
)
from idempotency.discretion import discreet, without_values
from idempotency.encrypted_fields import (
    EncryptedBody,
    EncryptedContent,
    EncryptedHeaders,
    EncryptedSteps,
)
from idempotency.erasing import EraseReport, erase_batch, erase_in_batches
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


# A key has at least one character, and none that a collation ignores.
IS_ERASED = models.Q(key="")


class Status(models.TextChoices):
    """The current status of a record, from its stored state and its lease.

    An expired record keeps its status until it is purged or taken over.
    """

    # No response and no live lease: the outcome is unknown.
    ABANDONED = "abandoned", _("abandoned")
    IN_PROGRESS = "in_progress", _("in progress")
    COMPLETED = "completed", _("completed")
    NOT_KEPT = "not_kept", _("completed, response not kept")
    # Completed or abandoned, whatever it was.
    ERASED = "erased", _("erased")

    @classmethod
    def of(
        cls, state: str, body_size: int | None, *, is_leased: bool, is_erased: bool
    ) -> Status:
        """Return the status of a row with these values."""
        if is_erased:
            return cls.ERASED
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
            Status.NOT_KEPT: is_completed & models.Q(body_size=None) & ~IS_ERASED,
            Status.ABANDONED: (lease_is_over & ~is_completed)
            | (has_none & ~is_completed),
            Status.ERASED: IS_ERASED,
        }[self]


class IdempotencyRecordQuerySet(models.QuerySet["IdempotencyRecord"]):
    """Queries of records by caller, expiry, lease and status; purge and erase."""

    @discreet
    def of_caller(self, caller: Any) -> IdempotencyRecordQuerySet:
        """Return a caller's records, by an index (P4).

        ``caller`` is a user, who has the scope of ``default_scope()``, or a scope.

        Raise ``ValueError`` if no record can have the scope.
        """
        return self.filter(Exactly(models.F("scope"), scopes.scope_of_caller(caller)))

    @discreet
    def erase(self) -> EraseReport:
        """Take what they say of a person out of the records, for good (P4).

        Retries are refused, and act on nothing. Records with a live lease, and rows
        that other transactions hold, are left and counted. This works in batches, each
        in a short transaction.

        Raise ``RuntimeError`` inside an open transaction.
        """
        alias = self._db or default_alias()  # type: ignore[attr-defined]  # not in the stubs
        records = self.using(alias).exclude(IS_ERASED)
        try:
            erased = erase_in_batches(records.without_live_lease(), erased_values())
            return EraseReport(
                erased=erased,
                in_progress=records.with_status(Status.IN_PROGRESS).count(),
                held=records.without_live_lease().count(),
            )
        except Error as error:
            failure = without_values(error)
        raise failure

    # Or objects.erase() would erase all records.
    erase.queryset_only = True  # type: ignore[attr-defined]  # of Django's managers

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
            older_than=older_than,
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


# Seconds before each try to lock a row that a transaction may hold for a moment.
PAUSES = (0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


def erased_values() -> dict[str, Any]:
    """Return what an erased record has in place of what it said of a person (P4).

    It is completed, so it never runs again. By the new token, a late handler has lost
    its claim, and nobody takes over what they read before.
    """
    return {
        "scope": "",
        "key": "",
        "path": "",
        "headers": None,
        "body": None,
        "body_size": None,
        "steps": None,
        "state": State.COMPLETED,
        "lease_expires_at": None,
        "token": uuid4(),
    }


class RecordChanged(Exception):
    """The record has changed since it was read, or its handler is running."""


class RecordHeld(RecordChanged):
    """A transaction that has written to the record has not ended yet: try again."""


class IdempotencyRecord(EncryptedContent, models.Model):
    """One key of one caller, with its request and response."""

    id = models.UUIDField(_("id"), primary_key=True, editable=False)
    scope = models.CharField(_("scope"), max_length=scopes.MAX_LENGTH)
    key = models.CharField(_("idempotency key"), max_length=keys.MAX_LENGTH)
    method = models.CharField(_("method"), max_length=16)
    path = models.TextField(_("path"))
    # NULL (so DJ001) if unknown: such rows are not found by their endpoint.
    route = models.CharField(  # noqa: DJ001
        _("route"), max_length=routes.MAX_LENGTH, null=True
    )
    fingerprint = models.CharField(_("fingerprint"), max_length=64)
    fingerprint_version = models.PositiveSmallIntegerField(_("fingerprint version"))
    state = models.CharField(_("state"), max_length=11, choices=State.choices)
    attempt = models.PositiveIntegerField(_("attempt"), default=1)
    token = models.UUIDField(_("claim token"))
    lease_expires_at = InstantField(_("lease expires at"), null=True)
    status_code = models.PositiveSmallIntegerField(_("HTTP status"), null=True)
    headers = EncryptedHeaders(_("headers"), null=True)
    body = EncryptedBody(_("body"), null=True)
    # NULL if there is no response, or if it was not kept.
    body_size = models.PositiveIntegerField(_("body size"), null=True)
    # JSON in text: PostgreSQL's jsonb refuses NUL. NULL (so DJ001) unless the endpoint
    # resumes.
    steps = EncryptedSteps(_("steps"), null=True)
    # The id of the key for headers, body, steps and a keyed fingerprint. NULL if the
    # record is not encrypted.
    encrypted_by = models.CharField(_("encrypted by"), max_length=16, null=True)  # noqa: DJ001
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
            ("erase_records", _("Can erase what records say of a person")),
        )
        indexes = (
            models.Index(fields=("expires_at",), name=EXPIRES_AT_INDEX),
            models.Index(fields=("key",), name="idempotency_record_key"),
            # In the order of octets, which is quicker to compare than a language's.
            models.Index(
                fields=("scope", "created_at"),
                name="idempotency_caller",
                opclasses=("varchar_pattern_ops", "timestamptz_ops"),
            ),
            models.Index(
                fields=("route", "method", "created_at"),
                name="idempotency_endpoint",
                opclasses=(*["varchar_pattern_ops"] * 2, "timestamptz_ops"),
            ),
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
        over (P1), ``RecordHeld`` if its handler is just writing, ``ValueError`` if the
        response can't be kept (R4), and ``Unreadable`` if the record can't be decrypted
        (P5).
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
        self._change(values)
        del self.completed_at  # Django reloads it when needed

    @discreet
    def release(self) -> None:
        """Delete a completed or abandoned record: the next request runs the handler.

        Raise ``RecordChanged`` if the record has a live lease, or has changed since it
        was read, and ``RecordHeld`` as ``resolve()`` does.
        """
        # delete() would first read the row again, and delete it even if it has changed.
        row = self._unchanged().without_live_lease()
        self._decide(
            lambda: row._raw_delete(self._alias()), lambda: not self._rows().exists()
        )

    @discreet
    def erase(self) -> None:
        """Take what it says of a person out of a record, for good (P4).

        Raise ``RecordChanged`` if the record has a live lease, has changed since it was
        read, or is erased already, and ``RecordHeld`` as ``resolve()`` does.
        """
        values = erased_values()
        row = self._unchanged().without_live_lease().exclude(IS_ERASED)
        mine = self._rows().filter(token=values["token"])
        self._decide(lambda: erase_batch(row, values, 1)[0], mine.exists)
        for name, value in values.items():
            setattr(self, name, value)
        self.unreadable = ""  # there is nothing to read

    @discreet
    def call_returned(self, name: str, result: Any) -> None:
        """Record what the call in doubt has returned: the next run goes on (E13).

        Raise ``ValueError`` if it is not that call that is in doubt or the result is
        too long, ``TypeError`` if the result is not JSON, and ``RecordChanged`` and
        ``RecordHeld`` as ``resolve()`` does.
        """
        result = through_json("call", name, result)
        ended = {"ended": datetime.now(UTC).isoformat(), "result": result}

        def settled(entry: Entry) -> list[Entry]:
            del entry[IN_DOUBT]
            return [{**entry, **ended}]

        self._settle(name, settled)

    @discreet
    def call_never_happened(self, name: str) -> None:
        """Declare that the call in doubt has not happened: the next run calls (E13).

        Raise ``ValueError`` if it is not that call that is in doubt, and
        ``RecordChanged`` and ``RecordHeld`` as ``resolve()`` does.
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
        steps = limited(as_text(from_text(self.steps)[0], entries))
        self._change({"steps": steps, "token": uuid4()})

    def _change(self, values: dict[str, Any]) -> None:
        """Store new values of an abandoned record in force, its token among them."""
        changed = copy(self)
        if self.encrypted_by is None:
            changed.encrypted_by = values["encrypted_by"] = encryption.first_key_id()
        for name, value in values.items():
            setattr(changed, name, value)
        stored = {name: changed.as_stored(name) for name in values}
        row = self._unchanged().abandoned().filter(expires_at__gt=UTCNow())
        mine = self._rows().filter(token=changed.token)
        self._decide(lambda: row.update(**stored), mine.exists)
        for name, value in values.items():
            setattr(self, name, value)

    def _decide(self, write: Callable[[], int], is_done: Callable[[], bool]) -> None:
        """Write, and repeat that on a new connection if the first is lost (E7)."""
        connection = connections[self._alias()]

        def decide() -> int:
            if not connection.features.has_select_for_update:
                return write()  # SQLite locks no rows
            with transaction.atomic(using=connection.alias):
                self._lock(connection.features.has_select_for_update_skip_locked)
                return write()

        try:
            found = write_with_retry(connection, decide, lambda: decide() or is_done())
        except RecordHeld as held:
            failure: Exception = RecordHeld(*held.args)  # without its context
        except Error as error:
            failure = without_values(error)
        else:
            if found:
                return
            failure = RecordChanged(self.pk)
        raise failure

    def _lock(self, skip_locked: bool) -> None:
        """Lock the row, if there is one, or raise ``RecordHeld``.

        Its handler may have stopped before the COMMIT of a step, for hours.
        """
        row = self._rows().select_for_update(skip_locked=skip_locked)
        for pause in PAUSES:
            time.sleep(pause)
            if row.exists() or not self._rows().exists():
                return
        raise RecordHeld(self.pk)

    def _rows(self) -> IdempotencyRecordQuerySet:
        """Return the row of the record's id, whichever run has it by now."""
        rows = IdempotencyRecordQuerySet(type(self), using=self._alias())
        return rows.filter(pk=self.pk)

    def _unchanged(self) -> IdempotencyRecordQuerySet:
        """Return the record's row if it is still the run that was read."""
        return self._rows().filter(token=self.token, state=self.state)

    def _alias(self) -> str:
        return self._state.db or router.db_for_write(type(self), instance=self)

    def why_unreadable(self) -> str:
        """Return why a run of the key could not read the record, or nothing (P5).

        Unlike ``unreadable``, this includes the fields that were not loaded.
        """
        if self.encrypted_by is None or self.unreadable:
            return self.unreadable
        row = self._rows().filter(token=self.token).first()
        return "" if row is None else row.unreadable

    @property
    def is_in_force(self) -> bool:
        """Whether the record was unexpired (P1) or leased at ``read_at``."""
        return self.expires_at > self.read_at or self.is_leased

    @property
    def status(self) -> Status:
        """The status at ``read_at`` (E3, E5, E9, R4)."""
        return Status.of(
            self.state,
            self.body_size,
            is_leased=self.is_leased,
            is_erased=not self.key,
        )

    @property
    def is_erased(self) -> bool:
        """Whether scope, key and all that it said of a person are gone (P4)."""
        return not self.key

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
            body=None if self.body is None or self.unreadable else bytes(self.body),
        )
