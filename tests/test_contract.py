"""The contract's rules, for each way to protect a view."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.context import RequestContext
from idempotency.database import UTCNow
from idempotency.models import IdempotencyRecord, State
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import KEY, assert_refused, code_of, key

pytestmark = pytest.mark.usefixtures("atomic_requests")

URLS = {
    "mixin on APIView": "/mixin-view/",
    "mixin on ViewSet": "/mixin-viewset/",
    "mixin on ViewSet, extra action": "/mixin-viewset/extra/",
    "decorated function": "/function/",
    "decorated method": "/method/",
    "decorated method of a mixin view": "/mixin-viewset/strict/",
    "decorated action": "/action/",
    "plain function": "/plain/function/",
    "plain view": "/plain/view/",
    "plain method": "/plain/method/",
    "protected() view": "/routed/view/",
    "protected() ViewSet": "/routed/viewset/",
    "protected() function": "/routed/function/",
}
EVERY_VIEW = [*URLS]
PLAIN = [name for name in URLS if name.startswith("plain")]
# Plain views have no data to add warnings to; tests/test_plain_views.py has theirs.
OF_DRF = [name for name in URLS if name not in PLAIN]
SEES_EVERY_METHOD = [
    *("mixin on APIView", "mixin on ViewSet", "decorated function"),
    *("protected() view", "protected() function"),
]

# Where each rule holds.
RULES = {
    "K1": OF_DRF,
    "K4": OF_DRF,
    "K5": SEES_EVERY_METHOD,
    "K6": OF_DRF,
    "S1": EVERY_VIEW,
    "F4": EVERY_VIEW,
    "E1": EVERY_VIEW,
    "E5": EVERY_VIEW,
    "E6": EVERY_VIEW,
    "O1": EVERY_VIEW,
    "O2": EVERY_VIEW,
    "O3": EVERY_VIEW,
    "P1": EVERY_VIEW,
    "R3": EVERY_VIEW,
}


def at_views(rule: str) -> Any:
    """Run a test for each view where the table says that the rule holds."""
    return pytest.mark.parametrize(
        "url", [URLS[name] for name in RULES[rule]], ids=RULES[rule]
    )


@at_views("E1")
def test_acts_once(client: Any, url: str) -> None:
    """E1, R2: A retry has the first answer's bytes, status and headers; one effect."""
    first = client.post(url, {"a": 1}, **key())
    retry = client.post(url, {"a": 1}, **key())
    assert (first.status_code, retry.status_code) == (201, 201)
    assert retry.content == first.content
    for name in ("Location", "Content-Type", "Allow", "Vary"):
        assert retry.get(name) == first.get(name)
    assert Effect.objects.count() == 1
    record = IdempotencyRecord.objects.get()
    assert (record.state, record.attempt, record.key) == (State.COMPLETED, 1, KEY)
    assert record.completed_at is not None


@at_views("R3")
def test_headers(client: Any, url: str) -> None:
    """R3: A replay says so, and both answers say until when."""
    first = client.post(url, {}, **key())
    retry = client.post(url, {}, **key())
    assert "Idempotent-Replayed" not in first
    assert retry["Idempotent-Replayed"] == "true"
    assert first["Idempotency-Expires"] == retry["Idempotency-Expires"]
    assert first["Idempotency-Expires"].endswith("GMT")


@at_views("K4")
def test_without_a_key(
    client: Any, url: str, handle: Callable[..., None], atomic_requests: bool
) -> None:
    """K4: Without a key there is no query, no transaction and no header."""
    if url.endswith("strict/"):
        assert_refused(client.post(url), 400, "idempotency_key_required")
        return
    seen = []

    def handler(request: Request) -> Response:
        context = getattr(request, "idempotency", RequestContext())
        seen.append((connection.in_atomic_block, context.key))
        return Response({"a": 1}, status=201)

    handle(handler)
    with CaptureQueriesContext(connection) as queries:
        response = client.post(url)
    bare = client.post("/unprotected/")
    assert len(queries) == (0 if not atomic_requests else len(queries))
    assert not [q for q in queries if "idempotency" in q["sql"]]
    assert seen[0] == (atomic_requests, None)
    assert response.content == bare.content
    assert {*response.headers} == {*bare.headers}


@at_views("K1")
@pytest.mark.parametrize(
    ("query", "headers", "right"),
    [
        ("?$idempotency[]=" + KEY, {}, "$idempotency"),
        ("?$idempotency[0]=" + KEY, {}, "$idempotency"),
        ("?$Idempotency=" + KEY, {}, "$idempotency"),
        ("?idempotency=" + KEY, {}, "$idempotency"),
        ("", {"HTTP_X_IDEMPOTENCY_KEY": KEY}, "Idempotency-Key"),
    ],
)
def test_misspelled_key(
    client: Any,
    url: str,
    handle: Callable[..., None],
    atomic_requests: bool,
    query: str,
    headers: dict[str, str],
    right: str,
) -> None:
    """K1, K4, K7: A near miss is warned about, and the request runs without a key."""
    seen = []

    def handler(request: Request) -> Any:
        seen.append(connection.in_atomic_block)
        return create_effect(request)

    handle(handler)
    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            response = client.post(url + query, {}, **headers)
        assert not [q for q in queries if "idempotency_" in q["sql"]]
        warning = response["Idempotency-Warning"]
        assert warning.startswith("IDEMPOTENCY_KEY_MISSPELLED;message=")
        assert right in warning
        in_body = response.json().get("$warnings", [])
        assert [w["code"] for w in in_body] == (
            ["IDEMPOTENCY_KEY_MISSPELLED"] if query else []
        )
        if url.endswith("strict/"):
            assert_refused(response, 400, "idempotency_key_required")
        else:
            assert response.status_code == 201
    assert seen == ([] if url.endswith("strict/") else [atomic_requests] * 2)
    assert Effect.objects.count() == len(seen)
    assert IdempotencyRecord.objects.count() == 0


@at_views("K1")
@pytest.mark.parametrize("query", ["", "?idempotency=other"])
def test_near_miss_beside_a_key(client: Any, url: str, query: str) -> None:
    """K1: A request with the key under its right name, too, gets no warning."""
    sent = {**key(), "HTTP_X_IDEMPOTENCY_KEY": "other"}
    first, retry = (client.post(url + query, {}, **sent) for _ in range(2))
    assert retry.content == first.content
    assert "Idempotency-Warning" not in retry.headers
    assert "$warnings" not in retry.json()
    assert Effect.objects.count() == 1


@at_views("K1")
def test_near_miss_while_disabled(client: Any, url: str, settings: Any) -> None:
    """K1: An app that steps aside does not speak of keys."""
    settings.IDEMPOTENCY = {"ENABLED": False}
    response = client.post(f"{url}?idempotency={KEY}", {})
    assert response.status_code == 201
    assert "Idempotency-Warning" not in response.headers
    assert "$warnings" not in response.json()


@at_views("K1")
def test_near_miss_on_get(client: Any, url: str) -> None:
    """K1: Where the right name means nothing, no wrong one is spoken of."""
    response = client.get(url, {"idempotency": KEY}, HTTP_X_IDEMPOTENCY_KEY=KEY)
    assert "Idempotency-Warning" not in response.headers
    assert b"$warnings" not in response.content


@at_views("K4")
@pytest.mark.parametrize("query", ["", "?page=2&q=$idempotency"])
def test_nothing_around_a_view_without_a_key(
    client: Any, url: str, handle: Callable[..., None], query: str
) -> None:
    """K4: The view finalises its answer by itself, as if the app were not there."""
    seen = []

    def handler(request: Request) -> Response:
        seen.append("finalize_response" in vars(request.parser_context["view"]))
        return Response()

    handle(handler)
    client.post(url + query)
    client.post(url + query, **key())
    expected = [True] if url.endswith("strict/") else [False, True]
    assert seen == expected


@at_views("K5")
@pytest.mark.parametrize("bad", [KEY, "", "weak", "not a key"])
def test_key_on_get(client: Any, url: str, bad: str) -> None:
    """K5: On another method the key, good or bad, is ignored with a warning."""
    response = client.get(url, {"$idempotency": bad})
    assert response.status_code == 201
    assert response["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_IGNORED;")
    assert [w["code"] for w in response.json()["$warnings"]] == [
        "IDEMPOTENCY_KEY_IGNORED"
    ]
    assert IdempotencyRecord.objects.count() == 0
    assert Effect.objects.count() == 1
    plain = client.get(url)
    assert "Idempotency-Warning" not in plain
    assert "$warnings" not in plain.json()


@at_views("K6")
def test_weak_key(client: Any, url: str) -> None:
    """K6, K7: A weak key works, with a warning that the replay repeats."""
    for _ in range(2):
        response = client.post(f"{url}?$idempotency=weak")
        assert response.status_code == 201
        assert response["Idempotency-Warning"].startswith("IDEMPOTENCY_KEY_WEAK;")
        assert response.json()["$warnings"][0]["code"] == "IDEMPOTENCY_KEY_WEAK"
    assert Effect.objects.count() == 1


@at_views("S1")
def test_callers_do_not_share_keys(client: Any, url: str) -> None:
    """S1: Another caller's key is simply another key."""
    first = client.post(url, {}, **key())
    client.credentials(HTTP_X_USER="grace")
    other = client.post(url, {}, **key())
    assert other.status_code == first.status_code == 201
    assert other.content != first.content
    assert Effect.objects.count() == 2


@at_views("F4")
def test_another_payload(client: Any, url: str) -> None:
    """F4: The same key with another payload is refused and the record stays."""
    first = client.post(url, {"amount": 1}, **key())
    before = IdempotencyRecord.objects.values().get()
    other = client.post(url, {"amount": 2}, **key())
    assert (other.status_code, code_of(other)) == (422, "idempotency_key_reused")
    assert IdempotencyRecord.objects.values().get() == before
    assert Effect.objects.count() == 1
    assert client.post(url, {"amount": 1}, **key()).content == first.content


@at_views("E5")
def test_in_progress_and_visible(client: Any, url: str) -> None:
    """E5: A visible record in progress without a lease is abandoned: not run again."""
    client.post(url, {}, **key())
    IdempotencyRecord.objects.update(state=State.IN_PROGRESS, status_code=None)
    response = client.post(url, {}, **key())
    assert (response.status_code, code_of(response)) == (
        409,
        "idempotency_outcome_unknown",
    )
    other = client.post(url, {"other": 1}, **key())
    assert (other.status_code, code_of(other)) == (422, "idempotency_key_reused")
    assert Effect.objects.count() == 1


@at_views("E6")
def test_nested(client: Any, url: str, handle: Callable[..., None]) -> None:
    """E6: A protected handler that calls another protected one is protected once."""
    from tests.app import views  # noqa: PLC0415  # its name is a fixture's elsewhere

    depth = []

    def handler(request: Request) -> Any:
        depth.append(request.idempotency.key)
        if len(depth) == 1:
            return views.function(request._request)
        return create_effect(request)

    handle(handler)
    first = client.post(url, {}, **key())
    retry = client.post(url, {}, **key())
    assert first.status_code == 201
    assert retry.content == first.content
    assert depth == [KEY, KEY]
    assert Effect.objects.count() == 1
    assert IdempotencyRecord.objects.count() == 1


@at_views("O1")
@pytest.mark.parametrize("status_code", [200, 202, 204, 302, 402, 410, 418, 451])
def test_stored(
    client: Any, url: str, handle: Callable[..., None], status_code: int
) -> None:
    """O1: An answer below 500 that is not released is stored with its effects."""

    def handler(request: Request) -> Response:
        Effect.objects.create()
        return Response({"n": Effect.objects.count()}, status=status_code)

    handle(handler)
    first = client.post(url, {}, **key())
    retry = client.post(url, {}, **key())
    assert first.status_code == retry.status_code == status_code
    assert retry.content == first.content
    assert retry["Idempotent-Replayed"] == "true"
    assert Effect.objects.count() == 1


@at_views("O2")
@pytest.mark.parametrize(
    "status_code", [400, 401, 403, 404, 409, 412, 422, 423, 425, 428, 429]
)
def test_released(
    client: Any, url: str, handle: Callable[..., None], status_code: int
) -> None:
    """O2: A released status keeps the handler's writes and frees the key."""

    def handler(request: Request) -> Response:
        Effect.objects.create()
        return Response({"n": Effect.objects.count()}, status=status_code)

    handle(handler)
    for expected in (1, 2):
        response = client.post(url, {}, **key())
        assert response.status_code == status_code
        assert response.json() == {"n": expected}
        assert "Idempotency-Expires" not in response
    assert Effect.objects.count() == 2
    assert IdempotencyRecord.objects.count() == 0
    handle(create_effect)
    assert client.post(url, {"another": "payload"}, **key()).status_code == 201


@at_views("O2")
def test_raised_refusal(
    client: Any, url: str, handle: Callable[..., None], atomic_requests: bool
) -> None:
    """O2: A raised refusal keeps what it keeps without a key, and frees the key."""

    def handler(request: Request) -> Response:
        Effect.objects.create()
        raise PermissionDenied

    handle(handler)
    counts = []
    for headers in ({}, key(), key()):
        if url.endswith("strict/") and not headers:
            counts.append(0 if atomic_requests else 1)
            Effect.objects.create() if counts[0] else None
            continue
        assert client.post(url, {}, **headers).status_code == 403
        counts.append(Effect.objects.count())
    assert counts == ([0, 0, 0] if atomic_requests else [1, 2, 3])
    assert IdempotencyRecord.objects.count() == 0


@at_views("O3")
@pytest.mark.parametrize("raised", [True, False])
def test_server_error(
    client: Any, url: str, handle: Callable[..., None], raised: bool
) -> None:
    """O3: An error of the server undoes everything and frees the key."""

    def handler(request: Request) -> Response:
        Effect.objects.create()
        if raised:
            raise RuntimeError
        return Response(status=503)

    handle(handler)
    assert client.post(url, {}, **key()).status_code == (500 if raised else 503)
    assert Effect.objects.count() == 0
    assert IdempotencyRecord.objects.count() == 0
    handle(create_effect)
    assert client.post(url, {}, **key()).status_code == 201


@at_views("P1")
def test_expired(client: Any, url: str) -> None:
    """P1: After its retention a key is new, purged or not, with any payload."""
    client.post(url, {"a": 1}, **key())
    record = IdempotencyRecord.objects.get()
    assert record.expires_at - record.created_at == timedelta(days=30)
    age = timedelta(days=30, seconds=1)
    IdempotencyRecord.objects.update(
        created_at=record.created_at - age, expires_at=record.expires_at - age
    )
    fresh = client.post(url, {"a": 2}, **key())
    assert fresh.status_code == 201
    assert "Idempotent-Replayed" not in fresh
    assert Effect.objects.count() == 2
    renewed = IdempotencyRecord.objects.get()
    assert renewed.token != record.token
    assert renewed.expires_at > timezone.now() + timedelta(days=29)
    assert renewed.body == fresh.content
    assert client.post(url, {"a": 2}, **key()).content == fresh.content
    assert client.post(url, {"a": 1}, **key()).status_code == 422


@at_views("P1")
def test_almost_expired(client: Any, url: str) -> None:
    """P1: Until its last moment a record is in force."""
    first = client.post(url, {}, **key())
    IdempotencyRecord.objects.update(expires_at=UTCNow() + timedelta(minutes=1))
    assert client.post(url, {}, **key()).content == first.content


@at_views("P1")
def test_expired_and_then_refused(
    client: Any, url: str, handle: Callable[..., None]
) -> None:
    """P1, O2: A refusal on an expired key leaves nothing to replay."""
    client.post(url, {}, **key())
    IdempotencyRecord.objects.update(expires_at=UTCNow())
    handle(lambda request: Response(status=400))
    assert client.post(url, {}, **key()).status_code == 400
    assert IdempotencyRecord.objects.count() == 0
