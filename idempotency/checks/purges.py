"""Check that something runs the purge."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage
from django.db import connections

from idempotency.checks.databases import aliases_in_use
from idempotency.checks.endpoints import default_alias
from idempotency.schedules import PURGE_TASK


@checks.register("idempotency")
def check_purge_is_scheduled(**kwargs: Any) -> list[CheckMessage]:
    """Warn if neither the settings nor the Celery app schedule the purge.

    With django-celery-beat, the check below looks at its tables.
    """
    if apps.is_installed("django_celery_beat"):
        return []
    scheduled = _scheduled_in_settings()
    return [
        _not_scheduled(alias) for alias in aliases_in_use() if alias not in scheduled
    ]


@checks.register("idempotency", checks.Tags.database)
def check_purge_is_scheduled_in_database(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn if django-celery-beat's tables do not schedule the purge.

    This needs ``check --database`` or ``migrate``.
    """
    if not apps.is_installed("django_celery_beat"):
        return []
    tasks = apps.get_model("django_celery_beat", "PeriodicTask")._default_manager.all()
    if tasks.db not in (databases or ()):
        return []
    connection = connections[tasks.db]
    if tasks.model._meta.db_table not in connection.introspection.table_names():
        return []  # not migrated yet
    scheduled, rows = _scheduled_in_settings(), _scheduled_in_tables(tasks)
    return [
        # If there is no row yet, Beat creates one from the settings when it starts.
        _switched_off(alias) if alias in scheduled else _not_scheduled(alias)
        for alias in aliases_in_use()
        if not rows.get(alias, alias in scheduled)
    ]


def _not_scheduled(alias: str) -> CheckMessage:
    is_default = alias == default_alias()
    where = "" if is_default else f" in the database {alias!r}"
    hint = (
        "Add **idempotency.schedules.BEAT_SCHEDULE to CELERY_BEAT_SCHEDULE of your "
        "Celery app, or let cron run manage.py purge_idempotency_records. "
    )
    if not is_default:
        hint = (
            f"Schedule the task {PURGE_TASK} a second time, with "
            f'"kwargs": {{"database": "{alias}"}}. '
        )
    if _celery_app() is None:
        option = "" if is_default else f" --database {alias}"
        hint = (
            f"Let cron run manage.py purge_idempotency_records{option}. A schedule in "
            "the settings needs Celery: install django-idempotency[celery]. "
        )
    return checks.Warning(
        f"Nothing schedules the purge of expired records{where}.",
        hint=f"{hint}If something else runs the purge, silence this check.",
        id="idempotency.W001",
    )


def _switched_off(alias: str) -> CheckMessage:
    where = "" if alias == default_alias() else f" in the database {alias!r}"
    return checks.Warning(
        f"The purge of expired records{where} is disabled in django-celery-beat's "
        "tables.",
        hint=(
            "The settings schedule it, but its row in the tables takes precedence: "
            "enable the periodic task in the admin. If something else runs the purge, "
            "silence this check."
        ),
        id="idempotency.W002",
    )


def _celery_app() -> Any:
    """Return the current Celery app, or None if Celery is not installed."""
    try:
        from celery import current_app  # noqa: PLC0415  # may not be installed
    except ImportError:
        return None
    return current_app


def _scheduled_in_settings() -> set[str]:
    """Return the databases that the settings or the Celery app purge."""
    app = _celery_app()
    if app is None:
        return set()
    # The app may read the settings with any prefix. Plain BEAT_SCHEDULE does not count:
    # settings that import the entry always have it.
    names = [name for name in dir(settings) if name.endswith("_BEAT_SCHEDULE")]
    schedules = [getattr(settings, name) for name in names]
    # Don't finalize the Celery app: its on_after_finalize handlers would run too early,
    # and never again.
    return {
        alias
        for schedule in [*schedules, app.conf.beat_schedule]
        if isinstance(schedule, Mapping)
        for entry in schedule.values()
        if isinstance(entry, Mapping) and entry.get("task") == PURGE_TASK
        for alias in _purged(entry.get("args"), entry.get("kwargs"))
    }


def _scheduled_in_tables(tasks: Any) -> dict[str, bool]:
    """Return the databases of django-celery-beat's rows, and whether one is enabled."""
    found: dict[str, bool] = {}
    rows = tasks.filter(task=PURGE_TASK).values_list("enabled", "args", "kwargs")
    for enabled, *given in rows:
        with suppress(ValueError):  # Beat also ignores rows with invalid JSON
            for alias in _purged(*(json.loads(text or "null") for text in given)):
                found[alias] = found.get(alias, False) or enabled
    return found


def _purged(args: Any, kwargs: Any) -> Iterator[str]:
    """Yield the database that the task purges; nothing if the arguments are invalid."""

    def alias_of(database: Any = None) -> Any:  # with the signature of the task
        return database or default_alias()

    with suppress(TypeError):
        alias = alias_of(*(args or ()), **(kwargs or {}))
        if isinstance(alias, str):
            yield alias
