"""Keys for downstream calls, derived from a request's own (contract E10)."""

from __future__ import annotations

import hashlib
import hmac
from uuid import UUID

# Part of every derivation: another construction would need another value here, and
# retries across the upgrade would then act downstream under another key. So there is
# none; tests/test_derivation.py has vectors.
VERSION = b"idempotency derive 1"
# The fingerprint that counts as the payload, whatever version records are written in.
FINGERPRINT_VERSION = 1


def derive_key(secret: bytes, scope: str, key: str, payload: str, name: str) -> str:
    """Return a key in the form of a UUID: the same for the same arguments, for ever.

    HMAC-SHA256 (RFC 2104) over length-prefixed parts; its first 128 bits in the layout
    of version 8 (RFC 9562 section 5.8). ``payload`` is a fingerprint's digest.
    """
    message = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (
            VERSION,
            *(text.encode() for text in (scope, key, payload, name)),
        )
    )
    octets = bytearray(hmac.digest(secret, message, hashlib.sha256)[:16])
    octets[6] = octets[6] & 0x0F | 0x80
    octets[8] = octets[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(octets)))
