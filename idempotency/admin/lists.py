"""The list of records, with queries that an index can serve (contract A2)."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import connections, models
from django.db.models import Count, Min, Q, Window
from django.db.models.functions import RowNumber
from django.db.models.lookups import In
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from idempotency.conf import get_settings
from idempotency.database import UTCNow
from idempotency.models import Status

# Records on all pages of the list together.
LISTED = 1000
# Filters without an index search only the last records to expire.
SEARCHED = 10_000
# Abandoned records per caller, so that one caller's do not hide the others'.
OF_A_CALLER = 5

NOW = UTCNow()
DAY, WEEK = timedelta(days=1), timedelta(days=7)

Choices = list[tuple[str, Any]]
Records = models.QuerySet[Any]


class LastRecords(Paginator):  # type: ignore[type-arg]  # generic for the stubs alone
    """Pages of the first ``LISTED`` records, which are counted no further."""

    @cached_property
    def count(self) -> int:
        """The number of records on all pages together."""
        if isinstance(self.object_list, Viewable):
            return len(self.object_list)
        records: Records = self.object_list  # type: ignore[assignment]  # of the admin
        return records[:LISTED].values("pk").count()


class Viewable(list[Any]):
    """Records that the user may view, with what ChangeList needs of a queryset."""

    def _clone(self) -> Viewable:
        return self


def that_have(records: Records, column: str, values: Collection[str]) -> Records:
    """Return the records with one of these values, compared case-sensitively."""
    found = records.filter(**{f"{column}__in": values})
    if connections[records.db].vendor == "mysql":
        # The index narrows the search, but its collation usually ignores case (K3).
        octets = models.Func(
            column,
            template="CAST(%(expressions)s AS BINARY)",
            output_field=models.BinaryField(),
        )
        found = found.filter(In(octets, [value.encode() for value in values]))
    return found


class RecordFilter(admin.SimpleListFilter):
    """A filter by named conditions."""

    CONDITIONS: ClassVar[dict[str, tuple[Any, Q]]]

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Return the choices."""
        return [(name, label) for name, (label, _q) in self.CONDITIONS.items()]

    def queryset(self, request: HttpRequest, queryset: Records) -> Records:
        """Return the records that fit the choice."""
        chosen = self.value()
        if chosen not in self.CONDITIONS:
            return queryset
        return queryset.filter(self.CONDITIONS[chosen][1])

    @property
    def is_chosen(self) -> bool:
        """Whether it narrows the list."""
        return self.value() in self.CONDITIONS


# A record's place among its caller's, the oldest first.
TURN = Window(RowNumber(), partition_by="scope", order_by=("created_at", "pk"))


class StateFilter(RecordFilter):
    """Filter by current status; an index finds records that have or had a lease."""

    title = _("state")
    parameter_name = "state"
    CONDITIONS: ClassVar[Any] = {
        status.value: (status.label, status.condition) for status in Status
    }

    @property
    def is_by_lease(self) -> bool:
        """Whether the index on leases finds nearly all records with this status."""
        return self.value() in ("abandoned", "in_progress")


class MethodFilter(RecordFilter):
    """Filter by the request's method."""

    title = _("method")
    parameter_name = "method"
    CONDITIONS: ClassVar[Any] = {
        method.lower(): (method, Q(method=method))
        for method in ("POST", "PUT", "PATCH", "DELETE")
    }


class StatusFilter(RecordFilter):
    """Filter by the first digit of the stored HTTP status."""

    title = _("HTTP status")
    parameter_name = "status"
    CONDITIONS: ClassVar[Any] = {
        f"{digit}xx": (
            f"{digit}xx",
            Q(status_code__gte=100 * digit, status_code__lt=100 * digit + 100),
        )
        for digit in (2, 3, 4)
    }


class AgeFilter(RecordFilter):
    """Filter by the time since the key was claimed."""

    title = _("age")
    parameter_name = "age"
    OLDER = "older"
    CONDITIONS: ClassVar[Any] = {
        "hour": (_("less than an hour"), Q(created_at__gt=NOW - timedelta(hours=1))),
        "day": (_("less than a day"), Q(created_at__gt=NOW - DAY)),
        "week": (_("less than a week"), Q(created_at__gt=NOW - WEEK)),
        OLDER: (_("a week and more"), ~Q(created_at__gt=NOW - WEEK)),
    }


class ExpiryFilter(RecordFilter):
    """Filter by expiry, which is the order of the list."""

    title = _("expiry")
    parameter_name = "expiry"
    CONDITIONS: ClassVar[Any] = {
        "past": (_("expired, not purged"), Q(expires_at__lte=NOW)),
        "day": (
            _("within a day"),
            Q(expires_at__gt=NOW, expires_at__lte=NOW + DAY),
        ),
        "week": (
            _("within a week"),
            Q(expires_at__gt=NOW, expires_at__lte=NOW + WEEK),
        ),
        "later": (_("later"), Q(expires_at__gt=NOW + WEEK)),
    }


class CallerFilter(admin.SimpleListFilter):
    """Filter by the scope in the address; it offers no list of all callers."""

    title = _("caller")
    parameter_name = "caller"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Return the chosen caller, if any."""
        return [(scope, scope)] if (scope := self.value()) else []

    def queryset(self, request: HttpRequest, queryset: Records) -> Records:
        """Return the records of that caller."""
        scope = self.value()
        return that_have(queryset, "scope", [scope]) if scope else queryset

    @property
    def is_chosen(self) -> bool:
        """Whether it narrows the list."""
        return bool(self.value())


FILTERS = (
    CallerFilter,
    StateFilter,
    StatusFilter,
    AgeFilter,
    ExpiryFilter,
    MethodFilter,
)


class RecordList(ChangeList):
    """The list, always in the order of expiry, which has an index."""

    # For the notes on the page:
    # whether only the last records were searched,
    is_limited = False
    searched = SEARCHED
    # whether the list has a few records of each caller,
    is_by_caller = False
    of_a_caller = OF_A_CALLER
    # and the retention by which old records were searched.
    retention: timedelta | None = None

    def get_ordering(self, request: HttpRequest, queryset: Records) -> list[Any]:
        """Return the order of expiry, the last to expire first.

        If all records have one retention, this is the newest first.
        """
        return ["-expires_at", "-pk"]

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: Any = None
    ) -> Records:
        """Return the records; abandoned ones are grouped by caller."""
        found = super().get_queryset(request, exclude_parameters)
        if self.query:
            return found  # by the index on keys, or by the primary key
        chosen = {type(spec): spec for spec in self.filter_specs if spec.is_chosen}  # type: ignore[attr-defined]  # all are ours
        found = self._within_bounds(request, found, {**chosen})
        state = chosen.get(StateFilter)
        if state is None or state.value() != "abandoned":  # type: ignore[attr-defined]  # ours
            return found
        if CallerFilter in chosen:
            return found.order_by("created_at", "pk")
        self.is_by_caller = True
        return _by_caller(found)

    def get_results(self, request: HttpRequest) -> None:
        """Count and list only records that the user may view, asking for each.

        A count of all would reveal hidden records.
        """
        rules: Any = self.model_admin
        found: Any = self.queryset
        if rules.restricts_single_records:
            may = rules.has_view_permission
            shown = Viewable(each for each in found[:LISTED] if may(request, each))
            self.queryset = shown
        super().get_results(request)
        self.queryset = found

    def _within_bounds(
        self, request: HttpRequest, found: Records, chosen: dict[type, Any]
    ) -> Records:
        """Limit filters without an index to the last records to expire."""
        expiry, state = chosen.pop(ExpiryFilter, None), chosen.get(StateFilter)
        if not chosen:
            return found
        places = self.root_queryset
        if expiry is not None:
            places = expiry.queryset(request, places)
        age = chosen.get(AgeFilter)
        is_old = isinstance(age, AgeFilter) and age.value() == AgeFilter.OLDER
        among_the_last = self._among_the_last(places, is_old=is_old)
        if not (isinstance(state, StateFilter) and state.is_by_lease):
            return found.filter(among_the_last)
        left_behind = places.filter(
            among_the_last, Status.ABANDONED.condition, lease_expires_at=None
        )
        if caller := chosen.get(CallerFilter):
            left_behind = caller.queryset(request, left_behind)
        by_turns = left_behind.annotate(turn=TURN).order_by("turn", "created_at")
        pks = by_turns.values_list("pk", flat=True)[:LISTED]
        # A query of its own: no index would serve both conditions in one.
        return found.filter(Q(lease_expires_at__isnull=False) | Q(pk__in=[*pks]))

    def _among_the_last(self, places: Records, *, is_old: bool) -> Q:
        """Return the condition of the last ``SEARCHED`` records, and note the limit.

        Old records expire earlier, so they are searched from where a record with the
        retention of the settings would expire.
        """
        end = _end_of_the_last(places)
        if end is None:
            return Q()
        self.is_limited = True
        if not is_old:
            return Q(expires_at__gt=end)
        self.retention = get_settings().policy.retention
        are_old = Q(expires_at__lte=NOW + (self.retention - WEEK))
        end = _end_of_the_last(places.filter(are_old))
        return are_old if end is None else are_old & Q(expires_at__gt=end)


def _by_caller(records: Records) -> Records:
    """Return the oldest records of each caller, the longest-waiting caller first."""
    numbered = records.annotate(
        turn=TURN,
        first=Window(Min("created_at"), partition_by="scope"),
        of_caller=Window(Count("pk"), partition_by="scope"),
    )
    by_caller: Records = numbered.filter(turn__lte=OF_A_CALLER).order_by(
        "first", "scope", "created_at", "pk"
    )
    return by_caller


def _end_of_the_last(places: Records) -> datetime | None:
    """Return the expiry after which ``SEARCHED`` records follow, or None for fewer."""
    ends = places.order_by("-expires_at").values_list("expires_at", flat=True)
    end: datetime | None = ends[SEARCHED : SEARCHED + 1].first()
    return end
