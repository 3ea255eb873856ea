"""The admin's own pages: decisions, download and overview (A3, A4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext, override
from django.utils.translation import gettext_lazy as _
from django.views.decorators.debug import sensitive_post_parameters

from idempotency.admin import display
from idempotency.admin.base import in_the_log, outside_transactions
from idempotency.admin.columns import results_of
from idempotency.admin.decoding import presentable
from idempotency.admin.forms import CallForm, ReleaseForm, ResolveForm
from idempotency.admin.overview import Overview
from idempotency.admin.permissions import Permissions
from idempotency.completing import complete, completer_of, log_failure
from idempotency.exceptions import ClaimLost, OutcomeUnknown
from idempotency.models import IdempotencyRecord, RecordChanged, RecordHeld, Status

READ = _("Viewed the response.")
DOWNLOADED = _("Downloaded the response.")
RELEASED = _(
    "Released the key. Reason: “%(reason)s”. Record: %(endpoint)s; %(state)s; "
    "response: %(response)s; attempt %(attempt)d; claimed %(claimed)s; "
    "completed %(completed)s; expires %(expires)s."
)
STORED = _("Stored a response with status %(status)d.")
CALL_RETURNED = _("Recorded what the call “%(name)s” returned.")
CALL_NEVER_HAPPENED = _("Recorded that the call “%(name)s” never happened.")
COMPLETING = _("Began to complete the request.")
READ_STEPS = _("Viewed the results of steps.")


class Pages(Permissions):
    """Pages of ``IdempotencyRecordAdmin`` besides the list and a record's page."""

    change_list_template = "admin/idempotency/idempotencyrecord/change_list.html"
    change_form_template = "admin/idempotency/idempotencyrecord/change_form.html"

    def get_urls(self) -> list[URLPattern]:
        """Add these pages before Django's."""
        pages: tuple[tuple[str, str, Any], ...] = (
            ("", "overview", self.overview_view),
            ("<path:object_id>/", "body", self.download_body),
            ("<path:object_id>/", "release", self.release_view),
            ("<path:object_id>/", "resolve", self.resolve_view),
            ("<path:object_id>/", "call", self.call_view),
        )
        own = [
            path(
                f"{at}{name}/", self.admin_site.admin_view(view), name=self._name(name)
            )
            for at, name, view in pages
        ]
        # The claim of a completion must be committed first.
        completing = outside_transactions(
            self.admin_site.admin_view(self.complete_view)
        )
        at = "<path:object_id>/complete/"
        own.append(path(at, completing, name=self._name("complete")))
        return [*own, *super().get_urls()]

    def _get(
        self, request: HttpRequest, object_id: str, may: Callable[..., bool]
    ) -> Any:
        """Return the record if the user may view it and ``may`` allows the action."""
        record = self.get_object(request, object_id)
        if not self.has_view_permission(request, record):
            raise PermissionDenied
        if record is None:
            raise Http404
        if not may(request, record):
            raise PermissionDenied
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

    def render_change_form(
        self, request: Any, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Offer the actions that record and user permit, and log a viewed response."""
        record = context["original"]
        if self.has_release_permission(request, record) and not record.is_leased:
            context["release_address"] = self._address("release", record.pk)
        if self.has_resolve_permission(request, record) and is_open(record):
            context["resolve_address"] = self._address("resolve", record.pk)
            if record.call_in_doubt is not None:
                context["call_address"] = self._address("call", record.pk)
            elif can_be_completed(record):
                context["complete_address"] = self._address("complete", record.pk)
        if self.has_body_permission(request, record):
            if record.status_code is not None:
                self._log(request, record, CHANGE, in_the_log(READ))
            elif results_of(record):
                self._log(request, record, CHANGE, in_the_log(READ_STEPS))
        context["subtitle"] = record.key or display.erased()
        return super().render_change_form(request, context, *args, **kwargs)

    @method_decorator(sensitive_post_parameters("reason"))
    def release_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for a reason, then release the key."""
        record = self._get(request, object_id, self.has_release_permission)
        if self._is_another_run(request, record):
            return self._has_changed(request, record)
        if record.is_leased:
            why = gettext("The handler is running: the key can't be released now.")
            return self._back(request, record, why)
        form = ReleaseForm(request.POST or None)
        if form.is_valid():
            what = _released(record, form.cleaned_data["reason"])
            try:
                with transaction.atomic(using=record._state.db):
                    record.release()
                    self._log(request, record, DELETION, what)
            except RecordChanged as error:
                return self._has_changed(request, record, error)
            messages.success(
                request, gettext("The key is free: the next request runs the handler.")
            )
            return HttpResponseRedirect(self._address("changelist"))
        return self._page(
            request,
            "release",
            title=gettext("Release this key?"),
            **self._facts(request, record),
            form=form,
            is_abandoned=record.status is Status.ABANDONED,
            steps=[]
            if record.status_code
            else [presentable(each["name"]) for each in record.entries],
        )

    @method_decorator(sensitive_post_parameters("body"))
    def resolve_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Store the response of an abandoned record."""
        record = self._get(request, object_id, self.has_resolve_permission)
        if self._is_another_run(request, record):
            return self._has_changed(request, record)
        if not is_open(record):
            why = gettext("Only an abandoned record that is in force can be resolved.")
            return self._back(request, record, why)
        form = ResolveForm(request.POST or None)
        if form.is_valid():
            status = form.cleaned_data["status_code"]
            try:
                with transaction.atomic(using=record._state.db):
                    record.resolve(form.response())
                    text = in_the_log(STORED, status=status)
                    self._log(request, record, CHANGE, text)
            except RecordChanged as error:
                return self._has_changed(request, record, error)
            stored = gettext(
                "Stored: requests with this key and the same content get this response "
                "until %s."
            )
            messages.success(request, stored % display.second(record.expires_at))
            return HttpResponseRedirect(self._address("change", record.pk))
        return self._page(
            request,
            "resolve",
            title=gettext("Resolve: which response should the client get?"),
            **self._facts(request, record),
            form=form,
        )

    @method_decorator(sensitive_post_parameters("result"))
    def call_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Record how a call in doubt has ended (E13)."""
        record = self._get(request, object_id, self.has_resolve_permission)
        if self._is_another_run(request, record):
            return self._has_changed(request, record)
        name = record.call_in_doubt if is_open(record) else None
        if name is None:
            why = gettext("No call of this record is in doubt.")
            return self._back(request, record, why)
        shown, form = presentable(name), CallForm(request.POST or None)
        if form.is_valid():
            never = form.cleaned_data["outcome"] == CallForm.NEVER
            text = CALL_NEVER_HAPPENED if never else CALL_RETURNED
            try:
                with transaction.atomic(using=record._state.db):
                    is_settled = form.settle(record, name)
                    if is_settled:
                        what = in_the_log(text, name=shown)
                        self._log(request, record, CHANGE, what)
            except RecordChanged as error:
                return self._has_changed(request, record, error)
            if is_settled:
                messages.success(request, str(text % {"name": shown}))
                return HttpResponseRedirect(self._address("change", record.pk))
        return self._page(
            request,
            "call",
            title=gettext("How did the call “%(name)s” end?") % {"name": shown},
            **self._facts(request, record),
            form=form,
        )

    def complete_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for confirmation, then let the endpoint's completer run (E17)."""
        record = self._get(request, object_id, self.has_resolve_permission)
        if self._is_another_run(request, record):
            return self._has_changed(request, record)
        if not (is_open(record) and can_be_completed(record)):
            why = gettext(
                "Only an abandoned record with recorded steps can be completed, if its "
                "endpoint has a completer."
            )
            return self._back(request, record, why)
        if request.method == "POST":
            # Before the run, which can't be undone if it can't be logged.
            self._log(request, record, CHANGE, in_the_log(COMPLETING))
            return self._complete(request, record)
        return self._page(
            request,
            "complete",
            title=gettext("Complete this request now?"),
            **self._facts(request, record),
            last=presentable(record.entries[-1]["name"]),
        )

    def _complete(self, request: HttpRequest, record: Any) -> HttpResponse:
        failed = gettext(
            "The completer failed: %s. What it recorded is kept, and the request can "
            "be completed again."
        )
        try:
            response = complete(record)
        except (RecordChanged, ClaimLost, OutcomeUnknown) as error:
            return self._has_changed(request, record, error)
        except Exception as error:  # noqa: BLE001  # a completer is the project's
            log_failure(record, error)
            return self._back(request, record, failed % type(error).__name__)
        if response.status_code >= 500:
            return self._back(request, record, failed % response.status_code)
        done = gettext("Completed: retries get the response, with status %d.")
        messages.success(request, done % response.status_code)
        return HttpResponseRedirect(self._address("change", record.pk))

    def _facts(self, request: HttpRequest, record: Any) -> dict[str, Any]:
        """Return the template context about the record to change."""
        is_whole = self.has_body_permission(request, record)
        return {
            "record": record,
            "erased": display.erased(),
            "scope": presentable(record.scope) or display.erased(),
            "asked": display.asked(record) if is_whole else display.route(record),
            "record_address": self._address("change", record.pk),
        }

    def _is_another_run(self, request: HttpRequest, record: Any) -> bool:
        """Return whether the submitted page showed another run of the key."""
        token = request.POST.get("token")
        return request.method == "POST" and token != str(record.token)

    def _has_changed(
        self, request: HttpRequest, record: Any, error: Exception | None = None
    ) -> HttpResponse:
        why = gettext("Nothing was done: the record has changed. Check it again.")
        if isinstance(error, RecordHeld):
            why = gettext(
                "Nothing was done: the handler is just writing to the record. Try "
                "again."
            )
        return self._back(request, record, why)

    def _back(self, request: HttpRequest, record: Any, why: str) -> HttpResponse:
        messages.error(request, why)
        return HttpResponseRedirect(self._address("change", record.pk))

    def download_body(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send the body as a file without a type, which no browser shows or runs."""
        record = self._get(request, object_id, self.has_body_permission)
        if record.body is None:
            raise Http404
        self._log(request, record, CHANGE, in_the_log(DOWNLOADED))
        response = HttpResponse(
            bytes(record.body), content_type="application/octet-stream"
        )
        response["Content-Disposition"] = f'attachment; filename="{record.pk}.bin"'
        response["X-Content-Type-Options"] = "nosniff"
        response["Content-Security-Policy"] = "sandbox"
        return response

    def overview_view(self, request: HttpRequest) -> HttpResponse:
        """Show the overview of the last 30 days (A4)."""
        if not (
            self.has_view_permission(request) and self.has_overview_permission(request)
        ):
            raise PermissionDenied
        overview = Overview.of(self.get_queryset(request))
        return self._page(
            request,
            "overview",
            title=gettext("Overview"),
            alias=self.alias,
            overview=overview,
            callers=[(self._caller(each.scope), each) for each in overview.callers],
            per_day=overview.days[::-1],
            approximately="" if overview.is_exact else "~ ",
            state_address=f"{self._address('changelist')}?state=abandoned",
            half_done_address=(
                f"{self._address('changelist')}?state=abandoned&expiry=day"
            ),
        )


def _released(record: IdempotencyRecord, reason: str) -> str:
    """Return the log's text about a released record, without its key and content."""
    with override(settings.LANGUAGE_CODE):
        response = gettext("no response")
        if record.status_code is not None:
            size = record.body_size
            kept = gettext("not kept") if size is None else display.in_bytes(size)
            response = f"{record.status_code}, {kept}"
        return str(RELEASED) % {
            "reason": presentable(reason),
            "endpoint": f"{record.method} {presentable(display.route_name(record))}",
            "state": record.status.label,
            "response": response,
            "attempt": record.attempt,
            # In UTC: the log's readers may have other time zones.
            "claimed": record.created_at.isoformat(),
            "completed": ended.isoformat() if (ended := record.completed_at) else "-",
            "expires": record.expires_at.isoformat(),
        }


def is_open(record: IdempotencyRecord) -> bool:
    """Return whether the record can be resolved."""
    is_abandoned = record.is_in_force and record.status is Status.ABANDONED
    return is_abandoned and not record.why_unreadable()


def can_be_completed(record: IdempotencyRecord) -> bool:
    """Return whether an abandoned record has what its endpoint's completer needs."""
    if not record.entries or record.call_in_doubt is not None:
        return False
    try:
        return completer_of(record) is not None
    except ImportError:
        return False
