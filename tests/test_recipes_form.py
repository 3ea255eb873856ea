"""The recipe for a form whose key is in its action."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from idempotency.models import IdempotencyRecord
from tests.app.models import Effect
from tests.conftest import KEY
from tests.support.processes import PATIENCE
from tests.support.recipe_modules import block, cooked

HEADING = "A form with its key in the action"
URL = "/assignments/"


class Assignment:
    """What the recipe calls a model; a test may add to its creation."""

    while_created: Callable[[], None] | None = None

    class objects:  # noqa: N801  # a manager
        @staticmethod
        def create(title: str) -> Any:
            if Assignment.while_created is not None:
                Assignment.while_created()
            return SimpleNamespace(pk=Effect.objects.create(note=title).pk)


def page(request: HttpRequest, pk: int) -> HttpResponse:
    return HttpResponse("saved")


class Browser:
    """A client that does what a form's button does."""

    def __init__(self, cookies: Any = None) -> None:
        self.client = Client(enforce_csrf_checks=True)
        if cookies is not None:
            self.client.cookies = cookies

    def open(self) -> tuple[str, dict[str, str]]:
        """Return the form's address and its fields."""
        shown = self.client.get(URL).content.decode()
        (action,) = re.findall(r'<form method="post" action="(.*)">', shown)
        (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(.*?)"', shown)
        form = {"csrfmiddlewaretoken": token, "title": "Essay"}
        return urljoin(URL, action), form

    def click(self, form: tuple[str, dict[str, str]]) -> Any:
        url, fields = form
        return self.client.post(url, fields)


@pytest.fixture
def browser(settings: Any, atomic_requests: bool) -> Iterator[Browser]:
    """Return a browser whose user is logged in."""
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        *settings.MIDDLEWARE,
    ]
    pages = {"assignment.html": block(HEADING, "assignment.html")}
    loader = ("django.template.loaders.locmem.Loader", pages)
    engine = {"BACKEND": "django.template.backends.django.DjangoTemplates"}
    settings.TEMPLATES = [{**engine, "OPTIONS": {"loaders": [loader]}}]
    user, _is_new = get_user_model().objects.get_or_create(username="ada")
    with cooked(HEADING, models={"Assignment": Assignment}) as recipe:
        settings.ROOT_URLCONF = (
            path(URL[1:], recipe.views.create_assignment),
            path("saved/<int:pk>/", page, name="assignment"),
        )
        found = Browser()
        found.client.force_login(user)
        yield found
    Assignment.while_created = None


def notes() -> list[str]:
    return [*Effect.objects.values_list("note", flat=True)]


def test_second_click(browser: Browser) -> None:
    """E1, F2: The same form acts once; each page has a form of its own."""
    form = browser.open()
    first, second = (browser.click(form) for _time in range(2))
    assert first.status_code == second.status_code == 302
    assert first.url == second.url == f"/saved/{Effect.objects.get().pk}/"
    assert second["Idempotent-Replayed"] == "true"
    # The page that follows is the user's to open, and a new form acts again.
    assert browser.client.get(second.url).content == b"saved"
    assert browser.click(browser.open()).url != first.url
    assert notes() == ["Essay"] * 2


def test_double_click(browser: Browser, monkeypatch: Any) -> None:
    """E3: A second click during the first gets its redirect, and no refusal."""
    form, waits = browser.open(), Event()
    clicks: list[Future[Any]] = []
    pause = time.sleep

    def sleep(seconds: float) -> None:
        waits.set()
        pause(seconds)

    def click() -> Any:
        with closing(connection):
            return Browser(browser.client.cookies).click(form)

    def click_again() -> None:
        clicks.append(pool.submit(click))
        # SQLite itself lets the second one wait.
        assert connection.vendor == "sqlite" or waits.wait(PATIENCE)

    monkeypatch.setattr("idempotency.execution.time.sleep", sleep)
    Assignment.while_created = staticmethod(click_again)
    with ThreadPoolExecutor(1) as pool:
        first = browser.click(form)
        (second,) = (each.result(PATIENCE) for each in clicks)
    assert (first.status_code, second.status_code) == (302, 302)
    assert first.url == second.url
    assert second["Idempotent-Replayed"] == "true"
    assert notes() == ["Essay"]


def test_hidden_field(browser: Browser) -> None:
    """K1: Why the key is in the action: a field has no effect."""
    _url, fields = browser.open()
    form = URL, {**fields, "$idempotency": KEY}
    assert browser.click(form).url != browser.click(form).url
    assert notes() == ["Essay"] * 2
    assert IdempotencyRecord.objects.count() == 0


def test_corrected_content(browser: Browser) -> None:
    """F4: The old form with other content is refused, so each form needs its key."""
    url, fields = browser.open()
    browser.click((url, fields))
    assert browser.click((url, {**fields, "title": "Other"})).status_code == 422
    assert notes() == ["Essay"]


def test_stranger(browser: Browser, settings: Any) -> None:
    """S2: A visitor is sent to the login, and the key stays free."""
    form = browser.open()
    del browser.client.cookies[settings.SESSION_COOKIE_NAME]
    assert browser.click(form).url.startswith(settings.LOGIN_URL)
    assert IdempotencyRecord.objects.count() == 0
