"""What the app needs of databases beyond Django's own: times, clock, index, retries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from datetime import timezone as zones
from typing import Any, TypeVar

from django.conf import settings
from django.db import Error, models
from django.db.models import Q
from django.db.models.sql import Query
from django.utils import timezone

UTC = zones.utc
EXPIRES_AT_INDEX = "idempotency_expires_at"

Result = TypeVar("Result")


class InstantField(models.DateTimeField):  # type: ignore[type-arg]  # generic for the stubs alone
    """A time that is the same whatever USE_TZ and TIME_ZONE are.

    Django's own field keeps local time where USE_TZ is False or the database has a
    TIME_ZONE, and an hour a year comes twice in that. This one keeps UTC where the
    database knows no zones, and always returns UTC. Times without a zone that it is
    given are in the project's time zone. The column is as Django's own.
    """

    def deconstruct(self) -> Any:
        """Let migrations have Django's own field: nothing differs in the database."""
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, kwargs

    def get_prep_value(self, value: Any) -> Any:
        """Return a time with its zone."""
        value = super().get_prep_value(value)
        if value is not None and timezone.is_naive(value):
            value = timezone.make_aware(value, timezone.get_default_timezone())
        return value

    def get_db_prep_value(
        self, value: Any, connection: Any, prepared: bool = False
    ) -> Any:
        """Return what the driver takes."""
        value = value if prepared else self.get_prep_value(value)
        if value is not None and not connection.features.supports_timezones:
            value = timezone.make_naive(value, UTC)
        return connection.ops.adapt_datetimefield_value(value)

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        """Ask for UTC where Django's driver would leave out which zone it told."""
        if not settings.USE_TZ:
            sql = in_utc(sql, compiler.connection)
        return sql, params

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Return UTC, whatever zone Django has taken it for."""
        if value is None:
            return None
        if connection.features.supports_timezones and timezone.is_aware(value):
            return value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


def in_utc(sql: str, connection: Any) -> str:
    """Return an instant of the database's without its zone, in UTC."""
    if connection.features.supports_timezones:
        return f"({sql}) AT TIME ZONE 'UTC'"
    return sql


class Duration(models.Value):
    """A time that is as long wherever and whenever it is added."""

    def __init__(self, value: timedelta) -> None:
        super().__init__(value, output_field=models.DurationField())

    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        """Return seconds: a day in the session's time zone may have 23 or 25 hours."""
        return "MAKE_INTERVAL(secs => %s)", [self.value.total_seconds()]


class UTCNow(models.Func):
    """The database's clock in UTC, whatever the session's time zone."""

    output_field = InstantField()
    arity = 0
    template = "CURRENT_TIMESTAMP"

    def __add__(self, other: Any) -> Any:
        return super().__add__(Duration(other))

    def __sub__(self, other: Any) -> Any:
        return super().__sub__(Duration(other))

    def as_postgresql(self, compiler: Any, connection: Any, **kwargs: Any) -> Any:
        """Return the statement's time: the transaction's stands still."""
        template = "STATEMENT_TIMESTAMP()"
        return self.as_sql(compiler, connection, template=template, **kwargs)

    def as_mysql(self, compiler: Any, connection: Any, **kwargs: Any) -> Any:
        """Return the time in UTC: CURRENT_TIMESTAMP follows the session's zone."""
        template = "UTC_TIMESTAMP(6)"
        return self.as_sql(compiler, connection, template=template, **kwargs)

    def as_sqlite(self, compiler: Any, connection: Any, **kwargs: Any) -> Any:
        """Return the time in Django's own form: text is what is compared."""
        template = (
            "REPLACE(STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW') || '000', "
            "'.000000', '')"
        )
        return self.as_sql(compiler, connection, template=template, **kwargs)


def now_in(alias: str) -> datetime:
    """Ask a database for the time."""
    query = Query(None)
    query.add_annotation(UTCNow(), "now")
    (row,) = query.get_compiler(using=alias).results_iter()
    now: datetime = row[0]
    return now


class WhereNotNull(models.Index):
    """Index the rows that have a value in one column; all rows where that can't be.

    Django's own ``condition`` warns of such databases (models.W037) whenever a project
    is checked there.
    """

    def __init__(self, field: str, *, name: str) -> None:
        super().__init__(fields=(field,), name=name)

    def deconstruct(self) -> Any:
        """Return what a migration has to write."""
        path, _arguments, _options = super().deconstruct()
        return path, self.fields, {"name": self.name}

    def create_sql(self, model: Any, schema_editor: Any, *args: Any, **kw: Any) -> Any:
        """Return the statement, with a condition where the database has such."""
        if not schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, *args, **kw)
        (field,) = self.fields
        has_value = Q((f"{field}__isnull", False))
        partial = models.Index(fields=(field,), name=self.name, condition=has_value)
        return partial.create_sql(model, schema_editor, *args, **kw)


def write_with_retry(
    connection: Any,
    once: Callable[[], Result],
    again: Callable[[], Result] | None = None,
    *,
    is_certain: Callable[[Error], bool] = lambda error: False,
) -> Result:
    """Write, and once more on a new connection where the first one was lost.

    ``again`` is what to do then, by default the same. It has to recognise a write that
    was done: its reply alone was lost. Whatever fails counts as lost unless
    ``is_certain`` says that it failed for certain. In a transaction nothing is
    repeated: no new connection has what came before.

    Raises what the database does.
    """
    try:
        return once()
    except Error as error:
        if connection.in_atomic_block or not connection.autocommit:
            raise
        if is_certain(error):
            raise
        with suppress(Error):
            connection.close()
        return (again or once)()
