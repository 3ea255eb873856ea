"""The tests' settings, with everything that is logged in the server's log."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

# No second connection: with ATOMIC_REQUESTS it would wait for the first on SQLite.
DATABASES = {"default": DATABASES["default"]}
ROOT_URLCONF = "tests.hostile.urls"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"named": {"format": "{name} {levelname} {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "named"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {"idempotency": {"level": "DEBUG"}},
}
