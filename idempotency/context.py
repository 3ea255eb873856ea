"""What ``request.idempotency`` is."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from idempotency.client_warnings import ClientWarning
from idempotency.conf import get_secret
from idempotency.discretion import discreet

if TYPE_CHECKING:
    from rest_framework.request import Request


# Part of every derivation: another construction would need another value here, and
# retries across the upgrade would then act downstream under another key. So there is
# none; tests/test_derivation.py has vectors.
DERIVATION_VERSION = b"idempotency derive 1"


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """What a handler can know about its own protection, and do about it.

    Present in every protected handler, key or not. ``attempt`` counts the executions
    of this record, from 1. ``executing`` is true until the answer is decided.
    """

    key: str | None = field(default=None, repr=False)
    scope: str | None = field(default=None, repr=False)
    record_id: UUID | None = None
    attempt: int | None = None
    warnings: tuple[ClientWarning, ...] = ()
    executing: bool = False
    # Whose handler has been executed under the key.
    request: Request | None = field(default=None, repr=False)
    # The fingerprint's digest that stands for the payload in derived keys.
    payload: str = field(default="", repr=False)
    # Leased mode's own: what renews the claim, and what the handler has said of itself.
    renew_claim: Callable[[timedelta | None], None] | None = None
    has_side_effects: bool = False
    is_released: bool = False
    _fresh: dict[str, str] = field(default_factory=dict, repr=False)

    @discreet
    def derive(self, name: str) -> str:
        """Return the key for a downstream call, a UUID in text (E10).

        It is the same in every run for the same scope, key and payload, also after a
        crash, and differs with ``name``. Nobody can guess it without the setting
        DERIVATION_SECRET, or SECRET_KEY where that is not set; a change of the secret
        changes it. Without an idempotency key it is a random one, kept for the request.

        In leased mode it also says that the handler is about to act outside: an error
        from here on leaves the outcome unknown (E9), unless ``release()`` is called.
        """
        if self.key is None or self.scope is None:
            return self._fresh.setdefault(name, str(uuid4()))
        self.has_side_effects = True
        return derive_key(get_secret(), self.scope, self.key, self.payload, name)

    @discreet
    def renew(self, lease: timedelta | None = None) -> None:
        """Let the claim hold for another ``lease``, the policy's by default (E8).

        Call it before each long step outside. Like ``derive()`` it says that the
        handler acts outside. Without a key there is no claim, and nothing happens.

        Raises ``ClaimLost`` where another request has the key by now, ``ValueError``
        for a lease that is not positive and ``RuntimeError`` in atomic mode, and inside
        a transaction of the handler's own: nobody would see the new lease, and it could
        be rolled back.
        """
        if lease is not None and lease <= timedelta(0):
            raise ValueError(f"A lease must be longer than nothing, not {lease!r}.")
        if self.key is not None:
            self.has_side_effects = True
            self._leased("renew")(lease)

    def release(self) -> None:
        """Say that nothing happened outside: the key is free after the answer (E9).

        Whatever the answer is, it is not stored, and a retry runs. Without a key
        nothing happens.

        Raises ``RuntimeError`` in atomic mode.
        """
        if self.key is not None:
            self._leased("release")
            self.is_released = True

    def _leased(self, method: str) -> Callable[[timedelta | None], None]:
        if self.renew_claim is None:
            raise RuntimeError(
                f"request.idempotency.{method}() is for leased mode. This endpoint is "
                "atomic: its effects and its claim are one transaction."
            )
        return self.renew_claim


def context_of(request: Request) -> RequestContext:
    """Return ``request.idempotency``, for type checkers, which know no such attribute.

    Raises ``AttributeError`` where the request's handler is not protected.
    """
    anything: Any = request
    context: RequestContext = anything.idempotency
    return context


def derive_key(secret: bytes, scope: str, key: str, payload: str, name: str) -> str:
    """Return a key in the form of a UUID: the same for the same arguments, for ever.

    HMAC-SHA256 (RFC 2104) over length-prefixed parts; its first 128 bits in the layout
    of version 8 (RFC 9562 section 5.8). ``payload`` is a fingerprint's digest.
    """
    message = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (
            DERIVATION_VERSION,
            *(text.encode() for text in (scope, key, payload, name)),
        )
    )
    octets = bytearray(hmac.digest(secret, message, hashlib.sha256)[:16])
    octets[6] = octets[6] & 0x0F | 0x80
    octets[8] = octets[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(octets)))
