"""The tests' settings, without what only tests need."""

import os

from tests.settings import *  # noqa: F403  # settings build on settings
from tests.settings import DATABASES

ROOT_URLCONF = os.environ.get("BENCHMARK_URLS", "tests.urls")
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": DATABASES["default"]}
# Django's own: warnings are written, lines about single requests are not.
LOGGING: dict[str, object] = {}
