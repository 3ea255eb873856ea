"""What was asked, as a digest (contract F1 to F5).

Version 1 is SHA-256 over length-prefixed parts: method, path, query without the key,
media type, and the body by its meaning where that is known, else by its bytes. A
change of any of it needs a new version in ``VERSIONS``, the old one staying: a record
is compared in the version that it was written in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured

from idempotency.bodies import Body, read_body
from idempotency.conf import get_settings
from idempotency.derivation import FINGERPRINT_VERSION
from idempotency.keys import query_pairs

if TYPE_CHECKING:
    from rest_framework.request import Request

# Of digests that a project computes itself; they are compared as they are.
CUSTOM_VERSION = 0


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A hexadecimal SHA-256 digest and the version that made it."""

    version: int
    digest: str


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
    if fingerprint.version in (CUSTOM_VERSION, FINGERPRINT_VERSION):
        return fingerprint.digest
    return fingerprint_in(request, FINGERPRINT_VERSION).digest


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
    return Fingerprint(CUSTOM_VERSION, hashlib.sha256(_encode(value)).hexdigest())


def _version_1(request: Request) -> str:
    pairs = [
        pair
        for pair in query_pairs(request.META)
        if pair[0] != get_settings().QUERY_PARAM
    ]
    content_type = request.content_type or ""
    media_type = content_type.partition(";")[0].strip().lower()
    body = read_body(request, media_type)
    if body.kind == "bytes":
        # Where the body counts by its bytes, its charset or boundary does too.
        media_type = content_type
    return _digest(
        [
            _encode(request.method or ""),
            _encode(request.path),
            _canonical(sorted(pairs, key=itemgetter(0))).encode(),
            _encode(media_type),
            body.kind.encode(),
            _content(body),
        ]
    )


def _encode(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _content(body: Body) -> bytes:
    if isinstance(body.content, bytes):
        return body.content
    return _canonical(body.content).encode()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


VERSIONS: dict[int, Callable[[Request], str]] = {1: _version_1}
