"""Fingerprints: digests of what requests ask for (contract F1 to F5).

Each version is a module that never changes. A new digest is a new version in
``VERSIONS``, beside the old ones: a record is compared in its own version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured

from idempotency.encryption import keyed_digest
from idempotency.exceptions import LengthRequired
from idempotency.fingerprints import v1
from idempotency.fingerprints.bodies import is_hidden

if TYPE_CHECKING:
    from rest_framework.request import Request

# For the fingerprints of a project's own function.
CUSTOM_VERSION = 0
# Added to the version of a digest that is keyed (P5).
KEYED = 100
# For derived keys, in every version of the records.
DERIVATION_VERSION = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A hexadecimal SHA-256 digest and the version that made it."""

    version: int
    # Reveals a body that has few possible values.
    digest: str = field(repr=False)


def default_fingerprint(request: Request) -> Fingerprint:
    """Return the request's fingerprint in the newest version."""
    return fingerprint_in(request, max(VERSIONS))


def fingerprint_in(request: Request, version: int) -> Fingerprint:
    """Return the request's fingerprint in one of ``VERSIONS`` (F4).

    Raise ``LengthRequired`` if Django does not see the body: any other body under this
    key would have the same fingerprint.
    """
    if is_hidden(getattr(request, "_request", request)):
        raise LengthRequired
    return Fingerprint(version, VERSIONS[version](request))


def keyed(fingerprint: Fingerprint, record_id: UUID, key_id: str) -> Fingerprint:
    """Return a fingerprint that says nothing without the encryption key (P5).

    Raise ``Unreadable`` if the key is missing.
    """
    digest = keyed_digest(key_id, record_id, fingerprint.digest)
    return Fingerprint(KEYED + fingerprint.version, digest)


def derivation_payload(request: Request, fingerprint: Fingerprint) -> str:
    """Return the digest for derived keys, which is the same in every version (E10).

    Call it before the handler runs, while the body can be read.
    """
    if fingerprint.version in (CUSTOM_VERSION, DERIVATION_VERSION):
        return fingerprint.digest
    return fingerprint_in(request, DERIVATION_VERSION).digest


def custom_fingerprint(value: Fingerprint | str) -> Fingerprint:
    """Return the fingerprint for the result of a project's own function.

    Raise ``ImproperlyConfigured`` for any other type.
    """
    if isinstance(value, Fingerprint):
        return value
    if not isinstance(value, str):
        raise ImproperlyConfigured(
            "An idempotency fingerprint must be a string or what "
            f"default_fingerprint() returns, not {type(value).__name__}."
        )
    content = value.encode(errors="backslashreplace")
    return Fingerprint(CUSTOM_VERSION, hashlib.sha256(content).hexdigest())


VERSIONS: dict[int, Callable[[Request], str]] = {1: v1.fingerprint}
