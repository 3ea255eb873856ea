"""Release, resolve, purge, download and overview: the desk's own pages (A3, A4)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery import current_app
from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext, ngettext

from idempotency.admin.base import RecordAdmin
from idempotency.admin.forms import ResolveForm
from idempotency.models import IdempotencyRecord, RecordChanged, State
from idempotency.overview import Overview
from idempotency.tasks import purge_expired_records

RELEASE = "idempotency.release_key"
RESOLVE = "idempotency.resolve_record"
PURGE = "idempotency.purge_records"
# How long a purge may keep a person waiting, where no worker does it.
PURGE_BUDGET = timedelta(seconds=5)
# Seconds in which a worker says that it is there.
WORKER_ANSWERS = 0.5


class Pages(RecordAdmin):
    """What ``IdempotencyRecordAdmin`` offers besides list and detail."""

    change_list_template = "admin/idempotency/idempotencyrecord/change_list.html"
    change_form_template = "admin/idempotency/idempotencyrecord/change_form.html"

    def get_urls(self) -> list[URLPattern]:
        """Add the desk's pages before the admin's own."""
        pages: dict[str, tuple[str, Any]] = {
            "overview/": ("overview", self.overview_view),
            "purge/": ("purge", self.purge_view),
            "<path:object_id>/body/": ("body", self.download_body),
            "<path:object_id>/release/": ("release", self.release_view),
            "<path:object_id>/resolve/": ("resolve", self.resolve_view),
        }
        own = [
            path(place, self.admin_site.admin_view(view), name=self._name(name))
            for place, (name, view) in pages.items()
        ]
        return [*own, *super().get_urls()]

    def _get(self, request: HttpRequest, object_id: str, *needed: str) -> Any:
        """Return a record for those who may see it and do what they are about to."""
        if not (self.has_view_permission(request) and request.user.has_perms(needed)):
            raise PermissionDenied
        record = self.get_object(request, object_id)
        if record is None:
            raise Http404
        return record

    def _page(self, request: HttpRequest, name: str, **context: Any) -> HttpResponse:
        return TemplateResponse(
            request,
            f"admin/idempotency/idempotencyrecord/{name}.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "media": self.media,
                "list_address": self._address("changelist"),
                **context,
            },
        )

    def _log(self, request: HttpRequest, record: Any, flag: int, what: str) -> None:
        LogEntry.objects.create(
            user_id=request.user.pk,  # type: ignore[misc]  # nobody without one gets here
            content_type=ContentType.objects.get_for_model(IdempotencyRecord),
            object_id=record and str(record.pk),
            object_repr=str(record or self.opts.verbose_name_plural)[:200],
            action_flag=flag,
            change_message=what,
        )

    # Release and resolve

    def render_change_form(
        self, request: Any, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Offer the decisions that the record is open to, to those who may decide."""
        record = context["original"]
        is_abandoned = record.current_state == State.ABANDONED
        may = request.user.has_perm
        if may(RELEASE) and not record.is_leased:
            context["release_address"] = self._address("release", record.pk)
        if may(RESOLVE) and is_abandoned:
            context["resolve_address"] = self._address("resolve", record.pk)
        return super().render_change_form(request, context, *args, **kwargs)

    def release_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, and then give the key back: the next request acts again."""
        record = self._get(request, object_id, RELEASE)
        if request.method == "POST":
            if str(record.token) != request.POST.get("token"):
                return self._has_changed(request, record)
            try:
                with transaction.atomic(using=record._state.db):
                    record.release()
                    self._log(request, record, DELETION, gettext("Released the key."))
            except RecordChanged:
                return self._has_changed(request, record)
            messages.success(
                request, gettext("The key is free: the next request with it acts.")
            )
            return HttpResponseRedirect(self._address("changelist"))
        return self._page(
            request,
            "release",
            title=gettext("Release this key?"),
            record=record,
            is_abandoned=record.current_state == State.ABANDONED,
            record_address=self._address("change", record.pk),
        )

    def resolve_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Store the answer of an abandoned record, as a person has found it out."""
        record = self._get(request, object_id, RESOLVE)
        if record.current_state != State.ABANDONED:
            return self._has_changed(request, record)
        form = ResolveForm(request.POST or None)
        if form.is_valid():
            if str(record.token) != request.POST.get("token"):
                return self._has_changed(request, record)
            stored = gettext("Stored an answer with status %(status_code)d.")
            try:
                with transaction.atomic(using=record._state.db):
                    record.resolve(form.response())
                    self._log(request, record, CHANGE, stored % form.cleaned_data)
            except RecordChanged:
                return self._has_changed(request, record)
            messages.success(
                request, gettext("Stored: the next request with this key gets it.")
            )
            return HttpResponseRedirect(self._address("change", record.pk))
        return self._page(
            request,
            "resolve",
            title=gettext("Resolve: what did the client have to get?"),
            record=record,
            form=form,
            record_address=self._address("change", record.pk),
        )

    def _has_changed(self, request: HttpRequest, record: Any) -> HttpResponse:
        messages.error(
            request,
            gettext("Nothing was done: the record has changed. Look at it again."),
        )
        return HttpResponseRedirect(self._address("change", record.pk))

    # Purge

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Link the overview, and offer the purge to those who may."""
        context = {"overview_address": self._address("overview")}
        if request.user.has_perm(PURGE):
            context["purge_address"] = self._address("purge")
        return super().changelist_view(request, context | (extra_context or {}))

    # Within the request's transaction all batches would be one, which purge() refuses.
    @transaction.non_atomic_requests
    def purge_view(self, request: HttpRequest) -> HttpResponse:
        """Purge what is expired, by a worker if there is one, else for a while."""
        if not (self.has_view_permission(request) and request.user.has_perm(PURGE)):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponse(status=405, headers={"Allow": "POST"})
        if has_worker():
            purge_expired_records.delay()
            said = gettext("A worker has been asked to purge the expired records.")
        else:
            report = IdempotencyRecord.objects.purge(time_budget=PURGE_BUDGET)
            said = ngettext(
                "Purged %(number)d expired record.",
                "Purged %(number)d expired records.",
                report.deleted,
            ) % {"number": report.deleted}
            if report.more:
                said += " " + gettext("More are left: purge again for the rest.")
        self._log(request, None, DELETION, said)
        messages.success(request, said)
        return HttpResponseRedirect(self._address("changelist"))

    # Reading

    def download_body(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send a body as a file of no type, so that no browser shows or runs it."""
        record = self._get(request, object_id, "idempotency.view_response_body")
        if record.body is None:
            raise Http404
        response = HttpResponse(
            bytes(record.body), content_type="application/octet-stream"
        )
        response["Content-Disposition"] = f'attachment; filename="{record.pk}.bin"'
        response["X-Content-Type-Options"] = "nosniff"
        response["Content-Security-Policy"] = "sandbox"
        return response

    def overview_view(self, request: HttpRequest) -> HttpResponse:
        """Show the last 30 days from what the records know (A4)."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        records: Any = self.get_queryset(request)
        return self._page(
            request,
            "overview",
            title=gettext("Overview"),
            overview=(overview := Overview.of(records.db)),
            approximately="" if overview.is_exact else "~ ",
            state_address=f"{self._address('changelist')}?state=abandoned",
        )


def has_worker() -> bool:
    """Tell whether a Celery worker answers."""
    try:
        return bool(current_app.control.ping(timeout=WORKER_ANSWERS))
    except Exception:  # noqa: BLE001  # each broker has errors of its own
        return False
