"""The database's clock."""

from __future__ import annotations

from typing import Any

from django.db import models


class UTCNow(models.Func):
    """The database's clock in UTC, whatever the session's time zone."""

    output_field = models.DateTimeField()
    arity = 0
    template = "CURRENT_TIMESTAMP"

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
        template = "STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW')"
        return self.as_sql(compiler, connection, template=template, **kwargs)
