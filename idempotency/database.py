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
from django.db.models.lookups import Exact
from django.db.models.sql import Query
from django.utils import timezone

UTC = zones.utc
EXPIRES_AT_INDEX = "idempotency_expires_at"

Result = TypeVar("Result")


class InstantField(models.DateTimeField):  # type: ignore[type-arg]  # generic for the stubs alone
    """A DateTimeField that does not depend on USE_TZ and TIME_ZONE.

    Django's field stores local time if USE_TZ is False or the database has a TIME_ZONE,
    which is ambiguous for an hour a year. This field stores UTC in databases without
    time zones, and always returns UTC. It takes naive times for times in the project's
    time zone. Its column is that of Django's field.
    """

    def deconstruct(self) -> Any:
        """Return Django's field for migrations, because the column is the same."""
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, kwargs

    def get_prep_value(self, value: Any) -> Any:
        """Return an aware time."""
        value = super().get_prep_value(value)
        if value is not None and timezone.is_naive(value):
            value = timezone.make_aware(value, timezone.get_default_timezone())
        return value

    def get_db_prep_value(
        self, value: Any, connection: Any, prepared: bool = False
    ) -> Any:
        """Return the value for the driver."""
        value = value if prepared else self.get_prep_value(value)
        if value is not None and not connection.features.supports_timezones:
            value = timezone.make_naive(value, UTC)
        return connection.ops.adapt_datetimefield_value(value)

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        """Select UTC where the driver would return a local time without its zone."""
        if not settings.USE_TZ:
            sql = in_utc(sql, compiler.connection)
        return sql, params

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Return the time in UTC, even if Django has given it another zone."""
        if value is None:
            return None
        if connection.features.supports_timezones and timezone.is_aware(value):
            return value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


def in_utc(sql: str, connection: Any) -> str:
    """Return SQL for an instant in UTC, without a zone."""
    if connection.features.supports_timezones:
        return f"({sql}) AT TIME ZONE 'UTC'"
    return sql


class Duration(models.Value):
    """A duration of the same length in every time zone and season."""

    def __init__(self, value: timedelta) -> None:
        super().__init__(value, output_field=models.DurationField())

    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        """Return seconds, because a day of the session may have 23 or 25 hours."""
        return "MAKE_INTERVAL(secs => %s)", [self.value.total_seconds()]


class UTCNow(models.Func):
    """The database's clock in UTC, independent of the session's time zone."""

    output_field = InstantField()
    arity = 0
    template = "CURRENT_TIMESTAMP"

    def __add__(self, other: Any) -> Any:
        return super().__add__(Duration(other))

    def __sub__(self, other: Any) -> Any:
        return super().__sub__(Duration(other))

    def as_postgresql(self, compiler: Any, connection: Any, **kwargs: Any) -> Any:
        """Return the time of the statement, because the transaction's stands still."""
        template = "STATEMENT_TIMESTAMP()"
        return self.as_sql(compiler, connection, template=template, **kwargs)

    def as_mysql(self, compiler: Any, connection: Any, **kwargs: Any) -> Any:
        """Return UTC, because CURRENT_TIMESTAMP follows the session's time zone."""
        template = "UTC_TIMESTAMP(6)"
        return self.as_sql(compiler, connection, template=template, **kwargs)

    def as_sqlite(self, compiler: Any, connection: Any, **kwargs: Any) -> Any:
        """Return the time in Django's format, because SQLite compares texts."""
        template = (
            "REPLACE(STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW') || '000', "
            "'.000000', '')"
        )
        return self.as_sql(compiler, connection, template=template, **kwargs)


def now_in(alias: str) -> datetime:
    """Return the time of a database's clock."""
    query = Query(None)
    query.add_annotation(UTCNow(), "now")
    (row,) = query.get_compiler(using=alias).results_iter()
    now: datetime = row[0]
    return now


class Exactly(Exact):
    """Equality of a text column, in which case and trailing blanks count (K3)."""

    def as_mysql(self, compiler: Any, connection: Any) -> Any:
        """Return two conditions: the index uses the column's collation."""
        sql, params = self.as_sql(compiler, connection)
        column, values = self.process_lhs(compiler, connection)
        _mark, (text,) = self.process_rhs(compiler, connection)
        octets = str(text).encode()
        sql = f"({sql} AND CAST({column} AS BINARY) = %s)"
        return sql, [*params, *values, octets]


class WhereNotNull(models.Index):
    """An index of the rows with a value in a column, or of all rows if it must be.

    Django's ``condition`` raises models.W037 on databases without partial indexes.
    """

    def __init__(self, field: str, *, name: str) -> None:
        super().__init__(fields=(field,), name=name)

    def deconstruct(self) -> Any:
        """Return the arguments for a migration."""
        path, _arguments, _options = super().deconstruct()
        return path, self.fields, {"name": self.name}

    def create_sql(self, model: Any, schema_editor: Any, *args: Any, **kw: Any) -> Any:
        """Return the statement, with a condition if the database supports it."""
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
    """Write; repeat that once on a new connection if the connection was lost.

    ``again`` is the repetition, by default ``once``. It must recognise a write of which
    only the reply was lost. Every error counts as a lost connection, unless
    ``is_certain`` says that the write has failed. In a transaction nothing is repeated,
    because a new connection does not have the earlier writes.

    Raise errors of the database.
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
