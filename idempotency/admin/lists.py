"""The list of records: no question in it that an index can't answer (contract A2)."""

from __future__ import annotations

from collections.abc import Callable, Collection
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

# How many records the pages of the list have together.
LISTED = 1000
# Filters that no index serves look at so many records, the last to expire.
SEARCHED = 10_000
# Of abandoned records the list has so many of each caller, so that nobody who leaves
# many behind hides those of others.
OF_A_CALLER = 5

WEEK = timedelta(days=7)

Condition = Callable[[UTCNow], Q]
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
    """Records that somebody may view, where the list expects a query."""

    def _clone(self) -> Viewable:
        return self


def that_have(records: Records, column: str, values: Collection[str]) -> Records:
    """Return the records with one of these values, capitals and small letters apart."""
    found = records.filter(**{f"{column}__in": values})
    if connections[records.db].vendor == "mysql":
        # By the index: its usual collations take capitals for small letters (K3).
        octets = models.Func(
            column,
            template="CAST(%(expressions)s AS BINARY)",
            output_field=models.BinaryField(),
        )
        found = found.filter(In(octets, [value.encode() for value in values]))
    return found


def _younger_than(most: timedelta) -> Condition:
    return lambda now: Q(created_at__gt=now - most)


def _with_status(digit: int) -> Condition:
    first = 100 * digit
    return lambda now: Q(status_code__gte=first, status_code__lt=first + 100)


class RecordFilter(admin.SimpleListFilter):
    """A filter by conditions that stand in ``CONDITIONS``, each with its name."""

    CONDITIONS: ClassVar[dict[str, tuple[Any, Condition]]]

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Return what can be chosen."""
        return [(name, label) for name, (label, _q) in self.CONDITIONS.items()]

    def queryset(self, request: HttpRequest, queryset: Records) -> Records:
        """Return the records that fit the choice."""
        chosen = self.value()
        if chosen not in self.CONDITIONS:
            return queryset
        _label, condition = self.CONDITIONS[chosen]
        return queryset.filter(condition(UTCNow()))

    @property
    def is_chosen(self) -> bool:
        """Whether it narrows the list."""
        return self.value() in self.CONDITIONS


# A record's place among its caller's, from the oldest on.
TURN = Window(RowNumber(), partition_by="scope", order_by=("created_at", "pk"))


class StateFilter(RecordFilter):
    """By what the record is now; an index finds records that have or had a lease."""

    title = _("state")
    parameter_name = "state"
    CONDITIONS: ClassVar[Any] = {
        status.value: (status.label, lambda now, status=status: status.condition)
        for status in (
            *(Status.ABANDONED, Status.IN_PROGRESS, Status.COMPLETED, Status.NOT_KEPT),
        )
    }

    @property
    def is_by_lease(self) -> bool:
        """Whether the index on leases finds what was chosen, or nearly all of it."""
        return self.value() in ("abandoned", "in_progress")


class MethodFilter(RecordFilter):
    """By the request's method."""

    title = _("method")
    parameter_name = "method"
    CONDITIONS: ClassVar[Any] = {
        "post": ("POST", lambda now: Q(method="POST")),
        "put": ("PUT", lambda now: Q(method="PUT")),
        "patch": ("PATCH", lambda now: Q(method="PATCH")),
        "delete": ("DELETE", lambda now: Q(method="DELETE")),
    }


class StatusFilter(RecordFilter):
    """By the first digit of the stored HTTP status."""

    title = _("HTTP status")
    parameter_name = "status"
    CONDITIONS: ClassVar[Any] = {
        f"{digit}xx": (f"{digit}xx", _with_status(digit)) for digit in (2, 3, 4)
    }


class AgeFilter(RecordFilter):
    """By how long ago the key was claimed."""

    title = _("age")
    parameter_name = "age"
    OLDER = "older"
    CONDITIONS: ClassVar[Any] = {
        "hour": (_("less than an hour"), _younger_than(timedelta(hours=1))),
        "day": (_("less than a day"), _younger_than(timedelta(days=1))),
        "week": (_("less than a week"), _younger_than(WEEK)),
        OLDER: (_("a week and more"), lambda now: ~_younger_than(WEEK)(now)),
    }


class ExpiryFilter(RecordFilter):
    """By when the record expires, which is the order of the list."""

    title = _("expiry")
    parameter_name = "expiry"
    CONDITIONS: ClassVar[Any] = {
        "past": (_("expired, not purged"), lambda now: Q(expires_at__lte=now)),
        "day": (
            _("within a day"),
            lambda now: Q(expires_at__gt=now, expires_at__lte=now + timedelta(days=1)),
        ),
        "week": (
            _("within a week"),
            lambda now: Q(expires_at__gt=now, expires_at__lte=now + WEEK),
        ),
        "later": (
            _("later"),
            lambda now: Q(expires_at__gt=now + WEEK),
        ),
    }


class CallerFilter(admin.SimpleListFilter):
    """By the scope that a link names: nobody could choose among all."""

    title = _("caller")
    parameter_name = "caller"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Return the caller that was chosen, if one was."""
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
    """The list in the one order that has an index, whatever the address asks for."""

    # Whether something was looked for among the last records alone: the page says so.
    is_limited = False
    searched = SEARCHED
    # Whether each caller has some places, as the page says.
    is_by_caller = False
    of_a_caller = OF_A_CALLER
    # The retention that was taken for every record's, to find what has an age.
    retention: timedelta | None = None

    def get_ordering(self, request: HttpRequest, queryset: Records) -> list[Any]:
        """Return the order of expiry, the last to expire first.

        Where all have one retention, that is the newest first.
        """
        return ["-expires_at", "-pk"]

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: Any = None
    ) -> Records:
        """Return the records; what waits for a decision comes by callers."""
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
        """Count and list only records that somebody may view, one by one.

        A count of the others would tell that they are there.
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
        """Let filters without an index see the last records only."""
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
        # Asked for by themselves: together no index would serve the two.
        return found.filter(Q(lease_expires_at__isnull=False) | Q(pk__in=[*pks]))

    def _among_the_last(self, places: Records, *, is_old: bool) -> Q:
        """Return what holds for the last records to expire of some, and note it.

        The last of all are none of the old ones, which expire earlier: by how much,
        the retention of the settings tells.
        """
        end = _end_of_the_last(places)
        if end is None:
            return Q()
        self.is_limited = True
        if not is_old:
            return Q(expires_at__gt=end)
        self.retention = get_settings().policy.retention
        are_old = Q(expires_at__lte=UTCNow() + (self.retention - WEEK))
        end = _end_of_the_last(places.filter(are_old))
        return are_old if end is None else are_old & Q(expires_at__gt=end)


def _by_caller(records: Records) -> Records:
    """Return the oldest of each caller, and first the caller who has waited longest."""
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
    """Return the expiry that ``SEARCHED`` records come after, or None for fewer."""
    ends = places.order_by("-expires_at").values_list("expires_at", flat=True)
    end: datetime | None = ends[SEARCHED : SEARCHED + 1].first()
    return end
