"""The record of an idempotency key, and what can be asked of many."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.db import connections, models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from idempotency import keys, scopes
from idempotency.conf import conf
from idempotency.responses import StoredResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeReport:
    """What one purge did: ``more`` is true if its time ended before the work did."""

    deleted: int
    batches: int
    seconds: float
    more: bool


class UTCNow(models.Func):
    """The database's clock in UTC, whatever the session's time zone."""

    output_field = models.DateTimeField()
    arity = 0

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        return super().as_sql(*args, template="CURRENT_TIMESTAMP", **kwargs)

    def as_postgresql(self, *args: Any, **kwargs: Any) -> Any:
        return super().as_sql(*args, template="STATEMENT_TIMESTAMP()", **kwargs)

    def as_mysql(self, *args: Any, **kwargs: Any) -> Any:
        return super().as_sql(*args, template="UTC_TIMESTAMP(6)", **kwargs)

    def as_sqlite(self, *args: Any, **kwargs: Any) -> Any:
        template = "STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW')"
        return super().as_sql(*args, template=template, **kwargs)


class IdempotencyRecordQuerySet(models.QuerySet["IdempotencyRecord"]):
    """Records by what they are now."""

    def expired(self, now: datetime | None = None) -> IdempotencyRecordQuerySet:
        """Return the records whose retention is over (P1)."""
        return self.filter(expires_at__lte=now or timezone.now())

    def without_live_lease(self) -> IdempotencyRecordQuerySet:
        """Return the records that no running handler holds a lease on."""
        return self.filter(
            models.Q(lease_expires_at=None) | models.Q(lease_expires_at__lte=UTCNow())
        )

    def purge(
        self,
        now: datetime | None = None,
        *,
        batch_size: int | None = None,
        time_budget: timedelta | None = None,
    ) -> PurgeReport:
        """Delete expired records in batches, each its own short transaction (P2).

        ``batch_size`` is in rows (PURGE_BATCH_SIZE), ``time_budget`` ends the work
        between two batches (PURGE_TIME_BUDGET). Rows that other transactions hold are
        skipped where the database can, so several purges can run at once.

        Raises ``RuntimeError`` inside an open transaction, which would make all
        batches one, and ``ValueError`` for a batch of less than one row.
        """
        alias = self._db or router.db_for_write(self.model)
        limit = conf.PURGE_BATCH_SIZE if batch_size is None else batch_size
        if limit < 1:
            raise ValueError(f"batch_size must be at least 1, not {limit}.")
        budget = conf.PURGE_TIME_BUDGET if time_budget is None else time_budget
        doomed = self.using(alias).expired(now).without_live_lease()
        started = time.monotonic()
        deleted = batches = 0
        found = limit
        while found == limit:
            if time.monotonic() - started >= budget.total_seconds() and batches:
                break
            found = doomed._delete_batch(alias, limit)
            deleted += found
            batches += 1
        return PurgeReport(
            deleted=deleted,
            batches=batches,
            seconds=time.monotonic() - started,
            more=found == limit,
        )

    def _delete_batch(self, alias: str, limit: int) -> int:
        skip_locked = connections[alias].features.has_select_for_update_skip_locked
        with transaction.atomic(using=alias, durable=True):
            rows = self.select_for_update(skip_locked=skip_locked)
            ids = list(rows.order_by("expires_at").values_list("pk", flat=True)[:limit])
            if ids:
                # Not delete(): listeners to its signals would load every body.
                self.filter(pk__in=ids)._raw_delete(alias)
        return len(ids)


class State(models.TextChoices):
    """What the record says about the execution."""

    IN_PROGRESS = "in_progress", _("in progress")
    COMPLETED = "completed", _("completed")
    ABANDONED = "abandoned", _("abandoned")


def record_id(scope: str, key: str) -> UUID:
    """Return the primary key of a scope's key (K3, S1).

    The first 16 bytes of SHA-256 over both, length-prefixed: uniqueness and look-up
    are one index, and no collation can make two keys one.
    """
    digest = hashlib.sha256()
    for part in (scope.encode(), key.encode()):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return UUID(bytes=digest.digest()[:16])


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
    lease_expires_at = models.DateTimeField(_("lease expires at"), null=True)
    status_code = models.PositiveSmallIntegerField(_("HTTP status"), null=True)
    headers = models.JSONField(_("headers"), null=True)
    body = models.BinaryField(_("body"), null=True)
    body_size = models.PositiveIntegerField(_("body size"), null=True)
    created_at = models.DateTimeField(_("created at"))
    completed_at = models.DateTimeField(_("completed at"), null=True)
    expires_at = models.DateTimeField(_("expires at"))

    objects: ClassVar[models.Manager[IdempotencyRecord]] = (
        IdempotencyRecordQuerySet.as_manager()
    )

    class Meta:
        verbose_name = _("idempotency record")
        verbose_name_plural = _("idempotency records")
        default_permissions = ("view",)
        permissions = (("view_response_body", _("Can view stored answers")),)
        indexes = (
            models.Index(fields=("expires_at",), name="idempotency_expires_at"),
            models.Index(fields=("key",), name="idempotency_key"),
        )

    def __str__(self) -> str:
        return f"{self.key} ({self.scope})"

    def is_expired(self, now: datetime) -> bool:
        """Tell whether the retention is over, which makes the key new (P1)."""
        return self.expires_at <= now

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
