"""The options of an endpoint, in one table.

An option takes its value from the ``IDEMPOTENCY`` setting, an attribute of a view with
``IdempotencyMixin`` or an argument of ``@idempotent``; the nearest wins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpResponseBase
from rest_framework.request import Request

Options = Mapping[str, Any]


class Rule(NamedTuple):
    """A test of a value, and its wording in error messages.

    With ``takes_path``, a string may be the dotted path of a callable, unless it is
    one of ``words``.
    """

    holds: Callable[[Any], bool]
    expected: str
    takes_path: bool = False
    words: tuple[Any, ...] = ()


class Option(NamedTuple):
    """What the table has about an option besides name, type and default."""

    rule: Rule
    # Whether IDEMPOTENCY has a key of the same name, in capitals.
    has_setting: bool = True
    # Whether it has no effect without atomic=False.
    is_leased_only: bool = False


def is_int(value: object) -> bool:
    """Return whether a value is an int, and not a bool."""
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
    # Database dates end with the year 9999.
    return isinstance(value, timedelta) and timedelta(0) < value < timedelta(36525)


def one_of(*words: str) -> Rule:
    """Return the rule for a choice of strings."""
    return Rule(words.__contains__, " or ".join(f'"{word}"' for word in words))


def function(expected: str, *words: Any) -> Rule:
    """Return the rule for a callable, its dotted path or one of a few words."""

    def holds(value: Any) -> bool:
        # Callables first, because isinstance() would evaluate a lazy proxy.
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
    lambda value: callable(value) or value in ("hold", "rerun", "resume"),
    '"hold", "rerun", "resume" or a callable that takes the record and the request '
    "and returns a response to store, or None to run the handler",
)


COMPLETER = function(
    "a callable that takes what a handler has as request.idempotency and returns the "
    "response, or its dotted path"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The options of one endpoint, and the table that defines every option.

    Settings, attributes, arguments and their validation come from here. None leaves
    the decision to the app.
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
        Literal["hold", "rerun", "resume"]
        | Callable[[Any, Request], HttpResponseBase | None],
        Option(ON_ABANDONED, has_setting=False, is_leased_only=True),
    ] = "hold"
    completer: Annotated[
        str | Callable[[Any], HttpResponseBase] | None,
        Option(COMPLETER, has_setting=False, is_leased_only=True),
    ] = None

    def with_options(self, options: Options) -> Policy:
        """Return the policy with an endpoint's own options, which must be valid."""
        return replace(self, **options) if options else self


OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Policy, include_extras=True).items()
}


def validate_options(options: Options, *, where: str) -> None:
    """Raise ``ImproperlyConfigured`` for an option that is unknown, wrong or useless.

    ``where`` names the code with the options in the message.
    """
    for name, value in options.items():
        if name not in OPTIONS:
            raise ImproperlyConfigured(
                f"{where}: {name!r} is not an idempotency option. "
                f"The options are {', '.join(sorted(OPTIONS))}."
            )
        rule = OPTIONS[name].rule
        if not rule.holds(value):
            raise ImproperlyConfigured(
                f"{where}: {name} must be {rule.expected}, not {value!r}."
            )
    if "wait_timeout" in options and options.get("on_concurrent") == "refuse":
        raise ImproperlyConfigured(
            f'{where}: wait_timeout has no effect with on_concurrent="refuse". '
            'Remove one of them, or write on_concurrent="wait".'
        )
    _validate_mode(options, where)


def _validate_mode(options: Options, where: str) -> None:
    if options.get("atomic", True):
        leased = [name for name in options if OPTIONS[name].is_leased_only]
        if leased:
            raise ImproperlyConfigured(
                f"{where}: {leased[0]} has no effect without atomic=False. "
                "Remove it, or add atomic=False."
            )
        return
    if "on_abandoned" not in options:
        raise ImproperlyConfigured(
            f"{where}: atomic=False needs on_abandoned. If a worker dies, its external "
            "call may have happened or not. Choose what a retry does then: "
            '"hold" refuses it until a person decides, "rerun" runs the handler again, '
            '"resume" goes on after its recorded steps, and a callable finds out what '
            "happened."
        )
    if "completer" in options and options["on_abandoned"] != "resume":
        raise ImproperlyConfigured(
            f'{where}: completer has no effect without on_abandoned="resume". '
            "Remove it, or let the handler resume."
        )
    lease, retention = options.get("lease"), options.get("retention")
    if lease and retention and lease >= retention:
        raise ImproperlyConfigured(
            f"{where}: the lease, {lease}, is not shorter than the retention, "
            f"{retention}. The lease is the time that one run may take."
        )
