"""The decision table: what a protected request becomes (contract E, O and R)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponseBase
from django.utils.http import http_date

from idempotency import keys, scopes
from idempotency.client_warnings import KEY_IGNORED, KEY_WEAK, key_misspelled
from idempotency.conf import get_settings
from idempotency.context import RequestContext
from idempotency.discretion import discreet
from idempotency.exceptions import (
    IdempotencyError,
    InProgress,
    KeyRequired,
    KeyReused,
    ResponseNotKept,
)
from idempotency.finalizing import ResponseFinalizer, finalizer_of
from idempotency.fingerprints import (
    VERSIONS,
    Fingerprint,
    custom_fingerprint,
    derivation_payload,
    fingerprint_in,
)
from idempotency.hooks import check_replay_by, hooks_of, scope_of
from idempotency.models import (
    IdempotencyRecord,
    NextAnswer,
    State,
    default_alias,
    record_id,
)
from idempotency.modes import AtomicMode, LeasedMode
from idempotency.modes.base import Fate, Handler, Outcome, is_failure
from idempotency.policy import Options, Policy
from idempotency.replays import replay
from idempotency.reporting import Reporter
from idempotency.responses import EXPIRES_HEADER, REPLAYED_HEADER

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

FIRST_PAUSE = 0.01
LONGEST_PAUSE = 0.2

ONE_AFTER_ANOTHER = """\
One request was handed to two protected handlers, one after the other. It has one \
idempotency key, so the second one would get the first one's answer and never run. \
Protect the handler that calls both: then they are protected with it, as one."""


@discreet
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
    if outer is not None and outer.key is not None and outer.request is request:
        raise ImproperlyConfigured(ONE_AFTER_ANOTHER)
    enabled = get_settings().ENABLED
    policy = get_settings().policy.with_options(options)
    if enabled and request.method not in policy.methods:
        ignore_key(view, request)
        return handler()
    context = RequestContext(executing=True, request=request)
    http_request.idempotency = context
    try:
        key = keys.find_key(request.META) if enabled else None
        if key is not None:
            return Execution(view, request, handler, policy, key, context).run()
        if enabled:
            warn_of_near_miss(view, request, context)
            if policy.required:
                raise KeyRequired
        return handler()
    except IdempotencyError as refusal:
        Reporter(view, request, policy, context).refused(refusal)
        finalizer_of(view, request, context).refuse(refusal)
        raise
    finally:
        context.executing = False


def ignore_key(view: APIView, request: Request, *, acts: bool = True) -> None:
    """Let a request of another method run as always, its key warned about (K5).

    Nobody is warned where nothing can act: of OPTIONS, or where no handler answers.
    """
    http_request: Any = request._request
    outer = getattr(http_request, "idempotency", None)
    if outer is not None and outer.executing:
        return  # it is the outer handler's key, and not ignored (E6)
    context = http_request.idempotency = RequestContext()
    in_query, in_header = keys.find_raw(request.META)
    acts = acts and request.method != "OPTIONS"
    if acts and (in_query or in_header is not None):
        context.warnings = (KEY_IGNORED,)
        ResponseFinalizer(
            view, request, hooks_of(view), context, warn_in_body=bool(in_query)
        )


def warn_of_near_miss(view: APIView, request: Request, context: RequestContext) -> None:
    """Tell a client that misspelled its key's name that it sent no key (K1)."""
    place = keys.find_near_miss(request.META)
    if place is None:
        return
    context.warnings = (key_misspelled(place),)
    # Another protected handler of the view may have had the request before (E6).
    if not isinstance(view.finalize_response, ResponseFinalizer):
        in_body = place == "query"
        ResponseFinalizer(view, request, hooks_of(view), context, warn_in_body=in_body)


# The database writes them (P1).
NO_TIMES: Any = {"created_at": None, "expires_at": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes two requests one: scope and key (S1), and what was asked (F1)."""

    request: Request = field(repr=False)
    scope: str = field(repr=False)
    key: str = field(repr=False)
    record_id: UUID
    fingerprint: Fingerprint

    def is_that_of(self, record: IdempotencyRecord) -> bool:
        """Compare with a record, in the record's own fingerprint version (F4)."""
        mine = self.fingerprint
        if record.fingerprint_version != mine.version:
            if record.fingerprint_version not in VERSIONS:
                return False
            mine = fingerprint_in(self.request, record.fingerprint_version)
        return (record.scope, record.key, record.fingerprint) == (
            self.scope,
            self.key,
            mine.digest,
        )

    def new_record(self) -> IdempotencyRecord:
        """Return the record of a claim that is to be won, as yet without times."""
        return IdempotencyRecord(
            id=self.record_id,
            scope=self.scope,
            key=self.key,
            method=self.request.method or "",
            # PostgreSQL has no NUL in text.
            path=self.request.path.replace("\0", "%00"),
            fingerprint=self.fingerprint.digest,
            fingerprint_version=self.fingerprint.version,
            state=State.IN_PROGRESS,
            attempt=1,
            token=uuid4(),
            # Said, since Django asks each field for a default otherwise.
            lease_expires_at=None,
            status_code=None,
            headers=None,
            body=None,
            body_size=None,
            completed_at=None,
            **NO_TIMES,
        )


class Execution:
    """One keyed request."""

    # Whether it runs under the claim of the request that has sent it.
    is_within = False

    def __init__(
        self,
        view: APIView,
        request: Request,
        handler: Handler,
        policy: Policy,
        key: keys.ClientKey,
        context: RequestContext,
    ) -> None:
        self.view = view
        self.request = request
        self.handler = handler
        self.policy = policy
        self.context = context
        self.key = context.key = key.value
        self.hooks = hooks_of(view)
        self.finalizer = ResponseFinalizer(
            view, request, self.hooks, self.context, warn_in_body=key.in_query
        )
        self.reporter = Reporter(view, request, policy, context)
        self.mode = (AtomicMode if policy.atomic else LeasedMode)(
            request=request,
            handler=handler,
            policy=policy,
            context=context,
            hooks=self.hooks,
            finalizer=self.finalizer,
            reporter=self.reporter,
            alias=policy.using or default_alias(),
        )

    def run(self) -> HttpResponseBase:
        """Answer, or raise what DRF is to answer; tell what became of the key."""
        answer: Outcome | BaseException | None = None
        try:
            answer = self._answer()
        except BaseException as error:
            answer = error
            if (
                isinstance(error, Exception)
                and is_failure(error)
                and self.mode.is_undone
                and not self.is_within
            ):
                self.finalizer.refuse_success()
            raise
        finally:
            if self.mode.claimed is not None:
                self.mode.claims.executing.pop(self.mode.claimed.pk, None)
            self._report(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(self) -> Outcome:
        """Claim the key, or answer from its record; wait where the policy says so."""
        self.identity = self._identify()
        if self.mode.claims.executing and self._is_part_of_executed():
            self.is_within = True
            return self.handler()
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
        return answer

    def _is_part_of_executed(self) -> bool:
        """Tell whether the handler of this very key has sent another request with it.

        A batch does, whose parts have its own headers (E6).
        """
        fingerprint = self.mode.claims.executing.get(self.identity.record_id)
        return fingerprint not in (None, self.identity.fingerprint.digest)

    def _report(self, answer: object) -> None:
        record, fate = self.mode.claimed, self.mode.fate
        status_code = getattr(answer, "status_code", None)
        if record is not None and fate is Fate.STORED:
            self.reporter.stored(record, self.mode.alias)
        elif fate is Fate.RELEASED:
            self.reporter.released(status_code)
        elif fate is Fate.ABANDONED:
            self.reporter.abandoned(status_code)

    def _identify(self) -> Identity:
        """Find out whose key it is (S1), and for what (F1)."""
        # Neither scope nor key in a variable: a hook may report errors of its own, with
        # all frames around it (X1).
        context = self.context
        context.scope = scopes.validate_scope(scope_of(self.request, self.policy.scope))
        if context.scope == scopes.ANONYMOUS:
            scopes.admit_stranger(self.key)
        elif keys.is_weak(self.key):
            context.warnings = (KEY_WEAK,)
        context.record_id = record_id(context.scope, self.key)
        fingerprint = custom_fingerprint(
            self.hooks.get_idempotency_fingerprint(self.request)
        )
        context.payload = derivation_payload(self.request, fingerprint)
        return Identity(
            request=self.request,
            scope=context.scope,
            key=self.key,
            record_id=context.record_id,
            fingerprint=fingerprint,
        )

    def _attempt(self) -> Outcome | None:
        """Return the answer, the handler's refusal, or None: in progress elsewhere."""
        wanted = self.identity.new_record()
        record, outcome = self.mode.run(wanted)
        if record is not None and outcome is None:
            self.context.attempt = record.attempt
            if not self.identity.is_that_of(record):
                raise KeyReused
            answer = record.next_answer
            if answer is NextAnswer.IN_PROGRESS:
                return None
            if answer is not NextAnswer.UNKNOWN:
                return self._replay(record)
            record, outcome = self.mode.recover(record, wanted)
        if record is not None and self.mode.fate is Fate.STORED:
            self._name_expiry(record)
        return outcome

    def _replay(self, record: IdempotencyRecord) -> HttpResponseBase:
        """Answer from a completed record, or say that its answer was not kept (R4)."""
        check = self.policy.check_replay
        if check is not None:
            check_replay_by(check, self.view, self.request, record)
        self.hooks.check_replay(self.request, record)
        self._name_expiry(record)
        stored: Any = record.stored_response
        if stored.body is None:
            self.finalizer.headers.update(dict(stored.headers))
            raise ResponseNotKept(
                ResponseNotKept.default_detail.format(status_code=stored.status_code)
            )
        self.finalizer.headers[REPLAYED_HEADER] = "true"
        self.reporter.replayed(record)
        again = replay(stored, self.view, self.request)
        return self.finalizer.let_pass(again)

    def _name_expiry(self, record: IdempotencyRecord) -> None:
        expires_at = record.expires_at.timestamp()
        self.finalizer.headers[EXPIRES_HEADER] = http_date(expires_at)
