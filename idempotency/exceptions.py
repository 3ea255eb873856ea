"""Every refusal, with its stable ``default_code`` (contract X1)."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _
from rest_framework import status
from rest_framework.exceptions import APIException


class IdempotencyError(APIException):
    """Base of the app's refusals.

    ``wait`` is a number of seconds: it becomes the answer's ``Retry-After``.
    """

    wait: int | None = None


class KeyRequired(IdempotencyError):
    """The endpoint wants a key and the request has none (K4)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "This request needs an idempotency key: one random string for each action, "
        "sent again with each retry of it."
    )
    default_code = "idempotency_key_required"


class KeyInvalid(IdempotencyError):
    """The key is not 1 to 255 visible ASCII characters (K2, K3)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "The idempotency key must be 1 to 255 visible ASCII characters, "
        "in the header bare or as a quoted string."
    )
    default_code = "idempotency_key_invalid"


class KeyAmbiguous(IdempotencyError):
    """The request names more than one key (K1)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _("The request carries more than one idempotency key.")
    default_code = "idempotency_key_ambiguous"


class KeyWeak(IdempotencyError):
    """A key that does not look random, in the scope that strangers share (K6, S1)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "The idempotency key does not look random, and another client may choose it, "
        "too. Use a random UUID, or at least 20 random characters."
    )
    default_code = "idempotency_key_weak"


class CallerUnknown(IdempotencyError):
    """A key in the scope that strangers share, where the project wants none (S1)."""

    status_code = status.HTTP_400_BAD_REQUEST
    default_detail = _(
        "An idempotency key needs a caller who is known. Send the request with your "
        "credentials, or without a key."
    )
    default_code = "idempotency_caller_unknown"


class KeyReused(IdempotencyError):
    """The key was used before for another request (F4)."""

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
    """The handler's claim was no longer its own when it ended or renewed it (E7)."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = _(
        "This request took too long, and its idempotency key was given to another one. "
        "Retry to get that one's answer."
    )
    default_code = "idempotency_claim_lost"
    wait = 1


class OutcomeUnknown(IdempotencyError):
    """The execution of this key ended without a stored answer (E5, E9)."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = _(
        "An earlier request with this idempotency key ended without a known outcome. "
        "It was not run again. Do not retry: find out what happened."
    )
    default_code = "idempotency_outcome_unknown"


class ResponseNotKept(IdempotencyError):
    """The request was executed, but its answer could not be kept (R4)."""

    status_code = status.HTTP_409_CONFLICT
    default_detail = _(
        "The request with this idempotency key was executed and answered with status "
        "{status_code}, but that answer was not kept. It was not run again."
    )
    default_code = "idempotency_response_not_kept"


class TransactionFailed(IdempotencyError):
    """The database rolled the whole request back (E4, E5)."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = _(
        "The database could not complete the request and undid it. "
        "Retry with the same idempotency key."
    )
    default_code = "idempotency_transaction_failed"
    wait = 1


class QuotaExceeded(IdempotencyError):
    """The caller has won too many claims; this one is undone (X1)."""

    status_code = status.HTTP_429_TOO_MANY_REQUESTS
    default_detail = _(
        "Too many new idempotency keys were used in a short time. This request was "
        "not executed. Retry later, with the same key."
    )
    default_code = "idempotency_quota_exceeded"
    wait = 1

    def __init__(self, wait: int = 1) -> None:
        super().__init__()
        self.wait = wait
