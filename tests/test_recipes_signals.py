"""The recipes for metrics and traces, with the libraries that they are for.

And the dashboard that shows these metrics.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from datetime import timezone as zones
from itertools import combinations
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
from tests.conftest import KEY, key, once
from tests.support.processes import PATIENCE, ROOT
from tests.support.recipe_modules import RECIPES, Recipe, block, cooked, serve

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
        ("OpenTelemetry metrics", "metrics.py"),
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
            for name in ("REQUESTS", "PURGED", "UNTIL"):
                prometheus.REGISTRY.unregister(getattr(recipe.metrics, name))

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


DASHBOARD = "dashboards/idempotency.json"
LONG_AGO = datetime(2020, 1, 1, tzinfo=zones.utc)
# Of PromQL: a metric's name, and its labels; labels in an aggregation.
SELECTOR = re.compile(r"\b(idempotency_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~?)"([^"]*)"')
GROUPED = re.compile(r"\bby \(([\w, ]+)\)")
VARIABLE = re.compile(r"\$\{?(\w+)")
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")

Samples = dict[str, list[dict[str, str]]]


class Exported:
    """What a recipe exports for Prometheus, as Prometheus reads it."""

    def __init__(self) -> None:
        from prometheus_client import generate_latest  # noqa: PLC0415  # may be missing
        from prometheus_client.parser import (  # noqa: PLC0415
            text_string_to_metric_families as families,
        )

        self.text = generate_latest().decode()
        self.values: dict[str, float] = {}
        self.labels: Samples = {}
        for sample in (each for one in families(self.text) for each in one.samples):
            # When a counter began.
            if sample.name.startswith("idempotency") and "_created" not in sample.name:
                self.labels.setdefault(sample.name, []).append(sample.labels)
                self.values[sample.name] = sample.value

    def has(self, metric: str, matchers: str) -> bool:
        """Return whether a selector of PromQL finds anything."""
        told = [
            (label, value if kind == "=~" else re.escape(value))
            for label, kind, value in MATCHER.findall(matchers.replace("$view", ".*"))
        ]
        return any(
            all(re.fullmatch(value, labels.get(label, "")) for label, value in told)
            for labels in self.labels.get(metric, [])
        )


@pytest.fixture
def dashboard() -> Any:
    """Return what Grafana imports."""
    return json.loads((ROOT / "docs" / DASHBOARD).read_text(encoding="utf-8"))


@pytest.mark.parametrize("library", ["prometheus", "opentelemetry"])
class TestDashboard:
    """The dashboard fits both recipes for metrics."""

    @pytest.fixture
    def recipe(self, library: str, monkeypatch: Any) -> Iterator[Recipe]:
        prometheus = pytest.importorskip(
            "prometheus_client", reason="prometheus-client is not installed"
        )
        if library == "prometheus":
            for recipe in connected("Prometheus counters", "metrics"):
                yield recipe
                for name in ("REQUESTS", "PURGED", "UNTIL"):
                    prometheus.REGISTRY.unregister(getattr(recipe.metrics, name))
            return
        exporter = pytest.importorskip(
            "opentelemetry.exporter.prometheus",
            reason="opentelemetry-exporter-prometheus is not installed",
        )
        from opentelemetry import metrics  # noqa: PLC0415  # may be missing
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415

        reader = exporter.PrometheusMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        # A process can set its provider once.
        monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
        yield from connected("OpenTelemetry metrics", "metrics")
        provider.shutdown()

    @pytest.fixture
    def exported(self, recipe: Recipe, send: Any, settings: Any) -> Exported:
        """Send a request each way, and purge a part of what is expired."""
        for way in WAYS:
            send(way)
        IdempotencyRecord.objects.update(expires_at=LONG_AGO, lease_expires_at=None)
        IdempotencyRecord.objects.purge(batch_size=1, time_budget=timedelta(0))
        assert IdempotencyRecord.objects.exists()
        return Exported()

    def test_expressions(self, exported: Exported, dashboard: Any) -> None:
        """X1, P2: Each panel finds its metrics and labels in what is exported."""
        shown: set[str] = set()
        events: set[str] = set()
        panels = dashboard["panels"]
        for target in (each for panel in panels for each in panel["targets"]):
            expression = target["expr"]
            assert expression.count("(") == expression.count(")")
            selectors = SELECTOR.findall(expression)
            assert selectors
            grouped = re.findall(r"\w+", ",".join(GROUPED.findall(expression)))
            assert set(PLACEHOLDER.findall(target["legendFormat"])) == set(grouped)
            for metric, matchers in selectors:
                assert exported.has(metric, matchers), expression
                assert all(
                    label in labels
                    for label in grouped
                    for labels in exported.labels[metric]
                )
                shown.add(metric)
                events |= {
                    value
                    for label, _kind, value in MATCHER.findall(matchers)
                    if label == "event"
                }
        assert shown == {*exported.labels}
        assert events == {
            labels["event"] for labels in exported.labels["idempotency_requests_total"]
        }
        assert KEY not in exported.text

    def test_lag(self, exported: Exported) -> None:
        """P2: The purge's time is the expiry of what is left, then the present."""
        metric = "idempotency_purged_until_timestamp_seconds"
        assert exported.labels[metric][0]["database"] == "default"
        assert abs(exported.values[metric] - LONG_AGO.timestamp()) < PATIENCE
        IdempotencyRecord.objects.purge()
        now = datetime.now(zones.utc).timestamp()
        assert abs(Exported().values[metric] - now) < PATIENCE

    def test_lag_after_a_failure(self, recipe: Recipe) -> None:
        """P2: A purge that could not begin says nothing about the lag."""
        purged = signals.RecordsPurged(
            database="default",
            deleted=0,
            half_done=0,
            batches=0,
            seconds=0.0,
            more=True,
        )
        signals.records_purged.emit(IdempotencyRecord, purged)
        assert "idempotency_purged_until_timestamp_seconds" not in Exported().labels

    def test_variables(self, exported: Exported, dashboard: Any) -> None:
        """Each variable is defined, and finds its values in what is exported."""
        defined = {each["name"]: each for each in dashboard["templating"]["list"]}
        assert defined["datasource"]["type"] == "datasource"
        assert defined["datasource"]["query"] == "prometheus"
        query = defined["view"]["query"]["query"]
        ((metric, label),) = re.findall(r"^label_values\((\w+), (\w+)\)$", query)
        assert defined["view"]["definition"] == query
        assert all(label in labels for labels in exported.labels[metric])
        used = {*VARIABLE.findall(json.dumps(dashboard))} - {"__rate_interval", "__all"}
        assert used == {*defined}


@once
class TestDashboardFile:
    """What Grafana needs to show the dashboard."""

    def test_panels(self, dashboard: Any) -> None:
        """Each panel has a data source, a title, a unit, and a place of its own."""
        source = {"type": "prometheus", "uid": "${datasource}"}
        panels = dashboard["panels"]
        for panel in panels:
            assert panel["datasource"] == source
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"] in ("reqps", "short", "s")
            assert all(target["datasource"] == source for target in panel["targets"])
            names = [target["refId"] for target in panel["targets"]]
            assert len({*names}) == len(names)
        for what in ("id", "title"):
            assert len({panel[what] for panel in panels}) == len(panels)
        assert dashboard["schemaVersion"] >= 36
        for one, other in combinations((panel["gridPos"] for panel in panels), 2):
            assert not all(
                one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
                for at, size in (("x", "w"), ("y", "h"))
            )
        for place in (panel["gridPos"] for panel in panels):
            assert place["x"] + place["w"] <= 24

    def test_link(self) -> None:
        """Both recipes link to it."""
        page = (ROOT / RECIPES).read_text(encoding="utf-8")
        assert page.count(f"]({DASHBOARD})") == 2


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
