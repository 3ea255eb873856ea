"""Complete requests whose clients do not come back (contract E17)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias
from uuid import uuid4

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, Error
from django.db.models import Q
from django.http import HttpResponseBase
from rest_framework.settings import api_settings

from idempotency import signals
from idempotency.claims import claims_in
from idempotency.claims.leases import Leases
from idempotency.conf.policy import Policy
from idempotency.context import RequestContext
from idempotency.database import UTCNow
from idempotency.database_errors import error_classes
from idempotency.discretion import discreet
from idempotency.encryption import Unreadable, first_key_id
from idempotency.exceptions import ClaimLost, OutcomeUnknown
from idempotency.handlers import parts_of
from idempotency.hooks import imported
from idempotency.models import (
    IdempotencyRecord,
    RecordChanged,
    RecordHeld,
    State,
    Status,
    default_alias,
)
from idempotency.modes.leased import log_not_given_up, refuse_left_open
from idempotency.modes.reporting import log_unreadable
from idempotency.modes.steps import RecordedSteps
from idempotency.protection import protection_of
from idempotency.responses import StoredResponse
from idempotency.routes import match_of
from idempotency.signals import extras
from idempotency.steps import from_text, is_in_transaction

logger = logging.getLogger("idempotency")

Completer: TypeAlias = Callable[[RequestContext], HttpResponseBase]

# The pause after a record's first run; each further run doubles it.
FIRST_PAUSE = timedelta(minutes=1)
# No record waits for a later run: the pause would be years long.
LAST_ATTEMPT = 22
# After that many runs a person has to decide.
MAX_ATTEMPTS = 10
# Records that one run of the task completes, and those that it reads at once. Many of
# the latter may have no completer.
LIMIT = 10
PAGE_SIZE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a record's request went, as far as the URLconf still knows it."""

    callback: Any
    policy: Policy

    @property
    def completer(self) -> Completer | None:
        """The function of the option ``completer``."""
        found = self.policy.completer
        return None if found is None else imported(found)


def endpoint_of(record: IdempotencyRecord) -> Endpoint | None:
    """Return the endpoint of a record, or None if it is gone or does not resume."""
    try:
        callback = match_of(record.path).func
        protection = protection_of(callback, record.method)
    except Exception:  # noqa: BLE001  # a converter or hook is the project's
        return None
    if protection is None or protection.policy.on_abandoned != "resume":
        return None
    return Endpoint(callback=callback, policy=protection.policy)


def completer_of(record: IdempotencyRecord) -> Completer | None:
    """Return the function that completes a record's request, or None."""
    endpoint = endpoint_of(record)
    return None if endpoint is None else endpoint.completer


@discreet
def resume(
    record: IdempotencyRecord,
    function: Completer,
    *,
    lease: timedelta | None = None,
) -> HttpResponseBase:
    """Finish an abandoned run without a request, and store its response (E17).

    ``function`` gets what a handler has as ``request.idempotency``. It finds what the
    handler has recorded for it in ``recorded``, because no body is stored. ``lease`` is
    by default the endpoint's. Permissions, throttles and the option ``store`` are
    skipped. A response from 500 up is returned, and leaves the record abandoned.

    Raise ``RecordChanged`` if the record is not abandoned any more or has expired,
    ``RecordHeld`` if its handler is just writing, ``OutcomeUnknown`` while a call is in
    doubt (E13), ``Unreadable`` if it can't be decrypted (P5), ``ClaimLost`` if another
    run has taken over, ``ImproperlyConfigured`` inside a transaction, and what the
    function raises.
    """
    return _Completion(record, lease).run(function)


def complete(record: IdempotencyRecord) -> HttpResponseBase:
    """Finish an abandoned run by its endpoint's completer.

    Raise ``LookupError`` if there is none, and the errors of ``resume()``.
    """
    completer = completer_of(record)
    if completer is None:
        raise LookupError(f"The endpoint of record {record.pk} has no completer.")
    return resume(record, completer)


@dataclass(slots=True, kw_only=True)
class CompletionReport:
    """What became of the records that ``complete_abandoned()`` has looked at.

    ``failed`` may be completed later. ``left`` have no completer, one that can't be
    imported, or can't be decrypted (P5).
    """

    completed: int = 0
    failed: int = 0
    left: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in asdict(self).items())


def complete_abandoned(
    using: str | None = None,
    *,
    limit: int = LIMIT,
    max_attempts: int = MAX_ATTEMPTS,
    fatal: tuple[type[Exception], ...] = (),
) -> CompletionReport:
    """Complete abandoned records, those first that have waited longest (E17).

    ``using`` is a database's alias, by default that of the records. ``limit`` is the
    maximum of records per call. A record waits for ``FIRST_PAUSE`` after its first run,
    and twice as long after each further one; after ``max_attempts`` runs it is left to
    a person. Errors of a completer are logged, except those in ``fatal``, which end the
    call.
    """
    report, is_told = CompletionReport(), False
    missing: set[str] = set()
    for record in due(using or default_alias(), max_attempts):
        if report.completed + report.failed >= limit:
            break
        completer = None
        try:
            completer = completer_of(record)
        except ImportError as error:
            # Other endpoints' records are completed, and one line says it for many.
            if str(error) not in missing:
                missing.add(str(error))
                log_missing(record, error)
        if completer is None:
            report.left += 1
            continue
        try:
            response = resume(record, completer)
        except (RecordChanged, ClaimLost):
            continue  # another run has it
        except Unreadable as error:
            report.left += 1
            if not is_told:  # the others most likely lack the same key
                log_unreadable(record, str(error))
                is_told = True
        except fatal:
            raise
        except Exception as error:  # noqa: BLE001  # a completer is the project's
            report.failed += 1
            log_failure(record, error)
        else:
            is_failed = response.status_code >= 500
            report.failed += is_failed
            report.completed += not is_failed
    return report


def due(alias: str, max_attempts: int) -> Iterator[IdempotencyRecord]:
    """Yield all records that ``complete_abandoned()`` may complete, page by page."""
    is_due = Q(pk__in=())
    for attempt in range(1, min(max_attempts, LAST_ATTEMPT)):
        pause = FIRST_PAUSE * 2 ** (attempt - 1)
        is_due |= Q(attempt=attempt, lease_expires_at__lte=UTCNow() - pause)
    waiting = IdempotencyRecord.objects.using(alias).resumable().filter(is_due)
    # Results of steps may be large.
    rest = waiting.order_by("lease_expires_at", "pk").defer("steps")
    page = rest[:PAGE_SIZE]
    while records := [*page]:
        yield from records
        last = records[-1]
        # The first condition alone can use the index.
        page = rest.filter(
            Q(lease_expires_at__gt=last.lease_expires_at) | Q(pk__gt=last.pk),
            lease_expires_at__gte=last.lease_expires_at,
        )[:PAGE_SIZE]


def log_missing(record: IdempotencyRecord, error: ImportError) -> None:
    """Log that a completer can't be imported, as the system check E008 says."""
    kind = error_classes(error)
    logger.error(
        "A completer can't be imported: record %s: %s",
        record.pk,
        kind,
        exc_info=error,
        extra=extras("completer_missing", record_id=record.pk, error=kind),
    )


def log_failure(record: IdempotencyRecord, error: Exception) -> None:
    """Log the error of a completer."""
    kind, attempt = error_classes(error), record.attempt + 1
    logger.error(
        "A completer failed: record %s, attempt %d: %s",
        record.pk,
        attempt,
        kind,
        exc_info=error,
        extra=extras(
            "completer_failed", record_id=record.pk, attempt=attempt, error=kind
        ),
    )


class _Completion:
    """One run without a request."""

    def __init__(self, record: IdempotencyRecord, lease: timedelta | None) -> None:
        self.alias = record._state.db or default_alias()
        self.claims = claims_in(self.alias)
        self.leases = Leases(self.claims)
        self.endpoint = endpoint_of(record)
        policy = Policy() if self.endpoint is None else self.endpoint.policy
        self.lease = lease or policy.lease
        if is_in_transaction(self.claims.connection):
            raise ImproperlyConfigured(
                "An abandoned run can't be completed inside a transaction: its claim "
                "must be committed first."
            )
        found = self.leases.look_up(record.pk)
        if (
            found is None
            or found.token != record.token
            or found.status is not Status.ABANDONED
            or found.expires_at <= found.read_at
            or (found.steps is None and not found.unreadable)
        ):
            raise RecordChanged(record.pk)
        if found.unreadable:
            raise Unreadable(found.unreadable)
        if found.call_in_doubt is not None:
            raise OutcomeUnknown
        self.abandoned = found

    def run(self, function: Completer) -> HttpResponseBase:
        """Claim the record, run the function, and store the response."""
        claimed = copy(self.abandoned)
        claimed.token, claimed.attempt = uuid4(), claimed.attempt + 1
        claimed.state = State.IN_PROGRESS
        if claimed.encrypted_by is None:
            claimed.encrypted_by = first_key_id()
        if not self._take_over(claimed):
            found = self.leases.look_up(claimed.pk)
            is_held = found is not None and found.token == self.abandoned.token
            raise (RecordHeld if is_held else RecordChanged)(claimed.pk)
        context = self._context(claimed)
        self.claims.executing[claimed.pk] = claimed
        self._emit(signals.key_claimed, signals.KeyClaimed, claimed)
        try:
            return self._run(function, context, claimed)
        finally:
            self.claims.executing.pop(claimed.pk, None)

    def _take_over(self, claimed: IdempotencyRecord) -> bool:
        try:
            return self.leases.take_over(self.abandoned, claimed, self.lease)
        except DatabaseError as error:
            if self.claims.is_busy(error):
                return False
            raise

    def _context(self, claimed: IdempotencyRecord) -> RequestContext:
        context = RequestContext(
            key=claimed.key,
            scope=claimed.scope,
            record_id=claimed.pk,
            attempt=claimed.attempt,
            payload=from_text(claimed.steps)[0],
            executing=True,
            has_side_effects=True,
            policy=Policy(atomic=False, on_abandoned="resume", lease=self.lease),
        )
        context.renew_claim = lambda lease: self._write(
            lambda: self.leases.renew(claimed, lease or self.lease)
        )
        context.steps = RecordedSteps(
            claimed,
            leases=self.leases,
            alias=self.alias,
            lease=self.lease,
            derive=context.derive,
            finish=self._finish,
        )
        return context

    def _run(
        self, function: Completer, context: RequestContext, claimed: IdempotencyRecord
    ) -> HttpResponseBase:
        steps: Any = context.steps
        stored = None
        try:
            response = function(context)
            if steps.response is None:
                response, stored = self._finish(response)
            if stored is not None:
                steps.forget_results()
                self._write(partial(self.leases.complete, claimed, stored))
        except ClaimLost:
            raise
        except BaseException:
            if steps.response is None:
                self._give_up(claimed)
            raise
        if steps.response is None and stored is None:
            self._abandon(claimed, response.status_code)
            return response
        if steps.skipped:
            names = tuple(steps.skipped)
            self._emit(
                signals.steps_skipped, signals.StepsSkipped, claimed, names=names
            )
        self._emit(
            signals.response_stored,
            signals.ResponseStored,
            claimed,
            status_code=claimed.status_code,
            body_size=claimed.body_size,
        )
        return response if steps.response is None else steps.response

    def _write(self, write: Callable[[], None]) -> None:
        refuse_left_open(self.claims.connection)
        write()

    def _give_up(self, claimed: IdempotencyRecord) -> None:
        """Abandon the record after a failure, which is raised in any case."""
        try:
            self._abandon(claimed, None)
        except ClaimLost:
            pass  # another run has it
        except (Error, RuntimeError) as error:
            log_not_given_up(claimed, error)

    def _abandon(self, claimed: IdempotencyRecord, status_code: int | None) -> None:
        self._write(lambda: self.leases.abandon(claimed))
        self._emit(
            signals.key_abandoned,
            signals.KeyAbandoned,
            claimed,
            status_code=status_code,
        )

    def _finish(
        self, response: HttpResponseBase
    ) -> tuple[HttpResponseBase, StoredResponse | None]:
        """Render a response, and return what to store of it, unless it is an error."""
        unrendered: Any = response
        if not getattr(response, "is_rendered", True):
            if getattr(response, "accepted_renderer", None) is None:
                renderer = self._renderer()
                unrendered.accepted_renderer = renderer
                unrendered.accepted_media_type = renderer.media_type
                # The members that Django REST framework gives to renderers.
                unrendered.renderer_context = {
                    "view": None,
                    "args": (),
                    "kwargs": {},
                    "request": None,
                    "response": response,
                }
            unrendered.render()
        if response.status_code >= 500:
            return response, None
        return response, StoredResponse.from_http(response, keep=True)

    def _renderer(self) -> Any:
        """Return the endpoint's first renderer: no client has said what it accepts."""
        parts = None if self.endpoint is None else parts_of(self.endpoint.callback)
        renderers = getattr(
            None if parts is None else parts.cls,
            "renderer_classes",
            api_settings.DEFAULT_RENDERER_CLASSES,
        )
        renderer: Any = renderers[0]
        return renderer()

    def _emit(
        self,
        signal: signals.LoggedSignal,
        kind: type[signals.RequestDetails],
        claimed: IdempotencyRecord,
        **more: Any,
    ) -> None:
        if signal.is_heard:
            details = kind(
                view="idempotency.completing.resume",
                action=None,
                method=claimed.method,
                mode="leased",
                record_id=claimed.pk,
                attempt=claimed.attempt,
                **more,
            )
            signal.emit(IdempotencyRecord, details)
