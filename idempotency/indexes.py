"""The index that a purge goes by, and a kind of index of the few rows with a value."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models import Q

EXPIRES_AT_INDEX = "idempotency_expires_at"


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
