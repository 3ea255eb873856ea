"""The purge on a schedule: Beat, a broker and a worker, each a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, current_app
from celery.worker import control
from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from kombu import Connection

from idempotency.admin import purge
from idempotency.models import State
from idempotency.schedules import BEAT_SCHEDULE, COMPLETING_SCHEDULE, PURGE_TASK
from testproject import settings as demo
from tests.support.processes import running, wait_until
from tests.support.record_factories import RETENTION, left, make_record
from tests.test_docs import ROOT, table

# The embedded broker needs no server, so it is always there.
BROKERS = {
    "embedded": "filesystem://",
    "rabbitmq": os.environ.get("TEST_RABBITMQ_URL", ""),
    "redis": os.environ.get("TEST_REDIS_URL", ""),
}
FOUND = {name: url for name, url in BROKERS.items() if url}
FROM_SETTINGS = "celery.beat:PersistentScheduler"
FROM_DATABASE = "django_celery_beat.schedulers:DatabaseScheduler"
# What the purge does in each database does not depend on who brought the message.
TRIED = FOUND if connection.vendor == "sqlite" else ["embedded"]
RUNS = [(name, FROM_SETTINGS) for name in TRIED]
if find_spec("django_celery_beat"):
    RUNS.append(("embedded", FROM_DATABASE))


@pytest.fixture
def queue(broker: str) -> Iterator[str]:
    """Return the name of a queue that is gone after the test."""
    name = f"idempotency-test-{uuid4()}"
    yield name
    if broker != "embedded":
        with Connection(FOUND[broker]) as connection:
            channel = connection.default_channel
            channel.queue_delete(name)
            channel.exchange_delete(name)
            if broker == "redis":
                for key in channel.client.keys(f"*{name}*"):
                    channel.client.delete(key)


@pytest.fixture
def schedule_tables(database: None) -> Iterator[None]:
    """Leave nothing of a schedule in the database."""
    yield
    if apps.is_installed("django_celery_beat"):
        for name in ("PeriodicTask", "PeriodicTasks", "IntervalSchedule"):
            apps.get_model("django_celery_beat", name).objects.all().delete()


@pytest.mark.parametrize(("broker", "scheduler"), RUNS)
@pytest.mark.usefixtures("schedule_tables")
def test_beat_purges(broker: str, scheduler: str, queue: str, tmp_path: Path) -> None:
    """P3: The entry that the app ships makes Beat send the task that purges."""
    make_record(RETENTION + timedelta(seconds=1), key="expired")
    make_record(timedelta(days=400), key="abandoned", state=State.IN_PROGRESS)
    make_record(timedelta(days=29), key="29 days")
    make_record(key="new")
    make_record(
        timedelta(days=400),
        key="leased",
        state=State.IN_PROGRESS,
        lease_expires_at=timezone.now() + timedelta(days=1),
    )
    kept = {"29 days", "new", "leased"}
    logs = {name: tmp_path / f"{name}.log" for name in ("worker", "beat")}
    celery = [sys.executable, "-m", "celery", "-A", "tests.celery_app"]
    worker = [
        *celery,
        "worker",
        "--loglevel=INFO",
        "--concurrency=1",
        f"--hostname={queue}@localhost",
        "--without-gossip",
        "--without-mingle",
    ]
    beat = [
        *celery,
        "beat",
        "--loglevel=INFO",
        "--pidfile=",
        f"--schedule={tmp_path / 'schedule'}",
        f"--scheduler={scheduler}",
    ]
    variables = {
        "CELERY_BROKER_URL": FOUND[broker],
        "DEMO_VAR_DIR": str(tmp_path),
        "TEST_QUEUE": queue,
    }
    with (
        running(worker, logs["worker"], **variables),
        running(beat, logs["beat"], **variables),
    ):
        wait_until(lambda: left() == kept, "the purge", logs)
        # Once is what a start may do; a schedule comes back.
        make_record(RETENTION + timedelta(seconds=1), key="expired later")
        wait_until(lambda: left() == kept, "the next purge", logs)
    told = logs["worker"].read_text()
    assert "records_purged: 2 expired records in 1 batches and " in told
    (entry,) = BEAT_SCHEDULE
    assert f"Sending due task {entry} ({PURGE_TASK})" in logs["beat"].read_text()


@pytest.mark.skipif(connection.vendor != "sqlite", reason="One database will do.")
@pytest.mark.usefixtures("schedule_tables")
def test_make_beat(tmp_path: Path) -> None:
    """P3, A3: ``make beat`` purges on its schedule, and the admin sees its worker."""
    make_record(RETENTION + timedelta(seconds=1), key="expired")
    make_record(key="new")
    logs = {"both": tmp_path / "log"}
    command = [sys.executable, "-m", "testproject.beat", "--every=1"]
    # The broker of the settings, where this process sends its question, too.
    with running(command, logs["both"], CELERY_BROKER_URL="filesystem://"):
        wait_until(lambda: left() == {"new"}, "the purge", logs)
        wait_until(purge.has_worker, "the worker's answer", logs)
    told = logs["both"].read_text()
    assert told.count("records_purged: 1 expired records in 1 batches and ") == 1


def test_what_make_beat_needs() -> None:
    """P3: Its environment has what Redis, and the schedule in the admin, take."""
    project = ConfigParser()
    project.read(ROOT / "setup.cfg")
    demo_extra = project["options.extras_require"]["demo"]
    assert {"celery[redis]", "django-celery-beat"} <= {
        line.partition(">=")[0] for line in demo_extra.splitlines()
    }


# Celery has Django check itself first, and some checks ask the database.
@pytest.mark.usefixtures("database")
def test_shipped_entry() -> None:
    """P3: One entry, every ten minutes, for a task that Celery finds by itself."""
    (entry,) = BEAT_SCHEDULE.values()
    assert entry["task"] == PURGE_TASK
    assert entry["schedule"] == timedelta(minutes=10)
    current_app.loader.import_default_modules()
    assert PURGE_TASK in current_app.tasks
    assert current_app.conf.beat_schedule == {**BEAT_SCHEDULE, **COMPLETING_SCHEDULE}


@pytest.mark.parametrize(
    ("limit", "soft_limit", "minutes"),
    [(None, 600, 9), (3600, 600, 9), (300, 300, 4), (60, 60, 0.5)],
)
def test_time_limits(limit: int | None, soft_limit: int, minutes: float) -> None:
    """P3: Whatever limit a project has for all tasks, the purge ends before it."""
    app = Celery("project", broker="memory://", set_as_current=False)
    app.conf.update(
        task_default_queue=f"idempotency-test-{uuid4()}",
        task_time_limit=limit,
        task_soft_time_limit=60,
    )
    task: Any = app.tasks[PURGE_TASK]
    task.apply_async()
    with app.connection_for_read() as broker:
        message = broker.SimpleQueue(app.conf.task_default_queue).get(block=False)
    assert message.headers["timelimit"] == [task.time_limit, soft_limit]
    task.push_request(timelimit=message.headers["timelimit"])
    try:
        assert task.time_budget() == timedelta(minutes=minutes)
    finally:
        task.pop_request()


def test_time_limit_of_the_budget(settings: Any) -> None:
    """P3: The soft limit follows the budget, unless the caller sets one."""
    app = Celery("project", broker="memory://", set_as_current=False)
    task: Any = app.tasks[PURGE_TASK]
    settings.IDEMPOTENCY = {"PURGE_TIME_BUDGET": timedelta(minutes=20)}
    assert task.soft_time_limit == 1260
    worker = SimpleNamespace(app=app)
    set_limits = {"task_name": PURGE_TASK, "soft": 10, "hard": 20}
    assert "ok" in control.time_limit(worker, **set_limits)
    assert (task.soft_time_limit, task.time_limit) == (10, 20)


def start_beat(app: Celery = current_app) -> Any:
    """Let Beat write its schedule into django-celery-beat's tables; return them."""
    schedulers = pytest.importorskip("django_celery_beat.schedulers")
    schedulers.DatabaseScheduler(app=app).schedule  # noqa: B018  # reads it
    return apps.get_model("django_celery_beat", "PeriodicTask").objects


@pytest.mark.usefixtures("schedule_tables")
def test_edits_in_the_admin() -> None:
    """P3: What a restart of Beat leaves of edits is what the page says."""
    (name,) = BEAT_SCHEDULE
    task = start_beat().get(name=name)
    own = {field.name: getattr(task, field.name) for field in task._meta.fields}
    # What waits longer is dropped by this scheduler, too.
    assert (str(task.interval), task.expire_seconds) == ("every 600 seconds", 600)
    stays = {
        "enabled": False,
        "one_off": True,
        "start_time": timezone.now(),
        "description": "not in the sales",
    }
    intervals = type(task.interval).objects
    is_overwritten = {
        "interval": intervals.create(every=2, period="days"),
        "task": "another.task",
        "args": '["other"]',
        "kwargs": '{"database": "other"}',
        "queue": "slow",
        "exchange": "slow",
        "routing_key": "slow",
        "headers": '{"a": 1}',
        "priority": 3,
        "expire_seconds": 60,
    }
    tasks = start_beat().filter(name=name)
    tasks.update(**stays, **is_overwritten)
    again = start_beat().get(name=name)
    assert {field: getattr(again, field) for field in stays} == stays
    for field in is_overwritten:
        assert getattr(again, field) == own[field], field
    told = table("of an edit in the admin", "fields of `PeriodicTask`")
    assert [
        {*re.findall(r"`(\w+)`", row["fields of `PeriodicTask`"])} for row in told
    ] == [
        {*stays},
        # One of them has the schedule, and Beat empties the others.
        {*is_overwritten, "crontab", "solar", "clocked"},
    ]


@pytest.mark.usefixtures("schedule_tables")
def test_expiry_date_in_the_admin() -> None:
    """P3: Beside it the entry can't be written, so the row stays as it is."""
    (name,) = BEAT_SCHEDULE
    date = timezone.now() + timedelta(days=1)
    tasks = start_beat().filter(name=name)
    tasks.update(expires=date, expire_seconds=None, queue="slow")
    again = start_beat().get(name=name)
    assert (again.expires, again.expire_seconds, again.queue) == (date, None, "slow")


@pytest.mark.usefixtures("schedule_tables")
def test_renamed_or_deleted_in_the_admin() -> None:
    """P3: By its name Beat knows its row again, and writes what it does not find."""
    (name,) = BEAT_SCHEDULE
    start_beat().filter(name=name).update(name="mine")
    assert {task.name for task in start_beat().filter(task=PURGE_TASK)} == {
        name,
        "mine",
    }
    start_beat().filter(task=PURGE_TASK).delete()
    assert start_beat().get(task=PURGE_TASK).name == name
    # Without the entry in the settings, what is there stays as it is.
    start_beat().filter(name=name).update(name="mine", queue="slow")
    without_entry = Celery("project", broker="memory://", set_as_current=False)
    (task,) = start_beat(without_entry).filter(task=PURGE_TASK)
    assert (task.name, task.queue) == ("mine", "slow")


@pytest.mark.usefixtures("schedule_tables")
def test_schedule_in_the_admin(settings: Any) -> None:
    """P3: With django-celery-beat the schedule is a page of the admin."""
    settings.MIDDLEWARE = demo.MIDDLEWARE
    (name,) = BEAT_SCHEDULE
    task = start_beat().get(name=name)
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("root"))
    address = "admin:django_celery_beat_periodictask_"
    every_task = reverse(f"{address}changelist")
    assert name in client.get(every_task).content.decode()
    page = client.get(reverse(f"{address}change", args=[task.pk])).content.decode()
    assert f'name="name" value="{name}"' in page
    assert f'name="task" value="{PURGE_TASK}"' in page
    client.post(every_task, {"action": "disable_tasks", "_selected_action": task.pk})
    assert start_beat().get(name=name).enabled is False
