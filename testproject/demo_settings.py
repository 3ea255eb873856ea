"""The demo project's settings, and what only ``make demo`` needs beside them."""

from testproject.settings import *  # noqa: F403

ROOT_URLCONF = "testproject.demo_urls"
# Shorter than the lease that the demo waits for.
PAYMENT_PROVIDER_TIMEOUT = 2.0
