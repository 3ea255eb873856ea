"""The purge that somebody asks for in the admin (contract A3)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.admin.models import DELETION
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _

from idempotency.admin.base import in_the_log
from idempotency.admin.permissions import Permissions
from idempotency.models import IdempotencyRecord

# How long a purge may keep a person waiting, where no worker does it.
PURGE_BUDGET = timedelta(seconds=5)
# Seconds in which a broker lets itself be reached, and a worker says that it is there.
BROKER_ANSWERS, WORKER_ANSWERS = 1, 0.5

# They say what a purge covers: it knows nothing of what somebody may list.
ASKED = _(
    "A worker has been asked to purge all expired records of the database “%(alias)s”."
)
PURGED = ngettext_lazy(
    "Purged %(number)d expired record of the database “%(alias)s”.",
    "Purged %(number)d expired records of the database “%(alias)s”.",
    "number",
)


class PurgePage(Permissions):
    """The purge, for those who may, as a button of the list."""

    def get_urls(self) -> list[URLPattern]:
        """Add the purge before the admin's own pages."""
        view = self.admin_site.admin_view(self.purge_view)
        # In a request's transaction all batches would be one, which purge() refuses.
        for alias in connections:
            view = transaction.non_atomic_requests(using=alias)(view)
        return [path("purge/", view, name=self._name("purge")), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Offer the overview and the purge to those who may."""
        context = {"alias": self.alias}
        if self.has_overview_permission(request):
            context["overview_address"] = self._address("overview")
        if self.has_purge_permission(request):
            context["purge_address"] = self._address("purge")
        return super().changelist_view(request, context | (extra_context or {}))

    def purge_view(self, request: HttpRequest) -> HttpResponse:
        """Purge all that is expired, by a worker if there is one, else for a while."""
        if not (
            self.has_view_permission(request) and self.has_purge_permission(request)
        ):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponse(status=405, headers={"Allow": "POST"})
        if has_worker():
            # Nothing else here needs Celery.
            from idempotency.tasks import purge_expired_records  # noqa: PLC0415

            purge_expired_records.delay(self.alias)
            self._log(request, None, DELETION, in_the_log(ASKED, alias=self.alias))
            messages.success(request, str(ASKED % {"alias": self.alias}))
            return HttpResponseRedirect(self._address("changelist"))
        records: Any = IdempotencyRecord.objects.using(self.alias)
        report = records.purge(time_budget=PURGE_BUDGET)
        done = {"number": report.deleted, "alias": self.alias}
        self._log(request, None, DELETION, in_the_log(PURGED, **done))
        said = str(PURGED % done)
        if report.more:
            said += " " + gettext("More are left: purge again for the rest.")
        messages.success(request, said)
        return HttpResponseRedirect(self._address("changelist"))


def has_worker() -> bool:
    """Tell whether a Celery worker answers, without waiting for a broker that is down.

    Celery by itself would try for seconds to reach it.
    """
    try:
        from celery import current_app  # noqa: PLC0415  # may not be installed
    except ImportError:
        return False
    try:
        with current_app.connection_for_write(connect_timeout=BROKER_ANSWERS) as broker:
            broker.ensure_connection(max_retries=1, interval_start=0)
            answers = current_app.control.ping(
                timeout=WORKER_ANSWERS, connection=broker
            )
            return bool(answers)
    except Exception:  # noqa: BLE001  # each broker has errors of its own
        return False
