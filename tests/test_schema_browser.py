"""The demo project's description of its API, as a client's developer reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import test_admin_browser as admin
from tests.support.processes import PATIENCE

pytestmark = [*admin.IN_A_BROWSER, pytest.mark.urls("testproject.urls")]
address, browser = admin.address, admin.browser

PAYMENT = "[id='operations-v2-v2_user_payments_create']"
CLASSES = "[id='operations-v2-v2_user_classes_list']"


def find(browser: Any, selector: str) -> Any:
    """Wait for a part of the page, which a script makes."""
    wait = admin.WebDriverWait(browser, PATIENCE)
    return wait.until(lambda new: new.find_element(admin.By.CSS_SELECTOR, selector))


def open_operation(browser: Any, operation: str) -> str:
    """Unfold an operation and return what it says."""

    def is_open(new: Any) -> bool:
        """Click until a click counts: the page's scripts may still be at work."""
        block = new.find_element(admin.By.CSS_SELECTOR, operation)
        if "is-open" not in block.get_attribute("class").split():
            block.find_element(admin.By.CLASS_NAME, "opblock-summary-control").click()
            return False
        return bool(block.find_elements(admin.By.CSS_SELECTOR, ".response"))

    find(browser, f"{operation} .opblock-summary-control")
    admin.WebDriverWait(browser, PATIENCE).until(is_open)
    text: str = find(browser, operation).text
    return text


def test_swagger_ui(browser: Any, address: str, tmp_path: Path) -> None:
    """Key and answers of a protected operation are there, and nothing from the net."""
    browser.set_window_size(1280, 3600)
    browser.get(f"{address}/api/docs")
    classes = open_operation(browser, CLASSES)
    assert "idempotency" not in classes.lower()
    find(browser, f"{CLASSES} .opblock-summary-control").click()
    payment = open_operation(browser, PAYMENT)
    browser.save_screenshot(str(tmp_path / "payment.png"))
    names = [
        row.get_attribute("data-param-name")
        for row in browser.find_elements(
            admin.By.CSS_SELECTOR, f"{PAYMENT} tr[data-param-name]"
        )
    ]
    assert names == ["$idempotency", "Idempotency-Key"]
    assert "Required in the query as" in payment
    for shown in (
        *("Idempotent-Replayed", "Idempotency-Expires", "Retry-After"),
        *("idempotency_key_required", "idempotency_in_progress"),
        *("idempotency_key_reused", "idempotency_transaction_failed"),
    ):
        assert shown in payment
    sources = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert any("swagger-ui-bundle.js" in source for source in sources)
    elsewhere = [source for source in sources if not source.startswith(address)]
    assert [source for source in elsewhere if not source.startswith("data:")] == []
    admin.assert_nothing_ran(browser)
