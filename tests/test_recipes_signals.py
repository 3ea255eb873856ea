"""The recipes for metrics and traces, with the libraries that they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from django.dispatch import Signal
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency import signals
from idempotency.claims import claims_in
from idempotency.decorators import idempotent
from idempotency.exceptions import ClaimLost
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import KEY, key
from tests.support.recipe_modules import Recipe, block, cooked, serve

pytestmark = pytest.mark.usefixtures("database")

SIGNALS = [found for found in vars(signals).values() if isinstance(found, Signal)]
WAYS = ["stored", "replayed", "reused", "released", "abandoned"]


@api_view(["POST"])
@idempotent
def create(request: Request) -> Response:
    if request.data.get("wrong"):
        raise ValidationError
    return Response({"id": Effect.objects.create().pk}, status=201)


class Act(IdempotencyMixin, APIView):
    idempotency_atomic = False
    idempotency_on_abandoned = "hold"

    def post(self, request: Request) -> Response:
        raise RuntimeError


@pytest.fixture
def send(settings: Any, client: APIClient) -> Any:
    """Send a request that goes one of the ways."""
    serve(settings, create=create, act=Act.as_view())

    def send(way: str) -> int:
        path, data, own = {
            "stored": ("/create/", {}, KEY),
            "replayed": ("/create/", {}, KEY),
            "reused": ("/create/", {"other": 1}, KEY),
            "released": ("/create/", {"wrong": 1}, "released-1"),
            "abandoned": ("/act/", {}, "abandoned-1"),
        }[way]
        return int(client.post(path, data, **key(own)).status_code)

    return send


def connected(heading: str, name: str) -> Iterator[Recipe]:
    """Make a recipe, and take its receivers away again."""
    with cooked(heading) as recipe:
        yield recipe
    for function in vars(getattr(recipe, name)).values():
        for signal in SIGNALS:
            signal.disconnect(function)


def test_length() -> None:
    """Each is short enough to be copied: under 20 lines."""
    for heading, file in (
        ("Prometheus counters", "metrics.py"),
        ("OpenTelemetry span events", "tracing.py"),
    ):
        lines = block(heading, file).splitlines()[1:]
        assert len([line for line in lines if line]) < 20, heading


class TestPrometheus:
    @pytest.fixture
    def recipe(self) -> Iterator[Recipe]:
        prometheus = pytest.importorskip(
            "prometheus_client", reason="prometheus-client is not installed"
        )
        for recipe in connected("Prometheus counters", "metrics"):
            yield recipe
            for counter in (recipe.metrics.REQUESTS, recipe.metrics.PURGED):
                prometheus.REGISTRY.unregister(counter)

    @pytest.mark.usefixtures("atomic_requests")
    def test_counts(self, recipe: Recipe, send: Any) -> None:
        """X1, P2: Each request counts as what it was; the purge by its rows."""
        from prometheus_client import generate_latest  # noqa: PLC0415  # may be missing

        assert [send(way) for way in WAYS] == [201, 201, 422, 400, 500]
        send("replayed")
        IdempotencyRecord.objects.update(
            expires_at="2020-01-01T00:00:00Z", lease_expires_at=None
        )
        IdempotencyRecord.objects.purge()
        exposed = generate_latest().decode()
        view, code = f'view="{__name__}.create"', 'code="idempotency_key_reused"'
        leased = f'view="{__name__}.Act"'
        for line in (
            f'requests_total{{code="",event="response_stored",{view}}} 1.0',
            f'requests_total{{code="",event="response_replayed",{view}}} 2.0',
            f'requests_total{{{code},event="request_refused",{view}}} 1.0',
            f'requests_total{{code="",event="key_released",{view}}} 1.0',
            f'requests_total{{code="",event="key_abandoned",{leased}}} 1.0',
            "records_purged_total 2.0",
        ):
            assert f"idempotency_{line}\n" in exposed
        assert exposed.count("idempotency_requests_total{") == 5
        assert KEY not in exposed

    @pytest.mark.usefixtures("by_statements")
    def test_a_run_that_is_undone(self, recipe: Recipe, send: Any) -> None:
        """E5: It gives its key back and is refused: two events, as the page says."""
        from prometheus_client import generate_latest  # noqa: PLC0415  # may be missing

        claims = type(claims_in("default"))
        with patch.object(claims, "complete", side_effect=ClaimLost):
            assert send("stored") == 503
        view = f'view="{__name__}.create"'
        counted = re.findall(
            r"^idempotency_requests_total\{(.+)\} (\S+)$",
            generate_latest().decode(),
            re.MULTILINE,
        )
        code = 'code="idempotency_transaction_failed"'
        assert {*counted} == {
            (f'code="",event="key_released",{view}', "1.0"),
            (f'{code},event="request_refused",{view}', "1.0"),
        }


class TestOpenTelemetry:
    @pytest.fixture
    def recipe(self) -> Iterator[Recipe]:
        pytest.importorskip(
            "opentelemetry.sdk", reason="opentelemetry-sdk is not installed"
        )
        yield from connected("OpenTelemetry span events", "tracing")

    @pytest.fixture
    def spans(self, recipe: Recipe, send: Any) -> dict[str, Any]:
        """Send a request each way, in a span of its own; return their events."""
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # missing?

        tracer = TracerProvider(shutdown_on_exit=False).get_tracer(__name__)
        found = {}
        for way in WAYS:
            with tracer.start_as_current_span(way) as span:
                send(way)
            found[way] = span.events  # type: ignore[attr-defined]  # the SDK's
        return found

    @pytest.mark.usefixtures("atomic_requests")
    def test_events(self, spans: dict[str, Any]) -> None:
        """X1: A request's span says what became of it, also under ATOMIC_REQUESTS."""
        names = {
            way: [event.name.removeprefix("idempotency.") for event in events]
            for way, events in spans.items()
        }
        assert names == {
            "stored": ["key_claimed", "response_stored"],
            "replayed": ["response_replayed"],
            "reused": ["request_refused"],
            "released": ["key_claimed", "key_released"],
            "abandoned": ["key_claimed", "key_abandoned"],
        }

    def test_attributes(self, spans: dict[str, Any]) -> None:
        """The first run and its replay share the record's id, and tell no key."""
        (first, replay, reused) = (
            dict(spans[way][-1].attributes) for way in ("stored", "replayed", "reused")
        )
        record = IdempotencyRecord.objects.get(key=KEY)
        assert first["idempotency.record_id"] == str(record.pk)
        assert replay["idempotency.record_id"] == str(record.pk)
        assert replay["idempotency.status_code"] == 201
        assert reused["idempotency.code"] == "idempotency_key_reused"
        assert first["idempotency.body_size"] == record.body_size
        assert KEY not in str((first, replay, reused))

    def test_without_a_span(self, recipe: Recipe, send: Any) -> None:
        """Where nothing is traced, requests go on as usual."""
        assert send("stored") == 201
