"""System checks: each mistake is found, under its own id and with a way out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from celery import current_app
from celery.schedules import crontab
from django.apps import apps
from django.core import checks
from django.core.checks import CheckMessage
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections
from django.test import override_settings

from idempotency.checks import (
    check_jobs_are_scheduled,
    check_jobs_are_scheduled_in_database,
    check_leased_views,
    check_settings,
    schedules,
)
from idempotency.conf import SETTINGS
from idempotency.schedules import BEAT_SCHEDULE, PURGE_TASK
from tests.support.processes import run_python


def scope(request: Any) -> str:
    return "everybody"


def messages(project: Any) -> list[CheckMessage]:
    """Return what the checks say to the IDEMPOTENCY setting of a project."""
    with override_settings(IDEMPOTENCY=project):
        return check_settings()


def assert_helpful(message: CheckMessage) -> None:
    assert message.hint
    assert message.hint.endswith(".")


# The settings.

ENCRYPTION_KEY = "765ff456:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

RIGHT: dict[str, list[Any]] = {
    "REQUIRED": [True, False],
    "METHODS": [("POST",), ["POST", "PATCH"], {"PUT"}],
    "RETENTION": [timedelta(days=30), timedelta(seconds=1)],
    "USING": [None, "default"],
    "SCOPE": [None, scope, "tests.test_checks.scope"],
    "ANONYMOUS": ["allow", "refuse"],
    "RELEASED_STATUSES": [(), [400], {404, 429}, range(400, 500)],
    "STORE": [True, False, scope, "tests.test_checks.scope"],
    "CHECK_REPLAY": [None, "object", scope, "tests.test_checks.scope"],
    "ON_CONCURRENT": ["refuse", "wait"],
    "WAIT_TIMEOUT": [timedelta(seconds=5)],
    "LEASE": [timedelta(seconds=60)],
    "ENABLED": [True, False],
    "QUERY_PARAM": [None, "$idempotency", "key"],
    "HEADER": [None, "Idempotency-Key", "X-Key-2"],
    "REFUSAL_RESPONSE": [None, scope, "tests.test_checks.scope"],
    "FINGERPRINT": [None, scope, "tests.test_checks.scope"],
    "WARNINGS": [(), ("body",), ["header"], {"body", "header"}],
    "UNSTORED_HEADERS": [(), ["X-Trace"]],
    "MAX_RESPONSE_BYTES": [1, 10**9],
    "DERIVATION_SECRET": [None, "secret"],
    "ENCRYPTION_KEYS": [(), [], [""], ["", ENCRYPTION_KEY], (ENCRYPTION_KEY,)],
    "PURGE_BATCH_SIZE": [1, 1000],
    "PURGE_TIME_BUDGET": [timedelta(minutes=5)],
}
NO_FUNCTION = [
    1,
    "",
    "scope",
    "nowhere.scope",
    "tests.nowhere",
    "tests.test_checks.ROOT",
]
NO_DURATION = [None, 30, "30", timedelta(0), timedelta(days=-1)]
NO_COUNT = [None, 0, -1, 1.5, "1", True]
WRONG: dict[str, list[Any]] = {
    "REQUIRED": [None, 1, "yes"],
    "METHODS": [None, (), "POST", ("post",), (b"POST",), ["POST", ["PUT"]], 1],
    "RETENTION": NO_DURATION,
    "USING": ["elsewhere", 1, ["default"]],
    "SCOPE": NO_FUNCTION,
    "ANONYMOUS": [None, "Refuse", True, ["refuse"]],
    "RELEASED_STATUSES": [None, 400, "400", ["400"], [500], [True], [199], [[400]]],
    "STORE": [None, *NO_FUNCTION],
    "CHECK_REPLAY": NO_FUNCTION,
    "ON_CONCURRENT": [None, "WAIT", True, ["wait"]],
    "WAIT_TIMEOUT": NO_DURATION,
    "LEASE": NO_DURATION,
    "ENABLED": [None, 0, "no"],
    "QUERY_PARAM": ["", 1, ["key"]],
    "HEADER": ["", 1, "Idempotency Key", "X_Key", "X-Key:", "Schlüssel"],
    "REFUSAL_RESPONSE": NO_FUNCTION,
    "FINGERPRINT": NO_FUNCTION,
    "WARNINGS": [None, "body", ("Body",), [["body"]], [1]],
    "UNSTORED_HEADERS": [None, "X-Trace", [1], [""]],
    "MAX_RESPONSE_BYTES": NO_COUNT,
    "DERIVATION_SECRET": ["", b"secret", 1],
    "ENCRYPTION_KEYS": [None, ENCRYPTION_KEY, {ENCRYPTION_KEY}, [None], [b"key"]],
    "PURGE_BATCH_SIZE": NO_COUNT,
    "PURGE_TIME_BUDGET": NO_DURATION,
}


def test_every_key_has_a_rule() -> None:
    """X2: No key of the settings is without a rule, and none is without a test."""
    assert {*SETTINGS} == {*RIGHT} == {*WRONG}
    nullable = {name for name, setting in SETTINGS.items() if setting.is_nullable}
    assert {name for name, values in RIGHT.items() if None in values} == nullable


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in RIGHT for value in RIGHT[name]]
)
def test_right_value(name: str, value: Any) -> None:
    """X2: What a key can be is no mistake."""
    assert messages({name: value}) == []


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]]
)
def test_wrong_value(name: str, value: Any) -> None:
    """X2: E003, a value that a key can't have; the hint says which it can have."""
    (message,) = messages({name: value})
    assert isinstance(message, checks.Error)
    assert message.id == "idempotency.E003"
    assert f"IDEMPOTENCY['{name}'] can't be" in message.msg
    assert_helpful(message)
    assert SETTINGS[name].rule.expected in str(message.hint)


def test_secrets_stay_secret() -> None:
    """X2: What the checks print has no secret in it."""
    (message,) = messages({"DERIVATION_SECRET": b"open sesame"})
    assert "sesame" not in str(message)
    (message,) = messages({"RETENTION": 30})
    assert "can't be 30." in message.msg


def test_several_mistakes() -> None:
    """X2: Every mistake is found at once."""
    found = messages({"RETENTION": 30, "RETENTIONS": 30, "HEADER": 1})
    assert [message.id for message in found] == [
        "idempotency.E003",
        "idempotency.E002",
        "idempotency.E003",
    ]


@pytest.mark.parametrize("project", [None, [], "RETENTION", 30, {"RETENTION"}])
def test_no_dictionary(project: Any) -> None:
    """X2: E001, the setting is no dictionary."""
    (message,) = messages(project)
    assert message.id == "idempotency.E001"
    assert_helpful(message)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RETENTIONS", "RETENTION"),
        ("QUERY_PARAMETER", "QUERY_PARAM"),
        ("MAX_RESPONSE_SIZE", "MAX_RESPONSE_BYTES"),
        ("HEADERS", "HEADER"),
    ],
)
def test_unknown_key(name: str, meant: str) -> None:
    """X2: E002, an unknown key; the hint says which one was meant."""
    (message,) = messages({name: 1})
    assert message.id == "idempotency.E002"
    assert name in message.msg
    assert_helpful(message)
    assert f"Did you mean {meant}?" in str(message.hint)


def test_known_under_another_name() -> None:
    """X2: E002, keys in small letters, and options that no setting is there for."""
    (message,) = messages({"retention": timedelta(days=1)})
    assert "Did you mean RETENTION?" in str(message.hint)
    (message,) = messages({"ATOMIC": False})
    assert "atomic is an option of endpoints, not a setting" in str(message.hint)


def test_why_a_path_leads_nowhere() -> None:
    """X2: E003, the hint says what the import said."""
    (message,) = messages({"SCOPE": "tests.nowhere.scope"})
    assert "No module named 'tests.nowhere'." in str(message.hint)
    assert_helpful(message)


@pytest.mark.parametrize("name", ["XYZ", "", 7])
def test_strange_key(name: Any) -> None:
    """X2: E002, a key that is like no other; the hint names them all."""
    (message,) = messages({name: 1})
    assert message.id == "idempotency.E002"
    assert "Did you mean" not in str(message.hint)
    assert all(known in str(message.hint) for known in SETTINGS)


def test_no_way_in() -> None:
    """X2: E004, neither the query nor a header can carry a key."""
    (message,) = messages({"QUERY_PARAM": None, "HEADER": None})
    assert message.id == "idempotency.E004"
    assert_helpful(message)
    off = {"QUERY_PARAM": None, "HEADER": None, "ENABLED": False}
    assert messages(off) == []


# Leased views.


def test_leased_view_in_a_transaction(settings: Any, monkeypatch: Any) -> None:
    """X2, E11: E005, a leased function that ATOMIC_REQUESTS would wrap."""
    settings.ROOT_URLCONF = "tests.test_leased"
    databases = connections.settings["default"]
    monkeypatch.setitem(databases, "ATOMIC_REQUESTS", False)
    assert check_leased_views() == []
    monkeypatch.setitem(databases, "ATOMIC_REQUESTS", True)
    (message,) = check_leased_views()
    assert message.id == "idempotency.E005"
    assert message.msg.startswith("tests.test_leased.inside is leased")
    assert_helpful(message)


# The purge.


@pytest.fixture
def app_schedule(settings: Any) -> Iterator[dict[str, Any]]:
    """Let a test say what the Celery app schedules, and begin with nothing."""
    before = current_app.conf.beat_schedule
    # Before Celery 5.6 the settings win over the app's own configuration.
    del settings.CELERY_BEAT_SCHEDULE
    current_app.conf.beat_schedule = {}
    yield current_app.conf.beat_schedule
    current_app.conf.beat_schedule = before


@pytest.fixture
def no_schedule_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test as where django-celery-beat is not installed."""
    is_installed = apps.is_installed
    monkeypatch.setattr(
        apps,
        "is_installed",
        lambda name: name != "django_celery_beat" and is_installed(name),
    )


OTHER = {"other": {"task": "other.task", "schedule": 10}}


@pytest.mark.usefixtures("no_schedule_tables")
@pytest.mark.parametrize(
    "schedules",
    [
        {"CELERY_BEAT_SCHEDULE": {}},
        {"CELERY_BEAT_SCHEDULE": None},
        {"CELERY_BEAT_SCHEDULE": OTHER},
        {"CELERY_BEAT_SCHEDULE": {"other": None}},
        {"CELERY_BEAT_SCHEDULE": OTHER, "JOBS_BEAT_SCHEDULE": OTHER},
        {"CELERY_BEAT_SCHEDULE": {}, "BEAT_SCHEDULE": BEAT_SCHEDULE},
    ],
)
def test_no_purge(schedules: dict[str, Any], app_schedule: dict[str, Any]) -> None:
    """X2: W001, nothing schedules the purge."""
    with override_settings(**schedules):
        (message,) = check_jobs_are_scheduled()
    assert isinstance(message, checks.Warning)
    assert message.id == "idempotency.W001"
    assert_helpful(message)


@pytest.mark.parametrize("setting", ["CELERY_BEAT_SCHEDULE", "JOBS_BEAT_SCHEDULE"])
@pytest.mark.parametrize(
    "schedule",
    [
        BEAT_SCHEDULE,
        {**OTHER, **BEAT_SCHEDULE},
        {"nightly": {"task": PURGE_TASK, "schedule": crontab(hour=3)}},
    ],
)
def test_purge_in_the_settings(
    setting: str, schedule: dict[str, Any], app_schedule: dict[str, Any]
) -> None:
    """X2: The purge may be scheduled in any namespace, under any name, at any time."""
    with override_settings(**{"CELERY_BEAT_SCHEDULE": OTHER, setting: schedule}):
        assert check_jobs_are_scheduled() == []


@pytest.mark.usefixtures("no_schedule_tables")
def test_purge_in_the_app(app_schedule: dict[str, Any]) -> None:
    """X2: The purge may be scheduled in the Celery app's own configuration."""
    app_schedule.update(OTHER)
    assert len(check_jobs_are_scheduled()) == 1
    app_schedule.update(BEAT_SCHEDULE)
    assert check_jobs_are_scheduled() == []


@pytest.mark.usefixtures("no_schedule_tables")
def test_purge_without_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    """X2: W001: nothing reads the settings' schedule; the hint names each alias."""
    monkeypatch.setitem(sys.modules, "celery", None)
    purge = schedules.JOBS[0]._replace(aliases=lambda: ["default", "other"])
    monkeypatch.setattr(schedules, "JOBS", (purge,))
    told = check_jobs_are_scheduled()
    assert [message.id for message in told] == ["idempotency.W001"] * 2
    for message, option in zip(told, ("", " --database other"), strict=True):
        assert_helpful(message)
        cron = f"Let cron run manage.py purge_idempotency_records{option}. "
        assert str(message.hint).startswith(cron)


def ids_of_database_checks() -> list[str | None]:
    """Return what ``manage.py check --database default`` says of the purge."""
    found = checks.run_checks(tags=["database"], databases=["default"])
    return [message.id for message in found if str(message.id).startswith("idem")]


@pytest.fixture
def tasks(database: None) -> Iterator[Any]:
    """Return django-celery-beat's periodic tasks, none at first."""
    if not apps.is_installed("django_celery_beat"):
        pytest.skip("django-celery-beat is not installed.")
    found = apps.get_model("django_celery_beat", "PeriodicTask").objects
    yield found
    found.all().delete()
    apps.get_model("django_celery_beat", "IntervalSchedule").objects.all().delete()


def add_task(tasks: Any, **fields: Any) -> None:
    intervals = apps.get_model("django_celery_beat", "IntervalSchedule").objects
    interval, _is_new = intervals.get_or_create(every=1, period="hours")
    tasks.create(**{"task": PURGE_TASK, "interval": interval, "name": "it", **fields})


def test_purge_in_the_tables(tasks: Any, app_schedule: dict[str, Any]) -> None:
    """X2: Where there are tables for it, a database check looks at them."""
    with override_settings(CELERY_BEAT_SCHEDULE=OTHER):
        assert check_jobs_are_scheduled() == []
        assert ids_of_database_checks() == ["idempotency.W001"]
        add_task(tasks, name="another one", task="other.task")
        add_task(tasks, enabled=False)
        assert ids_of_database_checks() == ["idempotency.W001"]
        tasks.update(enabled=True)
        assert ids_of_database_checks() == []


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"kwargs": ""}, []),
        ({"args": "", "kwargs": "null"}, []),
        ({"args": "[null]"}, []),
        ({"kwargs": "[1]"}, ["idempotency.W001"]),
        ({"kwargs": '"default"'}, ["idempotency.W001"]),
        ({"kwargs": '{"alias": "default"}'}, ["idempotency.W001"]),
        ({"args": "5"}, ["idempotency.W001"]),
        ({"args": '{"database": "default"}'}, ["idempotency.W001"]),
        ({"args": '[["default"]]'}, ["idempotency.W001"]),
        ({"args": '["default", "default"]'}, ["idempotency.W001"]),
        ({"args": "["}, ["idempotency.W001"]),
    ],
)
def test_arguments_in_the_tables(
    tasks: Any, app_schedule: dict[str, Any], fields: Any, found: list[str]
) -> None:
    """X2: A row counts if Beat can call the task with it, and else as none."""
    add_task(tasks, **fields)
    with override_settings(CELERY_BEAT_SCHEDULE={}):
        assert ids_of_database_checks() == found


@pytest.mark.parametrize(
    ("fields", "is_missing"),
    [
        ({"args": None, "kwargs": None}, False),
        ({"args": 5}, True),
        ({"kwargs": "default"}, True),
    ],
)
@pytest.mark.usefixtures("no_schedule_tables")
def test_arguments_in_the_settings(
    app_schedule: dict[str, Any], fields: Any, is_missing: bool
) -> None:
    """X2: An entry of the settings counts only if Beat can call the task with it."""
    app_schedule["it"] = {"task": PURGE_TASK, "schedule": 10, **fields}
    assert (check_jobs_are_scheduled() != []) is is_missing


def test_purge_switched_off(tasks: Any, app_schedule: dict[str, Any]) -> None:
    """X2: W002: the settings schedule the purge, and its row is disabled."""
    app_schedule.update(BEAT_SCHEDULE)
    assert ids_of_database_checks() == []
    add_task(tasks, enabled=False)
    (message,) = check_jobs_are_scheduled_in_database(databases=["default"])
    assert isinstance(message, checks.Warning)
    assert message.id == "idempotency.W002"
    assert_helpful(message)


@pytest.mark.parametrize("enabled", [True, False])
def test_one_of_two_is_switched_off(
    tasks: Any, app_schedule: dict[str, Any], enabled: bool
) -> None:
    """X2: One row that is at work is enough, whichever comes first."""
    app_schedule.update(BEAT_SCHEDULE)
    add_task(tasks, name="first", enabled=enabled)
    add_task(tasks, name="second", enabled=not enabled)
    assert ids_of_database_checks() == []


def test_tables_that_may_not_be_looked_at(
    tasks: Any, app_schedule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """X2: The tables are read only if asked for, and if they exist."""
    assert check_jobs_are_scheduled_in_database() == []
    assert check_jobs_are_scheduled_in_database(databases=["another"]) == []
    monkeypatch.setattr(connection.introspection, "table_names", list)
    assert check_jobs_are_scheduled_in_database(databases=["default"]) == []


@pytest.mark.usefixtures("no_schedule_tables")
def test_no_tables(app_schedule: dict[str, Any]) -> None:
    """X2: Without django-celery-beat there is nothing to look at."""
    assert check_jobs_are_scheduled_in_database(databases=["default"]) == []


# Django's own way to them.


@pytest.mark.usefixtures("no_schedule_tables")
def test_registered(app_schedule: dict[str, Any]) -> None:
    """X2: ``manage.py check`` runs the checks, with the tag ``idempotency`` alone."""
    with override_settings(CELERY_BEAT_SCHEDULE={}, IDEMPOTENCY={"RETENTION": 30}):
        found = {message.id for message in checks.run_checks(tags=["idempotency"])}
        assert found == {"idempotency.E003", "idempotency.W001"}
        with pytest.raises(SystemCheckError, match=r"idempotency\.E003"):
            call_command("check", tags=["idempotency"], stderr=StringIO())


@pytest.mark.usefixtures("database")
def test_project_without_celery() -> None:
    """X2: A project that has no Celery app gets the warning, and can silence it."""
    done = run_python(
        *("-W", "error", "-c"),
        "import django\n"
        "from django.conf import settings\n"
        "from django.core.management import call_command\n"
        'apps = ["django.contrib.auth", "django.contrib.contenttypes", "idempotency"]\n'
        "settings.configure(INSTALLED_APPS=apps)\n"
        "django.setup()\n"
        'call_command("check")\n'
        'settings.SILENCED_SYSTEM_CHECKS = ["idempotency.W001"]\n'
        'call_command("check")\n',
    )
    assert (done.stdout + done.stderr).count("idempotency.W001") == 1
    assert done.stdout.endswith("System check identified no issues (1 silenced).\n")
