"""Settings of the demo project.

Environment variables:

- DATABASE_URL: SQLite in DEMO_VAR_DIR by default
- ATOMIC_REQUESTS: 1 opens a transaction around every request
- CELERY_BROKER_URL: by default a broker that needs no server
- PAYMENT_PROVIDER_URL: ``python -m testproject.demo_provider`` by default
- PAYMENT_PROVIDER_TIMEOUT: in seconds
- DJANGO_DEBUG: 0 on a server that others can reach; needs a DJANGO_SECRET_KEY and HTTPS
- DJANGO_ALLOWED_HOSTS: names, separated by commas
- DEMO_VAR_DIR: the directory of SQLite's and the broker's files, var/ by default
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dj_database_url

from idempotency.schedules import BEAT_SCHEDULE, COMPLETING_SCHEDULE

BASE_DIR = Path(__file__).resolve().parent.parent
VAR_DIR = Path(os.environ.get("DEMO_VAR_DIR", BASE_DIR / "var"))
VAR_DIR.mkdir(parents=True, exist_ok=True)

DEBUG = os.environ.get("DJANGO_DEBUG", "1") == "1"
if DEBUG:
    SECRET_KEY = "for-the-demo-on-this-machine-alone" * 2
else:
    SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "rest_framework.authtoken",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "idempotency",
    "testproject.school",
]

# Not available for every Django version; the schedule is in the settings without it.
HAS_CELERY_BEAT_ADMIN = find_spec("django_celery_beat") is not None
if HAS_CELERY_BEAT_ADMIN:
    INSTALLED_APPS.append("django_celery_beat")

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "idempotency.middleware.IdempotencyMiddleware",
]

ROOT_URLCONF = "testproject.urls"
WSGI_APPLICATION = "testproject.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASE: dict[str, Any] = dict(
    dj_database_url.parse(
        os.environ.get("DATABASE_URL", f"sqlite:///{VAR_DIR / 'db.sqlite3'}"),
        conn_max_age=60,
        conn_health_checks=True,
    )
)
DATABASE["ATOMIC_REQUESTS"] = os.environ.get("ATOMIC_REQUESTS") == "1"
if DATABASE["ENGINE"] == "django.db.backends.sqlite3":
    # SQLite has one writer at a time: a transaction waits for its turn when it begins,
    # for up to 20 seconds.
    DATABASE["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
DATABASES = {"default": DATABASE}

# Without DEBUG, ``check --deploy`` reports nothing.
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG
SECURE_HSTS_SECONDS = 0 if DEBUG else 3600
# The owner of the domain decides on HSTS for subdomains and on preloading.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "testproject.school.authentication.BearerAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["testproject.school.renderers.EnvelopeRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "EXCEPTION_HANDLER": "testproject.school.exceptions.exception_handler",
    "DEFAULT_SCHEMA_CLASS": "testproject.school.schema.EnvelopeSchema",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}

SPECTACULAR_SETTINGS = {
    "TITLE": "School",
    "DESCRIPTION": "Classes, assignments and payments.",
    "VERSION": "2",
    "SERVE_INCLUDE_SCHEMA": False,
    # From this server's own static files.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

# EnvelopeRenderer adds the warnings to the body.
IDEMPOTENCY = {"WARNINGS": ("header",)}

PAYMENT_PROVIDER_URL = os.environ.get("PAYMENT_PROVIDER_URL", "http://127.0.0.1:8001")
PAYMENT_PROVIDER_TIMEOUT = float(os.environ.get("PAYMENT_PROVIDER_TIMEOUT", "5"))

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "filesystem://")
if CELERY_BROKER_URL.startswith("filesystem"):
    MESSAGES_DIR = VAR_DIR / "messages"
    MESSAGES_DIR.mkdir(exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(MESSAGES_DIR),
        "data_folder_out": str(MESSAGES_DIR),
        "control_folder": str(VAR_DIR / "control"),
    }
CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE, **COMPLETING_SCHEDULE}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
if HAS_CELERY_BEAT_ADMIN:
    CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    # No propagation, because Celery's worker has a handler on the root logger.
    "loggers": {
        "idempotency": {"handlers": ["console"], "level": "INFO", "propagate": False}
    },
}
