"""Whose key it is (contract S1)."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model
from rest_framework.authentication import BasicAuthentication

from idempotency.conf import get_secret, get_settings
from idempotency.exceptions import CallerUnknown, KeyWeak
from idempotency.keys import looks_random

if TYPE_CHECKING:
    from rest_framework.request import Request

ANONYMOUS = "anonymous"
MAX_LENGTH = 512
# Half a character, which no database stores.
SURROGATE = re.compile("[\ud800-\udfff]")
PLAIN = (int, str, UUID)


def default_scope(request: Request) -> str:
    """Return the caller that authentication found, so rotating tokens changes nothing.

    A caller known by an Authorization header alone is named by a keyed digest of it:
    the credential itself is not stored (F5).

    Raises ``ImproperlyConfigured`` for a user that neither of both can name.
    """
    user: Any = request.user
    is_known = user is not None and getattr(user, "is_authenticated", True)
    scope = user_scope(user) if is_known else None
    if scope is not None:
        return scope
    authorization = request.META.get("HTTP_AUTHORIZATION")
    if authorization and _names_the_caller(request):
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
            "key of a saved row, or of plain text, a number or a UUID, and "
            "authentication did not succeed by an Authorization header that would "
            "tell callers apart. Say whose keys these are with the option scope of "
            'the endpoint, or with IDEMPOTENCY = {"SCOPE": ...}.'
        )
    return ANONYMOUS


def user_scope(user: Any) -> str | None:
    """Return the scope of a user who has a primary key, or None.

    An object that is not saved may make a new key up for each request, and a key that
    is not plain may have an address in memory in its text.
    """
    pk = getattr(user, "pk", None)
    if not isinstance(pk, PLAIN) or pk == "":
        return None
    kind = user.__class__  # also of a lazy one
    if not issubclass(kind, Model):
        return f"user:{kind.__module__}.{kind.__qualname__}:{pk}"
    if user._state.adding:
        return None
    # A proxy is another way to look at the same people.
    return f"user:{kind._meta.concrete_model._meta.label_lower}:{pk}"


def _names_the_caller(request: Request) -> bool:
    """Tell whether authentication succeeded by the Authorization header.

    Otherwise anybody has written it, such as a gateway, the same for all.
    """
    authenticator = getattr(request, "successful_authenticator", None)
    # DRF's basic authentication reads nothing but the header, and sets no auth.
    return authenticator is not None and (
        request.auth is not None or isinstance(authenticator, BasicAuthentication)
    )


def admit_stranger(key: str) -> None:
    """Refuse a key of the anonymous scope that another stranger may choose, too.

    Raises ``KeyWeak``, or ``CallerUnknown`` where the project wants no such keys.
    """
    if get_settings().ANONYMOUS == "refuse":
        raise CallerUnknown
    if not looks_random(key):
        raise KeyWeak


def validate_scope(scope: object) -> str:
    """Return what a project's own scope function gave, if it can be stored.

    Raises ``ImproperlyConfigured``: MariaDB would truncate it in silence.
    """
    if (
        not isinstance(scope, str)
        or not 1 <= len(scope) <= MAX_LENGTH
        or "\0" in scope
        or SURROGATE.search(scope)
    ):
        raise ImproperlyConfigured(
            f"An idempotency scope must be a string of 1 to {MAX_LENGTH} characters "
            f"without NUL and lone surrogates, not {type(scope).__name__}."
        )
    return scope
