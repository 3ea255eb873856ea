"""The object at ``request.idempotency``."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

from idempotency.client_warnings import ClientWarning
from idempotency.conf import get_secret
from idempotency.conf.policy import Policy
from idempotency.discretion import discreet
from idempotency.models import default_alias
from idempotency.steps import JSON, CallResult, StepResult, Steps

if TYPE_CHECKING:
    from django.http import HttpResponseBase
    from rest_framework.request import Request

    from idempotency.models import IdempotencyRecord


# Never changes, like the rest of derive_key(): a retry after an upgrade would otherwise
# reach the provider under another key. tests/test_derivation.py has test vectors.
DERIVATION_VERSION = b"idempotency derive 1"


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """What a handler can learn about its idempotency key, and do about it.

    Every protected handler has one, with or without a key. ``attempt`` counts the runs
    of the record, from 1. ``executing`` is true until the response is decided.
    """

    key: str | None = field(default=None, repr=False)
    scope: str | None = field(default=None, repr=False)
    record_id: UUID | None = None
    attempt: int | None = None
    warnings: tuple[ClientWarning, ...] = ()
    executing: bool = False
    # The request that the handler runs for.
    request: Request | None = field(default=None, repr=False)
    # The digest that stands for the payload in derived keys.
    payload: str = field(default="", repr=False)
    # For leased mode.
    renew_claim: Callable[[timedelta | None], None] | None = None
    has_side_effects: bool = False
    is_released: bool = False
    policy: Policy = field(default_factory=Policy, repr=False)
    steps: Steps | None = field(default=None, repr=False)
    # Responds to a failed COMMIT of the transaction around the handler (E4).
    at_commit: Callable[[Exception], HttpResponseBase | None] | None = field(
        default=None, repr=False
    )
    _fresh: dict[str, str] = field(default_factory=dict, repr=False)

    @discreet
    def derive(self, name: str) -> str:
        """Return an idempotency key for an external call, as the text of a UUID (E10).

        It is the same in every run with the same scope, key and payload, and differs by
        ``name``. It depends on the setting DERIVATION_SECRET, or else on SECRET_KEY.
        Without an idempotency key it is random, and stays for this request.

        In leased mode this call also means that the handler is about to act: a later
        error leaves the outcome unknown (E9), unless the handler calls ``release()``.
        """
        if self.key is None or self.scope is None:
            return self._fresh.setdefault(name, str(uuid4()))
        self.has_side_effects = True
        return derive_key(get_secret(), self.scope, self.key, self.payload, name)

    @discreet
    def renew(self, lease: timedelta | None = None) -> None:
        """Extend the claim by ``lease``, or by the option's value (E8).

        Call it before each long external call. Like ``derive()``, it means that the
        handler is about to act. Without a key it does nothing.

        Raise ``ClaimLost`` if another request has taken over the key, ``ValueError``
        for a lease that is not positive, and ``RuntimeError`` in atomic mode or inside
        a transaction, which would hide the new lease and could roll it back.
        """
        if lease is not None and lease <= timedelta(0):
            raise ValueError(f"A lease must be positive, not {lease!r}.")
        if self.key is not None:
            self.has_side_effects = True
            self._leased("renew")(lease)

    def step(self, name: str, function: Callable[[], StepResult]) -> StepResult:
        """Run a function once per key, in a transaction of its own (E12).

        Its writes are committed together with what it returns, which must be JSON. A
        later run with the key gets the result, read back from JSON, and does not run
        the function. If it returns a response below 500, the response is stored in the
        same transaction, and the run ends: return it from the handler.

        Without a key, and in atomic mode, nothing is recorded (E14).

        Raise ``ClaimLost`` if another request has taken over the key,
        ``TransactionFailed`` for a deadlock or the like, ``TypeError`` for a result
        that is not JSON, ``ValueError`` for a name that does not have 1 to 100
        characters or has a NUL or lone surrogate, and ``RuntimeError`` inside a
        transaction, for a name that was used, and in leased mode without
        ``on_abandoned="resume"``.
        """
        result: StepResult = self._steps("step").step(name, function)
        return result

    def call(
        self,
        name: str,
        function: Callable[[str], CallResult],
        on_abandoned: Literal["rerun", "hold"]
        | Callable[[str, IdempotencyRecord], JSON] = "rerun",
    ) -> CallResult:
        """Call something outside with the key ``derive(name)``, and record the result.

        ``on_abandoned`` is for the next run, if this one ends before the result is
        recorded (E13): ``"rerun"`` calls again with the same key. ``"hold"`` refuses it
        until a person says how the call ended. A callable takes the key and the record
        and returns the result, or None to call.

        Raise what the function raises, and the errors of ``step()``.
        """
        steps = self._steps("call")
        self.has_side_effects = True
        result: CallResult = steps.call(name, function, on_abandoned)
        return result

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The results of the recorded steps and calls by name.

        Raise ``RuntimeError`` in leased mode without ``on_abandoned="resume"``.
        """
        return self._steps("recorded").recorded

    def _steps(self, name: str) -> Steps:
        if self.steps is None:
            policy = self.policy
            if not policy.atomic and policy.on_abandoned != "resume":
                raise RuntimeError(
                    f'request.idempotency.{name} needs on_abandoned="resume" in leased '
                    f"mode. This endpoint has {policy.on_abandoned!r}."
                )
            alias = policy.using or default_alias()
            self.steps = Steps(alias, self.derive, is_durable=not policy.atomic)
        return self.steps

    def release(self) -> None:
        """Declare that the handler has caused no external effect (E9).

        The response is then not stored, and a retry runs the handler. Without a key
        this does nothing. Raise ``RuntimeError`` in atomic mode, and after a recorded
        step.
        """
        if self.key is not None:
            self._leased("release")
            if self.steps is not None and self.steps.entries:
                raise RuntimeError(
                    "request.idempotency.release() comes too late: a step is recorded."
                )
            self.is_released = True

    def _leased(self, method: str) -> Callable[[timedelta | None], None]:
        if self.renew_claim is None:
            raise RuntimeError(
                f"request.idempotency.{method}() needs leased mode (atomic=False). "
                "This endpoint is in atomic mode."
            )
        return self.renew_claim


def context_of(request: Request) -> RequestContext:
    """Return ``request.idempotency`` with its type.

    Raise ``AttributeError`` if the request's handler is not protected.
    """
    return request.idempotency  # type: ignore[attr-defined, no-any-return]


def derive_key(secret: bytes, scope: str, key: str, payload: str, name: str) -> str:
    """Return a derived key: HMAC-SHA256 (RFC 2104) over the length-prefixed parts.

    The first 128 bits form a UUID of version 8 (RFC 9562 section 5.8). ``payload`` is a
    fingerprint's digest.
    """
    parts = DERIVATION_VERSION, *map(str.encode, (scope, key, payload, name))
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    octets = bytearray(hmac.digest(secret, message, hashlib.sha256)[:16])
    octets[6] = octets[6] & 0x0F | 0x80
    octets[8] = octets[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(octets)))
