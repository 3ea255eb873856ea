"""Two processes with different first keys: a key changes without a refused request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from idempotency.encryption import new_entry
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.support.http_servers import Server, is_replayed, serving

pytestmark = pytest.mark.usefixtures("database")

OLD, NEW = new_entry(), new_entry()
# The keys of the two processes while each step of the documents is deployed.
STEPS = [
    pytest.param("", f",{OLD}", id="first key: it can be read"),
    pytest.param(f",{OLD}", OLD, id="first key: it encrypts"),
    pytest.param(OLD, f"{OLD},{NEW}", id="next key: it can be read"),
    pytest.param(f"{OLD},{NEW}", f"{NEW},{OLD}", id="next key: it encrypts"),
]


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[list[Server]]:
    """Return two servers, each one process with keys of its own."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                serving(
                    Path(stack.enter_context(TemporaryDirectory(prefix="idem"))),
                    workers=1,
                    threads=2,
                    TEST_ENCRYPTION_KEYS=entries,
                )
            )
            for entries in request.param
        ]


@pytest.mark.parametrize(
    "servers", [pytest.param(each.values, id=each.id) for each in STEPS], indirect=True
)
def test_two_processes(servers: list[Server]) -> None:
    """P5: Each process replays what the other has stored, and refuses other content."""
    for first, second in (servers, servers[::-1]):
        value = str(uuid4())
        answer = first.send("/function/", {"text": "same"}, value)
        assert (answer.status, is_replayed(answer)) == (201, False)
        for server in (second, first):
            again = server.send("/function/", {"text": "same"}, value)
            assert is_replayed(again)
            assert again.body == answer.body
            assert again.headers["Location"] == answer.headers["Location"]
            other = server.send("/function/", {"text": "other"}, value)
            assert other.headers["Idempotency-Error"] == "idempotency_key_reused"
    assert Effect.objects.count() == IdempotencyRecord.objects.count() == 2
