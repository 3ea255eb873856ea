"""The refusals and their stable codes (contract X1), and a warning."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _
from rest_framework import status
from rest_framework.exceptions import APIException


class IdempotencyError(APIException):
    """Base class of the refusals. ``wait`` is the value of ``Retry-After``."""

    wait: int | None = None


class KeyRequired(IdempotencyError):
    """The endpoint requires a key and the request has none (K4)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "This request needs an idempotency key. Send one random key per action, and "
        "the same key with each retry."
    )
    default_code = "idempotency_key_required"


class KeyInvalid(IdempotencyError):
    """The key is not 1 to 255 visible ASCII characters (K2, K3)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "The idempotency key is invalid. Send 1 to 255 visible ASCII characters; "
        "in the header they may be a quoted string."
    )
    default_code = "idempotency_key_invalid"


class KeyAmbiguous(IdempotencyError):
    """The request has more than one key (K1)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _("The request has more than one idempotency key. Send one.")
    default_code = "idempotency_key_ambiguous"


class KeyWeak(IdempotencyError):
    """The caller is anonymous and the key does not look random (K6, S1)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "The idempotency key does not look random, so another client may choose it "
        "too. Send a random UUID, or at least 20 random characters."
    )
    default_code = "idempotency_key_weak"


class LengthRequired(IdempotencyError):
    """The server hides a body without Content-Length from Django (F3)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "This server can't read a chunked body. Send the body with Content-Length."
    )
    default_code = "idempotency_length_required"


class CallerUnknown(IdempotencyError):
    """The caller is anonymous and the project refuses anonymous keys (S1)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "Anonymous requests may not have an idempotency key. Send your credentials, "
        "or no key."
    )
    default_code = "idempotency_caller_unknown"


class KeyReused(IdempotencyError):
    """The key belongs to a different request (F4)."""

    status_code = status.HTTP_422_UNPROCESSABLE_ENTITY
    default_detail = _(
        "This idempotency key was already used for a different request. "
        "Send a new key with a new request."
    )
    default_code = "idempotency_key_reused"


class InProgress(IdempotencyError):
    """Another request with this key is being executed (E3)."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = _(
        "A request with this idempotency key is still in progress. Retry in a moment."
    )
    default_code = "idempotency_in_progress"
    wait = 1


class ClaimLost(IdempotencyError):
    """Another request took over the key before the handler was done (E7)."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = _(
        "This request took too long, and another one took over its idempotency key. "
        "Retry to get that one's response."
    )
    default_code = "idempotency_claim_lost"
    wait = 1


class OutcomeUnknown(IdempotencyError):
    """An earlier run ended without a stored response (E5, E9)."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = _(
        "The outcome of an earlier request with this idempotency key is unknown. "
        "This request was not executed. Do not retry: find out what happened."
    )
    default_code = "idempotency_outcome_unknown"


class ResponseNotKept(IdempotencyError):
    """The request was executed, but its response was not kept (R4)."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = _(
        "A request with this idempotency key was executed and got status "
        "{status_code}, but its response was not kept. Do not retry."
    )
    # Of a record that was erased before it had a response (P4).
    unknown_detail = _(
        "The record of this idempotency key was erased, and the outcome of its request "
        "is unknown. This request was not executed. Do not retry."
    )
    default_code = "idempotency_response_not_kept"


class TransactionFailed(IdempotencyError):
    """The database rolled back the whole request (E4, E5)."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = _(
        "The database could not complete the request and undid it. "
        "Retry with the same idempotency key."
    )
    default_code = "idempotency_transaction_failed"
    wait = 1


class DatabaseUnavailable(IdempotencyError):
    """The database can't be reached or written to; nothing has run (E4)."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = _(
        "The database is not available at the moment, so this request was not "
        "executed. Retry with the same idempotency key."
    )
    default_code = "idempotency_database_unavailable"
    wait = 5


class QuotaExceeded(IdempotencyError):
    """The caller has used too many new keys; this claim is undone (X1)."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    default_detail = _(
        "You used too many new idempotency keys in a short time. This request was "
        "not executed. Retry later with the same key."
    )
    default_code = "idempotency_quota_exceeded"
    wait = 1

    def __init__(self, wait: int = 1) -> None:
        super().__init__()
        self.wait = wait


class WriteOutsideStep(RuntimeWarning):
    """A handler that resumes writes outside of its steps (E12)."""
