"""Errors that tell no key, scope or body of the requests that they end (X1).

Reports of errors show the text of an exception and the local variables of each frame
that it came through, those of the causes and contexts, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import wraps
from traceback import walk_tb
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from django.db import Error
from django.http import HttpResponseBase
from django.template import VariableDoesNotExist
from django.template.response import SimpleTemplateResponse

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

APP = __name__.partition(".")[0]
# What is called from these works with keys, rows and bodies, and is no project's.
INNERMOST = tuple(
    f"{APP}.{name}" for name in ("claims", "database", "fingerprints", "models")
)

HIDDEN_CONTEXT = "a context that is left out: it may hold values"
HIDDEN = "What the database said is left out: it may quote values."
# Packages whose own words quote no value: Django, SQLite, and PostgreSQL's drivers,
# whose server speaks through ``diag``.
PLAIN_SPOKEN = ("django", "psycopg", "psycopg2", "sqlite3")
# Of MariaDB and MySQL: servers that are full or read-only, locks, deadlocks, and what
# names tables, columns and users alone. From 2000 to 2999 the client speaks.
HARMLESS = (1020, 1040, 1054, 1114, 1142, 1146, 1153, 1205, 1213, 1290, 1317, 1969)
CLIENT = range(2000, 3000)


def discreet(
    function: Callable[Arguments, Result],
) -> Callable[Arguments, Result]:
    """Let a function's errors leave no value behind in the frames of the app.

    They keep their lines, and the frames of a project's own code keep all.
    """

    @wraps(function)
    def discreetly(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            _empty_frames(error)
            raise

    return discreetly


def discreet_page(
    view: Callable[Arguments, HttpResponseBase],
) -> Callable[Arguments, HttpResponseBase]:
    """Let the errors of a view, and of its template, leave no value in any frame.

    Django renders a TemplateResponse after the view has returned. Templates pass keys
    and scopes through functions of Django's and of a project's, so the frames of all
    of them are emptied. They keep their lines.
    """
    view = _leaving_nothing(view)

    @wraps(view)
    def page(*args: Arguments.args, **kwargs: Arguments.kwargs) -> HttpResponseBase:
        response = view(*args, **kwargs)
        if isinstance(response, SimpleTemplateResponse) and not response.is_rendered:
            # This frame is at work, so nothing in it may show more than its repr.
            def render() -> Any:
                # A cache pickles what a response has of its own.
                vars(response).pop("render", None)
                return _leaving_nothing(response.render)()

            vars(response)["render"] = render
        return response

    return page


def _leaving_nothing(
    function: Callable[Arguments, Result],
) -> Callable[Arguments, Result]:
    """Return a function whose errors leave empty frames and quote no values."""

    @wraps(function)
    def silently(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        # An error that is handled around this call keeps its frames.
        around = sys.exc_info()[1]
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            others = [] if around is None else _with_all_before(around)
            for each in _with_all_before(error, others):
                _leave_values_out(each)
                for frame, _line in walk_tb(each.__traceback__):
                    _empty(frame)
            raise

    return silently


def _leave_values_out(error: BaseException) -> None:
    """Take out of an error's text and arguments what may quote a value."""
    if isinstance(error, Error):
        *_others, driver = causes(error)
        error.args = driver.args = _said(driver)
    elif isinstance(error, VariableDoesNotExist):
        # The second one is what the name was looked up in, such as the whole context.
        error.params = tuple(
            HIDDEN_CONTEXT if place else param
            for place, param in enumerate(error.params)
        )
        error.args = (error.msg, error.params)
    elif isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        error.object = error.object[:0]  # the whole text, such as the page
        encoding, _text, *rest = error.args
        error.args = (encoding, error.object, *rest)


def _empty_frames(error: BaseException) -> None:
    for each in _with_all_before(error):
        is_below = False
        for frame, _line in walk_tb(each.__traceback__):
            name = str(frame.f_globals.get("__name__"))
            is_below = is_below or name.startswith(INNERMOST)
            if is_below or name.partition(".")[0] == APP:
                _empty(frame)


def _empty(frame: FrameType) -> None:
    with suppress(RuntimeError):  # it is at work: those around this one
        frame.clear()


def _with_all_before(
    error: BaseException, others: Collection[BaseException] = ()
) -> list[BaseException]:
    """Return an error with its causes and contexts, except others."""
    found = [error]
    # It grows while it is walked; a cause mostly is the context, too.
    for each in found:
        for before in (each.__cause__, each.__context__):
            if before is not None and not any(
                before is known for known in (*found, *others)
            ):
                found.append(before)
    return found


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, to the driver's own."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def without_values(error: Error) -> Error:
    """Return a database's error with nothing left of what its statement was given.

    The way through Django and the driver is gone, where frames hold the values, and so
    is what the server said, where that may quote them. Numbers and states stay.
    """
    *_others, driver = causes(error)
    said = _said(driver)
    for each in causes(error):
        each.args = said
        each.__traceback__ = each.__context__ = None
    return error


def _said(driver: BaseException) -> tuple[object, ...]:
    """Return the arguments of a driver's error without values."""
    number, *_rest = driver.args or (None,)
    text = " ".join(map(str, driver.args))
    diagnosis = getattr(driver, "diag", None)
    state = getattr(diagnosis, "sqlstate", None)
    if diagnosis is not None and state is not None:
        # Data exceptions quote the data, and functions, such as triggers, anything.
        may_quote = state.startswith("22") or diagnosis.context
        primary = HIDDEN if may_quote else diagnosis.message_primary
        names = (diagnosis.table_name, diagnosis.column_name, diagnosis.constraint_name)
        where = "".join(f", {name}" for name in names if name)
        return (f"{primary} (SQLSTATE {state}{where})",)
    if isinstance(number, int):
        is_harmless = number in HARMLESS or number in CLIENT
        return driver.args if is_harmless else (number, HIDDEN)
    package = type(driver).__module__.partition(".")[0]
    # Of SQLite's errors of integrity, the others are of triggers.
    is_plain = "Integrity" not in type(driver).__name__ or "constraint failed" in text
    return driver.args if package in PLAIN_SPOKEN and is_plain else (HIDDEN,)
