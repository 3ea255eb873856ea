"""The tests' settings, with the long run's own views and answers that name causes."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, REST_FRAMEWORK

ROOT_URLCONF = "tests.soak.views"
REST_FRAMEWORK = {
    **REST_FRAMEWORK,
    "EXCEPTION_HANDLER": "tests.soak.views.exception_handler",
}
# No second connection: with ATOMIC_REQUESTS it would wait for the first on SQLite.
DATABASES = {"default": DATABASES["default"]}
