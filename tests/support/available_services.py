"""What the tests can run against besides SQLite: services, tried by connecting."""

from __future__ import annotations

import os
from collections.abc import Callable

import dj_database_url
import psycopg
from kombu import Connection

ANSWERS_WITHIN = 3  # seconds


class NoAnswer(Exception):
    """A service that can't be used, with the reason as its message."""


def find(
    variable: str, default: str, connect: Callable[[str], None], missing: dict[str, str]
) -> str | None:
    """Return the address of a service that answers, or note why there is none."""
    name = variable.removeprefix("TEST_").removesuffix("_URL").lower()
    url = os.environ.get(variable, default)
    if not url:
        missing[name] = f"{variable} is empty"
        return None
    try:
        connect(url)
    except NoAnswer as reason:
        missing[name] = str(reason)
        return None
    return url


def connect_postgresql(url: str) -> None:
    """Raise ``NoAnswer`` if there is no PostgreSQL to use."""
    found = dj_database_url.parse(url)
    try:
        psycopg.connect(
            host=found["HOST"],
            port=found["PORT"] or 5432,
            user=found["USER"],
            password=found["PASSWORD"],
            dbname="postgres",
            connect_timeout=ANSWERS_WITHIN,
        ).close()
    except psycopg.Error as error:
        raise NoAnswer(first_line(error)) from error


def connect_mariadb(url: str) -> None:
    """Raise ``NoAnswer`` if there is no MariaDB to use."""
    try:
        import MySQLdb  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise NoAnswer(
            "mysqlclient is not installed. It has to be compiled: with gcc, pkg-config "
            "and the headers of Python and MariaDB (Debian: gcc pkg-config python3-dev "
            "libmariadb-dev) there, pip install -e '.[mariadb]'"
        ) from error
    found = dj_database_url.parse(url)
    try:
        MySQLdb.connect(
            host=found["HOST"],
            port=int(found["PORT"] or 3306),
            user=found["USER"],
            password=found["PASSWORD"],
            connect_timeout=ANSWERS_WITHIN,
        ).close()
    except MySQLdb.Error as error:
        raise NoAnswer(first_line(error)) from error


def connect_broker(url: str) -> None:
    """Raise ``NoAnswer`` if no broker answers."""
    try:
        with Connection(url, connect_timeout=ANSWERS_WITHIN) as connection:
            connection.ensure_connection(max_retries=1, timeout=ANSWERS_WITHIN)
    except Exception as error:  # each transport has its own
        raise NoAnswer(first_line(error)) from error


def first_line(error: Exception) -> str:
    """Return what an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
