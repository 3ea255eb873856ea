"""How many claims a caller may win in a time (contract X1)."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

from django.http import HttpResponseBase
from rest_framework.settings import api_settings
from rest_framework.throttling import SimpleRateThrottle

from idempotency.exceptions import QuotaExceeded

if TYPE_CHECKING:
    from idempotency.keyed_request import Handler, KeyedRequest


class Quota(SimpleRateThrottle):
    """A rate in Django REST framework's form and cache, for each idempotency scope.

    Like every throttle of that kind, it may let more through of what comes at the same
    moment.
    """

    scope = "idempotency"
    if TYPE_CHECKING:  # set by the base class; the stubs know neither
        num_requests: int
        duration: float

    @classmethod
    def is_wrong(cls) -> bool:
        """Tell whether the project has a rate that can't be worked with."""
        try:
            return cls.is_set() and cls().num_requests < 0
        except Exception:  # noqa: BLE001  # each mistake has an error of its own
            return True

    @classmethod
    def is_set(cls) -> bool:
        """Tell whether the project wants any quota."""
        return api_settings.DEFAULT_THROTTLE_RATES.get(cls.scope) is not None

    def get_rate(self) -> Any:
        """Return the rate as it is now, so ``override_settings`` works."""
        return api_settings.DEFAULT_THROTTLE_RATES[self.scope]

    def get_cache_key(self, request: Any, view: Any) -> str:
        """Return where a caller's claims are counted; the cache does not learn whose.

        Takes the request of an execution, whose scope is known.
        """
        ident = hashlib.sha256(request.idempotency.scope.encode()).hexdigest()
        return self.cache_format % {"scope": self.scope, "ident": ident}

    def wait(self) -> int:
        """Return after how many seconds another claim may be won.

        The usual answer is None where a rate was lowered.
        """
        left = self.duration
        if self.num_requests:
            left -= self.now - self.history[self.num_requests - 1]
        return max(1, math.ceil(left))


def within_quota(handler: Handler, keyed: KeyedRequest) -> Handler:
    """Return a handler that counts its claim first, and refuses one too many.

    For the mode, that refusal is one of the handler's own before it acted: the claim
    is undone, and nothing is stored.
    """

    def run() -> HttpResponseBase:
        if Quota.is_set():
            _count(keyed)
        return handler()

    return run


def _count(keyed: KeyedRequest) -> None:
    context, quota = keyed.context, Quota()
    is_released = context.is_released
    # Whatever fails here, this run has not acted outside. What an abandoned one before
    # it did, nobody knows.
    context.is_released = is_released or not context.has_side_effects
    if not quota.allow_request(keyed.request, keyed.view):
        raise QuotaExceeded(quota.wait())
    context.is_released = is_released
