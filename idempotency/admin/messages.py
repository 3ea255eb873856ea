"""Describe what the next request with a record's key gets (contract A1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.utils.translation import gettext_lazy as _

from idempotency.conf import get_settings
from idempotency.handlers import dotted_name
from idempotency.models import IdempotencyRecord, Status
from idempotency.protection import protection_of
from idempotency.routes import match_of

NOT_ENABLED = _(
    "Keys have no effect now (ENABLED is False): the next request runs the handler."
)
OTHER_CONTENT = _("Other content is refused with 422.")
EXPIRED = _(
    "The retention is over, so the key is new again: the next request runs the handler."
)
NEXT_RESPONSES = {
    Status.COMPLETED: _(
        "The next request with this key and the same content gets this response again, "
        "with status {status}. The handler does not run."
    ),
    Status.NOT_KEPT: _(
        "The next request with this key is refused with 409 "
        "idempotency_response_not_kept, which names status {status}. The handler does "
        "not run."
    ),
    Status.IN_PROGRESS: _(
        "The handler is running: the next request with this key is refused with 409 "
        "idempotency_in_progress, or waits if its endpoint allows that."
    ),
    Status.ABANDONED: _(
        "The outcome is unknown. The next request with this key is refused with 409 "
        "idempotency_outcome_unknown until someone resolves the record or releases the "
        "key. The handler does not run."
    ),
}
# For abandoned records whose endpoint has another on_abandoned than "hold" (E9).
RERUN = _(
    "The outcome is unknown. The next request with this key and the same content runs "
    "the handler again (on_abandoned), unless someone resolves the record first."
)
ASK = _(
    "The outcome is unknown. The next request with this key and the same content calls "
    "{function} (on_abandoned): it gets the response that this finds, or runs the "
    "handler again, unless someone resolves the record first."
)
NOT_FOUND = _(
    "This project's URLs have no endpoint for the record. If the endpoint sets "
    "on_abandoned, the next request may run the handler."
)


def next_request(record: IdempotencyRecord) -> str:
    """Return a message about the next request with the record's key.

    The record must come from ``with_lease_state()``.
    """
    if not get_settings().ENABLED:
        return str(NOT_ENABLED)
    if not record.is_in_force:
        return str(EXPIRED)
    message = NEXT_RESPONSES[record.status].format(status=record.status_code)
    if record.status is Status.ABANDONED:
        try:
            on_abandoned = _on_abandoned(record)
        except Exception:  # noqa: BLE001  # a project's view may need a request
            message += f" {NOT_FOUND}"
        else:
            if callable(on_abandoned):
                message = ASK.format(function=dotted_name(on_abandoned))
            elif on_abandoned == "rerun":
                message = str(RERUN)
    return f"{message} {OTHER_CONTENT}"


def _on_abandoned(record: IdempotencyRecord) -> str | Callable[..., Any]:
    """Return the option of a record's endpoint; raise if there is no endpoint."""
    protection = protection_of(match_of(record.path).func, record.method)
    if protection is None:
        raise LookupError(record.pk)
    # Atomic mode holds all abandoned records (E5).
    return "hold" if protection.policy.atomic else protection.policy.on_abandoned
