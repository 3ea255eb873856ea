"""The tests' settings with the age of connections that the environment names.

Under ASGI a synchronous view has a thread of its own for each request, so a connection
that is kept stays open with nobody to use it.
"""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

for database in DATABASES.values():
    database["CONN_MAX_AGE"] = int(os.environ.get("CONN_MAX_AGE", "0"))
