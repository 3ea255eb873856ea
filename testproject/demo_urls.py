"""The demo project's URLs, with one for each policy for abandoned runs.

A project chooses one policy, as ``testproject.school.views.PaymentView`` does. The
lease here is short, because the demo waits for its end.
"""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.http import HttpResponseBase
from django.urls import path

from testproject import urls
from testproject.demo_pause import pause
from testproject.school.views import PaymentView, RideView

LEASE = timedelta(seconds=3)


class DemoPaymentView(PaymentView):
    """A payment that the demo can stop between the charge and the stored response."""

    idempotency_lease = LEASE

    def should_store_response(self, response: HttpResponseBase) -> bool:
        """Stop here if the demo wants it."""
        pause(settings.VAR_DIR)
        return super().should_store_response(response)


class DemoRideView(RideView):
    """A ride with a short lease."""

    idempotency_lease = LEASE


view = DemoPaymentView.as_view
payments = "api/v2/user/payments"

urlpatterns = [
    path(payments, view(), name="ask"),  # asks the provider
    path(f"{payments}/hold", view(idempotency_on_abandoned="hold"), name="hold"),
    path(f"{payments}/rerun", view(idempotency_on_abandoned="rerun"), name="rerun"),
    path("api/v2/user/rides", DemoRideView.as_view(), name="resume"),
    *urls.urlpatterns,
]
