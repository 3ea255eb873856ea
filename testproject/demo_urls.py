"""The demo project's addresses, and payments under each policy for abandoned runs.

A project chooses one policy, as ``testproject.school.views.PaymentView`` does. The demo
has an address for each, with a lease that is short enough to be waited for.
"""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.http import HttpResponseBase
from django.urls import path

from testproject import urls
from testproject.demo_pause import pause
from testproject.school.views import PaymentView

LEASE = timedelta(seconds=3)


class DemoPaymentView(PaymentView):
    """A payment that can be stopped when the card is charged and nothing is stored."""

    idempotency_lease = LEASE

    def should_store_response(self, response: HttpResponseBase) -> bool:
        """Stop if the demo wants it."""
        pause(settings.VAR_DIR)
        return super().should_store_response(response)


view = DemoPaymentView.as_view
payments = "api/v2/user/payments"

urlpatterns = [
    path(payments, view(), name="ask"),  # the provider, as PaymentView itself does
    path(f"{payments}/hold", view(idempotency_on_abandoned="hold"), name="hold"),
    path(f"{payments}/rerun", view(idempotency_on_abandoned="rerun"), name="rerun"),
    *urls.urlpatterns,
]
