"""Claims per database: statements, races, and what each vendor's errors mean."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import (
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency import claims
from idempotency.claims import (
    Claims,
    MariaDBClaims,
    PostgreSQLClaims,
    SQLiteClaims,
    claims_in,
)
from idempotency.database import UTCNow
from idempotency.exceptions import ClaimLost
from idempotency.models import IdempotencyRecord, State, record_id
from idempotency.responses import StoredResponse
from tests.app.models import Effect
from tests.conftest import KEY, key

RETENTION = timedelta(days=30)
SCOPE = "user:school.teacher:1"
TRANSACTION_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
ANSWER = StoredResponse(status_code=201, headers=[["A", "b"]], body=b"{}")


def statements(queries: CaptureQueriesContext) -> list[str]:
    """Return the statements of the app, transaction control aside."""
    found = [query["sql"] for query in queries.captured_queries]
    return [
        sql
        for sql in found
        if not sql.startswith(TRANSACTION_CONTROL) and "app_effect" not in sql
    ]


def wanted(token: str = "1", **values: Any) -> IdempotencyRecord:
    """Return a record that is to be claimed."""
    now = timezone.now()
    fields: dict[str, Any] = {
        "id": record_id(SCOPE, KEY),
        "scope": SCOPE,
        "key": KEY,
        "method": "POST",
        "path": "/pay/",
        "fingerprint": "f" * 64,
        "fingerprint_version": 1,
        "state": State.IN_PROGRESS,
        "token": uuid.UUID(int=int(token)),
        "created_at": now,
        "expires_at": now + RETENTION,
    }
    return IdempotencyRecord(**{**fields, **values})


class TestRecordId:
    """The record's primary key is made from scope and key."""

    def test_golden(self) -> None:
        """K3, S1: The derivation stays: records of 30 days are found by it."""
        assert str(record_id(SCOPE, KEY)) == "1cde722e-5565-5af0-89b6-3b08afde00e8"

    def test_boundaries(self) -> None:
        """S1: Scope and key can't borrow characters from each other."""
        assert record_id("ab", "c") != record_id("a", "bc")

    def test_every_id_survives(self, database: None) -> None:
        """K3: The database gives back each id as it was written."""
        ids = [record_id("scope", str(number)) for number in range(2000)]
        IdempotencyRecord.objects.bulk_create(
            wanted(str(number), id=pk) for number, pk in enumerate(ids)
        )
        assert {*IdempotencyRecord.objects.values_list("pk", flat=True)} == {*ids}
        IdempotencyRecord.objects.filter(pk__in=ids[:500])._raw_delete("default")
        assert IdempotencyRecord.objects.count() == 1500


@pytest.mark.usefixtures("atomic_requests", "by_statements")
class TestStatements:
    """R6: statements of the app beside transaction control."""

    def test_first_time_and_replay(self, client: Any) -> None:
        """R6: Replay 1; first-time 2 on PostgreSQL, 3 elsewhere."""
        with CaptureQueriesContext(connection) as first:
            client.post("/function/", {}, **key())
        with CaptureQueriesContext(connection) as replay:
            client.post("/function/", {}, **key())
        expected = 2 if connection.vendor == "postgresql" else 3
        assert len(statements(first)) == expected, statements(first)
        assert len(statements(replay)) == 1, statements(replay)

    def test_refusals(self, client: Any, handle: Callable[..., None]) -> None:
        """R6, O2: A released key costs what a stored one costs."""
        handle(lambda request: Response(status=400))
        with CaptureQueriesContext(connection) as queries:
            client.post("/function/", {}, **key())
        assert len(statements(queries)) <= 3

    def test_no_commit_of_its_own(self, client: Any, atomic_requests: bool) -> None:
        """R6, E1: Claim, effect and response are one commit."""
        with CaptureQueriesContext(connection) as queries:
            client.post("/function/", {}, **key())
        control = [
            query["sql"].split()[0]
            for query in queries.captured_queries
            if query["sql"].startswith(TRANSACTION_CONTROL)
        ]
        # In a transaction of somebody else's it has a savepoint of its own (E2).
        inner = ["SAVEPOINT", "RELEASE"] if atomic_requests else []
        assert control == ["BEGIN", *inner, "COMMIT"]

    def test_replays_write_nothing(self, client: Any) -> None:
        """R6: A replay touches no row."""
        client.post("/function/", {}, **key())
        before = IdempotencyRecord.objects.values().get()
        with CaptureQueriesContext(connection) as queries:
            client.post("/function/", {}, **key())
        assert IdempotencyRecord.objects.values().get() == before
        assert not [
            s for s in statements(queries) if s.startswith(("UPDATE", "DELETE"))
        ]


@pytest.fixture(params=["vendor", "any database"])
def kind(request: pytest.FixtureRequest, monkeypatch: Any, database: None) -> str:
    """Run a test with the vendor's claims and with those of any database."""
    if request.param != "vendor":
        monkeypatch.setattr(
            connections["default"], claims.ATTRIBUTE, Claims(connection), raising=False
        )
    return str(request.param)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others return rows")
def test_sqlite_before_returning(
    client: Any, monkeypatch: pytest.MonkeyPatch, database: None
) -> None:
    """E1, P1: Where an INSERT returns nothing, one more statement reads it."""
    monkeypatch.setattr(connection.features, "can_return_columns_from_insert", False)
    first = client.post("/function/", {}, **key())
    again = client.post("/function/", {}, **key())
    assert (again.status_code, again.content) == (201, first.content)
    assert again["Idempotency-Expires"] == first["Idempotency-Expires"]
    assert Effect.objects.count() == 1


@pytest.fixture
def here(kind: str) -> Iterator[Claims]:
    """Return the claims, inside a transaction."""
    with transaction.atomic():
        yield claims_in("default")


class TestClaim:
    """The four verbs, within one transaction."""

    def test_new(self, here: Claims) -> None:
        """E1: A new key is claimed, and the record has the claim's token."""
        mine = here.claim(wanted(), RETENTION)
        assert mine is not None
        assert mine.token == uuid.UUID(int=1)
        stored = IdempotencyRecord.objects.get()
        assert (stored.state, stored.token) == (State.IN_PROGRESS, mine.token)

    def test_in_force(self, here: Claims) -> None:
        """E3: A record in force is found, not touched."""
        here.claim(wanted("1"), RETENTION)
        found = here.claim(wanted("2"), RETENTION)
        assert found is not None
        assert found.token == uuid.UUID(int=1)
        assert found.expires_at == IdempotencyRecord.objects.get().expires_at

    @pytest.mark.parametrize("was_seen", [True, False])
    def test_expired(self, here: Claims, was_seen: bool) -> None:
        """P1: An expired record is taken over whole."""
        old = wanted("1", attempt=7, path="/old/")
        here.claim(old, RETENTION)
        here.complete(old, ANSWER)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        seen = here.look_up(old.pk) if was_seen else None
        mine = here.claim(wanted("2"), RETENTION, seen)
        assert mine is not None
        assert mine.token == uuid.UUID(int=2)
        stored = IdempotencyRecord.objects.get()
        assert (stored.state, stored.path, stored.attempt) == (
            State.IN_PROGRESS,
            "/pay/",
            1,
        )
        assert stored.stored_response is None
        assert stored.completed_at is None

    def test_complete(self, here: Claims) -> None:
        """E1: The response is stored under the claim's token."""
        mine = wanted()
        here.claim(mine, RETENTION)
        here.complete(mine, ANSWER)
        stored = IdempotencyRecord.objects.get()
        assert stored.stored_response == ANSWER
        assert (mine.state, stored.state) == (State.COMPLETED, State.COMPLETED)
        assert stored.body_size == 2

    def test_release(self, here: Claims) -> None:
        """O2: A released key leaves nothing."""
        mine = wanted()
        here.claim(mine, RETENTION)
        here.release(mine)
        assert IdempotencyRecord.objects.count() == 0

    @pytest.mark.parametrize("verb", ["complete", "release"])
    def test_another_token(self, here: Claims, verb: str) -> None:
        """E5: A write with another token changes nothing."""
        here.claim(wanted("1"), RETENTION)
        before = IdempotencyRecord.objects.values().get()
        arguments = [wanted("2"), ANSWER] if verb == "complete" else [wanted("2")]
        with pytest.raises(ClaimLost):
            getattr(here, verb)(*arguments)
        assert IdempotencyRecord.objects.values().get() == before


class TestLeases:
    """What a lease, and what is stored, keep from being written over."""

    LEASE = timedelta(seconds=60)

    def test_renewed_since_it_was_seen(self, here: Claims) -> None:
        """E8, E9: A record is taken over only while its lease is over."""
        mine = wanted("1")
        here.claim(mine, RETENTION, lease=self.LEASE)
        is_over = {"lease_expires_at": timezone.now() - self.LEASE}
        IdempotencyRecord.objects.update(**is_over)
        seen = here.look_up(mine.pk)
        assert seen is not None
        here.renew(mine, self.LEASE)
        assert not here.take_over(seen, wanted("2"), self.LEASE)
        assert IdempotencyRecord.objects.get().token == mine.token
        IdempotencyRecord.objects.update(**is_over)
        assert here.take_over(seen, wanted("2"), self.LEASE)
        assert IdempotencyRecord.objects.get().token == uuid.UUID(int=2)

    @pytest.mark.parametrize("verb", ["renew", "abandon"])
    def test_completed(self, here: Claims, verb: str) -> None:
        """E9: A completed record is not renewed or abandoned, whatever the token."""
        mine = wanted()
        here.claim(mine, RETENTION, lease=self.LEASE)
        here.complete(mine, ANSWER)
        before = IdempotencyRecord.objects.values().get()
        arguments = [self.LEASE] if verb == "renew" else []
        with pytest.raises(ClaimLost):
            getattr(here, verb)(mine, *arguments)
        assert IdempotencyRecord.objects.values().get() == before


class TestRacesInOneTurn:
    """What happens between the statements of one claim."""

    def test_purged_meanwhile(self, here: Claims, monkeypatch: Any) -> None:
        """P1, P2: A record that is purged before it is taken over is claimed anew."""
        here.claim(wanted("1"), RETENTION)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        take_over = here.take_over

        def purged_first(*args: Any) -> bool:
            IdempotencyRecord.objects.all()._raw_delete("default")
            return take_over(*args)

        monkeypatch.setattr(here, "take_over", purged_first)
        mine = here.claim(wanted("2"), RETENTION)
        assert mine is not None
        assert IdempotencyRecord.objects.get().token == uuid.UUID(int=2)

    def test_taken_over_meanwhile(self, here: Claims, monkeypatch: Any) -> None:
        """P1: Of many that find an expired record, one wins."""
        here.claim(wanted("1"), RETENTION)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        take_over = here.take_over

        def another_first(expired: Any, mine: Any, lease: None) -> bool:
            assert take_over(expired, wanted("3"), lease)
            return take_over(expired, mine, lease)

        monkeypatch.setattr(here, "take_over", another_first)
        found = here.claim(wanted("2"), RETENTION)
        assert found is not None
        assert found.token == uuid.UUID(int=3)

    def test_being_taken_over(self, here: Claims, monkeypatch: Any) -> None:
        """P1, E3: An expired record that another request takes over is in progress."""
        here.claim(wanted("1"), RETENTION)
        IdempotencyRecord.objects.update(expires_at=UTCNow())
        monkeypatch.setattr(here, "take_over", lambda *args: False)
        assert here.claim(wanted("2"), RETENTION) is None

    def test_never_ending(self, here: Claims, monkeypatch: Any) -> None:
        """E3: A request that never wins the claim gets idempotency_in_progress."""
        expired = [wanted(str(n)) for n in range(1, 9)]
        for record in expired:
            record.read_at = record.expires_at
        monkeypatch.setattr(here, "insert", lambda *args: expired.pop())
        monkeypatch.setattr(here, "read_again", lambda pk: expired.pop())
        monkeypatch.setattr(here, "take_over", lambda *args: False)
        assert here.claim(wanted("9"), RETENTION) is None
        assert len(expired) == 4


def driver_error(**attributes: Any) -> Exception:
    """Return a driver's own error."""
    error = Exception()
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def caused(cause: Exception, *args: Any) -> OperationalError:
    """Return Django's error, as it wraps the driver's."""
    error = OperationalError(*args)
    error.__cause__ = cause
    return error


class TestErrors:
    """E3, E4: what each database's errors mean."""

    @pytest.fixture(autouse=True)
    def _database(self, database: None) -> None:
        pass

    @pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
    @pytest.mark.parametrize("attribute", ["sqlstate", "pgcode"])
    def test_postgresql(self, sqlstate: str, attribute: str) -> None:
        """E4: Serialization failures and deadlocks are recognised by SQLSTATE."""
        error = caused(driver_error(**{attribute: sqlstate}))
        assert PostgreSQLClaims(connection).is_transient(error)
        assert PostgreSQLClaims(connection).is_transient(caused(error))
        assert not PostgreSQLClaims(connection).is_busy(error)
        other = caused(driver_error(**{attribute: "23505"}))
        assert not PostgreSQLClaims(connection).is_transient(other)

    @pytest.mark.parametrize("number", [1213, 1020])
    def test_mariadb(self, number: int) -> None:
        """E3, E4: Deadlocks, certification failures and lock waits by number."""
        here = MariaDBClaims(connection)
        assert here.is_transient(OperationalError(number, "again"))
        assert here.is_busy(OperationalError(1205, "Lock wait timeout exceeded"))
        assert not here.is_transient(OperationalError(1205, ""))
        assert not here.is_busy(OperationalError(number, ""))
        assert not here.is_transient(IntegrityError())

    def test_sqlite(self) -> None:
        """E3, E4: A locked database is busy before the claim, transient after it."""
        here = SQLiteClaims(connection)
        assert here.is_busy(OperationalError("database is locked"))
        assert here.is_transient(OperationalError("database table is locked"))
        assert not here.is_busy(OperationalError("disk I/O error"))

    def test_any_database(self) -> None:
        """E4: Of a database that is not known, no error is taken for another."""
        assert not Claims(connection).is_busy(OperationalError("locked"))
        assert not Claims(connection).is_transient(OperationalError(1213))


@pytest.mark.parametrize(
    ("vendor", "is_mariadb", "expected"),
    [
        ("postgresql", False, PostgreSQLClaims),
        ("sqlite", False, SQLiteClaims),
        ("mysql", True, MariaDBClaims),
        ("mysql", False, claims.MySQLClaims),
        ("oracle", False, Claims),
    ],
)
def test_vendors(vendor: str, is_mariadb: bool, expected: type[Claims]) -> None:
    """E3: MySQL has no SET STATEMENT: it gets the claims of any database."""
    fake = SimpleNamespace(vendor=vendor, mysql_is_mariadb=is_mariadb)
    assert claims._kind_for(fake) is expected


@pytest.mark.usefixtures("atomic_requests")
def test_over_http_on_any_database(
    client: Any, handle: Callable[..., None], kind: str
) -> None:
    """E1: Statements that every database has keep the promise, too."""
    first = client.post("/function/", {}, **key())
    assert client.post("/function/", {}, **key()).content == first.content
    IdempotencyRecord.objects.update(expires_at=UTCNow())
    assert client.post("/function/", {}, **key()).content != first.content
    assert Effect.objects.count() == 2

    def handler(request: Request) -> Any:
        raise RuntimeError

    handle(handler)
    assert client.post("/function/", {}, **key("another-key")).status_code == 500
    assert IdempotencyRecord.objects.count() == 1
