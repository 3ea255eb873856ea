"""The demo project's settings for ``make demo``."""

from testproject.settings import *  # noqa: F403

ROOT_URLCONF = "testproject.demo_urls"
# Shorter than the lease in demo_urls.
PAYMENT_PROVIDER_TIMEOUT = 2.0
