"""The options of an endpoint: one table, which everything else about them comes from.

An option takes its value from the ``IDEMPOTENCY`` setting, the attributes of
``IdempotencyMixin`` and the arguments of ``@idempotent``; the nearest wins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpResponseBase
from rest_framework.request import Request

Options = Mapping[str, Any]


class Rule(NamedTuple):
    """What a value must be: as a test, and in words for error messages.

    ``takes_path`` says that a string may be the dotted path of a callable. ``words``
    are other values that mean something by themselves.
    """

    holds: Callable[[Any], bool]
    expected: str
    takes_path: bool = False
    words: tuple[Any, ...] = ()


class Option(NamedTuple):
    """What a row of the table says besides name, type and default."""

    rule: Rule
    # Whether IDEMPOTENCY has it, too, in capitals.
    has_setting: bool = True
    # Whether it means nothing without atomic=False.
    is_leased_only: bool = False


def is_int(value: object) -> bool:
    """Return whether a value is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_collection(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, (str, bytes))


def _is_method(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.isalpha()
        and value.isupper()
        and len(value) <= 16
    )


def _is_positive_duration(value: object) -> bool:
    # Databases know no dates beyond the year 9999.
    return isinstance(value, timedelta) and timedelta(0) < value < timedelta(36525)


def one_of(*words: str) -> Rule:
    """Return the rule of a value that is one of a few strings."""
    return Rule(
        lambda value: value in words, " or ".join(f'"{word}"' for word in words)
    )


def function(expected: str, *words: Any) -> Rule:
    """Return the rule of a callable or its dotted path, or of a few other values."""

    def holds(value: Any) -> bool:
        # Callables first: a proxy must not be asked whether it is a string.
        if callable(value):
            return True
        if isinstance(value, bool):
            return value in words
        return isinstance(value, str) and ("." in value or value in words)

    return Rule(holds, expected, takes_path=True, words=words)


BOOLEAN = Rule(lambda value: isinstance(value, bool), "True or False")
DURATION = Rule(
    _is_positive_duration, "a positive datetime.timedelta, such as timedelta(seconds=5)"
)
FUNCTION = function(
    "a callable that takes the request and returns a string, or its dotted path"
)
METHODS = Rule(
    lambda value: _is_collection(value) and bool(value) and all(map(_is_method, value)),
    "a collection of HTTP methods in capitals, such as ('POST',)",
)
ALIAS = Rule(
    lambda value: isinstance(value, str) and value in connections.settings,
    "an alias from the DATABASES setting",
)
STATUSES = Rule(
    lambda value: (
        _is_collection(value)
        and all(is_int(status) and 200 <= status <= 499 for status in value)
    ),
    "a collection of HTTP statuses from 200 to 499, such as (400, 404)",
)
STORE = function(
    "True, False, or a callable that takes the response and returns whether to keep "
    "it, or its dotted path",
    True,
    False,
)
CHECK_REPLAY = function(
    '"object", or a callable that takes the request and the record and raises an '
    "APIException to refuse the replay, or its dotted path",
    "object",
)
ON_ABANDONED = Rule(
    lambda value: callable(value) or value in ("hold", "rerun"),
    '"hold", "rerun" or a callable that takes the record and the request and '
    "returns a response to store, or None to run the handler",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How one endpoint is protected. Each field is an option; this is their table.

    Settings, attributes, arguments, their validation and their types come from here.
    ``None`` leaves a decision to the app.
    """

    required: Annotated[bool, Option(BOOLEAN)] = False
    methods: Annotated[Collection[str], Option(METHODS)] = ("POST",)
    retention: Annotated[timedelta, Option(DURATION)] = timedelta(days=30)
    using: Annotated[str | None, Option(ALIAS)] = None
    scope: Annotated[str | Callable[[Request], str] | None, Option(FUNCTION)] = None
    released_statuses: Annotated[Collection[int], Option(STATUSES)] = (
        *(400, 401, 403, 404, 409, 412, 422, 423, 425, 428, 429),
    )
    store: Annotated[bool | str | Callable[[Any], bool], Option(STORE)] = True
    check_replay: Annotated[
        str | Callable[[Request, Any], None] | None, Option(CHECK_REPLAY)
    ] = None
    on_concurrent: Annotated[
        Literal["refuse", "wait"], Option(one_of("refuse", "wait"))
    ] = "refuse"
    wait_timeout: Annotated[timedelta, Option(DURATION)] = timedelta(seconds=5)
    atomic: Annotated[bool, Option(BOOLEAN, has_setting=False)] = True
    lease: Annotated[timedelta, Option(DURATION, is_leased_only=True)] = timedelta(
        seconds=60
    )
    on_abandoned: Annotated[
        Literal["hold", "rerun"] | Callable[[Any, Request], HttpResponseBase | None],
        Option(ON_ABANDONED, has_setting=False, is_leased_only=True),
    ] = "hold"

    def with_options(self, options: Options) -> Policy:
        """Return the policy with an endpoint's own options, already validated."""
        return replace(self, **options) if options else self


def _rows() -> dict[str, Option]:
    hints = get_type_hints(Policy, include_extras=True)
    return {each.name: hints[each.name].__metadata__[0] for each in fields(Policy)}


OPTIONS = _rows()


def validate_options(options: Options, *, where: str) -> None:
    """Refuse options that are unknown, of a wrong type or without meaning.

    ``where`` names the place that the error is about.

    Raises ``ImproperlyConfigured``, saying what to write instead.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise ImproperlyConfigured(
                f"{where}: there is no idempotency option {name!r}. "
                f"The options are {', '.join(sorted(OPTIONS))}."
            )
        rule = OPTIONS[name].rule
        if not rule.holds(value):
            raise ImproperlyConfigured(
                f"{where}: {name} must be {rule.expected}, not {value!r}."
            )
    if "wait_timeout" in options and options.get("on_concurrent") == "refuse":
        raise ImproperlyConfigured(
            f'{where}: wait_timeout means nothing with on_concurrent="refuse". '
            'Leave one of them out, or write on_concurrent="wait".'
        )
    _validate_mode(options, where)


def _validate_mode(options: Options, where: str) -> None:
    if options.get("atomic", True):
        leased = [name for name in options if OPTIONS[name].is_leased_only]
        if leased:
            raise ImproperlyConfigured(
                f"{where}: {leased[0]} means nothing without atomic=False. "
                "Leave it out, or write atomic=False beside it."
            )
        return
    if "on_abandoned" not in options:
        raise ImproperlyConfigured(
            f"{where}: atomic=False needs on_abandoned beside it. When a worker dies, "
            "nobody knows whether its handler acted outside: should retries be refused "
            'until a person decides ("hold"), run the handler again ("rerun"), or ask '
            "a callable that finds out?"
        )
    lease, retention = options.get("lease"), options.get("retention")
    if lease and retention and lease >= retention:
        raise ImproperlyConfigured(
            f"{where}: a lease of {lease} is not shorter than the retention of "
            f"{retention}. A lease is how long one run may take."
        )
