"""A new project with nothing but the app, and what has to work in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

# Runs the project's manage.py with these arguments, and returns what it says.
Manage = Callable[..., str]

SETTINGS = """
INSTALLED_APPS += ["rest_framework", "idempotency"]
MIDDLEWARE += ["idempotency.middleware.IdempotencyMiddleware"]
DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}
ALLOWED_HOSTS = ["testserver"]
"""
BY_CRON = """
SILENCED_SYSTEM_CHECKS = ["idempotency.W001"]
"""
BY_CELERY = """
from idempotency.schedules import BEAT_SCHEDULE

CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE}
"""
URLS = """
from uuid import uuid4

from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.response import Response

from idempotency.decorators import idempotent


@api_view(["POST"])
@idempotent
def make_group(request):
    group = Group.objects.create(name=str(uuid4()))
    return Response({"name": group.name}, status=201)


urlpatterns = [path("admin/", admin.site.urls), path("groups", make_group)]
"""
POST = """
from django.contrib.auth.models import Group
from django.test import Client

headers = {"Idempotency-Key": "RfOScIg0JwGS5M7MPS6vCvGlDKkbj3Qc"}
for _attempt in range(2):
    response = Client().post("/groups", {}, headers=headers)
    told = response.headers.get("Idempotent-Replayed"), response.content
    print(response.status_code, *told, Group.objects.count())
"""
ADMIN = """
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from idempotency.models import IdempotencyRecord

client = Client()
client.force_login(User.objects.create_superuser("root"))
admin = "admin:idempotency_idempotencyrecord_"
record = IdempotencyRecord.objects.get()
for name, args in (("changelist", []), ("change", [record.pk])):
    print(client.get(reverse(admin + name, args=args)).status_code)
IdempotencyRecord.objects.update(expires_at=timezone.now())
page = client.post(reverse(admin + "purge"), follow=True).content.decode()
print("Purged 1 expired record of" in page, IdempotencyRecord.objects.count())
"""
TASK = """
import idempotency.tasks  # as task queues other than Celery do with each app's tasks

print(hasattr(idempotency.tasks, "other"))
try:
    from idempotency.tasks import purge_expired_records
except ImportError as error:
    print(error)
"""


def make_project(manage: Manage, folder: Path, purge: str) -> None:
    """Write what makes a new project, ``shop``, one with a protected endpoint."""
    with (folder / "shop" / "settings.py").open("a", encoding="utf-8") as settings:
        settings.write(SETTINGS + purge)
    (folder / "shop" / "urls.py").write_text(URLS, encoding="utf-8")
    manage("migrate")


def assert_works(manage: Manage) -> None:
    """One effect, the same bytes again, and everything that support has."""
    manage("check", "--fail-level", "WARNING", "--database", "default")
    manage("makemigrations", "--check", "--dry-run")
    told = manage("shell", "--verbosity=0", "-c", POST)
    assert re.fullmatch(r"201 None (b'.+') 1\n201 true \1 1\n", told), told
    assert manage("shell", "--verbosity=0", "-c", ADMIN) == "200\n200\nTrue 0\n"
    manage("purge_idempotency_records")
    manage("idempotency_audit", "--fail-unprotected", "--exclude", "/admin/*")


def assert_task_says_what_it_needs(manage: Manage) -> None:
    """Without Celery the purge is cron's; its task can't be had by mistake."""
    said = manage("shell", "--verbosity=0", "-c", TASK)
    assert said.startswith("False\nThe task needs Celery: ")
    assert "pip install 'django-idempotency[celery]'" in said
    assert "manage.py purge_idempotency_records" in said
