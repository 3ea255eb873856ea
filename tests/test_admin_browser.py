"""The admin in a real browser: found, read, downloaded, and nothing runs.

Each test leaves pictures of what it saw in its temporary directory.
"""

from __future__ import annotations

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
from django.utils import timezone
from rest_framework.test import APIClient

from idempotency.models import IdempotencyRecord, State
from testproject import settings as demo
from tests.app.models import Effect
from tests.conftest import key
from tests.processes import PATIENCE, wait_until
from tests.records import ANSWERS, MARKUP, make_answer, make_record, make_records

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed."
    ),
    # What the pages read from each database is for tests/test_admin.py.
    pytest.mark.skipif(connection.vendor != "sqlite", reason="One database will do."),
]
webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
WebDriverException = pytest.importorskip(
    "selenium.common.exceptions"
).WebDriverException

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
KEPT = ("list-light", "record-light", "abandoned-light", "overview-light", "list-dark")
EVERYTHING = (
    "view_idempotencyrecord",
    "view_response_body",
    "release_key",
    "resolve_record",
    "purge_records",
    "view_user",
)
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


def assert_fits(browser: Any) -> None:
    """Check that nobody has to scroll sideways, in the page or in the list."""
    assert browser.execute_script(
        "return ['html', '.results']"
        ".map(place => document.querySelector(place))"
        ".every(part => !part || part.scrollWidth <= part.clientWidth)"
    )


def test_support(browser: Any, log_in: Login, tmp_path: Path) -> None:
    """A1: Log in, find a client's key, read the answer, take the whole of it home."""
    make_records(30, timedelta(days=2))
    asked = "3c0a9f0e-6a3a-4b86-9d5e-2f1f7b0f8f11"
    path = "/api/v2/user/classes/0e0c5a2e-1f63-4d6e-8b6a-5f3f4f7a1c11/assignments"
    make_answer("json", key=asked, path=path)
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
    assert field(browser, "asked").text == f"POST {path}"
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


def test_without_permission(browser: Any, log_in: Login, tmp_path: Path) -> None:
    """A1: Who may see records and not answers is told so where the answer would be."""
    make_answer("json", key="asked-for")
    log_in("view_idempotencyrecord")
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    follow(browser, browser.find_element(By.LINK_TEXT, "asked-for"))
    browser.save_screenshot(str(tmp_path / "record.png"))
    assert field(browser, "hidden_answer").text == (
        "You do not have the permission to read stored answers."
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
    for field_name in ("body", "body_size", "status_code", "headers", "completed_at"):
        setattr(record, field_name, None)
    record.state = State.ABANDONED
    record.lease_expires_at = timezone.now() - timedelta(minutes=3)
    record.save()
    return record


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
    assert "gets this answer again" in field(browser, "next_request").text
    retry = client.post("/function/", {"amount": 12}, **key("pay-7c1f0b52"))
    assert (retry.status_code, retry.json()) == (201, {"charge": "ch_1"})
    follow(browser, browser.find_element(By.LINK_TEXT, "RELEASE"))
    assert "will act again" in browser.find_element(By.ID, "content").text
    follow(browser, browser.find_element(By.LINK_TEXT, "No, take me back"))
    assert IdempotencyRecord.objects.count() == 1
    follow(browser, browser.find_element(By.LINK_TEXT, "RELEASE"))
    submit(browser)
    assert not IdempotencyRecord.objects.exists()
    assert Effect.objects.count() == 1
    again = client.post("/function/", {"amount": 12}, **key("pay-7c1f0b52"))
    assert "Idempotent-Replayed" not in again
    assert Effect.objects.count() == 2
    assert_nothing_ran(browser)


def test_without_a_mouse(browser: Any, log_in: Login, client: APIClient) -> None:
    """A3: Everything that a page offers can be reached and used with the keyboard."""
    make_abandoned_payment(client)
    log_in(*EVERYTHING)
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    reached = set()
    for _tab in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.switch_to.active_element.text)
    assert {"Overview".upper(), "PURGE EXPIRED NOW", "pay-7c1f0b52"} <= reached


def test_pictures(
    browser: Any, log_in: Login, client: APIClient, tmp_path: Path
) -> None:
    """A1, A4: List, record and overview in both themes and on a narrow screen."""
    user = User.objects.create_user("ada")
    scope = f"user:auth.user:{user.pk}"
    classes = "/api/v2/user/classes/0e0c5a2e-1f63-4d6e-8b6a-5f3f4f7a1c11/assignments"
    body = (
        b'{"$request":"5d0f4c1e-3f2b-4a57-9a55-0d6f1c2b7a90",'
        b'"$data":{"id":"b6f2","title":"Essay on tides","due":"2026-12-01"}}'
    )
    for number in range(240):
        kind = number % 12
        make_record(
            timedelta(hours=2.9 * number + 0.2),
            key=f"{uuid5(NAMESPACE_URL, str(number))}",
            scope=scope if number % 3 else "user:auth.user:0",
            path=classes if kind < 8 else "/api/v2/user/payments",
            status_code={8: 402, 9: 303}.get(kind, 201),
            body=None if kind == 10 else body,
            headers=[
                ["Content-Type", "application/json"],
                ["Location", f"{classes}/b6f2"],
            ],
        )
    make_abandoned_payment(client)
    asked = str(uuid5(NAMESPACE_URL, "0"))
    log_in(*EVERYTHING)
    follow(browser, browser.find_element(By.LINK_TEXT, "Idempotency records"))
    here = browser.current_url
    record = IdempotencyRecord.objects.get(key=asked)
    stuck = IdempotencyRecord.objects.get(key="pay-7c1f0b52")
    pages = {
        "list": "",
        "record": f"{record.pk}/change/",
        "abandoned": f"{stuck.pk}/change/",
        "release": f"{stuck.pk}/release/",
        "resolve": f"{stuck.pk}/resolve/",
        "overview": "overview/",
    }
    for theme in ("light", "dark"):
        if theme == "dark":
            use_dark_theme(browser)
        for name, page in pages.items():
            browser.get(here + page)
            browser.save_screenshot(str(tmp_path / f"{name}-{theme}.png"))
            assert_fits(browser)
            assert_nothing_ran(browser)
    assert browser.execute_script(
        "return matchMedia('(prefers-color-scheme: dark)').matches"
    )
    browser.set_window_size(420, 900)
    for name, page in pages.items():
        browser.get(here + page)
        browser.save_screenshot(str(tmp_path / f"{name}-narrow.png"))
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= window.innerWidth"
        ), name
    if "PICTURES" in os.environ:
        for name in KEPT:
            shutil.copy(tmp_path / f"{name}.png", os.environ["PICTURES"])
