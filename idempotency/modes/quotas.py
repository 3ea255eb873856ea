"""Limit how many claims a caller may win in a period (contract X1)."""

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
    """A throttle of Django REST framework for each idempotency scope.

    Like every throttle of that kind, it may let more through of what comes at the same
    moment.
    """

    scope = "idempotency"
    if TYPE_CHECKING:  # set by the base class, but not in the stubs
        num_requests: int
        duration: float

    @classmethod
    def is_wrong(cls) -> bool:
        """Return whether the project's rate is malformed."""
        try:
            return cls.is_set() and cls().num_requests < 0
        except Exception:  # noqa: BLE001  # each mistake raises another error
            return True

    @classmethod
    def is_set(cls) -> bool:
        """Return whether the project has set a rate."""
        return api_settings.DEFAULT_THROTTLE_RATES.get(cls.scope) is not None

    def get_rate(self) -> Any:
        """Return the current rate, so ``override_settings`` works."""
        return api_settings.DEFAULT_THROTTLE_RATES[self.scope]

    def get_cache_key(self, request: Any, view: Any) -> str:
        """Return the cache key of a caller's claims, which does not contain the scope.

        Takes the request of an execution, whose scope is known.
        """
        ident = hashlib.sha256(request.idempotency.scope.encode()).hexdigest()
        return self.cache_format % {"scope": self.scope, "ident": ident}

    def wait(self) -> int:
        """Return after how many seconds another claim may be won.

        The base class returns None if the project has lowered the rate.
        """
        left = self.duration
        if self.num_requests:
            left -= self.now - self.history[self.num_requests - 1]
        return max(1, math.ceil(left))


def within_quota(handler: Handler, keyed: KeyedRequest) -> Handler:
    """Return a handler that first counts its claim, and refuses it beyond the rate.

    To the mode, this is a refusal by a handler without effects: it frees the key.
    """

    def run() -> HttpResponseBase:
        if Quota.is_set():
            _count(keyed)
        return handler()

    return run


def _count(keyed: KeyedRequest) -> None:
    context, quota = keyed.context, Quota()
    is_released = context.is_released
    # An error here is no external effect of this run; an abandoned run before it may
    # have had some.
    context.is_released = is_released or not context.has_side_effects
    if not quota.allow_request(keyed.request, keyed.view):
        raise QuotaExceeded(quota.wait())
    context.is_released = is_released
