"""Figures about the records of one database, and a chart of 30 days (contract A4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Case, Count, Q, Sum, Value, When
from django.db.models.functions import Left
from django.utils import timezone
from django.utils.timesince import timesince
from django.utils.translation import gettext

from idempotency.admin.decoding import presentable
from idempotency.database import now_in
from idempotency.models import Status
from idempotency.routes import route_of
from idempotency.steps import HALF_DONE

DAYS = 30
# If there are more records, figures are estimated from a sample of this size.
SAMPLE = 10_000
ENDPOINTS = CALLERS = 10
# Limits of looking up paths in the URLconf.
MOST_RESOLVED = 1_000
LONGEST_PATH = 2_000
# Rows found by an index are counted up to this number.
MOST_COUNTED = 10_000
# The first bits of an id, in the database's order of ids, are pure hash. MariaDB's
# order of UUIDs begins with the last six octets.
HASHED_BITS = 48
COLUMNS = (
    "id",
    "created_at",
    "expires_at",
    "state",
    "status_code",
    "scope",
    "method",
    "route",
    "body_size",
    "lease_expires_at",
)
NO_ANSWER = "none"
CLASSES = ("2xx", "3xx", "4xx", NO_ANSWER)


class Bar(NamedTuple):
    """One day's records with one class of status, and their bar in per cent."""

    kind: str
    number: int
    x: float
    width: float

    @property
    def label(self) -> str:
        """The class in the user's language."""
        return gettext("no response") if self.kind == NO_ANSWER else self.kind


class Day(NamedTuple):
    """The records stored on one day."""

    day: date
    number: int
    bars: tuple[Bar, ...]


class Endpoint(NamedTuple):
    """Number and bytes of the records of a method and route.

    ``route`` is None for all paths that the URLconf no longer has. ``is_indexed`` says
    whether records store it, so that the list finds them by it.
    """

    method: str
    route: str | None
    number: int
    size: int
    width: float
    is_indexed: bool

    @property
    def value(self) -> str:
        """The method and route for the list's filter."""
        return f"{self.method} {self.route}"

    @property
    def shown_route(self) -> str:
        """The route for a page."""
        return presentable(self.route or gettext("unknown route"))


class Caller(NamedTuple):
    """Number and bytes of the records of a scope."""

    scope: str
    number: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Figures about records; ``is_exact`` is false if they come from a sample.

    If ``..._is_cut`` is true, counting stopped at that number.
    ``half_done_within_a_day`` of the counted abandoned records have recorded steps, and
    lose them within a day.
    """

    is_exact: bool
    sample: int
    number: int
    size: int
    days: tuple[Day, ...]
    endpoints: tuple[Endpoint, ...]
    endpoints_are_exact: bool
    callers: tuple[Caller, ...]
    not_kept: int
    expired: int
    overdue: timedelta
    within_a_day: int
    within_a_week: int
    half_done_within_a_day: int
    abandoned: int
    abandoned_is_exact: bool
    abandoned_is_cut: bool
    in_progress: int
    in_progress_is_cut: bool

    @property
    def behind(self) -> str:
        """The time since the oldest expired record expired, in the user's language."""
        now = timezone.now()
        return timesince(now - self.overdue, now)

    @classmethod
    def of(cls, records: Any, now: datetime | None = None) -> Overview:
        """Return the overview of a queryset."""
        now = now or now_in(records.db)
        rows, factor = _sample(records)

        def scaled(number: int) -> int:
            return round(number * factor)

        leased = records.filter(lease_expires_at__isnull=False)
        statuses = Counter(map(_status, rows))
        # Abandoned records without a lease (E5) have no index, so they are estimated.
        left_behind = scaled(statuses[Status.ABANDONED])
        abandoned, half_done = _counted_abandoned(leased, now)
        in_progress = _counted(leased.filter(Status.IN_PROGRESS.condition))
        endpoints, looked_up = _endpoints(rows, factor)
        expiries = [row["expires_at"] - now for row in rows]
        return cls(
            is_exact=factor == 1,
            sample=len(rows),
            number=scaled(len(rows)),
            size=scaled(sum(row["body_size"] or 0 for row in rows)),
            days=_days(rows, factor, now),
            endpoints=endpoints,
            endpoints_are_exact=factor == 1 and looked_up == len(rows),
            callers=_callers(rows, factor),
            not_kept=scaled(statuses[Status.NOT_KEPT]),
            expired=scaled(sum(left <= timedelta(0) for left in expiries)),
            overdue=records.overdue(),
            within_a_day=scaled(_within(expiries, timedelta(days=1))),
            within_a_week=scaled(_within(expiries, timedelta(days=7))),
            half_done_within_a_day=half_done,
            abandoned=min(abandoned, MOST_COUNTED) + left_behind,
            abandoned_is_exact=factor == 1 or not left_behind,
            abandoned_is_cut=abandoned > MOST_COUNTED,
            in_progress=min(in_progress, MOST_COUNTED),
            in_progress_is_cut=in_progress > MOST_COUNTED,
        )


def _sample(records: Any) -> tuple[list[dict[str, Any]], float]:
    """Return rows, and how many records each of them represents.

    If there are too many records, the rows are those with the lowest ids: as ids are
    hashes, these are a random sample, which the primary key finds.
    """
    by_id = records.order_by("id").annotate(start=Left("path", LONGEST_PATH + 1))
    rows = list(by_id.values(*COLUMNS, "start")[: SAMPLE + 1])
    if len(rows) <= SAMPLE:
        return rows, 1.0
    first_left_out = rows.pop()["id"]
    octets = first_left_out.bytes
    if getattr(connections[records.db], "mysql_is_mariadb", False):
        octets = octets[10:]
    share = int.from_bytes(octets[: HASHED_BITS // 8], "big") / 2**HASHED_BITS
    return rows, 1 / share


def _counted(records: Any) -> int:
    found: int = records.values("pk")[: MOST_COUNTED + 1].count()
    return found


def _counted_abandoned(leased: Any, now: datetime) -> tuple[int, int]:
    """Return how many records are abandoned, and how many half-done expire soon."""
    soon = Q(expires_at__gt=now, expires_at__lte=now + timedelta(days=1))
    abandoned = leased.filter(Status.ABANDONED.condition).annotate(
        is_urgent=Case(When(HALF_DONE & soon, then=Value(1)), default=Value(0))
    )
    found = abandoned.values("pk", "is_urgent")[: MOST_COUNTED + 1].aggregate(
        number=Count("pk"), urgent=Sum("is_urgent")
    )
    return found["number"], found["urgent"] or 0


def _status(row: dict[str, Any]) -> Status:
    """Return a row's status as if its lease were alive; ``_counted`` has the others."""
    is_leased = row["lease_expires_at"] is not None
    is_erased = not row["scope"]
    return Status.of(
        row["state"], row["body_size"], is_leased=is_leased, is_erased=is_erased
    )


def _within(expiries: list[timedelta], most: timedelta) -> int:
    return sum(timedelta(0) < left <= most for left in expiries)


def _days(rows: list[dict[str, Any]], factor: float, now: datetime) -> tuple[Day, ...]:
    """Return the last 30 days, oldest first."""
    counted: Counter[tuple[date, str]] = Counter()
    for row in rows:
        status = row["status_code"]
        kind = f"{status // 100}xx" if status else NO_ANSWER
        counted[timezone.localtime(row["created_at"]).date(), kind] += 1
    today = timezone.localtime(now).date()
    days = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    totals = [sum(counted[day, kind] for kind in CLASSES) for day in days]
    most = max(totals) or 1
    return tuple(
        Day(
            day=day,
            number=round(total * factor),
            bars=tuple(_bars(day, counted, most, factor)),
        )
        for day, total in zip(days, totals, strict=True)
    )


def _bars(
    day: date, counted: Counter[tuple[date, str]], most: int, factor: float
) -> Iterator[Bar]:
    x = 0.0
    for kind in CLASSES:
        number = counted[day, kind]
        width = 100 * number / most
        if number:
            yield Bar(kind=kind, number=round(number * factor), x=x, width=width)
        x += width


def _endpoints(
    rows: list[dict[str, Any]], factor: float
) -> tuple[tuple[Endpoint, ...], int]:
    """Return the busiest endpoints, and how many rows were looked up.

    If there are too many different paths, the first rows represent all: the order by
    id is random.
    """
    routes: dict[str, str | None] = {}
    indexed: set[tuple[str, str | None]] = set()
    numbers: Counter[tuple[str, str | None]] = Counter()
    sizes: Counter[tuple[str, str | None]] = Counter()
    looked_up = 0
    for row in rows:
        path, route = row["start"], row["route"]
        if route is None:
            if path not in routes:
                if len(routes) == MOST_RESOLVED:
                    break
                is_known = 0 < len(path) <= LONGEST_PATH
                routes[path] = route_of(path) if is_known else None
            route = routes[path]
        endpoint = (row["method"], route)
        if row["route"] is not None:
            indexed.add(endpoint)
        numbers[endpoint] += 1
        sizes[endpoint] += row["body_size"] or 0
        looked_up += 1
    top = numbers.most_common(ENDPOINTS)
    each = factor * len(rows) / max(looked_up, 1)
    return tuple(
        Endpoint(
            method=endpoint[0],
            route=endpoint[1],
            number=round(number * each),
            size=round(sizes[endpoint] * each),
            width=100 * number / top[0][1],
            is_indexed=endpoint in indexed,
        )
        for endpoint, number in top
    ), looked_up


def _callers(rows: list[dict[str, Any]], factor: float) -> tuple[Caller, ...]:
    """Return the callers with the most records."""
    numbers = Counter(row["scope"] for row in rows)
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row["scope"]] += row["body_size"] or 0
    return tuple(
        Caller(
            scope=scope,
            number=round(number * factor),
            size=round(sizes[scope] * factor),
        )
        for scope, number in numbers.most_common(CALLERS)
    )
