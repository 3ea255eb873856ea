"""Check that something runs the purge, and the completers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage
from django.db import connections

from idempotency.checks.databases import aliases_in_use
from idempotency.checks.endpoints import default_alias, find_endpoints
from idempotency.schedules import COMPLETING_TASK, PURGE_TASK


class Job(NamedTuple):
    """A task that the project has to schedule, for each database with such records."""

    task: str
    name: str
    # In idempotency.schedules, and for projects without Celery.
    entry: str
    command: str
    aliases: Callable[[], list[str]]
    # The ids of its warnings.
    missing_id: str
    disabled_id: str


def aliases_with_completers() -> list[str]:
    """Return the databases with records of endpoints that have a completer."""
    used = (
        endpoint.alias
        for endpoint in find_endpoints()
        if endpoint.protection.policy.completer is not None
    )
    return list(dict.fromkeys(used))


JOBS = (
    Job(
        task=PURGE_TASK,
        name="the purge of expired records",
        entry="BEAT_SCHEDULE",
        command="purge_idempotency_records",
        aliases=aliases_in_use,
        missing_id="idempotency.W001",
        disabled_id="idempotency.W002",
    ),
    Job(
        task=COMPLETING_TASK,
        name="the completion of abandoned requests",
        entry="COMPLETING_SCHEDULE",
        command="complete_idempotency_records",
        aliases=aliases_with_completers,
        missing_id="idempotency.W012",
        disabled_id="idempotency.W013",
    ),
)


@checks.register("idempotency")
def check_jobs_are_scheduled(**kwargs: Any) -> list[CheckMessage]:
    """Warn if neither the settings nor the Celery app schedule a job.

    With django-celery-beat, the check below looks at its tables.
    """
    if apps.is_installed("django_celery_beat"):
        return []
    return [
        _not_scheduled(job, alias)
        for job in JOBS
        for alias in job.aliases()
        if alias not in _scheduled_in_settings(job)
    ]


@checks.register("idempotency", checks.Tags.database)
def check_jobs_are_scheduled_in_database(
    databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn if django-celery-beat's tables do not schedule a job.

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
    return [message for job in JOBS for message in _unscheduled_in_tables(job, tasks)]


def _unscheduled_in_tables(job: Job, tasks: Any) -> Iterator[CheckMessage]:
    aliases = job.aliases()
    if not aliases:
        return
    scheduled, rows = _scheduled_in_settings(job), _scheduled_in_tables(job, tasks)
    for alias in aliases:
        if not rows.get(alias, alias in scheduled):
            # If there is no row yet, Beat creates one from the settings when it starts.
            is_set = alias in scheduled
            yield (_switched_off if is_set else _not_scheduled)(job, alias)


def _not_scheduled(job: Job, alias: str) -> CheckMessage:
    is_default = alias == default_alias()
    where = "" if is_default else f" in the database {alias!r}"
    hint = (
        f"Add **idempotency.schedules.{job.entry} to CELERY_BEAT_SCHEDULE of your "
        f"Celery app, or let cron run manage.py {job.command}. "
    )
    if not is_default:
        hint = (
            f"Schedule the task {job.task} a second time, with "
            f'"kwargs": {{"database": "{alias}"}}. '
        )
    if _celery_app() is None:
        option = "" if is_default else f" --database {alias}"
        hint = (
            f"Let cron run manage.py {job.command}{option}. A schedule in "
            "the settings needs Celery: install django-idempotency[celery]. "
        )
    return checks.Warning(
        f"Nothing schedules {job.name}{where}.",
        hint=f"{hint}If something else runs it, silence this check.",
        id=job.missing_id,
    )


def _switched_off(job: Job, alias: str) -> CheckMessage:
    where = "" if alias == default_alias() else f" in the database {alias!r}"
    name = job.name[0].upper() + job.name[1:]
    return checks.Warning(
        f"{name}{where} is disabled in django-celery-beat's tables.",
        hint=(
            "The settings schedule it, but its row in the tables takes precedence: "
            "enable the periodic task in the admin. If something else runs it, "
            "silence this check."
        ),
        id=job.disabled_id,
    )


def _celery_app() -> Any:
    """Return the current Celery app, or None if Celery is not installed."""
    try:
        from celery import current_app  # noqa: PLC0415  # may not be installed
    except ImportError:
        return None
    return current_app


def _scheduled_in_settings(job: Job) -> set[str]:
    """Return the databases for which the settings or the Celery app schedule a job."""
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
        if isinstance(entry, Mapping) and entry.get("task") == job.task
        for alias in _databases_of(entry.get("args"), entry.get("kwargs"))
    }


def _scheduled_in_tables(job: Job, tasks: Any) -> dict[str, bool]:
    """Return the databases of django-celery-beat's rows, and whether one is enabled."""
    found: dict[str, bool] = {}
    rows = tasks.filter(task=job.task).values_list("enabled", "args", "kwargs")
    for enabled, *given in rows:
        with suppress(ValueError):  # Beat also ignores rows with invalid JSON
            for alias in _databases_of(*(json.loads(text or "null") for text in given)):
                found[alias] = found.get(alias, False) or enabled
    return found


def _databases_of(args: Any, kwargs: Any) -> Iterator[str]:
    """Yield the database of a task; nothing if the arguments are invalid."""

    def alias_of(database: Any = None) -> Any:  # with the signature of the tasks
        return database or default_alias()

    with suppress(TypeError):
        alias = alias_of(*(args or ()), **(kwargs or {}))
        if isinstance(alias, str):
            yield alias
