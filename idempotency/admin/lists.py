"""The list of records, with queries that an index can serve (contract A2)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import connections, models
from django.db.models import Count, Max, Q, Window
from django.db.models.functions import FirstValue, RowNumber
from django.db.models.lookups import In
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from idempotency.admin.decoding import presentable
from idempotency.conf import get_settings
from idempotency.database import UTCNow
from idempotency.models import Status

# Records on all pages of the list together.
LISTED = 1000
# Filters without an index search only the last records to expire.
SEARCHED = 10_000
# Abandoned records per caller, so that one caller's do not hide the others'.
OF_A_CALLER = 5
# Endpoints that the filter offers, the latest first; a search finds the others.
OFFERED = 10

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

    def offer(self, names: Collection[str]) -> None:
        """Offer only the choices with these names, and the one that is chosen."""
        kept = {self.value(), *names}
        self.lookup_choices = [each for each in self.lookup_choices if each[0] in kept]


# A record's place among its caller's, the oldest first, and when that one was claimed.
# MariaDB takes seconds for Min() over some thousand records of a caller.
OLDEST_FIRST: Any = {"partition_by": "scope", "order_by": ("created_at", "pk")}
TURN = Window(RowNumber(), **OLDEST_FIRST)
FIRST = Window(FirstValue("created_at"), **OLDEST_FIRST)


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


class ValueFilter(admin.SimpleListFilter):
    """A filter by a value in the address, which an index finds."""

    def value(self) -> str | None:
        """Return the value; PostgreSQL refuses to look for a NUL."""
        value: str | None = super().value()
        return value and value.replace("\0", "\N{REPLACEMENT CHARACTER}")

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """Return the chosen value, if any."""
        return [(value, presentable(value))] if (value := self.value()) else []

    @property
    def is_chosen(self) -> bool:
        """Whether it narrows the list."""
        return bool(self.value())


class CallerFilter(ValueFilter):
    """Filter by scope; it offers no list of all callers."""

    title = _("caller")
    parameter_name = "caller"

    def queryset(self, request: HttpRequest, queryset: Records) -> Records:
        """Return the records of that caller."""
        scope = self.value()
        return that_have(queryset, "scope", [scope]) if scope else queryset


class EndpointFilter(ValueFilter):
    """Filter by method and route, with a space between them."""

    title = _("endpoint")
    parameter_name = "endpoint"

    def queryset(self, request: HttpRequest, queryset: Records) -> Records:
        """Return the records of that endpoint."""
        method, _space, route = (self.value() or "").partition(" ")
        return of_endpoint(queryset, method, route) if method else queryset

    def has_output(self) -> bool:
        """Return True, because choices come later."""
        return True

    def offer(self, names: Collection[str]) -> None:
        """Offer the first of these endpoints besides the one that is chosen."""
        others = [name for name in names if name not in ("", self.value())]
        choices = [(name, presentable(name)) for name in others[:OFFERED]]
        self.lookup_choices = [*self.lookup_choices, *choices]


def of_endpoint(records: Records, method: str, route: str) -> Records:
    """Return the records of a method and route."""
    return that_have(records.filter(method=method), "route", [route])


FILTERS = (
    CallerFilter,
    EndpointFilter,
    StateFilter,
    StatusFilter,
    AgeFilter,
    ExpiryFilter,
    MethodFilter,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an index finds records: all of them, or those of a caller or endpoint.

    ``by`` is the time by which the index has them in order. ``indexed`` are the filters
    that it serves.
    """

    by: str
    indexed: tuple[type[admin.SimpleListFilter], ...]

    @property
    def order(self) -> list[str]:
        """The order of the list, the last first."""
        return [f"-{self.by}", "-pk"]

    def after(self, moment: datetime) -> Q:
        """Return the condition of the records after a moment."""
        return Q(**{f"{self.by}__gt": moment})

    def end_of_the_last(self, records: Records) -> datetime | None:
        """Return the time after which ``SEARCHED`` records follow, if there are."""
        ends = records.order_by(f"-{self.by}").values_list(self.by, flat=True)
        end: datetime | None = ends[SEARCHED : SEARCHED + 1].first()
        return end


EVERYWHERE = Place(by="expires_at", indexed=(ExpiryFilter,))
OF_CALLER = Place(by="created_at", indexed=(CallerFilter, AgeFilter))
OF_ENDPOINT = Place(by="created_at", indexed=(EndpointFilter, AgeFilter))


class RecordList(ChangeList):
    """The list, in the order of an index: by expiry, or by age in a narrower place."""

    # For the notes on the page:
    # whether only the last records were searched,
    is_limited = False
    searched = SEARCHED
    # whether the list has a few records of each caller,
    is_by_caller = False
    of_a_caller = OF_A_CALLER
    # and the retention by which old records were searched.
    retention: timedelta | None = None

    @cached_property
    def chosen(self) -> dict[type, Any]:
        """The filters that narrow the list, by their classes."""
        specs: Any = self.filter_specs  # all are ours
        return {type(spec): spec for spec in specs if spec.is_chosen}

    @property
    def place(self) -> Place:
        """Where the records are looked for."""
        if CallerFilter in self.chosen:
            return OF_CALLER
        return OF_ENDPOINT if EndpointFilter in self.chosen else EVERYWHERE

    @property
    def narrowed_by(self) -> str | None:
        """The caller or endpoint of the list's records, for a note on the page."""
        for kind in (CallerFilter, EndpointFilter):
            if kind in self.chosen:
                return presentable(self.chosen[kind].value())
        return None

    def get_ordering(self, request: HttpRequest, queryset: Records) -> list[Any]:
        """Return the place's order, whatever the address asks for.

        The order of expiry is the newest first, too, if all records have one retention.
        """
        return self.place.order

    def get_queryset(
        self, request: HttpRequest, exclude_parameters: Any = None
    ) -> Records:
        """Return the records; abandoned ones are grouped by caller."""
        found = super().get_queryset(request, exclude_parameters)
        if self.query:
            # By the index on keys, or by the primary key: there is nothing to filter.
            self.filter_specs = [*self.chosen.values()]
        else:
            self._look_around(request)
        self.has_filters = bool(self.filter_specs)
        if self.query:
            return found
        found = self._within_bounds(request, found)
        state = self.chosen.get(StateFilter)
        if state is None or state.value() != "abandoned":
            return found
        if CallerFilter in self.chosen:
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

    def _look_around(self, request: HttpRequest) -> None:
        """Find the place's records, and the end of the last ``SEARCHED`` of them."""
        places = self.root_queryset
        for kind in self.place.indexed:
            if spec := self.chosen.get(kind):
                places = spec.queryset(request, places)
        self.places, self.end = places, self.place.end_of_the_last(places)
        rules: Any = self.model_admin
        if not rules.restricts_single_records:  # they would tell of hidden records
            self._offer_choices(places)
        specs: Any = self.filter_specs
        self.filter_specs = [spec for spec in specs if spec.lookup_choices]

    def _offer_choices(self, places: Records) -> None:
        """Let filters offer what some of the last records have and others don't."""
        last = places if self.end is None else places.filter(self.place.after(self.end))
        by_kind = last.order_by().values_list("method", "route", "status_code")
        # Names in the order of their latest records.
        names: dict[type, dict[str, None]]
        names = {kind: {} for kind in (MethodFilter, StatusFilter, EndpointFilter)}
        for method, route, status, _latest in by_kind.annotate(
            latest=Max(self.place.by)
        ).order_by("-latest"):
            names[MethodFilter][method.lower()] = None
            names[StatusFilter][f"{(status or 0) // 100}xx"] = None
            names[EndpointFilter][f"{method} {route}" if route else ""] = None
        specs: Any = self.filter_specs
        for spec in specs:
            if (found := names.get(type(spec))) is not None:
                spec.offer(found if len(found) > 1 else ())

    def _within_bounds(self, request: HttpRequest, found: Records) -> Records:
        """Limit filters without an index to the last records of the place."""
        rest = {*self.chosen} - {*self.place.indexed}
        if not rest:
            return found
        among_the_last = self._among_the_last()
        state = self.chosen.get(StateFilter)
        if state is None or not state.is_by_lease:
            return found.filter(among_the_last)
        left_behind = self.places.filter(
            among_the_last, Status.ABANDONED.condition, lease_expires_at=None
        )
        by_turns = left_behind.annotate(turn=TURN).order_by("turn", "created_at")
        pks = by_turns.values_list("pk", flat=True)[:LISTED]
        # A query of its own: no index would serve both conditions in one.
        return found.filter(Q(lease_expires_at__isnull=False) | Q(pk__in=[*pks]))

    def _among_the_last(self) -> Q:
        """Return the condition of the last ``SEARCHED`` records, and note the limit.

        Old records expire earlier, so they are searched from where a record with the
        retention of the settings would expire.
        """
        if self.end is None:
            return Q()
        self.is_limited = True
        age = self.chosen.get(AgeFilter)
        is_old = age is not None and age.value() == AgeFilter.OLDER
        if self.place is not EVERYWHERE or not is_old:
            return self.place.after(self.end)
        self.retention = get_settings().policy.retention
        are_old = Q(expires_at__lte=NOW + (self.retention - WEEK))
        end = self.place.end_of_the_last(self.places.filter(are_old))
        return are_old if end is None else are_old & self.place.after(end)


def _by_caller(records: Records) -> Records:
    """Return the oldest records of each caller, the longest-waiting caller first."""
    numbered = records.annotate(
        turn=TURN,
        first=FIRST,
        of_caller=Window(Count("pk"), partition_by="scope"),
    )
    by_caller: Records = numbered.filter(turn__lte=OF_A_CALLER).order_by(
        "first", "scope", "created_at", "pk"
    )
    return by_caller
