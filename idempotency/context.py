"""The object at ``request.idempotency``."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from idempotency.client_warnings import ClientWarning
from idempotency.conf import get_secret
from idempotency.discretion import discreet

if TYPE_CHECKING:
    from rest_framework.request import Request


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

    def release(self) -> None:
        """Declare that the handler has caused no external effect (E9).

        The response is then not stored, and a retry runs the handler. Without a key
        this does nothing. Raise ``RuntimeError`` in atomic mode.
        """
        if self.key is not None:
            self._leased("release")
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
