"""Whose key it is (contract S1)."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from idempotency.conf import get_secret

if TYPE_CHECKING:
    from rest_framework.request import Request

ANONYMOUS = "anonymous"
MAX_LENGTH = 512


def default_scope(request: Request) -> str:
    """Return the caller that authentication found, so rotating tokens changes nothing.

    A caller known by an Authorization header alone is named by a keyed digest of it:
    the credential itself is not stored (F5).

    Raises ``ImproperlyConfigured`` for a user that neither of both can name.
    """
    user: Any = request.user
    is_known = user is not None and getattr(user, "is_authenticated", True)
    pk = getattr(user, "pk", None)
    if is_known and pk is not None:
        meta = getattr(user, "_meta", None)
        kind = user.__class__  # also of a lazy one
        label = meta.label_lower if meta else f"{kind.__module__}.{kind.__qualname__}"
        return f"user:{label}:{pk}"
    authorization = request.META.get("HTTP_AUTHORIZATION")
    if authorization:
        digest = hmac.digest(
            get_secret(),
            b"idempotency.scope.v1\0" + authorization.encode(errors="backslashreplace"),
            hashlib.sha256,
        )
        return f"authorization:{digest.hex()}"
    if is_known:
        # Strangers share the anonymous scope, and with it their answers.
        raise ImproperlyConfigured(
            f"The user of this request, a {type(user).__qualname__}, has no primary "
            "key, and there is no Authorization header either to tell callers apart. "
            "Say whose keys these are with the option scope of the endpoint, or with "
            'IDEMPOTENCY = {"SCOPE": ...}.'
        )
    return ANONYMOUS


def validate_scope(scope: object) -> str:
    """Return what a project's own scope function gave, if it can be stored.

    Raises ``ImproperlyConfigured``: MariaDB would truncate it in silence.
    """
    if not isinstance(scope, str) or not 1 <= len(scope) <= MAX_LENGTH or "\0" in scope:
        raise ImproperlyConfigured(
            "An idempotency scope must be a string of 1 to "
            f"{MAX_LENGTH} characters without NUL, not {type(scope).__name__}."
        )
    return scope
