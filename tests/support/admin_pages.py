"""The admin's pages: who may open them, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.test import Client

from idempotency.models import IdempotencyRecord
from testproject import settings as demo

LIST = "/admin/idempotency/idempotencyrecord/"
VIEW = "view_idempotencyrecord"
SEE_BODY = "view_response_body"
RELEASE, RESOLVE, PURGE = "release_key", "resolve_record", "purge_records"
OVERVIEW, ERASE = "view_overview", "erase_records"
EVERYTHING = (VIEW, SEE_BODY, RELEASE, RESOLVE, PURGE, OVERVIEW, ERASE)
NO_PERMISSION = "You do not have permission to view stored responses."

Enter = Callable[..., Client]


class Page(HTMLParser):
    """A page as a browser understands it."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        assert response.status_code == 200
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = ""
        self.text = ""
        self.cells: list[str] = []
        self.is_in_list = False
        self.feed(response.content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if dict(attrs).get("id") == "result_list":
            self.is_in_list = True
        elif self.is_in_list and tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.is_in_list = False

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.scripts += data
            return
        self.text += data
        if self.is_in_list and self.cells:
            self.cells[-1] += data.strip()

    def links(self, word: str) -> list[str]:
        """Return the addresses of links that contain a word."""
        found = [str(attrs.get("href")) for tag, attrs in self.elements if tag == "a"]
        return [address for address in found if word in address]

    def is_harmless(self) -> bool:
        """Tell that nothing that a record says has become markup."""
        attributes = [pair for _tag, attrs in self.elements for pair in attrs.items()]
        return "window.ran" not in self.scripts and not any(
            name.startswith("on") or value == "x" for name, value in attributes
        )


@pytest.fixture
def enter(settings: Any, request: pytest.FixtureRequest) -> Iterator[Enter]:
    """Return a way in for a member of staff with the permissions that are named.

    After a test with real commits, clean up what staff has left.
    """
    settings.MIDDLEWARE = demo.MIDDLEWARE

    def log_in(*permissions: str, **fields: Any) -> Client:
        user = User.objects.create(username=str(uuid4()), is_staff=True, **fields)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client()
        client.force_login(user)
        return client

    yield log_in
    if "database" in request.fixturenames:
        for model in (LogEntry, Session, User):
            model.objects.all().delete()


@pytest.fixture
def staff(enter: Enter) -> Client:
    """Return a client that may see everything."""
    return enter(VIEW, SEE_BODY, OVERVIEW)


def address(record: IdempotencyRecord, page: str = "change") -> str:
    return f"{LIST}{record.pk}/{page}/"


def listed(client: Client, query: str = "", **data: Any) -> list[str]:
    """Return the keys on the list's page, in its order."""
    response = client.get(LIST + query, data)
    assert response.status_code == 200
    return [record.key for record in response.context["cl"].result_list]
