"""A purge that nothing runs: records would pile up."""

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
    """Warn where neither the settings nor the Celery app schedule the purge.

    Where django-celery-beat is installed, its tables may do so: see below.
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
    scheduled, rows = _scheduled_in_settings(), _scheduled_in_tables(tasks)
    return [
        # Where there is no row yet, Beat makes one of the settings' entry when it
        # starts.
        _switched_off(alias) if alias in scheduled else _not_scheduled(alias)
        for alias in aliases_in_use()
        if not rows.get(alias, alias in scheduled)
    ]


def _not_scheduled(alias: str) -> CheckMessage:
    is_default = alias == default_alias()
    where = "" if is_default else f" in the database {alias!r}"
    hint = (
        "Add **idempotency.schedules.BEAT_SCHEDULE to CELERY_BEAT_SCHEDULE, for a "
        "Celery app to read, or let cron run manage.py purge_idempotency_records. "
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
            "the settings counts only where Celery is installed, as by "
            "django-idempotency[celery]. "
        )
    return checks.Warning(
        f"Nothing schedules the purge of expired records{where}.",
        hint=f"{hint}If something else runs the purge, silence this check.",
        id="idempotency.W001",
    )


def _switched_off(alias: str) -> CheckMessage:
    where = "" if alias == default_alias() else f" in the database {alias!r}"
    return checks.Warning(
        f"The purge of expired records{where} is switched off in "
        "django-celery-beat's tables.",
        hint=(
            "The settings schedule it, but Beat keeps to what its admin says: enable "
            "the periodic task there. If something else runs the purge, silence this "
            "check."
        ),
        id="idempotency.W002",
    )


def _celery_app() -> Any:
    """Return the Celery app in force, or None where Celery is not installed."""
    try:
        from celery import current_app  # noqa: PLC0415  # may not be installed
    except ImportError:
        return None
    return current_app


def _scheduled_in_settings() -> set[str]:
    """Return the databases that the settings or the Celery app purge."""
    app = _celery_app()
    if app is None:
        return set()  # nobody reads what the settings have
    # Whatever namespace an app reads the settings with. Not BEAT_SCHEDULE alone: that
    # is what settings that import the entry have in any case.
    names = [name for name in dir(settings) if name.endswith("_BEAT_SCHEDULE")]
    schedules = [getattr(settings, name) for name in names]
    # The Celery app's as it is by now. To finalize the app here would run handlers of
    # on_after_finalize before the project's tasks are there, and never again.
    return {
        alias
        for schedule in [*schedules, app.conf.beat_schedule]
        if isinstance(schedule, Mapping)
        for entry in schedule.values()
        if isinstance(entry, Mapping) and entry.get("task") == PURGE_TASK
        for alias in _purged(entry.get("args"), entry.get("kwargs"))
    }


def _scheduled_in_tables(tasks: Any) -> dict[str, bool]:
    """Return the databases that rows of django-celery-beat purge, and if they do."""
    found: dict[str, bool] = {}
    for enabled, alias in _rows(tasks.filter(task=PURGE_TASK)):
        found[alias] = found.get(alias, False) or enabled
    return found


def _rows(purges: Any) -> Iterator[tuple[bool, str]]:
    for enabled, *given in purges.values_list("enabled", "args", "kwargs"):
        with suppress(ValueError):  # of such a row Beat makes nothing, either
            args, kwargs = (json.loads(text or "null") for text in given)
            for alias in _purged(args, kwargs):
                yield enabled, alias


def _purged(args: Any, kwargs: Any) -> Iterator[str]:
    """Yield the database that a call of the task with these arguments purges.

    None where the task can't be called so.
    """
    with suppress(TypeError):
        alias = _alias(*(args or ()), **(kwargs or {}))
        if isinstance(alias, str):
            yield alias


def _alias(database: Any = None) -> Any:
    """Take what the task takes."""
    return database or default_alias()
