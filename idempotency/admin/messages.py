"""What the next request with a record's key gets, in words (contract A1)."""

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
    "Keys have no effect now (ENABLED is False): the next request with this key acts."
)
OTHER_CONTENT = _("Other content is refused with 422.")
EXPIRED = _("The retention is over: the key is new, and the next request with it acts.")
NEXT_RESPONSES = {
    Status.COMPLETED: _(
        "The next request with this key and the same content gets this answer again, "
        "with status {status}, and does not act."
    ),
    Status.NOT_KEPT: _(
        "The next request with this key is refused with 409 "
        "idempotency_response_not_kept, which names status {status}. It does not act."
    ),
    Status.IN_PROGRESS: _(
        "A handler is at work: the next request with this key is refused with 409 "
        "idempotency_in_progress, or waits where its endpoint lets it."
    ),
    Status.ABANDONED: _(
        "Nobody knows whether the handler acted. The next request with this key is "
        "refused with 409 idempotency_outcome_unknown, until somebody resolves the "
        "record or releases the key. It does not act."
    ),
}
# Where the endpoint of an abandoned record decides by itself (E9).
RERUN = _(
    "Nobody knows whether the handler acted. The next request with this key and the "
    "same content acts again, as its endpoint says (on_abandoned), unless somebody "
    "resolves the record before."
)
ASK = _(
    "Nobody knows whether the handler acted. The next request with this key and the "
    "same content lets its endpoint find out ({function}): it gets the answer, or acts "
    "again, unless somebody resolves the record before."
)
NOT_FOUND = _(
    "The endpoint was not found in this project's URLs. If it decides about such "
    "records by itself (on_abandoned), the next request may act."
)


def next_request(record: IdempotencyRecord) -> str:
    """Return what a retry gets, by the code that decides it.

    Other content than the record's comes last. The record must come from
    ``with_lease_state()``.
    """
    if not get_settings().ENABLED:
        return str(NOT_ENABLED)
    if not record.is_in_force:
        return str(EXPIRED)
    message = NEXT_RESPONSES[record.status].format(status=record.status_code)
    if record.status is Status.ABANDONED:
        message = _of_an_abandoned_one(record, message)
    return f"{message} {OTHER_CONTENT}"


def _of_an_abandoned_one(record: IdempotencyRecord, held: str) -> str:
    try:
        on_abandoned = _on_abandoned(record)
    except Exception:  # noqa: BLE001  # a view is the project's: it may want a request
        return f"{held} {NOT_FOUND}"
    if callable(on_abandoned):
        return ASK.format(function=dotted_name(on_abandoned))
    return str(RERUN) if on_abandoned == "rerun" else held


def _on_abandoned(record: IdempotencyRecord) -> str | Callable[..., Any]:
    """Return what a record's endpoint does with an abandoned one.

    Raises whatever says that there is no such endpoint.
    """
    protection = protection_of(match_of(record.path).func, record.method)
    if protection is None:
        raise LookupError(record.pk)
    # Atomic mode holds every one (E5).
    return "hold" if protection.policy.atomic else protection.policy.on_abandoned
