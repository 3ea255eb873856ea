"""Endpoints of credentials: what is said of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import messages
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.test import Client
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.audit import handles_credentials
from idempotency.decorators import idempotent
from idempotency.models import IdempotencyRecord
from idempotency.modes import cookies
from tests.app.views import MixinViewSet, behave
from tests.conftest import KEY, key
from tests.urls import urlpatterns as usual_urls

pytestmark = [pytest.mark.usefixtures("atomic_requests"), pytest.mark.urls(__name__)]


@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="hold", methods=("POST",))
def leased(request: Request) -> Any:
    return behave(request)


urlpatterns = [*usual_urls, path("leased/", leased)]


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cookies, "_warned_of", set())


def lines(caplog: Any) -> list[tuple[str, str | None, str]]:
    """Return view, action and method of each line about a cookie."""
    found = []
    for record in caplog.records:
        known = vars(record)
        if known.get("idempotency_event") == "cookie_not_stored":
            assert record.levelno == logging.WARNING
            names = ("view", "action", "method")
            found.append(tuple(known[f"idempotency_{name}"] for name in names))
    return found  # type: ignore[return-value]  # three of them


def with_cookie(request: Request) -> Response:
    response = Response({"token": "in-the-body"})
    response.set_cookie("jwt", "s3cr3t")
    return response


@pytest.mark.parametrize("address", ["/function/", "/mixin-viewset/extra/", "/leased/"])
def test_a_cookie_that_is_not_stored(
    client: Any, handle: Any, caplog: Any, address: str, atomic_requests: bool
) -> None:
    """R2: The log has each endpoint whose cookies replays lack, once."""
    if address == "/leased/" and atomic_requests:
        pytest.skip("Leased functions have no such transaction.")
    handle(with_cookie)
    for number in (1, 2):
        first = client.post(address, {}, **key(f"{KEY}{number}"))
        retry = client.post(address, {}, **key(f"{KEY}{number}"))
        assert "jwt" in first.cookies
        assert (retry.content, len(retry.cookies)) == (first.content, 0)
    (line,) = lines(caplog)
    action = "extra" if "viewset" in address else None
    assert line[1:] == (action, "POST")
    assert "s3cr3t" not in str([vars(record) for record in caplog.records])
    assert KEY not in str([record.getMessage() for record in caplog.records])


def test_each_endpoint(client: Any, handle: Any, caplog: Any) -> None:
    """R2: A ViewSet's actions are endpoints of their own."""
    handle(with_cookie)
    for address in ("/mixin-viewset/", "/mixin-viewset/extra/"):
        client.post(address, {}, **key(KEY + address))
    view = f"{MixinViewSet.__module__}.MixinViewSet"
    assert lines(caplog) == [(view, "create", "POST"), (view, "extra", "POST")]


def test_answers_that_are_not_stored(
    client: Any, handle: Any, caplog: Any, settings: Any
) -> None:
    """R2, R4: Nothing is said where no replay claims a success."""

    def refuse(request: Request) -> Response:
        response = with_cookie(request)
        response.status_code = 400
        return response

    handle(refuse)
    client.post("/function/", {}, **key())
    handle(with_cookie)
    client.post("/function/", {})
    settings.IDEMPOTENCY = {"MAX_RESPONSE_BYTES": 1}
    client.post("/function/", {}, **key())
    assert lines(caplog) == []


# Sessions, whose cookie comes after the view.


def log_in(request: Request) -> Response:
    login(request._request, User.objects.get())
    return Response()


def log_out(request: Request) -> Response:
    logout(request._request)
    return Response()


def fill_cart(request: Request) -> Response:
    request.session["cart"] = ["tea"]
    return Response()


def look_at_session(request: Request) -> Response:
    return Response({"cart": request.session.get("cart")})


@pytest.fixture
def visitor(settings: Any) -> Iterator[Client]:
    """Return a browser of a project with sessions, and a user for it."""
    settings.MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    user = User.objects.create_user("ada")
    yield Client(HTTP_X_USER="ada")
    user.delete()


def sends_cookie(visitor: Client, handle: Any, handler: Any) -> bool:
    handle(handler)
    count = IdempotencyRecord.objects.count()
    answer = visitor.post("/function/", headers={"Idempotency-Key": f"{KEY}{count}"})
    assert answer.status_code == 200
    return "sessionid" in answer.cookies


@pytest.mark.parametrize(
    ("before", "handler", "is_told"),
    [
        ([], log_in, True),
        ([fill_cart], log_in, True),
        ([log_in], log_out, True),
        ([], fill_cart, True),
        # The browser has that cookie, or none to lose.
        ([log_in], fill_cart, False),
        ([], log_out, False),
        ([fill_cart], look_at_session, False),
    ],
)
def test_sessions(
    visitor: Client,
    handle: Any,
    caplog: Any,
    before: list[Any],
    handler: Any,
    is_told: bool,
) -> None:
    """R2: A session that begins or ends is a cookie that replays lack."""
    for each in before:
        sends_cookie(visitor, handle, each)
    cookies._warned_of.clear()
    caplog.clear()
    sent = sends_cookie(visitor, handle, handler)
    assert bool(lines(caplog)) == is_told
    assert sent or not is_told


def look_at_messages(request: Request) -> Response:
    return Response({"messages": len(messages.get_messages(request))})


def add_message(request: Request) -> Response:
    messages.success(request._request, "Saved.")
    return Response()


@pytest.mark.parametrize(
    ("handler", "is_told"), [(add_message, True), (look_at_messages, False)]
)
def test_messages(
    visitor: Client,
    handle: Any,
    caplog: Any,
    settings: Any,
    handler: Any,
    is_told: bool,
) -> None:
    """R2: A message to the user is also lost with the first response."""
    settings.MIDDLEWARE += ["django.contrib.messages.middleware.MessageMiddleware"]
    sends_cookie(visitor, handle, handler)
    assert bool(lines(caplog)) == is_told


# Well-known packages, by names alone.


@pytest.mark.parametrize(
    ("module", "name", "action", "expected"),
    [
        ("dj_rest_auth.views", "LoginView", "LoginView", True),
        ("dj_rest_auth.jwt_auth", "get_refresh_view.<locals>.Refresh", "post", True),
        ("djoser.views", "TokenDestroyView", "TokenDestroyView", True),
        ("djoser.views", "UserViewSet", "set_password", True),
        ("djoser.views", "UserViewSet", "create", False),
        ("rest_framework_simplejwt.views", "TokenObtainPairView", "post", True),
        ("knox.views", "LogoutAllView", "LogoutAllView", True),
        ("oauth2_provider.views.base", "TokenView", "post", True),
        ("knoxville.views", "LoginView", "LoginView", False),
        ("allauth.headless.account.views", "SessionView", "SessionView", True),
        ("rest_framework.authtoken.views", "ObtainAuthToken", "post", True),
        ("shop.views", "LoginView", "LoginView", False),
    ],
)
def test_well_known(module: str, name: str, action: str, expected: bool) -> None:
    """R2: A view of such a package is known, and what derives from it."""
    view = type(name, (), {"__module__": module, "__qualname__": name})
    own = type("Own", (view,), {"__module__": "shop.views"})
    assert handles_credentials(view, action) is expected
    assert handles_credentials(own, action) is expected
