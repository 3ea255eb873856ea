"""The recipe for a whole URLconf."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from rest_framework.routers import DefaultRouter
from rest_framework.test import APIClient

from idempotency.audit import audit
from tests.support.recipe_modules import block
from tests.test_docs import run
from tests.test_routing import Notes, Serve, assert_acts_once, serve

pytestmark = pytest.mark.usefixtures("database")

__all__ = ["serve"]
HEADING = "A whole project"


def test_whole_project(client: APIClient, serve: Serve, monkeypatch: Any) -> None:
    """It protects what it says, and leaves out the rest."""
    pytest.importorskip("dj_rest_auth")
    router = DefaultRouter()
    router.register("notes", Notes, basename="note")
    package: Any = ModuleType("my_urls")
    package.router = router
    monkeypatch.setitem(sys.modules, "my_urls", package)
    source = block(HEADING, "urls.py")
    serve(*run(source)["urlpatterns"])
    via = {each.route.name: each.via for each in audit() if each.method == "POST"}
    assert via["note-list"] == via["rest_logout"] == "routing"
    assert via["note-search"] == via["rest_login"] == "exempt"
    assert_acts_once(client, "/api/notes/")
