"""Find out what a database error is, through the layers around it."""

from __future__ import annotations

from django.db import DatabaseError, InternalError, OperationalError

from idempotency.discretion import causes

# What undoes a transaction because of others. PostgreSQL: serialization_failure,
# deadlock_detected. MariaDB and MySQL: deadlock or certification failure of Galera,
# record changed since last read.
UNDONE_STATES = ("40001", "40P01")
UNDONE_NUMBERS = (1213, 1020)
# Waiting for a lock took too long.
LOCKED_STATE, LOCKED_NUMBER, LOCKED_FILE = "55P03", 1205, "locked"
# A node of Galera that is not ready.
NOT_READY = 1047
# SQLSTATEs of PostgreSQL. Class 08 are lost connections, and what PgBouncer says while
# it has no connection to the server.
READ_ONLY_STATE = "25006"
UNAVAILABLE_STATES = (
    READ_ONLY_STATE,
    "53300",  # too many connections
    *("57P01", "57P02", "57P03", "57P05"),  # shutting down, starting up, a time-out
)
# Errors of MariaDB and MySQL: a read-only server; one that accepts no connection or
# login, is shutting down or, as a node of Galera, not ready; and errors of the client.
READ_ONLY_NUMBERS = (1290, 1792, 1836)
UNAVAILABLE_NUMBERS = (
    *READ_ONLY_NUMBERS,
    *(1040, 1045, NOT_READY, 1049, 1053, 1129, 1130, 1203, 1226, 1927),
    *(2002, 2003, 2005, 2006, 2013, 2026, 2055),
)
# SQLite's errors have no code before Python 3.11.
READ_ONLY_FILE, NO_FILE = "readonly database", "unable to open database file"


def error_classes(error: BaseException) -> str:
    """Return the classes of an error and its causes.

    For the log, because messages of databases may quote values of rows.
    """
    return ", ".join(type(each).__name__ for each in causes(error))


def is_conflict(error: BaseException) -> bool:
    """Return whether a statement failed because of others, and may succeed later (P2).

    That is so after a deadlock, a failed serialization or certification, and after
    waiting for a lock for too long.
    """
    return (
        state_of(error) in (*UNDONE_STATES, LOCKED_STATE)
        or number_of(error) in (*UNDONE_NUMBERS, LOCKED_NUMBER)
        or _says(error, LOCKED_FILE)
    )


def is_unavailable(error: BaseException) -> bool:
    """Return whether a database can't be reached or written to for the moment (E4).

    The error alone tells, because there may be no connection.
    """
    # psycopg raises InternalError if PgBouncer refuses a BEGIN and hangs up.
    if not isinstance(error, (OperationalError, InternalError)):
        return is_read_only(error)
    if any(
        hasattr(cause, "sqlstate") or hasattr(cause, "pgcode")
        for cause in causes(error)
    ):
        # Each error of the server has a SQLSTATE, so the others are of the connection.
        state = state_of(error)
        return state is None or state[:2] == "08" or state in UNAVAILABLE_STATES
    return number_of(error) in UNAVAILABLE_NUMBERS or _says(
        error, READ_ONLY_FILE, NO_FILE
    )


def is_read_only(error: BaseException) -> bool:
    """Return whether a server refuses writes, but may answer a look-up (E4)."""
    # Other errors may have the same number, such as a KeyError of a mapping by id.
    return isinstance(error, DatabaseError) and (
        state_of(error) == READ_ONLY_STATE
        or number_of(error) in READ_ONLY_NUMBERS
        or _says(error, READ_ONLY_FILE)
    )


def state_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of PostgreSQL."""
    states = (
        getattr(cause, "sqlstate", getattr(cause, "pgcode", None))
        for cause in causes(error)
    )
    return next((state for state in states if state is not None), None)


def number_of(error: BaseException) -> int | None:
    """Return the number of an error of MariaDB or MySQL."""
    numbers = (cause.args[0] for cause in causes(error) if cause.args)
    return next((number for number in numbers if isinstance(number, int)), None)


def _says(error: BaseException, *texts: str) -> bool:
    """Return whether an error of SQLite has one of the texts."""
    return any(
        type(cause).__module__ == "sqlite3" and text in str(cause)
        for cause in causes(error)
        for text in texts
    )
