"""Find the refusals of an endpoint, and their bodies, without a request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections
from rest_framework.renderers import JSONRenderer
from rest_framework.views import APIView, exception_handler

from idempotency import exceptions
from idempotency.conf import get_settings
from idempotency.conf.policy import Policy
from idempotency.exceptions import IdempotencyError, ResponseNotKept
from idempotency.finalizing import exception_handler_of
from idempotency.modes.quotas import Quota

ANY_PATH = "/path/of/the/request"


def refusals_of(policy: Policy) -> Iterator[IdempotencyError]:
    """Yield one refusal of each kind that a policy allows."""
    if policy.required:
        yield exceptions.KeyRequired()
    yield exceptions.KeyInvalid()
    yield exceptions.KeyAmbiguous()
    if get_settings().ANONYMOUS == "refuse":
        yield exceptions.CallerUnknown()
    else:
        yield exceptions.KeyWeak()
    yield exceptions.LengthRequired()
    yield exceptions.InProgress()
    if not policy.atomic:
        yield exceptions.ClaimLost()
    # 201 stands for all statuses, so that all operations share one text.
    yield ResponseNotKept(ResponseNotKept.default_detail.format(status_code=201))
    yield exceptions.OutcomeUnknown()
    yield exceptions.KeyReused()
    if Quota.is_set():
        yield exceptions.QuotaExceeded()
    yield exceptions.TransactionFailed()
    yield exceptions.DatabaseUnavailable()


def has_own_format(view: APIView) -> bool:
    """Return whether the view's EXCEPTION_HANDLER is not Django REST framework's."""
    return view.get_exception_handler() is not exception_handler


def body_of(refusal: IdempotencyError, view: APIView) -> Any:
    """Return the body that a view's EXCEPTION_HANDLER gives a refusal, or None.

    A project's own handler is not called for server errors, which it may report, and it
    can fail without a real request. A path in the body is replaced by one that all
    operations share.
    """
    if refusal.status_code >= 500 and has_own_format(view):
        return None
    handler = exception_handler_of(view)
    try:
        with _rollback_as_it_was():
            response: Any = handler(refusal, view.get_exception_handler_context())
        text = JSONRenderer().render(response.data).decode()
        path = view.request.path
        # "/" would match every slash.
        return json.loads(text if path == "/" else text.replace(path, ANY_PATH))
    except Exception:  # noqa: BLE001  # the handler may need a real request
        return None


@contextmanager
def _rollback_as_it_was() -> Iterator[None]:
    """Keep DRF's handler from marking the current transaction for rollback."""
    before = [(c, c.get_rollback()) for c in connections.all() if c.in_atomic_block]
    try:
        yield
    finally:
        for connection, rollback in before:
            connection.set_rollback(rollback)
