"""A database with real commits, a client, and handlers that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from django.db import connection, connections
from django.http import JsonResponse
from django.test.utils import setup_databases, teardown_databases
from rest_framework.request import Request
from rest_framework.test import APIClient

from idempotency.models import IdempotencyRecord
from idempotency.signals import logger
from tests.app.models import Effect
from tests.app.views import Behaviour, create_effect
from tests.support.http_servers import Server, serving
from tests.support.rendezvous import Rendezvous

pytest_plugins = [
    # As a project does that tests its own endpoints.
    "idempotency.testing.fixtures",
    "tests.support.admin_pages",
]

KEY = "RfOScIg0JwGS5M7MPS6vCvGlDKkbj3Qc"

# For tests that use no database of the suite's.
once = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="The same on every database."
)


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_blocker: Any
) -> Iterator[None]:
    """Make the test databases, whichever tests were chosen."""
    with django_db_blocker.unblock():
        made = setup_databases(verbosity=0, interactive=False)
    yield
    with django_db_blocker.unblock():
        teardown_databases(made, verbosity=0)


@pytest.fixture
def database(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Give a test the database without a transaction around it, and clean up after."""
    with django_db_blocker.unblock():
        yield
        for model in (Effect, IdempotencyRecord):
            model._default_manager.all()._raw_delete("default")
        connections.close_all()


@pytest.fixture(autouse=True)
def lines_for_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let log lines come up to the root logger, where pytest listens."""
    monkeypatch.setattr(logger, "propagate", True)


@pytest.fixture(params=[False, True], ids=["autocommit", "atomic_requests"])
def atomic_requests(request: pytest.FixtureRequest, database: None) -> Iterator[bool]:
    """Run a test without and with ATOMIC_REQUESTS."""
    settings = connections.settings["default"]
    before = settings["ATOMIC_REQUESTS"]
    settings["ATOMIC_REQUESTS"] = request.param
    yield request.param
    settings["ATOMIC_REQUESTS"] = before


@pytest.fixture
def by_statements(database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the app send each statement by itself, as it can on every database."""
    for module in ("postgresql", "mariadb"):
        monkeypatch.setattr(
            f"idempotency.claims.{module}.why_not", lambda connection: "a test says so"
        )
    connections.close_all()


WAYS = ["together", "by_statements"]


@pytest.fixture(params=WAYS[1:] if connection.vendor == "sqlite" else WAYS)
def each_way(request: pytest.FixtureRequest) -> None:
    """Run a test in each way that the app's statements can take on this database."""
    if request.param == "by_statements":
        request.getfixturevalue("by_statements")


@pytest.fixture(scope="session")
def servers(
    django_db_setup: None, django_db_blocker: Any
) -> Iterator[Callable[[bool], Server]]:
    """Start a server for each kind of project that asks, once."""
    with ExitStack() as stack:

        @cache
        def start(atomic_requests: bool) -> Server:
            directory = stack.enter_context(TemporaryDirectory(prefix="idem"))
            return stack.enter_context(serving(Path(directory)))

        yield start


@pytest.fixture
def server(servers: Callable[[bool], Server], atomic_requests: bool) -> Server:
    """Return two server processes with eight threads each."""
    return servers(atomic_requests)


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    """Return a place to hold a handler at, its path short enough for a socket."""
    with (
        TemporaryDirectory(prefix="idem") as place,
        Rendezvous(Path(place)) as rendezvous,
    ):
        yield rendezvous


@pytest.fixture
def handle() -> Iterator[Callable[[Callable[[Request], Any]], None]]:
    """Let a test choose the handler of all views."""

    def set_handler(handler: Callable[[Request], Any]) -> None:
        Behaviour.handler = staticmethod(handler)

    yield set_handler
    Behaviour.handler = staticmethod(create_effect)


@pytest.fixture
def client() -> APIClient:
    """Return a client that is Ada and sees 500 as an answer."""
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_X_USER="ada")
    return client


def assert_refused(response: Any, status_code: int, code: str) -> None:
    """Check a refusal and that it left no record of its own."""
    assert (response.status_code, code_of(response)) == (status_code, code)
    assert IdempotencyRecord.objects.count() == 0


def code_of(response: Any) -> str:
    """Return the code of the refusal that became a response."""
    if isinstance(response, JsonResponse):
        return str(response.headers["Idempotency-Error"])
    return str(response.data["detail"].code)


def key(value: str = KEY) -> dict[str, str]:
    """Return the arguments of a client's call that carry a key in the header."""
    return {"HTTP_IDEMPOTENCY_KEY": value}
