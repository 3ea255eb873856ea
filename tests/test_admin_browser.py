"""The admin in a real browser: found, read, downloaded, and nothing runs.

Each test leaves pictures of what it saw in its temporary directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.db import connection
from django.test.testcases import LiveServerThread

from idempotency.models import State
from testproject import settings as demo
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
        for link in browser.find_elements(By.CSS_SELECTOR, ".field-listed_key a")
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
    assert field(browser, "path").text == path
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
