"""The admin in a real browser: found, read, downloaded, and nothing runs.

Each test leaves pictures of what it saw in its temporary directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.db import connection
from django.test.testcases import LiveServerThread
from django.urls import path
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord, State
from idempotency.routes import route_of
from idempotency.steps import as_text, held_entry, new_entry
from testproject import settings as demo
from tests.app.models import Effect
from tests.conftest import key
from tests.support import admin_pages
from tests.support.processes import PATIENCE, wait_until
from tests.support.record_factories import (
    ANSWERS,
    MARKUP,
    RETENTION,
    make_answer,
    make_record,
    make_records,
)
from tests.urls import urlpatterns as usual_urls

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# What a test needs that looks at pages.
IN_A_BROWSER = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed."
    ),
    # What the pages read from each database is for tests/test_admin.py.
    pytest.mark.skipif(connection.vendor != "sqlite", reason="One database will do."),
]
pytestmark = [*IN_A_BROWSER, pytest.mark.urls(__name__)]
webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
WebDriverException = pytest.importorskip(
    "selenium.common.exceptions"
).WebDriverException


class InvoiceView(IdempotencyMixin, APIView):
    """Acts outside, and leaves what it did not finish to people."""

    idempotency_atomic = False
    idempotency_on_abandoned = "hold"

    def post(self, request: Request) -> Response:
        return Response(status=201)


class RideView(IdempotencyMixin, APIView):
    """Resumes after recorded steps, also without its client."""

    idempotency_atomic = False
    idempotency_on_abandoned = "resume"

    @staticmethod
    def idempotency_completer(steps: Any) -> Response:
        receipt: Response = steps.step("receipt", lambda: Response(status=201))
        return receipt

    def post(self, request: Request) -> Response:
        return Response(status=201)


INVOICES, RIDES = "api/v2/user/invoices", "api/v2/user/rides"
urlpatterns = [
    path(INVOICES, InvoiceView.as_view()),
    path(RIDES, RideView.as_view()),
    *usual_urls,
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1200",
)
PASSWORD = "open sesame"
# Pictures for the documents: make screenshots.
KEPT = (
    "list-light",
    "list-dark",
    "search-light",
    "list-light-390",
    "record-light",
    "tombstone-light",
    "abandoned-light",
    "steps-light",
    "call-light",
    "resolve-light",
    "release-light",
    "overview-light",
)
EVERYTHING = (*admin_pages.EVERYTHING, "view_user")
Login = Callable[..., None]


@pytest.fixture
def address(database: None, settings: Any) -> Iterator[str]:
    """Serve the admin, its style sheets too, from another thread."""
    settings.MIDDLEWARE = demo.MIDDLEWARE
    thread = LiveServerThread("localhost", StaticFilesHandler)
    thread.daemon = True
    thread.start()
    assert thread.is_ready.wait(PATIENCE)
    assert thread.error is None
    yield f"http://{thread.host}:{thread.port}"
    thread.terminate()
    for model in (Session, User):
        model._default_manager.all().delete()


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a browser that has never been anywhere."""
    # Selenium would look on the net for whatever it misses.
    monkeypatch.setenv("SE_OFFLINE", "true")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    downloads = {"download.default_directory": str(tmp_path / "downloads")}
    options.add_experimental_option("prefs", downloads)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def log_in(browser: Any, address: str) -> Login:
    """Return a way through the log-in form, with the permissions that are named."""

    def fill_in(*permissions: str) -> None:
        user = User.objects.create_user("grace", password=PASSWORD, is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        browser.get(f"{address}/admin/")
        for name, value in {"username": "grace", "password": PASSWORD}.items():
            browser.find_element(By.NAME, name).send_keys(value)
        follow(browser, browser.find_element(By.CSS_SELECTOR, "[type=submit]"))

    return fill_in


def follow(browser: Any, element: Any) -> None:
    """Click, and wait for the page behind."""
    browser.execute_script("window.isLeft = true")
    element.click()
    wait_for_page(browser)


def wait_for_page(browser: Any) -> None:
    """Wait for another page than the one that was marked as left."""
    # Amid a change of pages the driver may find neither the one nor the other.
    wait = WebDriverWait(browser, PATIENCE, ignored_exceptions=[WebDriverException])
    wait.until(
        lambda new: new.execute_script(
            "return !window.isLeft && document.readyState === 'complete'"
        )
    )


def search(browser: Any, key: str) -> list[str]:
    """Search for a key by hand, and return the keys that are found."""
    box = browser.find_element(By.ID, "searchbar")
    box.clear()
    box.send_keys(key)
    follow(
        browser,
        browser.find_element(By.CSS_SELECTOR, "#changelist-search [type=submit]"),
    )
    return found(browser)


def found(browser: Any) -> list[str]:
    """Return the keys on the list's page."""
    return [
        link.text
        for link in browser.find_elements(By.CSS_SELECTOR, "a.idempotency-record")
    ]


def field(browser: Any, name: str) -> Any:
    """Return the part of a record's page that shows a field."""
    return browser.find_element(By.CSS_SELECTOR, f".field-{name} .readonly")


def assert_nothing_ran(browser: Any) -> None:
    """Check that no script but the admin's own has run, or tried to."""
    assert browser.execute_script("return window.ran") is None
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    # Browsers ask for this one by themselves.
    assert [said for said in complaints if "/favicon.ico " not in said] == []


def set_screen(browser: Any, width: int, height: int = 1200) -> None:
    """Give pages a screen of that size, to the pixel."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def assert_fits(browser: Any) -> None:
    """Check that nobody has to scroll sideways, in the page or in the list."""
    assert browser.execute_script(
        "return ['html', '.results']"
        ".map(place => document.querySelector(place))"
        ".every(part => !part || part.scrollWidth <= part.clientWidth)"
    )


# Texts and fields that reach beyond what cuts them off, or beyond the page. What an
# element around them scrolls can be read.
CUT_OFF = """
const found = [];
const places = "#content *, .breadcrumbs, .breadcrumbs *";
for (const part of document.querySelectorAll(places)) {
  const isField = ["TEXTAREA", "INPUT"].includes(part.tagName);
  const hasText = [...part.childNodes].some(
    node => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  if (!isField && !hasText) continue;
  if (part.closest(".visually-hidden")) continue;  // for screen readers alone
  const range = document.createRange();
  range.selectNodeContents(part);
  const right = (isField ? part : range).getBoundingClientRect().right;
  for (let around = part; around; around = around.parentElement) {
    const overflow = getComputedStyle(around).overflowX;
    const edge = around === document.documentElement
      ? window.innerWidth : around.getBoundingClientRect().right;
    if (["auto", "scroll"].includes(overflow) && right > edge + 1) break;
    const cuts = overflow !== "visible" || around === document.documentElement;
    if (cuts && right > edge + 1) {
      found.push(`${part.tagName} ${part.textContent.trim().slice(0, 40)}`);
      break;
    }
  }
}
return found;
"""
# Elements that lie over another one's text.
COVERED = """
const tools = document.querySelector("#content .object-tools");
if (!tools) return [];
const over = tools.getBoundingClientRect();
return [...document.querySelectorAll("#content h1, #content h2")].filter(head => {
  const range = document.createRange();
  range.selectNodeContents(head);
  return [...range.getClientRects()].some(line => line.right > over.left + 1
    && line.left < over.right - 1 && line.bottom > over.top + 1
    && line.top < over.bottom - 1);
}).map(head => head.textContent);
"""


def test_support(browser: Any, log_in: Login, tmp_path: Path) -> None:
    """A1: Log in, find a client's key, read the answer, take the whole of it home."""
    make_records(30, timedelta(days=2))
    asked = "3c0a9f0e-6a3a-4b86-9d5e-2f1f7b0f8f11"
    place = "/api/v2/user/classes/0e0c5a2e-1f63-4d6e-8b6a-5f3f4f7a1c11/assignments"
    make_answer("json", key=asked, path=place)
    make_record(key="stuck", state=State.IN_PROGRESS, status_code=None, body=None)
    log_in("view_idempotencyrecord", "view_response_body")
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    browser.save_screenshot(str(tmp_path / "list.png"))
    assert search(browser, asked[:-1]) == []
    assert search(browser, f" {asked} ") == [asked]
    browser.save_screenshot(str(tmp_path / "found.png"))
    follow(browser, browser.find_element(By.LINK_TEXT, asked))
    browser.save_screenshot(str(tmp_path / "record.png"))
    assert (
        field(browser, "answer").find_element(By.TAG_NAME, "pre").text
        == (ANSWERS["json"][2])
    )
    assert field(browser, "status_code").text == "201"
    assert field(browser, "asked").text == f"POST {place}"
    field(browser, "answer").find_element(By.LINK_TEXT, "Download").click()
    downloads = tmp_path / "downloads"
    wait_until(lambda: [*downloads.glob("*.bin")], "the download")
    (download,) = downloads.glob("*.bin")
    assert download.read_bytes() == ANSWERS["json"][1]
    assert asked in browser.title
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    assert found(browser)[0] == "stuck"
    assert_nothing_ran(browser)


def test_every_answer(browser: Any, log_in: Login, tmp_path: Path) -> None:
    """A1: Whatever the answer is, its page opens, and nothing in it runs."""
    own = {"scope": MARKUP, "path": MARKUP}
    records = {name: make_answer(name, **own) for name in ANSWERS}
    make_answer("html", key=MARKUP)
    make_record(key="k" * 255, scope="s" * 512, path="/" + "long/" * 400)
    log_in("view_idempotencyrecord", "view_response_body")
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    browser.save_screenshot(str(tmp_path / "list.png"))
    assert_fits(browser)
    assert_nothing_ran(browser)
    assert search(browser, MARKUP) == [MARKUP]
    assert_nothing_ran(browser)
    here = browser.current_url.partition("?")[0]
    for name, record in records.items():
        browser.get(f"{here}{record.pk}/change/")
        browser.save_screenshot(str(tmp_path / f"{record.key}.png"))
        text = field(browser, "stored_headers" if "header" in name else "answer").text
        # A tab is looked at as the blanks that it takes.
        assert ANSWERS[name][2].splitlines()[0][:1000].replace("\t", " ") in text
        assert_nothing_ran(browser)
        assert_fits(browser)


@pytest.mark.parametrize("width", [1280, 420, 360])
def test_long_values(
    browser: Any, log_in: Login, client: APIClient, tmp_path: Path, width: int
) -> None:
    """A1: Whatever is long can be read to its end, on a narrow screen, too."""
    token = "eyJ" + "a1B2c3D4" * 50
    long = {
        "key": "k" * 255,
        "scope": "authorization:" + "0123456789abcdef" * 4,
        "path": "/api/" + "p" * 300,
    }
    answered = make_record(
        **long,
        headers=[
            ["Content-Type", "application/json"],
            ["Location", "https://files.example.com/" + "x" * 300],
        ],
        body=json.dumps({"token": token}).encode(),
    )
    stuck = make_record(
        **{**long, "key": "j" * 255},
        state=State.ABANDONED,
        lease_expires_at=timezone.now(),
        status_code=None,
        body=None,
    )
    held, half_done = (
        make_record(
            **{**abandoned(), **long, "key": letter * 255, "path": f"/{RIDES}"},
            steps=entries,
        )
        for letter, entries in {
            "i": steps("ride", in_doubt="c" * 100),
            "h": steps("ride", "r" * 100),
        }.items()
    )
    log_in(*EVERYTHING)
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    here = browser.current_url
    set_screen(browser, width)
    for name, page in {
        "list": "",
        "record": f"{answered.pk}/change/",
        "stuck": f"{stuck.pk}/change/",
        "release": f"{answered.pk}/release/",
        "resolve": f"{stuck.pk}/resolve/",
        "held": f"{held.pk}/change/",
        "call": f"{held.pk}/call/",
        "half-done": f"{half_done.pk}/change/",
        "complete": f"{half_done.pk}/complete/",
        "release-steps": f"{half_done.pk}/release/",
        "overview": "overview/",
    }.items():
        browser.get(here + page)
        browser.save_screenshot(str(tmp_path / f"{name}-{width}.png"))
        assert browser.execute_script("return window.innerWidth") == width
        assert browser.execute_script(CUT_OFF) == [], name
        assert browser.execute_script(COVERED) == [], name
    heights = browser.execute_script(
        "return [...document.querySelectorAll('.idempotency-days td')]"
        ".map(text => text.getBoundingClientRect().height)"
    )
    assert min(heights) >= 10
    browser.get(here)
    looks = browser.execute_script(
        "return [...document.querySelectorAll('.object-tools a, .object-tools button')]"
        ".map(tool => [getComputedStyle(tool).fontSize,"
        " Math.round(tool.getBoundingClientRect().top),"
        " Math.round(tool.getBoundingClientRect().height)])"
    )
    assert len(looks) == 2
    assert looks[0] == looks[1]


def test_without_permission(browser: Any, log_in: Login, tmp_path: Path) -> None:
    """A1: Without permission to see responses, the page says so in their place."""
    make_answer("json", key="asked-for")
    log_in("view_idempotencyrecord")
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    follow(browser, browser.find_element(By.LINK_TEXT, "asked-for"))
    browser.save_screenshot(str(tmp_path / "record.png"))
    assert field(browser, "hidden_answer").text == (
        "You do not have permission to view stored responses."
    )
    assert "$request" not in browser.page_source
    assert not browser.find_elements(By.LINK_TEXT, "Download")
    assert_nothing_ran(browser)


def fill_in(browser: Any, **values: str) -> None:
    """Write into a form's fields by hand."""
    for name, value in values.items():
        box = browser.find_element(By.NAME, name)
        box.clear()
        box.send_keys(value)


def submit(browser: Any) -> None:
    follow(browser, browser.find_element(By.CSS_SELECTOR, ".submit-row [type=submit]"))


def use_dark_theme(browser: Any) -> None:
    """Tell pages that the person prefers a dark theme."""
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [dark]})


def make_abandoned_payment(client: APIClient) -> IdempotencyRecord:
    """Send a request, and leave its record as a dead worker would."""
    answer = client.post("/function/", {"amount": 12}, **key("pay-7c1f0b52"))
    assert answer.status_code == 201
    record = IdempotencyRecord.objects.get(key="pay-7c1f0b52")
    for name, value in abandoned().items():
        setattr(record, name, value)
    record.save()
    return record


def abandoned() -> dict[str, Any]:
    """Return what the record of a worker says that died 3 minutes ago."""
    now = timezone.now()
    nothing = ("body", "body_size", "status_code", "headers", "completed_at")
    return {
        **dict.fromkeys(nothing),
        "state": State.IN_PROGRESS,
        "created_at": now - timedelta(minutes=4),
        "lease_expires_at": now - timedelta(minutes=3),
        "expires_at": now - timedelta(minutes=4) + RETENTION,
    }


def steps(*names: str, in_doubt: str | None = None) -> str:
    """Return what a record says of steps and calls that ended 3 minutes ago."""
    began = timezone.now() - timedelta(minutes=4)
    results: dict[str, Any] = {
        "order": {"from": "Alexanderplatz", "to": "Tegel"},
        "ride": {"id": 4711, "amount": 1250},
        "charge": {"charge": "ch_3PqLrK2eZvKYlo2C", "status": "succeeded"},
    }
    entries: list[dict[str, Any]] = []
    for name in [*names, *filter(None, [in_doubt])]:
        entry = new_entry("call" if name == "charge" else "step", name, began)
        began += timedelta(milliseconds=1840 if name == "charge" else 13)
        if name == in_doubt:
            entry = held_entry(name, began)
        else:
            result = results.get(name, "x" * 300)
            entry |= {"ended": began.isoformat(), "result": result}
        entries.append(entry)
    return as_text("", entries)


def test_steps(browser: Any, log_in: Login, client: APIClient) -> None:
    """A3, E13, E17: Somebody settles a call, and then completes the request."""
    record = make_record(
        **{**abandoned(), "key": "ride-7c1f0b52", "path": f"/{RIDES}"},
        steps=steps("ride", in_doubt="charge"),
    )
    log_in(*EVERYTHING)
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    follow(browser, browser.find_element(By.LINK_TEXT, "ride-7c1f0b52"))
    assert "during the call “charge”" in field(browser, "next_request").text
    assert '"id": 4711' in field(browser, "step_results").text
    assert not browser.find_elements(By.LINK_TEXT, "COMPLETE NOW")
    follow(browser, browser.find_element(By.LINK_TEXT, "SETTLE THE CALL"))
    browser.find_element(By.CSS_SELECTOR, "[value=returned]").click()
    fill_in(browser, result="{")
    submit(browser)
    (said,) = browser.find_elements(By.CSS_SELECTOR, ".errorlist li")
    assert "not valid JSON" in said.text
    fill_in(browser, result='{"charge": "ch_1"}')
    submit(browser)
    assert "cut off after “charge”" in field(browser, "next_request").text
    assert '"charge": "ch_1"' in field(browser, "step_results").text
    follow(browser, browser.find_element(By.LINK_TEXT, "COMPLETE NOW"))
    submit(browser)
    assert "with status 201" in field(browser, "next_request").text
    assert "step “receipt”" in field(browser, "time_line").text
    assert not browser.find_elements(By.CSS_SELECTOR, ".field-step_results")
    record.refresh_from_db()
    assert (record.status_code, record.attempt) == (201, 2)
    assert_nothing_ran(browser)


def test_desk(browser: Any, log_in: Login, client: APIClient) -> None:
    """A3: Somebody stores the answer of an abandoned record; then its key is freed."""
    make_abandoned_payment(client)
    log_in(*EVERYTHING)
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    follow(browser, browser.find_element(By.LINK_TEXT, "abandoned"))
    follow(browser, browser.find_element(By.LINK_TEXT, "pay-7c1f0b52"))
    assert "409 idempotency_outcome_unknown" in field(browser, "next_request").text
    follow(browser, browser.find_element(By.LINK_TEXT, "RESOLVE"))
    fill_in(browser, status_code="600", body="{")
    browser.execute_script(
        "document.querySelector('form.idempotency-resolve').noValidate = true"
    )
    submit(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".errorlist li")) == 2
    fill_in(browser, status_code="201", body='{"charge": "ch_1"}')
    submit(browser)
    assert "gets this response again" in field(browser, "next_request").text
    retry = client.post("/function/", {"amount": 12}, **key("pay-7c1f0b52"))
    assert (retry.status_code, retry.json()) == (201, {"charge": "ch_1"})
    follow(browser, browser.find_element(By.LINK_TEXT, "RELEASE"))
    assert "runs the handler again" in browser.find_element(By.ID, "content").text
    follow(browser, browser.find_element(By.LINK_TEXT, "No, take me back"))
    assert IdempotencyRecord.objects.count() == 1
    follow(browser, browser.find_element(By.LINK_TEXT, "RELEASE"))
    fill_in(browser, reason="the provider knows of no charge")
    submit(browser)
    assert not IdempotencyRecord.objects.exists()
    assert Effect.objects.count() == 1
    again = client.post("/function/", {"amount": 12}, **key("pay-7c1f0b52"))
    assert "Idempotent-Replayed" not in again
    assert Effect.objects.count() == 2
    assert_nothing_ran(browser)


def press(browser: Any, words: str, *, until: int = 90) -> None:
    """Go to a link or a button by Tab alone, see that it shows, and press Enter."""
    for _tab in range(until):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached = browser.switch_to.active_element
        text = reached.text or reached.get_attribute("value") or ""
        if text.lower() == words.lower():
            break
    else:
        raise AssertionError(f"{words} was not reached")
    browser.execute_script("window.isLeft = true")
    reached.send_keys(Keys.ENTER)
    wait_for_page(browser)


def tab_to(browser: Any, name: str) -> Any:
    """Go to a field of a form by Tab alone."""
    for _tab in range(90):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached = browser.switch_to.active_element
        if reached.get_attribute("name") == name:
            return reached
    raise AssertionError(f"{name} was not reached")


def test_without_a_mouse(browser: Any, log_in: Login, client: APIClient) -> None:
    """A3: Everything that a page offers can be reached and used with the keyboard."""
    make_abandoned_payment(client)
    make_record(RETENTION + timedelta(days=1))
    log_in(*EVERYTHING)
    press(browser, "Idempotency records")
    press(browser, "Purge all expired now")
    assert IdempotencyRecord.objects.count() == 1
    press(browser, "Overview")
    press(browser, "Idempotency records")
    press(browser, "pay-7c1f0b52")
    press(browser, "Resolve")
    body = tab_to(browser, "body")
    body.send_keys('{"charge": "ch_1"}')
    press(browser, "Store this response")
    retry = client.post("/function/", {"amount": 12}, **key("pay-7c1f0b52"))
    assert retry.json() == {"charge": "ch_1"}
    # What is long is scrolled with the keyboard, so it must be reached.
    for _tab in range(90):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.tag_name == "pre":
            break
    assert browser.switch_to.active_element.tag_name == "pre"
    browser.refresh()
    press(browser, "Release")
    press(browser, "No, take me back")
    press(browser, "Release")
    tab_to(browser, "reason").send_keys("the provider knows of no charge")
    press(browser, "Yes, release the key")
    assert not IdempotencyRecord.objects.exists()
    assert_nothing_ran(browser)


def test_many_abandoned(browser: Any, log_in: Login, tmp_path: Path) -> None:
    """A1, A2: Each caller's abandoned records are in view, however many another has."""
    now = timezone.now()
    for number, scope in enumerate(["user:auth.user:1"] * 40 + ["authorization:a0"]):
        record = make_record(scope=scope, key=f"{uuid5(NAMESPACE_URL, str(number))}")
        created_at = now - timedelta(hours=48 - number)
        of_record = IdempotencyRecord.objects.filter(pk=record.pk)
        of_record.update(**{**abandoned(), "created_at": created_at})
    log_in(*EVERYTHING)
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    follow(browser, browser.find_element(By.LINK_TEXT, "abandoned"))
    here = browser.current_url
    for theme in ("light", "dark"):
        if theme == "dark":
            use_dark_theme(browser)
        for width in (1280, 360):
            set_screen(browser, width, 1200)
            browser.get(here)
            browser.save_screenshot(str(tmp_path / f"abandoned-{theme}-{width}.png"))
            assert browser.execute_script(CUT_OFF) == []
            assert len(found(browser)) == 6
    browser.execute_script(
        "arguments[0].scrollIntoView()",
        browser.find_element(By.LINK_TEXT, "35 more of this caller"),
    )
    follow(browser, browser.find_element(By.LINK_TEXT, "35 more of this caller"))
    browser.save_screenshot(str(tmp_path / "caller.png"))
    assert len(found(browser)) == 40
    assert_nothing_ran(browser)


def fingerprint(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_pictures(browser: Any, log_in: Login, tmp_path: Path) -> None:
    """A1, A4: Every page in both themes and on a narrow screen."""
    ada, bob, other = map(User.objects.create_user, ("ada", "bob", "ada.byron"))
    make_record(
        timedelta(days=3),
        key=f"{uuid5(NAMESPACE_URL, 'other')}",
        scope=f"user:auth.user:{other.pk}",
        path=f"/{RIDES}",
        route=f"/{RIDES}",
    )
    classes = "/api/v2/user/classes/0e0c5a2e-1f63-4d6e-8b6a-5f3f4f7a1c11/assignments"
    payments = "/api/v2/user/payments"
    made = "7d3b8a52-6a0e-4f0c-9a55-0d6f1c2b7a90"
    body = (
        b'{"$request":"5d0f4c1e-3f2b-4a57-9a55-0d6f1c2b7a90",'
        b'"$data":{"id":"7d3b8a52-6a0e-4f0c-9a55-0d6f1c2b7a90",'
        b'"title":"Essay on tides","due":"2026-12-01"}}'
    )
    declined = b'{"$errors":[{"code":"CARD_DECLINED","message":"No money left."}]}'
    for number in range(240):
        kind = number % 12
        place = classes if kind < 8 else payments
        location = [] if kind == 8 else [["Location", f"{place}/{made}"]]
        content_type = [] if kind == 10 else [["Content-Type", "application/json"]]
        created_at = timezone.now() - timedelta(hours=2.9 * number + 0.2)
        make_record(
            key=f"{uuid5(NAMESPACE_URL, str(number))}",
            scope=f"user:auth.user:{(ada if number % 3 else bob).pk}",
            path=place,
            route=route_of(place),
            created_at=created_at,
            completed_at=created_at + timedelta(milliseconds=9 + number * 37 % 61),
            fingerprint=fingerprint(number),
            status_code={8: 402, 9: 303}.get(kind, 201),
            body={8: declined, 10: None}.get(kind, body),
            headers=[*content_type, *location],
        )
    stuck = make_record(
        key=f"{uuid5(NAMESPACE_URL, 'stuck')}",
        scope=f"user:auth.user:{ada.pk}",
        path=f"/{INVOICES}",
        route=f"/{INVOICES}",
        fingerprint=fingerprint(-1),
        **abandoned(),
    )
    rides: dict[str, Any] = {
        **abandoned(),
        "scope": f"user:auth.user:{ada.pk}",
        "path": f"/{RIDES}",
        "route": f"/{RIDES}",
    }
    half_done = make_record(
        **rides,
        key=f"{uuid5(NAMESPACE_URL, 'half done')}",
        fingerprint=fingerprint(-2),
        steps=steps("order", "ride", "charge"),
    )
    in_doubt = make_record(
        **rides,
        key=f"{uuid5(NAMESPACE_URL, 'in doubt')}",
        fingerprint=fingerprint(-3),
        steps=steps("order", "ride", in_doubt="charge"),
    )
    record, tombstone = (
        IdempotencyRecord.objects.get(key=uuid5(NAMESPACE_URL, str(number)))
        for number in (1, 10)
    )
    log_in(*EVERYTHING)
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    here = browser.current_url
    pages = {
        "list": "",
        "caller": f"?caller=user:auth.user:{ada.pk}&status=4xx",
        "search": "?q=ada",
        "record": f"{record.pk}/change/",
        "tombstone": f"{tombstone.pk}/change/",
        "abandoned": f"{stuck.pk}/change/",
        "steps": f"{half_done.pk}/change/",
        "in-doubt": f"{in_doubt.pk}/change/",
        "call": f"{in_doubt.pk}/call/",
        "complete": f"{half_done.pk}/complete/",
        "release-steps": f"{half_done.pk}/release/",
        "release": f"{record.pk}/release/",
        "resolve": f"{stuck.pk}/resolve/",
        "overview": "overview/",
    }
    for theme in ("light", "dark"):
        if theme == "dark":
            use_dark_theme(browser)
        for name, page in pages.items():
            set_screen(browser, 1280, 800)
            browser.get(here + page)
            # The list goes on for pages; of others nothing is left out.
            whole = "return document.querySelector('#content').scrollHeight"
            if name != "list":
                set_screen(browser, 1280, browser.execute_script(whole) + 100)
            browser.save_screenshot(str(tmp_path / f"{name}-{theme}.png"))
            assert_fits(browser)
            assert_nothing_ran(browser)
            for width in (390, 360):
                set_screen(browser, width, 900)
                browser.get(here + page)
                if name != "list":
                    set_screen(browser, width, browser.execute_script(whole) + 200)
                browser.save_screenshot(str(tmp_path / f"{name}-{theme}-{width}.png"))
                assert browser.execute_script(CUT_OFF) == [], name
                assert_fits(browser)
    assert browser.execute_script(
        "return matchMedia('(prefers-color-scheme: dark)').matches"
    )
    if "PICTURES" in os.environ:
        for name in KEPT:
            shutil.copy(tmp_path / f"{name}.png", os.environ["PICTURES"])
