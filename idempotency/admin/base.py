"""Records, addresses and log entries of one database's admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.admin.options import get_content_type_for_model
from django.contrib.admin.utils import quote
from django.db import connections, models, transaction
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import override

from idempotency.admin import display
from idempotency.models import IdempotencyRecord, default_alias

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

    RecordAdminBase = admin.ModelAdmin[IdempotencyRecord]
else:
    RecordAdminBase = admin.ModelAdmin


# Prefix of the default scope of a logged-in user (S1).
USER_SCOPE = "user:"


class RecordAdmin(RecordAdminBase):
    """Admin of the records in the database ``using``.

    The default is the database that the app writes records to.
    """

    using: str | None = None

    @property
    def alias(self) -> str:
        """The alias of the database."""
        return self.using or default_alias()

    @property
    def restricts_single_records(self) -> bool:
        """Whether a subclass decides for each record who may view it."""
        own = getattr(self.has_view_permission, "__func__", None)
        return own is not admin.ModelAdmin.has_view_permission

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[IdempotencyRecord]:
        """Return the records with their lease state, and defer the large fields."""
        records: Any = super().get_queryset(request).using(self.alias)
        found: models.QuerySet[IdempotencyRecord] = records.with_lease_state()
        return found.defer("body", "headers", "steps")

    def _name(self, page: str) -> str:
        """Return the URL name of a page; a proxy model has its own."""
        return f"{self.opts.app_label}_{self.opts.model_name}_{page}"

    def _address(self, page: str, *args: Any) -> str:
        return reverse(
            f"admin:{self._name(page)}", args=args, current_app=self.admin_site.name
        )

    def _records_of(self, **chosen: str) -> str:
        """Return the address of the list with these filters."""
        return f"{self._address('changelist')}?{urlencode(chosen)}"

    def _caller(self, scope: str) -> SafeString:
        """Return the scope for a column of a table."""
        if not scope:
            return format_html("{}", display.erased())
        return self._with_user_link(scope, display.in_a_column(scope))

    def _with_user_link(self, scope: str, shown: SafeString) -> SafeString:
        """Link a user's scope to the user if this site has an admin for users."""
        address = self._user_address(scope)
        return format_html('<a href="{}">{}</a>', address, shown) if address else shown

    def _user_address(self, scope: str) -> str | None:
        """Return the address of a scope's user in this admin site, if there is one."""
        kind, _colon, pk = scope.removeprefix(USER_SCOPE).rpartition(":")
        label = settings.AUTH_USER_MODEL.lower()
        if not (scope.startswith(USER_SCOPE) and kind == label and pk):
            return None
        if not self.admin_site.is_registered(apps.get_model(label)):
            return None
        name = f"admin:{label.replace('.', '_')}_change"
        return reverse(name, args=[quote(pk)], current_app=self.admin_site.name)

    def _log(self, request: HttpRequest, record: Any, flag: int, what: str) -> None:
        """Add an entry to the admin's log; it names the record by its id."""
        LogEntry.objects.create(
            user_id=request.user.pk,  # type: ignore[misc]  # admin_view() refuses others
            content_type=get_content_type_for_model(self.model),
            object_id=record and str(record.pk),
            object_repr=str(record.pk if record else self.opts.verbose_name_plural),
            action_flag=flag,
            change_message=what,
        )


def outside_transactions(view: Any) -> Any:
    """Return a view that runs in no transaction of ATOMIC_REQUESTS."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def in_the_log(what: Any, **given: Any) -> str:
    """Return a log text in the project's language, which all staff can read."""
    with override(settings.LANGUAGE_CODE):
        return str(what % given)
