"""Permissions of the admin, which a project can restrict per record (contract A1)."""

from __future__ import annotations

from django.http import HttpRequest

from idempotency.admin.base import RecordAdmin
from idempotency.models import IdempotencyRecord

SEE_BODY = "idempotency.view_response_body"
RELEASE = "idempotency.release_key"
RESOLVE = "idempotency.resolve_record"
PURGE = "idempotency.purge_records"
OVERVIEW = "idempotency.view_overview"
ERASE = "idempotency.erase_records"


class Permissions(RecordAdmin):
    """Add permission methods; each needs ``has_view_permission`` as well.

    Methods with ``obj`` decide about that record, the others about all records.
    """

    def has_body_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Return whether the user may see response, path and fingerprint.

        A path can be a secret, such as a password reset link, and a fingerprint
        confirms a guess of the request's body.
        """
        return request.user.has_perm(SEE_BODY)

    def has_release_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Return whether the user may release a key."""
        return request.user.has_perm(RELEASE)

    def has_resolve_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Return whether the user may decide about an abandoned record.

        That is to store its response, to say how a call ended, or to complete it.
        """
        return request.user.has_perm(RESOLVE)

    def has_purge_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may purge all expired records of the database."""
        return request.user.has_perm(PURGE)

    def has_overview_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may see sums over all of ``get_queryset()``."""
        return request.user.has_perm(OVERVIEW)

    def has_erase_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Return whether the user may erase what a record says of a person."""
        return request.user.has_perm(ERASE)
