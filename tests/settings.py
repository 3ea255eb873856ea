"""The demo project's settings, with the tests' own app, views and urls."""

import os

from testproject.settings import *  # noqa: F403
from testproject.settings import DATABASES, INSTALLED_APPS, VAR_DIR

DEBUG = False
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "tests.app",
    # What stands around the views of many projects.
    "rest_framework_tracking",
    "reversion",
]
ROOT_URLCONF = "tests.urls"
MIDDLEWARE = ["idempotency.middleware.IdempotencyMiddleware"]
IDEMPOTENCY: dict[str, object] = {}
if "TEST_ENCRYPTION_KEYS" in os.environ:
    IDEMPOTENCY["ENCRYPTION_KEYS"] = os.environ["TEST_ENCRYPTION_KEYS"].split(",")
# Django 6.1 warns of projects without.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "tests.app.authentication.UserHeaderAuthentication"
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
# A file: threads and server processes share the test database with the tests.
DATABASES["default"].setdefault("TEST", {})
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"]["TEST"]["NAME"] = str(VAR_DIR / "test.sqlite3")
# Each statement in a round trip of its own.
if os.environ.get("TEST_BY_STATEMENTS"):
    if DATABASES["default"]["ENGINE"].endswith("mysql"):
        DATABASES["default"].setdefault("OPTIONS", {})["multi_statements"] = False
    else:
        DATABASES["default"]["ENGINE"] = "tests.support.by_statements"
# A connection of its own to the same database, for routers and ``using``.
DATABASES["other"] = {
    **DATABASES["default"],
    "ATOMIC_REQUESTS": False,
    "TEST": {"MIRROR": "default"},
}
