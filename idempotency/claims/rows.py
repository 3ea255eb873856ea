"""Records as rows of one database: statements, their values, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from idempotency.discretion import without_values
from idempotency.models import IdempotencyRecord

FIELDS: Sequence[Any] = IdempotencyRecord._meta.concrete_fields
ATTNAMES = [field.attname for field in FIELDS]
# When a record was read comes back as its other times do.
TIME = ATTNAMES.index("expires_at")


class Rows:
    """The table of the records in one database, by statements of one's own."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.table = connection.ops.quote_name(IdempotencyRecord._meta.db_table)
        self.converters = [[*self._converters(field)] for field in FIELDS]

    def _compile(self, expression: Any) -> tuple[str, list[Any]]:
        query = IdempotencyRecord.objects.using(self.connection.alias).query
        compiler = query.get_compiler(using=self.connection.alias)
        sql, values = compiler.compile(expression.resolve_expression(query))
        return sql, [*values]

    def _id(self, record_id: UUID) -> list[Any]:
        field: Any = IdempotencyRecord._meta.pk
        return [field.get_db_prep_save(record_id, self.connection)]

    def _values(self, record: IdempotencyRecord, names: list[str]) -> list[Any]:
        get_field: Any = IdempotencyRecord._meta.get_field
        return [
            get_field(name).get_db_prep_save(getattr(record, name), self.connection)
            for name in names
        ]

    def _execute(self, sql: str, values: list[Any]) -> int:
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(sql, values)
                rows: int = cursor.rowcount
                return rows
        except Error as error:
            failure = without_values(error)
        raise failure

    def _fetch(self, sql: str, values: list[Any]) -> IdempotencyRecord | None:
        row = self._fetch_row(sql, values)
        return None if row is None else self._record(row)

    def _fetch_row(self, sql: str, values: list[Any]) -> Sequence[Any] | None:
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(sql, values)
                # All: a statement that writes has ended only then, in SQLite.
                rows: Sequence[Sequence[Any]] = cursor.fetchall()
                return rows[0] if rows else None
        except Error as error:
            failure = without_values(error)
        raise failure

    def _record(self, row: Sequence[Any]) -> IdempotencyRecord:
        *found, is_leased, read_at = row
        found = [self._converted(value, index) for index, value in enumerate(found)]
        record = IdempotencyRecord.from_db(self.connection.alias, ATTNAMES, found)
        record.is_leased = bool(is_leased)
        record.read_at = self._converted(read_at, TIME)
        return record

    def _converted(self, value: Any, index: int) -> Any:
        for column, convert in self.converters[index]:
            value = convert(value, column, self.connection)
        return value

    def _converters(self, field: Any) -> Iterator[tuple[Any, Any]]:
        """Yield what makes of a column's value what the model's field wants."""
        column = field.get_col(IdempotencyRecord._meta.db_table)
        for convert in (
            *self.connection.ops.get_db_converters(column),
            *column.get_db_converters(self.connection),
        ):
            yield column, convert
