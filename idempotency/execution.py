"""Decide what happens to a protected request (contract E, O and R)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, OperationalError
from django.http import HttpRequest, HttpResponseBase
from django.utils.http import http_date

from idempotency import keys, scopes
from idempotency.client_warnings import KEY_IGNORED, KEY_WEAK, key_misspelled
from idempotency.conf import get_settings
from idempotency.conf.policy import Options, Policy
from idempotency.context import RequestContext
from idempotency.database_errors import is_unavailable
from idempotency.discretion import discreet
from idempotency.encryption import Unreadable, first_key_id
from idempotency.exceptions import (
    IdempotencyError,
    InProgress,
    KeyRequired,
    KeyReused,
    OutcomeUnknown,
    ResponseNotKept,
    TransactionFailed,
)
from idempotency.finalizing import ResponseFinalizer, finalizer_of
from idempotency.fingerprints import (
    KEYED,
    VERSIONS,
    Fingerprint,
    custom_fingerprint,
    derivation_payload,
    fingerprint_in,
    keyed,
)
from idempotency.keyed_request import (
    Handler,
    KeyedRequest,
    PlainView,
    http_request_of,
)
from idempotency.models import (
    IdempotencyRecord,
    State,
    Status,
    default_alias,
    record_id,
)
from idempotency.modes import AtomicMode, LeasedMode
from idempotency.modes.base import Busy, Fate, InForce, Ran
from idempotency.modes.reporting import Reporter, log_unreadable
from idempotency.modes.stray_writes import with_stray_writes_reported
from idempotency.responses import EXPIRES_HEADER, REPLAYED_HEADER, replay
from idempotency.routes import route_in

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.2

ONE_AFTER_ANOTHER = """\
Two protected handlers got the same request, one after the other. With the same \
idempotency key, the second one would never run, and return the first one's response. \
Protect only the handler that calls both."""


@discreet
def execute(
    view: APIView, request: Request, handler: Handler, options: Options
) -> HttpResponseBase:
    """Run the handler of a protected request, or replay its response.

    Raise the refusals of ``idempotency.exceptions`` and any error of the handler.
    """
    http_request = http_request_of(request)
    outer = getattr(http_request, "idempotency", None)
    if outer is not None and outer.executing:
        return handler()  # protected by the outer handler (E6)
    if outer is not None and outer.key is not None and outer.request is request:
        raise ImproperlyConfigured(ONE_AFTER_ANOTHER)
    enabled = get_settings().ENABLED
    policy = get_settings().policy.with_options(options)
    if enabled and request.method not in policy.methods:
        ignore_key(view, request, using=policy.using)
        return handler()
    context = RequestContext(executing=True, request=request, policy=policy)
    http_request.idempotency = context
    keyed = KeyedRequest(view=view, request=request, policy=policy, context=context)
    handler = with_stray_writes_reported(handler, keyed)
    try:
        key = keys.find_key(request.META) if enabled else None
        if key is not None:
            return Execution(keyed, handler, key).run()
        if enabled:
            warn_of_near_miss(keyed)
            if policy.required:
                raise KeyRequired
        return handler()
    except IdempotencyError as refusal:
        _note_refusal(keyed, refusal)
        raise
    finally:
        context.executing = False


def execute_plain(
    request: HttpRequest, handler: Handler, options: Options, *, name: str, owner: Any
) -> HttpResponseBase:
    """Run the handler of a plain Django view, or replay its response.

    ``name`` is the handler's dotted name, and ``owner`` the instance of a class-based
    view, or None. Raise any error of the handler.
    """
    view: Any = PlainView(request, name, owner)

    def run() -> HttpResponseBase:
        response: Any = handler()
        if not isinstance(response, HttpResponseBase):
            raise ImproperlyConfigured(
                f"{name} must return an HttpResponse, not {type(response).__name__}. "
                "The app can't protect handlers of other frameworks."
            )
        return response

    plain: Any = request
    try:
        response = execute(view, plain, run, options)
    except Exception as error:  # noqa: BLE001  # raised again unless it is a refusal
        response = view.handle_exception(error)
    finished: HttpResponseBase = view.finalize_response(request, response)
    return finished


def respond(
    keyed: KeyedRequest, outcome: HttpResponseBase | Exception
) -> HttpResponseBase:
    """Return the view's response to an outcome outside of its ``dispatch``."""
    if isinstance(outcome, IdempotencyError):
        _note_refusal(keyed, outcome)
    return _respond_again(keyed, outcome)


def _respond_again(
    keyed: KeyedRequest, outcome: HttpResponseBase | Exception
) -> HttpResponseBase:
    view: Any = keyed.view
    if isinstance(outcome, Exception):
        outcome = view.handle_exception(outcome)
    finished: HttpResponseBase = view.finalize_response(
        keyed.request, outcome, *view.args, **view.kwargs
    )
    return finished


def _note_refusal(keyed: KeyedRequest, refusal: IdempotencyError) -> None:
    keyed.refusal = refusal
    Reporter(keyed).refused(refusal)
    finalizer_of(keyed).refuse(refusal)


def ignore_key(
    view: APIView, request: Request, *, acts: bool = True, using: str | None = None
) -> None:
    """Warn the client that its key has no effect with this method (K5).

    Don't warn if nothing can act: on OPTIONS, or without a handler. ``using`` is the
    option of that name, for steps.
    """
    http_request = http_request_of(request)
    outer = getattr(http_request, "idempotency", None)
    if outer is not None and outer.executing:
        return  # the key has an effect on the outer handler (E6)
    policy = Policy(using=using)
    context = http_request.idempotency = RequestContext(policy=policy)
    in_query, in_header = keys.find_raw(request.META)
    acts = acts and request.method != "OPTIONS"
    if acts and (in_query or in_header is not None):
        context.warnings = (KEY_IGNORED,)
        keyed = KeyedRequest(view=view, request=request, context=context)
        ResponseFinalizer(keyed, warn_in_body=bool(in_query))


def warn_of_near_miss(keyed: KeyedRequest) -> None:
    """Warn a client that misspelled the name of its key (K1)."""
    place = keys.find_near_miss(keyed.request.META)
    if place is not None:
        keyed.context.warnings = (key_misspelled(place),)
        finalizer_of(keyed, warn_in_body=place == "query")


# Passed explicitly, so that Django does not compute each default. The database sets the
# times (P1).
EMPTY: Any = dict.fromkeys(
    (
        *("created_at", "expires_at", "lease_expires_at", "completed_at"),
        *("status_code", "headers", "body", "body_size", "steps"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What identifies a request: scope and key (S1), and the fingerprint (F1)."""

    request: Request = field(repr=False)
    scope: str = field(repr=False)
    key: str = field(repr=False)
    record_id: UUID
    fingerprint: Fingerprint

    def is_that_of(self, record: IdempotencyRecord) -> bool:
        """Return whether a record is of the same request, in its own version (F4).

        Without the record's encryption key nobody can tell, and True means that it may
        be (P5).
        """
        # An erased record was found by its id, a digest of scope and key.
        theirs = record.scope, record.key
        if theirs != (self.scope, self.key) and not record.is_erased:
            return False
        mine, version = self.fingerprint, record.fingerprint_version
        is_keyed = version >= KEYED
        version -= KEYED * is_keyed
        if version != mine.version:
            if version not in VERSIONS:
                return False
            mine = fingerprint_in(self.request, version)
        if is_keyed:
            try:
                mine = keyed(mine, self.record_id, str(record.encrypted_by))
            except Unreadable:
                return True
        return record.fingerprint == mine.digest

    def new_record(self) -> IdempotencyRecord:
        """Return the record for a claim, without times."""
        fingerprint, encrypted_by = self.fingerprint, first_key_id()
        if encrypted_by is not None:
            fingerprint = keyed(fingerprint, self.record_id, encrypted_by)
        return IdempotencyRecord(
            id=self.record_id,
            scope=self.scope,
            key=self.key,
            method=self.request.method or "",
            # PostgreSQL can't store NUL in text.
            path=self.request.path.replace("\0", "%00"),
            # Not set for requests that the project dispatches by itself.
            route=route_in(http_request_of(self.request).resolver_match),
            fingerprint=fingerprint.digest,
            fingerprint_version=fingerprint.version,
            encrypted_by=encrypted_by,
            state=State.IN_PROGRESS,
            attempt=1,
            token=uuid4(),
            **EMPTY,
        )


class Execution:
    """The decisions about one request with a key."""

    # Whether an open transaction holds a response that the handler has returned.
    is_answered = False

    def __init__(
        self, keyed: KeyedRequest, handler: Handler, key: keys.ClientKey
    ) -> None:
        self.keyed = keyed
        self.handler = handler
        self.context = keyed.context
        self.key = keyed.context.key = key.value
        self.finalizer = ResponseFinalizer(keyed, warn_in_body=key.in_query)
        self.reporter = Reporter(keyed)
        self.mode = (AtomicMode if keyed.policy.atomic else LeasedMode)(
            keyed=keyed,
            handler=handler,
            finalizer=self.finalizer,
            reporter=self.reporter,
            alias=keyed.policy.using or default_alias(),
        )

    def run(self) -> HttpResponseBase:
        """Return the response, or raise the error for DRF to handle."""
        is_part = False
        try:
            self.identity = self._identify()
            is_part = self._is_part_of_executed()
            if is_part:
                return self.handler()
            result = self._wait_for_result()
        except Exception as error:
            if self.keyed.is_failure(error) and not is_part:
                self.finalizer.refuse_success()  # nothing has run
                self.mode.refuse_unavailable(error)
            raise
        finally:
            self.mode.leave()
            self.context.at_commit = None if is_part else self.end_at_commit
        return self._end(result) if isinstance(result, Ran) else result

    def _end(self, ran: Ran) -> HttpResponseBase:
        self.mode.report(ran)
        outcome: Any = ran.outcome
        if isinstance(outcome, TransactionFailed):
            replayed = self._replay_winner()
            if replayed is not None:
                return replayed
        if isinstance(outcome, BaseException):
            failed = isinstance(outcome, Exception) and self.keyed.is_failure(outcome)
            if failed and ran.is_undone:
                self.finalizer.refuse_success()
            raise outcome
        if ran.fate is Fate.STORED:
            self.is_answered = self.mode.is_nested
            self._name_expiry(ran.record)
        response: HttpResponseBase = outcome
        return response

    @discreet
    def end_at_commit(self, error: Exception) -> HttpResponseBase | None:
        """Return the response if an outer transaction's end failed (E4), or None.

        A COMMIT that undid all of the request may be retried. A refusal of the app
        stays, even if the connection that is to be rolled back is lost.
        """
        mode, keyed = self.mode, self.keyed
        if not isinstance(error, DatabaseError) or mode.is_committed:
            return None
        if keyed.refusal is not None and is_unavailable(error):
            return _respond_again(keyed, keyed.refusal)
        if not mode.is_nested or not mode.claims.is_transient(error):
            if self.is_answered and isinstance(error, OperationalError):
                self.reporter.in_doubt(error)
            return None
        self.finalizer.start_over()
        outcome: HttpResponseBase | Exception | None
        try:
            outcome = self._replay_winner()
        except Exception as refusal:  # noqa: BLE001  # check_replay may raise any
            outcome = refusal
        if outcome is None:
            self.finalizer.refuse_success()
            outcome = self.reporter.blamed(TransactionFailed(), error)
        return respond(keyed, outcome)

    def _replay_winner(self) -> HttpResponseBase | None:
        """Replay what another request has committed while this one failed (E4)."""
        if self.mode.connection.in_atomic_block:
            return None
        record = self.mode.look_up_again(self.identity.record_id)
        if (
            record is None
            or record.state != State.COMPLETED
            or not self.identity.is_that_of(record)
        ):
            return None
        return self._replay(record)

    def _is_part_of_executed(self) -> bool:
        """Return whether the handler of this key has sent this other request with it.

        Batches do, because their parts have the batch's headers (E6).
        """
        executing = self.mode.claims.executing
        if not executing:
            return False
        running = executing.get(self.identity.record_id)
        return running is not None and not self.identity.is_that_of(running)

    def _identify(self) -> Identity:
        """Find out the scope (S1) and the fingerprint (F1)."""
        # No variables for scope and key: error reports from within the hooks show the
        # variables of all frames (X1).
        context, request = self.context, self.keyed.request
        context.scope = self.keyed.scope()
        if context.scope == scopes.ANONYMOUS:
            scopes.admit_stranger(self.key)
        elif keys.is_weak(self.key):
            context.warnings = (KEY_WEAK,)
        context.record_id = record_id(context.scope, self.key)
        fingerprint = custom_fingerprint(
            self.keyed.hooks.get_idempotency_fingerprint(request)
        )
        context.payload = derivation_payload(request, fingerprint)
        return Identity(
            request=request,
            scope=context.scope,
            key=self.key,
            record_id=context.record_id,
            fingerprint=fingerprint,
        )

    def _wait_for_result(self) -> HttpResponseBase | Ran:
        """Claim the key or use its record; wait if the policy says so."""
        policy = self.keyed.policy
        give_up_at = time.monotonic()
        if policy.on_concurrent == "wait":
            give_up_at += policy.wait_timeout.total_seconds()
        pause = FIRST_PAUSE
        while isinstance(result := self._attempt(), Busy):
            left = give_up_at - time.monotonic()
            if left <= 0:
                raise InProgress
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
        return result

    def _attempt(self) -> HttpResponseBase | Ran | Busy:
        new_record = self.identity.new_record()
        result = self.mode.run(new_record)
        if not isinstance(result, InForce):
            return result
        record = result.record
        self.context.attempt = record.attempt
        if not self.identity.is_that_of(record):
            raise KeyReused
        status = record.status
        if status is Status.IN_PROGRESS:
            return Busy()
        if status is not Status.ABANDONED:
            return self._replay(record)
        if record.unreadable:
            log_unreadable(record, record.unreadable)
            raise OutcomeUnknown
        return self.mode.recover(record, new_record)

    def _replay(self, record: IdempotencyRecord) -> HttpResponseBase:
        """Replay a completed record, or refuse if its response was not kept (R4)."""
        if record.unreadable:
            log_unreadable(record, record.unreadable)
        if record.key:  # in an erased one, a hook would miss what it checks (P4)
            self.keyed.check_replay(record)
        self._name_expiry(record)
        stored: Any = record.stored_response
        if stored is None:
            raise ResponseNotKept(ResponseNotKept.unknown_detail)
        if stored.body is None:
            self.finalizer.headers.update(dict(stored.headers))
            raise ResponseNotKept(
                ResponseNotKept.default_detail.format(status_code=stored.status_code)
            )
        self.finalizer.headers[REPLAYED_HEADER] = "true"
        self.reporter.replayed(record)
        again = replay(stored, self.keyed.view, self.keyed.request)
        return self.finalizer.let_pass(again)

    def _name_expiry(self, record: IdempotencyRecord) -> None:
        expires_at = record.expires_at.timestamp()
        self.finalizer.headers[EXPIRES_HEADER] = http_date(expires_at)
