"""What was asked, as a digest (contract F1 to F5).

A version is a module that owns all that it digests, and is never changed. Another
digest needs another version in ``VERSIONS``, the old ones staying: a record is compared
in the version that it was written in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured

from idempotency.fingerprints import v1

if TYPE_CHECKING:
    from rest_framework.request import Request

# Of digests that a project computes itself; they are compared as they are.
CUSTOM_VERSION = 0
# The version that derived keys are made from, whatever version records are written in.
DERIVATION_VERSION = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A hexadecimal SHA-256 digest and the version that made it."""

    version: int
    # Of a body with few possibilities it gives the body away.
    digest: str = field(repr=False)


def default_fingerprint(request: Request) -> Fingerprint:
    """Return the request's fingerprint in the newest version."""
    return fingerprint_in(request, max(VERSIONS))


def fingerprint_in(request: Request, version: int) -> Fingerprint:
    """Return the request's fingerprint in one version (F4).

    Raises ``KeyError`` for a version that this release does not know.
    """
    return Fingerprint(version, VERSIONS[version](request))


def derivation_payload(request: Request, fingerprint: Fingerprint) -> str:
    """Return the digest that derived keys are made from, in a version that stays (E10).

    Computed before the handler runs, while the body can be read.
    """
    if fingerprint.version in (CUSTOM_VERSION, DERIVATION_VERSION):
        return fingerprint.digest
    return fingerprint_in(request, DERIVATION_VERSION).digest


def custom_fingerprint(value: Fingerprint | str) -> Fingerprint:
    """Return what a project's own function gave, as something of fixed length.

    Raises ``ImproperlyConfigured`` if it is neither of the two.
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
