"""Async views and Django Ninja: refused or found, never protected by half."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import Client
from django.urls import clear_url_caches, path
from django.views import View
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.audit import audit
from idempotency.checks import check_decorators
from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.routing import protected
from tests.app.models import Effect
from tests.conftest import key

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def serve(settings: Any) -> Iterator[Any]:
    """Let a test choose the URLconf."""

    def set_patterns(*patterns: Any) -> None:
        settings.ROOT_URLCONF = patterns
        clear_url_caches()

    yield set_patterns
    clear_url_caches()


def warnings_of(url: str) -> list[str]:
    """Send a request twice, and return the codes of the warnings."""
    responses = [Client().post(url, **key()) for _time in range(2)]
    assert not [each for each in responses if "Idempotent-Replayed" in each]
    values = [each.get("Idempotency-Warning", "") for each in responses]
    return [value.partition(";")[0] for value in values]


UNSUPPORTED = ["IDEMPOTENCY_KEY_UNSUPPORTED"] * 2


class TestAdrf:
    """Async views of Django REST framework."""

    @pytest.fixture
    def adrf(self) -> Any:
        pytest.importorskip("adrf")
        from adrf import decorators, views, viewsets  # noqa: PLC0415

        class Adrf:
            APIView = views.APIView
            ViewSet = viewsets.ViewSet
            api_view = staticmethod(decorators.api_view)

        return Adrf

    def test_refused(self, adrf: Any) -> None:
        """X2: Each way to protect a coroutine is refused at import."""

        async def post(request: Request, **kwargs: Any) -> Response:
            return Response()

        view: Any = type("Pay", (adrf.APIView,), {"post": post})
        mixed: Any = type("Pay", (IdempotencyMixin, view), {})
        with pytest.raises(TypeError, match="coroutine, and Django's transactions"):
            idempotent(post)
        with pytest.raises(TypeError, match="coroutine, and Django's transactions"):
            mixed.as_view()
        with pytest.raises(TypeError, match="below @api_view"):
            idempotent(adrf.api_view(["POST"])(post))
        for callback in (view.as_view(), adrf.api_view(["POST"])(post)):
            with pytest.raises(TypeError, match=r"coroutine.*\bexempt="):
                protected([path("", callback)])

    def test_exempt(self, adrf: Any, serve: Any) -> None:
        """K5: Beside protected views an async one stays what it is, with a warning."""

        class Pay(adrf.APIView):  # type: ignore[misc]
            async def post(self, request: Request) -> Response:
                await Effect.objects.acreate()
                return Response({})

        class Create(APIView):
            def post(self, request: Request) -> Response:
                Effect.objects.create()
                return Response({})

        patterns = [path("pay/", Pay.as_view()), path("create/", Create.as_view())]
        serve(*protected(patterns, exempt=[Pay]))
        assert [each.via for each in audit()] == ["exempt", "routing"]
        assert warnings_of("/pay/") == UNSUPPORTED
        assert Effect.objects.count() == 2
        again = [APIClient().post("/create/", {}, **key()) for _time in range(2)][1]
        assert again["Idempotent-Replayed"] == "true"

    def test_synchronous_handlers(self, adrf: Any, serve: Any) -> None:
        """Views and actions of adrf with ``def`` are protected as all others are."""

        class Notes(IdempotencyMixin, adrf.ViewSet):  # type: ignore[misc]
            def create(self, request: Request) -> Response:
                return Response({"effect": Effect.objects.create().pk}, 201)

            @action(detail=False, methods=["post"])
            def search(self, request: Request) -> Response:
                return Response([])

        router = DefaultRouter()
        router.register("notes", Notes, basename="note")
        serve(*router.urls)
        first, again = (APIClient().post("/notes/", {}, **key()) for _time in range(2))
        assert again["Idempotent-Replayed"] == "true"
        assert first.content == again.content
        assert Effect.objects.count() == 1


class TestDjango:
    """Async views of Django."""

    def test_refused(self) -> None:
        class Pay(IdempotencyMixin, View):
            async def post(self, request: HttpRequest) -> Any:
                raise AssertionError

        with pytest.raises(TypeError, match=r"Pay\.post\(\): it is a coroutine"):
            Pay.as_view()
        with pytest.raises(TypeError, match="coroutine"):
            idempotent(Pay.post)


class TestNinja:
    """Operations of Django Ninja."""

    @pytest.fixture
    def api(self) -> Any:
        ninja = pytest.importorskip("ninja")
        return ninja.NinjaAPI(urls_namespace=str(uuid4()))  # it allows each one once

    def test_below(self, api: Any, serve: Any) -> None:
        """X2: E013: below Ninja's decorator every request fails, key or no key."""

        @api.post("/pay")
        @idempotent
        def pay(request: HttpRequest) -> dict[str, int]:
            return {"effect": Effect.objects.create().pk}

        serve(path("ninja/", api.urls))
        (message,) = check_decorators()
        assert message.id == "idempotency.E013"
        assert "pay, which is an operation of Django Ninja" in message.msg
        for headers in ({}, key()):
            with pytest.raises(ImproperlyConfigured, match="other frameworks"):
                Client().post("/ninja/pay", **headers)
        assert Effect.objects.count() == 1  # without a key nothing undoes it

    def test_above(self, api: Any) -> None:
        """X2: Above Ninja's decorator it would protect nothing: refused at import."""

        def pay(request: HttpRequest) -> dict[str, int]:
            raise AssertionError

        with pytest.raises(TypeError, match=r"pay, an operation of Django Ninja"):
            idempotent(api.post("/pay")(pay))

    def test_coroutine(self, api: Any) -> None:
        async def pay(request: HttpRequest) -> dict[str, int]:
            raise AssertionError

        with pytest.raises(TypeError, match="coroutine"):
            api.post("/pay")(idempotent(pay))

    def test_unprotected(self, api: Any, serve: Any) -> None:
        """K5: The middleware warns clients, and the audit lists it with --all."""

        @api.post("/pay")
        def pay(request: HttpRequest) -> dict[str, int]:
            return {"effect": Effect.objects.create().pk}

        serve(path("ninja/", api.urls))
        assert check_decorators() == []
        assert warnings_of("/ninja/pay") == UNSUPPORTED
        assert Effect.objects.count() == 2
        vias = [each.via for each in audit() if each.route.path == "/ninja/pay"]
        assert vias == ["none"]

    def test_routing(self, api: Any) -> None:
        """``protected()`` says that it finds nothing to protect."""
        patterns = [path("ninja/", api.urls)]
        with pytest.raises(ImproperlyConfigured, match="no view of Django REST"):
            protected(patterns)
