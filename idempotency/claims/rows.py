"""Read and write records as rows of one database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.dateparse import parse_datetime

from idempotency.database import UTC, InstantField, in_utc
from idempotency.discretion import without_values
from idempotency.models import IdempotencyRecord

FIELDS: Sequence[Any] = IdempotencyRecord._meta.concrete_fields
ATTNAMES = [field.attname for field in FIELDS]
# Converts the time at which a record was read, too.
TIME = FIELDS[ATTNAMES.index("expires_at")]


def _in_utc(value: Any, column: Any, connection: Any) -> Any:
    if isinstance(value, str):  # SQLite knows no type of an expression
        value = parse_datetime(value)
    return None if value is None else value.replace(tzinfo=UTC)


class Rows:
    """The table of the records in one database."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.table = connection.ops.quote_name(IdempotencyRecord._meta.db_table)
        self.converters = [*self._converters()]

    def _compile(self, expression: Any) -> tuple[str, list[Any]]:
        query = IdempotencyRecord.objects.using(self.connection.alias).query
        compiler = query.get_compiler(using=self.connection.alias)
        sql, values = compiler.compile(expression.resolve_expression(query))
        return sql, [*values]

    def _selected(self, name: str) -> str:
        """Return the expression that selects a column; times in UTC despite USE_TZ."""
        field = FIELDS[ATTNAMES.index(name)]
        column: str = self.connection.ops.quote_name(field.column)
        if not isinstance(field, InstantField):
            return column
        return f"{in_utc(column, self.connection)} AS {column}"

    def primary_key(self, record_id: UUID) -> list[Any]:
        field: Any = IdempotencyRecord._meta.pk
        return [field.get_db_prep_save(record_id, self.connection)]

    def _values(self, record: IdempotencyRecord, names: list[str]) -> list[Any]:
        get_field: Any = IdempotencyRecord._meta.get_field
        return [
            get_field(name).get_db_prep_save(record.as_stored(name), self.connection)
            for name in names
        ]

    def _execute(self, sql: str, values: list[Any]) -> int:
        try:
            with self.connection.cursor() as cursor:
                self._send(cursor, sql, values)
                rows: int = cursor.rowcount
                return rows
        except Error as error:
            failure = without_values(error)
        raise failure

    def _send(self, cursor: Any, sql: str, values: list[Any]) -> None:
        cursor.execute(sql, values)

    def _fetch(self, sql: str, values: list[Any]) -> IdempotencyRecord | None:
        row = self._fetch_row(sql, values)
        return None if row is None else self.record_of(row)

    def _fetch_row(self, sql: str, values: list[Any]) -> Sequence[Any] | None:
        try:
            with self.connection.cursor() as cursor:
                self._send(cursor, sql, values)
                # All, because SQLite ends a writing statement only then.
                rows: Sequence[Sequence[Any]] = cursor.fetchall()
                return rows[0] if rows else None
        except Error as error:
            failure = without_values(error)
        raise failure

    def record_of(self, row: Sequence[Any]) -> IdempotencyRecord:
        *found, is_leased, read_at = row
        found.append(read_at)
        for index, column, convert in self.converters:
            found[index] = convert(found[index], column, self.connection)
        read_at = found.pop()
        record: IdempotencyRecord = IdempotencyRecord.from_db(
            self.connection.alias, ATTNAMES, found
        )
        record.is_leased = bool(is_leased)
        record.read_at = read_at
        return record

    def _converters(self) -> Iterator[tuple[int, Any, Any]]:
        """Yield the converters from column values to field values.

        The time at which the row was read comes after the fields.
        """
        for index, field in enumerate((*FIELDS, TIME)):
            column = field.get_col(IdempotencyRecord._meta.db_table)
            has_zones = self.connection.features.supports_timezones
            if isinstance(field, InstantField) and not has_zones:
                yield index, column, _in_utc  # one call instead of five
                continue
            for convert in (
                *self.connection.ops.get_db_converters(column),
                *column.get_db_converters(self.connection),
            ):
                yield index, column, convert
