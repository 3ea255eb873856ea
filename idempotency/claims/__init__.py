"""Claim, renew, complete, release: the one package with SQL of its own, by vendor.

Every write names the claim's token and must change exactly one row (contract E5), so a
run that has lost its claim writes nothing.
"""

from __future__ import annotations

from typing import Any

from django.db import connections

from idempotency.claims.base import Claims
from idempotency.claims.mariadb import MariaDBClaims
from idempotency.claims.mysql import MySQLClaims
from idempotency.claims.postgresql import PostgreSQLClaims
from idempotency.claims.sqlite import SQLiteClaims

__all__ = ["Claims", "MySQLClaims", "PostgreSQLClaims", "claims_in"]

ATTRIBUTE = "_idempotency_claims"


def claims_in(alias: str) -> Claims:
    """Return the claims of a database, with the best statements for its vendor."""
    connection = connections[alias]
    found: Claims | None = getattr(connection, ATTRIBUTE, None)
    if found is None:
        found = _kind_for(connection)(connection)
        setattr(connection, ATTRIBUTE, found)
    return found


def _kind_for(connection: Any) -> type[Claims]:
    if connection.vendor == "postgresql":
        return PostgreSQLClaims
    if connection.vendor == "sqlite":
        return SQLiteClaims
    if connection.vendor == "mysql":
        return MariaDBClaims if connection.mysql_is_mariadb else MySQLClaims
    return Claims
