"""The action that erases what records say of a person (contract P4)."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from idempotency.admin import display
from idempotency.admin.base import in_the_log, outside_transactions
from idempotency.admin.decoding import presentable
from idempotency.admin.permissions import Permissions
from idempotency.models import IdempotencyRecord, RecordChanged

# Records at a time. The command erases any number.
MOST = 200
# The form's field, with a record's id and claim token.
FIELD = "record"

ERASED = _("Erased the record.")


class ErasePage(Permissions):
    """Add an action to the list, and the page that it asks to confirm."""

    actions = ("erase_selected",)

    def get_urls(self) -> list[URLPattern]:
        """Add the page before Django's."""
        # Each record is erased and logged in a transaction of its own.
        view = outside_transactions(self.admin_site.admin_view(self.erase_view))
        return [path("erase/", view, name=self._name("erase")), *super().get_urls()]

    @admin.action(permissions=["erase"], description=_("Erase selected records"))
    def erase_selected(self, request: HttpRequest, queryset: Any) -> HttpResponse:
        """Ask for confirmation."""
        selected = [*queryset[: MOST + 1]]
        chosen = [each for each in selected[:MOST] if self._may_erase(request, each)]
        return TemplateResponse(
            request,
            "admin/idempotency/idempotencyrecord/erase.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "media": self.media,
                "title": gettext("Erase these records?"),
                "list_address": self._address("changelist"),
                "erase_address": self._address("erase"),
                "records": [(each, _name(each)) for each in chosen],
                "field": FIELD,
                "most": MOST if len(selected) > MOST else None,
            },
        )

    def erase_view(self, request: HttpRequest) -> HttpResponse:
        """Erase the records of the confirmed page that have not changed since."""
        if not (
            self.has_view_permission(request) and self.has_erase_permission(request)
        ):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponse(status=405, headers={"Allow": "POST"})
        chosen = request.POST.getlist(FIELD)
        erased = sum(self._erase(request, each) for each in chosen)
        if erased:
            done = ngettext(
                "Erased %(number)d record.", "Erased %(number)d records.", erased
            )
            messages.success(request, done % {"number": erased})
        if left := len(chosen) - erased:
            why = ngettext(
                "%(number)d record was left alone: it is being executed, or has "
                "changed. Check it again.",
                "%(number)d records were left alone: they are being executed, or have "
                "changed. Check them again.",
                left,
            )
            messages.error(request, why % {"number": left})
        return HttpResponseRedirect(self._address("changelist"))

    def _erase(self, request: HttpRequest, chosen: str) -> bool:
        """Erase a record if it is still as it was on the page."""
        pk, _blank, token = chosen.partition(" ")
        record = self.get_object(request, pk)
        if record is None or str(record.token) != token:
            return False
        if not self._may_erase(request, record):
            raise PermissionDenied
        try:
            with transaction.atomic(using=record._state.db):
                record.erase()
                self._log(request, record, CHANGE, in_the_log(ERASED))
        except RecordChanged:
            return False
        return True

    def _may_erase(self, request: HttpRequest, record: IdempotencyRecord) -> bool:
        return self.has_view_permission(request, record) and self.has_erase_permission(
            request, record
        )


def _name(record: IdempotencyRecord) -> str:
    """Return what tells a record from others."""
    if record.is_erased:
        return f"{record.pk} · {display.erased()}"
    return presentable(f"{record.key} · {record.scope}")
