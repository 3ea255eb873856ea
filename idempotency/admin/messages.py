"""Describe what the next request with a record's key gets (contract A1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.utils.translation import gettext_lazy as _

from idempotency.admin.decoding import presentable
from idempotency.conf import get_settings
from idempotency.exceptions import OutcomeUnknown, ResponseNotKept
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
    Status.ERASED: _(
        "What this record said of a person is erased. The next request with its key is "
        "refused with 409 idempotency_response_not_kept. The handler does not run."
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
# For those whose endpoint resumes (E12, E13, E16).
RESUME = _(
    "The run was cut off after “{name}”. The next request with this key and the same "
    "content goes on from there, unless someone resolves the record first."
)
BEGIN = _(
    "The run was cut off before a step was recorded. The next request with this key "
    "and the same content runs the handler from the beginning, unless someone resolves "
    "the record first."
)
IN_DOUBT = _(
    "The run was cut off during the call “{name}”, which may or may not have happened. "
    "The next request with this key is refused with 409 idempotency_outcome_unknown "
    "until someone settles the call, resolves the record or releases the key. The "
    "handler does not run."
)
CHANGED = _(
    "Since this run, its endpoint has begun or ceased to resume, so that it can't say "
    "what the run has done."
)
# For records that can't be decrypted (P5).
UNREADABLE = _(
    "The record can't be read: {why}. The next request with this key is refused with "
    "409 {code}. The handler does not run."
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
    why = record.why_unreadable()
    if why and record.status is not Status.IN_PROGRESS:
        is_abandoned = record.status is Status.ABANDONED
        refusal = OutcomeUnknown if is_abandoned else ResponseNotKept
        return UNREADABLE.format(why=why, code=refusal.default_code)
    message = NEXT_RESPONSES[record.status].format(status=record.status_code)
    if record.status is Status.ABANDONED:
        try:
            on_abandoned = _on_abandoned(record)
        except Exception:  # noqa: BLE001  # a project's view may need a request
            message += f" {NOT_FOUND}"
        else:
            message = _of_abandoned(record, on_abandoned) or message
    return f"{message} {OTHER_CONTENT}"


def _of_abandoned(record: IdempotencyRecord, on_abandoned: Any) -> str | None:
    """Return the message for the endpoint's option, or None if it holds records."""
    if on_abandoned == "hold":
        return None
    resumes = on_abandoned == "resume"
    if resumes is not (record.steps is not None):
        return f"{CHANGED} {NEXT_RESPONSES[Status.ABANDONED]}"
    if resumes:
        return _of_resumed(record)
    if callable(on_abandoned):
        return ASK.format(function=dotted_name(on_abandoned))
    return str(RERUN)


def _of_resumed(record: IdempotencyRecord) -> str:
    if record.call_in_doubt is not None:
        return IN_DOUBT.format(name=presentable(record.call_in_doubt))
    if record.entries:
        return RESUME.format(name=presentable(record.entries[-1]["name"]))
    return str(BEGIN)


def _on_abandoned(record: IdempotencyRecord) -> str | Callable[..., Any]:
    """Return the option of a record's endpoint; raise if there is no endpoint."""
    protection = protection_of(match_of(record.path).func, record.method)
    if protection is None:
        raise LookupError(record.pk)
    # Atomic mode holds all abandoned records (E5).
    return "hold" if protection.policy.atomic else protection.policy.on_abandoned
