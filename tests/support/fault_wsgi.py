"""Views that are cut at any boundary: ``gunicorn tests.support.fault_wsgi``.

Every view does what the request's ``handler`` says, except a third party's, which
knows of no handlers. Those in leased mode are of ``tests.support.charging_views``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import transaction
from rest_framework.request import Request
from rest_framework.response import Response

from tests.support.fault_points import Boundaries, watch
from tests.support.polling_pauses import Pauses, watch_pauses
from tests.support.sleep_counter import Waits, watch_sleeps

settings.ROOT_URLCONF = "tests.support.charging_views"
# A new connection amid a test would have boundaries of its own.
settings.DATABASES["default"]["CONN_MAX_AGE"] = None
application = Waits(Pauses(Boundaries(get_wsgi_application())))
watch()
watch_pauses()
watch_sleeps()

# Only now, as Django is set up.
from tests.app.models import Effect  # noqa: E402
from tests.app.views import Behaviour  # noqa: E402


def act(note: str) -> Response:
    """Act once."""
    return answer(201, Effect.objects.create(note=note))


def act_and_refuse(note: str) -> Response:
    """Act, as a counter of failures does, and refuse: the key is released."""
    return answer(400, Effect.objects.create(note=note))


def act_twice(note: str) -> Response:
    """Act twice, the second time in a savepoint."""
    first = Effect.objects.create(note=note)
    with transaction.atomic():
        second = Effect.objects.create(note=note)
    return answer(201, first, second)


def answer(status: int, *effects: Effect) -> Response:
    """Name the effects, so that no two runs answer the same."""
    return Response({"effects": [effect.pk for effect in effects]}, status)


HANDLERS: dict[str, Callable[[str], Response]] = {
    "act": act,
    "refuse": act_and_refuse,
    "twice": act_twice,
}


def behave(request: Request) -> Any:
    """Do what the request says."""
    data: Any = request.data
    # A plain Django view has the bare body.
    said = json.loads(data) if isinstance(data, str) else data
    return HANDLERS[said["handler"]](said["note"])


Behaviour.handler = staticmethod(behave)
