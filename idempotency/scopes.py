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
# Databases can't store lone surrogates.
SURROGATE = re.compile("[\ud800-\udfff]")
PLAIN = (int, str, UUID)


def default_scope(request: Request) -> str:
    """Return the authenticated user, so that a new token does not change the scope.

    For a caller known only by an Authorization header, return a keyed digest of it,
    because the credential itself must not be stored (F5).

    Raise ``ImproperlyConfigured`` for a caller that has neither.
    """
    user: Any = getattr(request, "user", None)
    is_known = user is not None and getattr(user, "is_authenticated", True)
    scope = user_scope(user) if is_known else None
    if scope is not None:
        return scope
    authorization = request.META.get("HTTP_AUTHORIZATION")
    if authorization and _names_the_caller(request):
        return authorization_scope(authorization)
    if is_known:
        # Not the anonymous scope, because its callers share their responses.
        raise ImproperlyConfigured(
            f"The user of this request, a {type(user).__qualname__}, has no usable "
            "primary key (of a saved row; a string, an integer or a UUID), and did "
            "not authenticate by an Authorization header. Name the caller with the "
            'endpoint\'s option scope, or with IDEMPOTENCY = {"SCOPE": ...}.'
        )
    return ANONYMOUS


def user_scope(user: Any) -> str | None:
    """Return the scope of a user with a usable primary key, or None.

    An unsaved object may have a new key in each request, and the text of a key of
    another type may contain a memory address.
    """
    pk = getattr(user, "pk", None)
    if not isinstance(pk, PLAIN) or pk == "":
        return None
    kind = user.__class__  # unlike type(), works for a lazy object
    if not issubclass(kind, Model):
        return f"user:{kind.__module__}.{kind.__qualname__}:{pk}"
    if user._state.adding:
        return None
    # A proxy model has the same users.
    return f"user:{kind._meta.concrete_model._meta.label_lower}:{pk}"


def authorization_scope(authorization: str) -> str:
    """Return the scope of a caller known only by this value of the header."""
    digest = hmac.digest(
        get_secret(),
        b"idempotency.scope.v1\0" + authorization.encode(errors="backslashreplace"),
        hashlib.sha256,
    )
    return f"authorization:{digest.hex()}"


def scope_of_caller(caller: Any) -> str:
    """Return a scope as it was given, or the scope of a user.

    Raise ``ValueError`` if no record can have it.
    """
    scope = caller if isinstance(caller, str) else user_scope(caller)
    if scope is None:
        raise ValueError(
            f"This {type(caller).__qualname__} has no scope: it must be a saved row "
            "with a primary key that is a string, an integer or a UUID."
        )
    try:
        return validate_scope(scope)
    except ImproperlyConfigured as error:
        failure = ValueError(str(error))
    raise failure


def _names_the_caller(request: Request) -> bool:
    """Return whether the caller authenticated by the Authorization header.

    Otherwise a gateway may have set it, to the same value for all callers.
    """
    authenticator = getattr(request, "successful_authenticator", None)
    # DRF's basic authentication sets no request.auth.
    return authenticator is not None and (
        request.auth is not None or isinstance(authenticator, BasicAuthentication)
    )


def admit_stranger(key: str) -> None:
    """Raise ``KeyWeak`` for a key that another anonymous caller may choose.

    Raise ``CallerUnknown`` if the project refuses anonymous keys.
    """
    if get_settings().ANONYMOUS == "refuse":
        raise CallerUnknown
    if not looks_random(key):
        raise KeyWeak


def validate_scope(scope: object) -> str:
    """Return a scope, or raise ``ImproperlyConfigured`` if it can't be stored.

    MariaDB would truncate it in silence.
    """
    if (
        not isinstance(scope, str)
        or not 1 <= len(scope) <= MAX_LENGTH
        or "\0" in scope
        or SURROGATE.search(scope)
    ):
        raise ImproperlyConfigured(
            f"An idempotency scope must be a string of 1 to {MAX_LENGTH} characters "
            f"without NUL or lone surrogates. Got {type(scope).__name__}."
        )
    return scope
