"""The purge button of the admin (contract A3)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.contrib.admin.models import DELETION
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.translation import gettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _

from idempotency.admin.base import in_the_log, outside_transactions
from idempotency.admin.permissions import Permissions
from idempotency.models import IdempotencyRecord

# How long a purge without a worker may keep the user waiting.
PURGE_BUDGET = timedelta(seconds=5)
# Time-outs in seconds.
BROKER_ANSWERS, WORKER_ANSWERS = 1, 0.5

# A purge ignores get_queryset(), so both name the database that it covers.
ASKED = _("A worker purges all expired records of the database “%(alias)s”.")
PURGED = ngettext_lazy(
    "Purged %(number)d expired record of the database “%(alias)s”.",
    "Purged %(number)d expired records of the database “%(alias)s”.",
    "number",
)
HALF_DONE = ngettext_lazy(
    "%(number)d of them had recorded steps, but no response.",
    "%(number)d of them had recorded steps, but no response.",
    "number",
)


class PurgePage(Permissions):
    """Add a purge button to the list."""

    def get_urls(self) -> list[URLPattern]:
        """Add the purge before Django's pages."""
        # purge() refuses to run inside a request's transaction.
        view = outside_transactions(self.admin_site.admin_view(self.purge_view))
        return [path("purge/", view, name=self._name("purge")), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Offer the overview and the purge to users with permission."""
        context = {"alias": self.alias}
        if self.has_overview_permission(request):
            context["overview_address"] = self._address("overview")
        if self.has_purge_permission(request):
            context["purge_address"] = self._address("purge")
        return super().changelist_view(request, context | (extra_context or {}))

    def purge_view(self, request: HttpRequest) -> HttpResponse:
        """Let a worker purge; without one, purge here for up to ``PURGE_BUDGET``."""
        if not (
            self.has_view_permission(request) and self.has_purge_permission(request)
        ):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponse(status=405, headers={"Allow": "POST"})
        done: dict[str, Any] = {"alias": self.alias}
        rest = ""
        if has_worker():
            from idempotency.tasks import purge_expired_records  # noqa: PLC0415  # needs Celery

            text: Any = ASKED
            purge_expired_records.delay(self.alias)
        else:
            text = PURGED
            records: Any = IdempotencyRecord.objects.using(self.alias)
            report = records.purge(time_budget=PURGE_BUDGET)
            done["number"] = report.deleted
            if report.half_done:
                rest = f" {HALF_DONE % {'number': report.half_done}}"
            if report.more:
                rest += " " + gettext("More are left: purge again for the rest.")
        self._log(request, None, DELETION, in_the_log(text, **done))
        messages.success(request, str(text % done) + rest)
        return HttpResponseRedirect(self._address("changelist"))


def has_worker() -> bool:
    """Return whether a Celery worker replies; don't wait for a broker that is down."""
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
