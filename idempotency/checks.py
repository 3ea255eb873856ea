"""System checks (contract X2): one id per mistake, each with a hint."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from celery import current_app
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error
from django.db import connections, router
from django.urls import get_resolver
from django.utils.module_loading import import_string
from django.views import View

from idempotency.conf import NAMES, get_settings
from idempotency.decorators import OPTIONS_ATTRIBUTE, handlers_of
from idempotency.models import IdempotencyRecord
from idempotency.policy import BOOLEAN, DURATION, RULES, Options, Rule
from idempotency.schedules import PURGE_TASK


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(
        map(_is_text, value)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_header_name(value: object) -> bool:
    # WSGI can't tell an underscore from a hyphen, so servers drop such headers.
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]+", value) is not None


def _is_function(value: object) -> bool:
    if not isinstance(value, str):
        return callable(value)
    try:
        return callable(import_string(value))
    except ImportError:
        return False


COUNT = Rule(_is_count, "a whole number from 1")
FUNCTION = Rule(
    _is_function,
    "a callable that takes the request and returns a string, "
    "or a dotted path that leads to one",
)
SETTINGS: dict[str, Rule] = {
    **{name.upper(): rule for name, rule in RULES.items() if name.upper() in NAMES},
    "ENABLED": BOOLEAN,
    "QUERY_PARAM": Rule(_is_text, "the name of a query parameter, or None"),
    "HEADER": Rule(
        _is_header_name, "a header's name, of letters, digits and hyphens, or None"
    ),
    "SCOPE": FUNCTION,
    "FINGERPRINT": FUNCTION,
    "WARNINGS": Rule(
        lambda value: _are_texts(value) and {*value} <= {"body", "header"},
        'a collection of "body" and "header"',
    ),
    "UNSTORED_HEADERS": Rule(_are_texts, "a collection of header names"),
    "MAX_RESPONSE_BYTES": COUNT,
    "DERIVATION_SECRET": Rule(_is_text, "a string that nobody can guess"),
    "PURGE_BATCH_SIZE": COUNT,
    "PURGE_TIME_BUDGET": DURATION,
}
NULLABLE = {
    "USING",
    "SCOPE",
    "QUERY_PARAM",
    "HEADER",
    "FINGERPRINT",
    "DERIVATION_SECRET",
}


@checks.register("idempotency")
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report settings that are unknown, of a wrong type or without meaning."""
    return list(_mistakes_in_settings())


def _mistakes_in_settings() -> Iterator[CheckMessage]:
    project: Any = getattr(settings, "IDEMPOTENCY", {})
    if not isinstance(project, dict):
        yield Error(
            "The IDEMPOTENCY setting is not a dictionary.",
            hint='Write IDEMPOTENCY = {"RETENTION": timedelta(days=30)}, for example.',
            id="idempotency.E001",
        )
        return
    for name, value in project.items():
        if name not in NAMES:
            close = get_close_matches(str(name), NAMES, n=1)
            meant = f"Did you mean {close[0]}? " if close else ""
            yield Error(
                f"IDEMPOTENCY has an unknown key {name!r}.",
                hint=f"{meant}The keys are {', '.join(sorted(NAMES))}.",
                id="idempotency.E002",
            )
        elif not (value is None and name in NULLABLE) and not SETTINGS[name].holds(
            value
        ):
            # What the checks say ends up in logs.
            shown = "what it is" if name == "DERIVATION_SECRET" else repr(value)
            yield Error(
                f"IDEMPOTENCY[{name!r}] can't be {shown}.",
                hint=f"It must be {SETTINGS[name].expected}.",
                id="idempotency.E003",
            )
    now = get_settings()
    if now.ENABLED and now.QUERY_PARAM is None and now.HEADER is None:
        yield Error(
            "IDEMPOTENCY turns off both QUERY_PARAM and HEADER: no request has a key.",
            hint='Leave one of them, or turn off the app with "ENABLED": False.',
            id="idempotency.E004",
        )


@checks.register("idempotency")
def check_leased_views(**kwargs: Any) -> list[CheckMessage]:
    """Report leased handlers that Django would run inside a transaction (E11)."""
    if not any(
        database["ATOMIC_REQUESTS"] for database in connections.settings.values()
    ):
        return []
    found = dict.fromkeys(_leased_in_transactions(get_resolver().url_patterns))
    return [
        Error(
            f"{name} is leased, and ATOMIC_REQUESTS puts a transaction around it.",
            hint=(
                "Write @transaction.non_atomic_requests above @api_view, or "
                '@method_decorator(transaction.non_atomic_requests, name="dispatch") '
                "above the view class."
            ),
            id="idempotency.E005",
        )
        for name in found
    ]


def _leased_in_transactions(patterns: Iterable[Any]) -> Iterator[str]:
    """Yield the names of leased views below some patterns that are not opted out."""
    for pattern in patterns:
        view = getattr(pattern, "callback", None)
        if view is None:
            yield from _leased_in_transactions(pattern.url_patterns)
            continue
        for method in View.http_method_names:
            for handler in handlers_of(view, method):
                options = getattr(handler, OPTIONS_ATTRIBUTE, {})
                if not options.get("atomic", True) and _is_in_transaction(
                    view, options
                ):
                    yield f"{view.cls.__module__}.{view.cls.__name__}"


def _is_in_transaction(view: Any, options: Options) -> bool:
    alias = options.get("using") or get_settings().USING
    alias = alias or router.db_for_write(IdempotencyRecord)
    opted_out = getattr(view, "_non_atomic_requests", ())
    return connections.settings[alias]["ATOMIC_REQUESTS"] and alias not in opted_out


NOT_SCHEDULED = checks.Warning(
    "Nothing schedules the purge of expired records.",
    hint=(
        "Add **idempotency.schedules.BEAT_SCHEDULE to CELERY_BEAT_SCHEDULE. "
        "If something else runs the purge, silence this check."
    ),
    id="idempotency.W001",
)
SWITCHED_OFF = checks.Warning(
    "The purge of expired records is switched off in django-celery-beat's tables.",
    hint=(
        "The settings schedule it, but Beat keeps to what its admin says: enable the "
        "periodic task there. If something else runs the purge, silence this check."
    ),
    id="idempotency.W002",
)


@checks.register("idempotency")
def check_purge_is_scheduled(**kwargs: Any) -> list[CheckMessage]:
    """Warn where neither the settings nor the Celery app schedule the purge.

    Where django-celery-beat is installed, its tables may do so: see below.
    """
    if PURGE_TASK in _scheduled_tasks() or apps.is_installed("django_celery_beat"):
        return []
    return [NOT_SCHEDULED]


@checks.register("idempotency", checks.Tags.database)
def check_purge_is_scheduled_in_database(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn where django-celery-beat's tables do not let the purge run.

    Only ``migrate`` and ``check --database`` ask the database.
    """
    if not apps.is_installed("django_celery_beat"):
        return []
    tasks = apps.get_model("django_celery_beat", "PeriodicTask")._default_manager.all()
    if tasks.db not in (databases or ()):
        return []
    connection = connections[tasks.db]
    if tasks.model._meta.db_table not in connection.introspection.table_names():
        return []  # not migrated yet
    purges = tasks.filter(task=PURGE_TASK)
    if purges.filter(enabled=True).exists():
        return []
    if PURGE_TASK not in _scheduled_tasks():
        return [NOT_SCHEDULED]
    # Where there is no row yet, Beat makes one of the settings' entry when it starts.
    return [SWITCHED_OFF] if purges.exists() else []


def _scheduled_tasks() -> set[Any]:
    # Whatever namespace an app reads the settings with. Not BEAT_SCHEDULE alone: that
    # is what settings that import the entry have in any case.
    names = [name for name in dir(settings) if name.endswith("_BEAT_SCHEDULE")]
    schedules = [getattr(settings, name) for name in names]
    return {
        entry.get("task")
        for schedule in [*schedules, current_app.conf.beat_schedule]
        if isinstance(schedule, Mapping)
        for entry in schedule.values()
        if isinstance(entry, Mapping)
    }
