"""The tests' settings, with sessions and the admins of ``record_admins``."""

from testproject import settings as demo
from tests.settings import *  # noqa: F403

MIDDLEWARE = demo.MIDDLEWARE
ROOT_URLCONF = "tests.support.record_admins"
