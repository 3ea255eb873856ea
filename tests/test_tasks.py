"""The purge on a schedule: Beat, a broker and a worker, each a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import current_app
from django.apps import apps
from django.db import connection
from kombu import Connection

from idempotency.admin import purge
from idempotency.models import State
from idempotency.schedules import BEAT_SCHEDULE, PURGE_TASK
from tests.processes import running, wait_until
from tests.records import RETENTION, left, make_record

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
        wait_until(lambda: left() == {"29 days", "new"}, "the purge", logs)
        # Once is what a start may do; a schedule comes back.
        make_record(RETENTION + timedelta(seconds=1), key="expired later")
        wait_until(lambda: left() == {"29 days", "new"}, "the next purge", logs)
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
    assert (
        "records_purged: 1 expired records in 1 batches and "
        in logs["both"].read_text()
    )


# Celery has Django check itself first, and some checks ask the database.
@pytest.mark.usefixtures("database")
def test_shipped_entry() -> None:
    """P3: One entry, every hour, for a task that Celery finds by itself."""
    (entry,) = BEAT_SCHEDULE.values()
    assert entry["task"] == PURGE_TASK
    assert entry["schedule"] == timedelta(hours=1)
    current_app.loader.import_default_modules()
    assert PURGE_TASK in current_app.tasks
    assert current_app.conf.beat_schedule == BEAT_SCHEDULE


@pytest.mark.usefixtures("schedule_tables")
def test_edits_in_the_admin() -> None:
    """P3: What a restart of Beat leaves of edits is what the README says."""
    schedulers = pytest.importorskip("django_celery_beat.schedulers")
    (name,) = BEAT_SCHEDULE

    def start_beat() -> Any:
        schedulers.DatabaseScheduler(app=current_app).schedule  # noqa: B018  # reads it
        return apps.get_model("django_celery_beat", "PeriodicTask").objects.get(
            name=name
        )

    task = start_beat()
    # What waits longer is dropped by this scheduler, too.
    assert (str(task.interval), task.expire_seconds) == ("every 3600 seconds", 3600)
    two_days = task.interval.__class__.objects.create(every=2, period="days")
    task.interval, task.queue, task.priority = two_days, "slow", 3
    task.enabled, task.description = False, "not in the sales"
    task.start_time = task.date_changed
    task.save()
    again = start_beat()
    assert str(again.interval) == "every 3600 seconds"
    assert (again.queue, again.priority) == (None, None)
    assert (again.enabled, again.description) == (False, "not in the sales")
    assert again.start_time is not None
    # Without the entry in the settings, all of it stays.
    two_days.periodictask_set.add(again)
    before, current_app.conf.beat_schedule = current_app.conf.beat_schedule, {}
    try:
        assert str(start_beat().interval) == "every 2 days"
    finally:
        current_app.conf.beat_schedule = before
