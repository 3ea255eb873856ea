"""Keep keys, scopes and bodies out of error reports (contract X1).

Error reports show the text of an exception and the local variables of its frames, and
those of its causes and contexts.
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
# Modules that handle keys, rows and bodies, and call none of the project's code.
INNERMOST = tuple(
    f"{APP}.{name}"
    for name in (
        *("claims", "database", "database_errors", "encrypted_fields"),
        *("encryption", "fingerprints", "models"),
    )
)

HIDDEN_CONTEXT = "a context that is left out: it may hold values"
HIDDEN = "The database's message is left out: it may quote values."
# Packages whose own messages quote no values. PostgreSQL's server has its own messages,
# in ``diag``.
PLAIN_SPOKEN = ("django", "psycopg", "psycopg2", "sqlite3")
# Errors of MariaDB and MySQL without values: a server that is full or read-only, locks,
# deadlocks, and names of tables, columns and users. 2000 to 2999 are the client's.
HARMLESS = (
    *(1020, 1040, 1047, 1054, 1114, 1142, 1146, 1153, 1180, 1205, 1213, 1290, 1317),
    *(1792, 1836, 1969),
)
CLIENT = range(2000, 3000)


def discreet(
    function: Callable[Arguments, Result],
) -> Callable[Arguments, Result]:
    """Empty the app's frames in the traceback of a function's errors.

    The traceback keeps its lines, and the frames of the project's code their variables.
    """

    @wraps(function)
    def discreetly(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            _empty_frames(error)
            del args, kwargs  # of this frame, which is running
            raise

    return discreetly


def discreet_page(
    view: Callable[Arguments, HttpResponseBase],
) -> Callable[Arguments, HttpResponseBase]:
    """Empty all frames in the traceback of errors in a view and its template.

    Templates pass keys and scopes to functions of Django and of the project, so this
    includes their frames. The traceback keeps its lines. Django renders a
    TemplateResponse after the view has returned, so ``render`` is wrapped as well.
    """
    view = _leaving_nothing(view)

    @wraps(view)
    def page(*args: Arguments.args, **kwargs: Arguments.kwargs) -> HttpResponseBase:
        response = view(*args, **kwargs)
        if isinstance(response, SimpleTemplateResponse) and not response.is_rendered:
            # This frame can't be emptied, so it has only variables with a short repr.
            def render() -> Any:
                # Remove itself: a cache would pickle it with the response.
                vars(response).pop("render", None)
                return _leaving_nothing(response.render)()

            vars(response)["render"] = render
        return response

    return page


def _leaving_nothing(
    function: Callable[Arguments, Result],
) -> Callable[Arguments, Result]:
    """Return the function with errors that have empty frames and quote no values."""

    @wraps(function)
    def silently(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        # An error that the caller is handling keeps its frames.
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
    """Remove what may quote a value from an error's text and arguments."""
    if isinstance(error, Error):
        *_others, driver = causes(error)
        error.args = driver.args = _said(driver)
    elif isinstance(error, VariableDoesNotExist):
        # The second one can be the whole context.
        error.params = tuple(
            HIDDEN_CONTEXT if place else param
            for place, param in enumerate(error.params)
        )
        error.args = (error.msg, error.params)
    elif isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        error.object = error.object[:0]  # the whole page
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
    with suppress(RuntimeError):  # the frame is still running
        frame.clear()


def _with_all_before(
    error: BaseException, others: Collection[BaseException] = ()
) -> list[BaseException]:
    """Return an error with its causes and contexts, except ``others``."""
    found = [error]
    for each in found:  # the loop also visits what it appends
        for before in (each.__cause__, each.__context__):
            if before is not None and not any(
                before is known for known in (*found, *others)
            ):
                found.append(before)
    return found


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes; the last one is the driver's."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def without_values(error: Error) -> Error:
    """Return a database error without the values of its statement.

    This removes the traceback, whose frames have the values, and any message of the
    server that may quote them. Error numbers and SQLSTATE stay.
    """
    *_others, driver = causes(error)
    said = _said(driver)
    for each in causes(error):
        each.args = said
        each.__traceback__ = each.__context__ = None
    return error


def said_by(error: BaseException) -> str:
    """Return what a database says of an error, without values."""
    *_others, driver = causes(error)
    return " ".join(map(str, _said(driver)))


def _said(driver: BaseException) -> tuple[object, ...]:
    """Return the arguments of a driver's error, without values."""
    number, *_rest = driver.args or (None,)
    text = " ".join(map(str, driver.args))
    diagnosis = getattr(driver, "diag", None)
    state = getattr(diagnosis, "sqlstate", None)
    if diagnosis is not None and state is not None:
        # Data exceptions (22...) quote data, and triggers can quote anything.
        may_quote = state.startswith("22") or diagnosis.context
        primary = HIDDEN if may_quote else diagnosis.message_primary
        names = (diagnosis.table_name, diagnosis.column_name, diagnosis.constraint_name)
        where = "".join(f", {name}" for name in names if name)
        return (f"{primary} (SQLSTATE {state}{where})",)
    if isinstance(number, int):
        is_harmless = number in HARMLESS or number in CLIENT
        return driver.args if is_harmless else (number, HIDDEN)
    package = type(driver).__module__.partition(".")[0]
    # Other integrity errors of SQLite come from triggers.
    is_plain = "Integrity" not in type(driver).__name__ or "constraint failed" in text
    return driver.args if package in PLAIN_SPOKEN and is_plain else (HIDDEN,)
