"""The database's clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db import models
from django.db.models.sql import Query


class Duration(models.Value):
    """A time that is as long wherever and whenever it is added."""

    def __init__(self, value: timedelta) -> None:
        super().__init__(value, output_field=models.DurationField())

    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        """Return seconds: a day in the session's time zone may have 23 or 25 hours."""
        return "MAKE_INTERVAL(secs => %s)", [self.value.total_seconds()]


class UTCNow(models.Func):
    """The database's clock in UTC, whatever the session's time zone."""

    output_field = models.DateTimeField()
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
