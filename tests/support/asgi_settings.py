"""The tests' settings without connections that outlast their request.

Under ASGI a synchronous view has a thread of its own for each request, and a connection
that is kept stays open with nobody to use it.
"""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

for database in DATABASES.values():
    database["CONN_MAX_AGE"] = 0
