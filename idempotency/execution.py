"""The decision table: what a protected request becomes (contract E, O and R)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, Error, connections, router, transaction
from django.http import Http404, HttpResponseBase
from django.utils import timezone
from django.utils.http import http_date
from rest_framework.exceptions import APIException

from idempotency import keys, scopes
from idempotency.claims import ClaimLost, claims_in
from idempotency.client_warnings import KEY_IGNORED, KEY_WEAK
from idempotency.conf import get_settings
from idempotency.context import RequestContext
from idempotency.exceptions import (
    IdempotencyError,
    InProgress,
    KeyRequired,
    KeyReused,
    KeyWeak,
    OutcomeUnknown,
    ResponseNotKept,
    TransactionFailed,
)
from idempotency.fingerprints import custom_fingerprint
from idempotency.finishing import Finisher
from idempotency.hooks import hooks_of, scope_of
from idempotency.identity import Identity
from idempotency.models import IdempotencyRecord, State, record_id
from idempotency.policy import Options, Policy
from idempotency.responses import EXPIRES_HEADER, REPLAYED_HEADER, StoredResponse

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

logger = logging.getLogger("idempotency")

Handler = Callable[[], HttpResponseBase]

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.2


def execute(
    view: APIView, request: Request, handler: Handler, options: Options
) -> HttpResponseBase:
    """Run the handler of a protected request, or answer for it.

    Raises the refusals of ``idempotency.exceptions`` and whatever the handler raises.
    """
    http_request: Any = request._request
    outer = getattr(http_request, "idempotency", None)
    if outer is not None and outer.executing:
        return handler()  # E6: protected once, by the outer one
    enabled = get_settings().ENABLED
    if enabled:
        policy = Policy.resolve(options)
        if request.method not in policy.methods:
            ignore_key(view, request)
            return handler()
    context = http_request.idempotency = RequestContext(executing=True)
    try:
        key = keys.find_key(request.META) if enabled else None
        if key is not None:
            return Execution(view, request, handler, policy, key, context).run()
        if enabled and policy.required:
            raise KeyRequired
        return handler()
    finally:
        context.executing = False


def ignore_key(view: APIView, request: Request) -> None:
    """Let a request of another method run as always, its key warned about (K5)."""
    context = RequestContext()
    request._request.idempotency = context  # type: ignore[attr-defined]  # by this app
    in_query, in_header = keys.find_raw(request.META)
    if in_query or in_header is not None:
        context.warnings = (KEY_IGNORED,)
        Finisher(view, request, hooks_of(view), context, warn_in_body=bool(in_query))


class Execution:
    """One keyed request."""

    def __init__(
        self,
        view: APIView,
        request: Request,
        handler: Handler,
        policy: Policy,
        key: keys.ClientKey,
        context: RequestContext,
    ) -> None:
        self.request = request
        self.handler = handler
        self.policy = policy
        self.context = context
        self.key = context.key = key.value
        self.hooks = hooks_of(view)
        self.finisher = Finisher(
            view, request, self.hooks, self.context, warn_in_body=key.in_query
        )
        self.alias = policy.using or router.db_for_write(IdempotencyRecord)
        # The stubs do not know rollback_exc.
        self.connection: Any = connections[self.alias]
        self.claims = claims_in(self.alias)

    def run(self) -> HttpResponseBase:
        """Claim the key, or answer from its record; wait where the policy says so."""
        try:
            self.identity = self._identify()
            give_up_at = time.monotonic()
            if self.policy.on_concurrent == "wait":
                give_up_at += self.policy.wait_timeout.total_seconds()
            pause = FIRST_PAUSE
            while (answer := self._attempt()) is None:
                left = give_up_at - time.monotonic()
                if left <= 0:
                    raise InProgress
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE)
        except IdempotencyError as refusal:
            if refusal.wait is not None:
                # DRF's exception handler says so too; a project's own may not.
                self.finisher.headers["Retry-After"] = str(refusal.wait)
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _identify(self) -> Identity:
        """Find out whose key it is (S1), and for what (F1)."""
        context, key = self.context, self.key
        if self.policy.scope is not None:
            scope = scope_of(self.request, self.policy.scope)
        else:
            scope = self.hooks.get_idempotency_scope(self.request)
        context.scope = scopes.validate_scope(scope)
        if keys.is_weak(key):
            if scope == scopes.ANONYMOUS:
                raise KeyWeak
            context.warnings = (KEY_WEAK,)
        context.record_id = record_id(scope, key)
        fingerprint = self.hooks.get_idempotency_fingerprint(self.request)
        return Identity(
            request=self.request,
            scope=scope,
            key=key,
            record_id=context.record_id,
            fingerprint=custom_fingerprint(fingerprint),
        )

    def _attempt(self) -> HttpResponseBase | Exception | None:
        """Return the answer, the handler's refusal, or None: in progress elsewhere."""
        now = timezone.now()
        wanted = self.identity.new_record(now, self.policy.retention)
        record = seen = None
        outcome: HttpResponseBase | Exception | None = None
        # ATOMIC_REQUESTS has opened the transaction: a savepoint would add nothing.
        joins = (
            self.connection.in_atomic_block
            and self.connection.settings_dict["ATOMIC_REQUESTS"]
        )
        try:
            if self.claims.looks_up_first:
                seen = self.claims.look_up(wanted.pk)
            if seen is not None and not seen.is_expired(now):
                record = seen
            else:
                with transaction.atomic(using=self.alias, savepoint=not joins):
                    record = self.claims.claim(wanted, now, seen)
                    if record is not None and record.token == wanted.token:
                        outcome = self._run_handler(record)
        except DatabaseError as error:
            if record is None and self.claims.is_busy(error):
                if joins:
                    # That statement alone was undone: the transaction is as it was.
                    transaction.set_rollback(False, using=self.alias)
                return None
            if self.claims.is_transient(error) and not self._is_committed(wanted):
                raise TransactionFailed from error
            raise
        if record is None:
            return None
        if outcome is None:
            return self._answer_from(record)
        if record.state == State.COMPLETED:
            self._name_expiry(record)
        return outcome

    def _is_committed(self, wanted: IdempotencyRecord) -> bool:
        """Tell whether an error came from an on_commit hook, after the COMMIT (O5)."""
        if self.connection.in_atomic_block:
            return False
        found = self.claims.look_up(wanted.pk)
        return found is not None and found.token == wanted.token

    def _run_handler(
        self, claimed: IdempotencyRecord
    ) -> HttpResponseBase | Exception | None:
        """Run the handler under its claim; decide what becomes of both (O1 to O4)."""
        self.context.attempt = claimed.attempt
        earlier_error = self.connection.rollback_exc
        try:
            response = self.finisher.finish(self.handler())
        except (APIException, Http404, PermissionDenied) as refusal:
            if getattr(refusal, "status_code", 0) >= 500:
                raise
            self._release(claimed)
            return refusal
        status_code = response.status_code
        if status_code >= 500:
            transaction.set_rollback(True, using=self.alias)
        elif self.connection.needs_rollback:
            # The handler wants it (E2), or its effects were lost, and a success would
            # be a lie.
            if status_code < 400 and (loss := self._find_loss(claimed, earlier_error)):
                self._undo_because_of(loss)
        elif status_code in self.policy.released_statuses:
            self._release(claimed)
        else:
            self._complete(claimed, response)
        return response

    def _find_loss(
        self, claimed: IdempotencyRecord, earlier_error: Exception | None
    ) -> Exception | None:
        """Return what took the handler's effects, or None: it wanted them undone."""
        last_error: Exception | None = self.connection.rollback_exc
        if last_error is not earlier_error:
            return last_error  # caught without a savepoint
        # A savepoint can be lost too, with its connection or, on MariaDB, in a
        # deadlock. Where the claim still is, there the effects are.
        transaction.set_rollback(False, using=self.alias)
        try:
            found = self.claims.look_up(claimed.pk)
        except Error as error:
            return error
        finally:
            transaction.set_rollback(True, using=self.alias)
        is_there = found is not None and found.token == claimed.token
        return None if is_there else ClaimLost()

    def _complete(self, claimed: IdempotencyRecord, response: HttpResponseBase) -> None:
        keep = self.hooks.should_store_response(response)
        stored = StoredResponse.from_http(response, keep=keep)
        try:
            self.claims.complete(claimed, stored)
        except (ClaimLost, Error) as error:
            self._undo_because_of(error)

    def _undo_because_of(self, error: Exception | None) -> NoReturn:
        logger.error(
            "An answer could not be stored with its effects, and all was undone. "
            "Handlers that catch database errors need a savepoint. Record %s, %s %s",
            self.identity.record_id,
            self.request.method,
            self.request.path,
            exc_info=error,
        )
        raise TransactionFailed from error  # E4, E5

    def _release(self, claimed: IdempotencyRecord) -> None:
        if self.connection.needs_rollback:
            return  # the claim goes with everything else
        try:
            self.claims.release(claimed)
        except ClaimLost as error:
            raise TransactionFailed from error  # E5
        except DatabaseError as error:
            if not self.claims.is_aborted(error):
                raise
            # The handler made a refusal of a database error: nothing can be kept.
            transaction.set_rollback(True, using=self.alias)

    def _answer_from(self, record: IdempotencyRecord) -> HttpResponseBase:
        """Answer from a record in force: replay it, or say why not (F4, E5, R4)."""
        self.context.attempt = record.attempt
        if not self.identity.is_that_of(record):
            raise KeyReused
        stored = record.stored_response
        if stored is None:
            raise OutcomeUnknown
        self.hooks.check_replay(self.request, record)
        self._name_expiry(record)
        if stored.body is None:
            self.finisher.headers.update(dict(stored.headers))
            raise ResponseNotKept(
                ResponseNotKept.default_detail.format(status_code=stored.status_code)
            )
        self.finisher.headers[REPLAYED_HEADER] = "true"
        return self.finisher.let_pass(stored.to_http())

    def _name_expiry(self, record: IdempotencyRecord) -> None:
        expires_at = record.expires_at.timestamp()
        self.finisher.headers[EXPIRES_HEADER] = http_date(expires_at)
