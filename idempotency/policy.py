"""How one endpoint is protected: settings < mixin attributes < decorator arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from idempotency.conf import get_settings

if TYPE_CHECKING:
    from django.http import HttpResponseBase
    from rest_framework.request import Request
    from typing_extensions import TypedDict

    from idempotency.models import IdempotencyRecord

    # For type checkers alone: what holds when a program runs, RULES says.
    class TypedOptions(TypedDict, total=False):
        """The options of ``@idempotent``, each with its type."""

        required: bool
        methods: Collection[str]
        retention: timedelta
        using: str
        scope: str | Callable[[Request], str]
        released_statuses: Collection[int]
        store: bool | str | Callable[[HttpResponseBase], bool]
        check_replay: str | Callable[[Request, IdempotencyRecord], None]
        on_concurrent: Literal["refuse", "wait"]
        wait_timeout: timedelta
        atomic: bool
        lease: timedelta
        on_abandoned: (
            Literal["hold", "rerun"]
            | Callable[[IdempotencyRecord, Request], HttpResponseBase | None]
        )


Options = Mapping[str, Any]


class Rule(NamedTuple):
    """What an option or setting must be, as a test and in words."""

    holds: Callable[[Any], bool]
    expected: str


def _is_int(value: object) -> bool:
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


BOOLEAN = Rule(lambda value: isinstance(value, bool), "True or False")
DURATION = Rule(
    _is_positive_duration, "a positive datetime.timedelta, such as timedelta(seconds=5)"
)
FUNCTION = Rule(
    lambda value: callable(value) or (isinstance(value, str) and "." in value),
    "a callable that takes the request and returns a string, or its dotted path",
)

RULES: Mapping[str, Rule] = {
    "required": BOOLEAN,
    "methods": Rule(
        lambda value: (
            _is_collection(value) and bool(value) and all(map(_is_method, value))
        ),
        "a collection of HTTP methods in capitals, such as ('POST',)",
    ),
    "retention": DURATION,
    "using": Rule(
        lambda value: isinstance(value, str) and value in connections.settings,
        "an alias from the DATABASES setting",
    ),
    "scope": FUNCTION,
    "released_statuses": Rule(
        lambda value: (
            _is_collection(value)
            and all(_is_int(status) and 200 <= status <= 499 for status in value)
        ),
        "a collection of HTTP statuses from 200 to 499, such as (400, 404)",
    ),
    "store": Rule(
        lambda value: isinstance(value, bool) or FUNCTION.holds(value),
        "True, False, or a callable that takes the response and returns whether to "
        "keep it, or its dotted path",
    ),
    "check_replay": Rule(
        lambda value: FUNCTION.holds(value) or value == "object",
        '"object", or a callable that takes the request and the record and raises an '
        "APIException to refuse the replay, or its dotted path",
    ),
    "on_concurrent": Rule(
        lambda value: value in ("refuse", "wait"), '"refuse" or "wait"'
    ),
    "wait_timeout": DURATION,
    "atomic": BOOLEAN,
    "lease": DURATION,
    "on_abandoned": Rule(
        lambda value: callable(value) or value in ("hold", "rerun"),
        '"hold", "rerun" or a callable that takes the record and the request and '
        "returns a response to store, or None to run the handler",
    ),
}
# What means something for atomic=False alone.
LEASED = ("lease", "on_abandoned")


def validate_options(options: Options, *, where: str) -> None:
    """Refuse options that are unknown, of a wrong type or without meaning.

    ``where`` names the place that the error is about.

    Raises ``ImproperlyConfigured``, saying what to write instead.
    """
    for name, value in options.items():
        if name not in RULES:
            raise ImproperlyConfigured(
                f"{where}: there is no idempotency option {name!r}. "
                f"The options are {', '.join(sorted(RULES))}."
            )
        if not RULES[name].holds(value):
            raise ImproperlyConfigured(
                f"{where}: {name} must be {RULES[name].expected}, not {value!r}."
            )
    if "wait_timeout" in options and options.get("on_concurrent") == "refuse":
        raise ImproperlyConfigured(
            f'{where}: wait_timeout means nothing with on_concurrent="refuse". '
            'Leave one of them out, or write on_concurrent="wait".'
        )
    _validate_mode(options, where)


def _validate_mode(options: Options, where: str) -> None:
    leased = [name for name in LEASED if name in options]
    if options.get("atomic", True):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The options of one endpoint, resolved for one request."""

    required: bool
    methods: Collection[str]
    retention: timedelta
    using: str | None
    scope: str | Callable[..., str] | None
    released_statuses: Collection[int]
    store: bool | str | Callable[..., bool]
    check_replay: str | Callable[..., None] | None
    on_concurrent: str
    wait_timeout: timedelta
    atomic: bool
    lease: timedelta
    on_abandoned: str | Callable[..., Any]

    @classmethod
    def resolve(cls, options: Options) -> Policy:
        """Complete an endpoint's options, already validated, from the settings."""
        get, settings = options.get, get_settings()
        return cls(
            required=get("required", settings.REQUIRED),
            methods=get("methods", settings.METHODS),
            retention=get("retention", settings.RETENTION),
            using=get("using", settings.USING),
            scope=get("scope"),
            released_statuses=get("released_statuses", settings.RELEASED_STATUSES),
            store=get("store", settings.STORE),
            check_replay=get("check_replay", settings.CHECK_REPLAY),
            on_concurrent=get("on_concurrent", settings.ON_CONCURRENT),
            wait_timeout=get("wait_timeout", settings.WAIT_TIMEOUT),
            atomic=get("atomic", True),
            lease=get("lease", settings.LEASE),
            on_abandoned=get("on_abandoned", "hold"),
        )
