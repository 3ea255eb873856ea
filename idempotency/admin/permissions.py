"""Who may do what with records, one by one: a project restricts these (contract A1)."""

from __future__ import annotations

from django.http import HttpRequest

from idempotency.admin.base import RecordAdmin
from idempotency.models import IdempotencyRecord

SEE_BODY = "idempotency.view_response_body"
RELEASE = "idempotency.release_key"
RESOLVE = "idempotency.resolve_record"
PURGE = "idempotency.purge_records"
OVERVIEW = "idempotency.view_overview"


class Permissions(RecordAdmin):
    """Permissions in the manner of ``has_view_permission``, which all of them need.

    Those that take a record are asked about that one, wherever it is shown or decided
    about. Those that take none are about all records at once.
    """

    def has_body_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Tell who may read an answer, and the path and fingerprint of its request.

        A path may be a secret, such as a link to reset a password, and a fingerprint
        tells whether a guess of the body is right.
        """
        return request.user.has_perm(SEE_BODY)

    def has_release_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Tell who may free a key."""
        return request.user.has_perm(RELEASE)

    def has_resolve_permission(
        self, request: HttpRequest, obj: IdempotencyRecord | None = None
    ) -> bool:
        """Tell who may store the answer of an abandoned record."""
        return request.user.has_perm(RESOLVE)

    def has_purge_permission(self, request: HttpRequest) -> bool:
        """Tell who may purge: all expired records of the database, listed or not."""
        return request.user.has_perm(PURGE)

    def has_overview_permission(self, request: HttpRequest) -> bool:
        """Tell who may see sums: over ``get_queryset()``, whoever may view each."""
        return request.user.has_perm(OVERVIEW)
