"""Links that a handler makes of its request's URL, without the key in it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework import pagination
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency.decorators import idempotent
from idempotency.keys import find_raw, query_pairs
from idempotency.links import without_key
from tests.app.models import Effect
from tests.conftest import KEY, code_of
from tests.support.recipe_modules import serve


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/a/?$idempotency=k", "/a/"),
        ("/a/?%24idempotency=k", "/a/"),
        ("/a/?%24%69dempotency", "/a/"),
        ("/a/?page=2&$idempotency=k&q=%C3%a9+&&b", "/a/?page=2&q=%C3%a9+&&b"),
        ("/a/?$idempotency=k&$idempotency=k#$idempotency=k", "/a/#$idempotency=k"),
        ("https://example.com?$idempotency=k&a=?", "https://example.com?a=?"),
        # Without a key nothing is touched, not even what is odd.
        ("/a/", "/a/"),
        ("/a/?", "/a/?"),
        ("/a/#?$idempotency=k", "/a/#?$idempotency=k"),
        ("/a/?q=$idempotency&idempotency=b", "/a/?q=$idempotency&idempotency=b"),
        ("/$idempotency=k/?a=%FF", "/$idempotency=k/?a=%FF"),
        ("", ""),
        (None, None),
    ],
)
def test_without_key(url: str | None, expected: str | None) -> None:
    """K1: The key is taken out; what else the URL says stays as it is written."""
    assert without_key(url) == expected


def test_name_of_the_settings(settings: Any) -> None:
    """K1: The setting names the parameter; without one nothing is removed."""
    settings.IDEMPOTENCY = {"QUERY_PARAM": "key"}
    assert without_key("/?key=a&$idempotency=b") == "/?$idempotency=b"
    settings.IDEMPOTENCY = {"QUERY_PARAM": None}
    assert without_key("/?key=a&$idempotency=b") == "/?key=a&$idempotency=b"


@given(
    st.lists(
        st.tuples(st.sampled_from(["$idempotency", "page", ""]) | st.text(), st.text())
    )
)
def test_the_app_finds_no_key_in_it(pairs: list[tuple[str, str]]) -> None:
    """K1, F1: No key is left, and every other pair is, in its order."""
    before = {"QUERY_STRING": urlencode(pairs, errors="replace")}
    _, _, query = without_key(f"/?{before['QUERY_STRING']}").partition("?")
    after = {"QUERY_STRING": query}
    assert find_raw(after) == ([], None)
    assert query_pairs(after) == [
        pair for pair in query_pairs(before) if pair[0] != "$idempotency"
    ]


class Pages:
    """Has a page of two, and looks for the parameter that each class has."""

    page_size = default_limit = 2
    ordering = "pk"


class WithoutKey:
    def get_next_link(self) -> str | None:
        return without_key(super().get_next_link())  # type: ignore[misc]  # of the class


PAGINATIONS: list[Any] = [
    pagination.PageNumberPagination,
    pagination.LimitOffsetPagination,
    pagination.CursorPagination,
]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("base", PAGINATIONS)
def test_pagination(client: APIClient, settings: Any, base: Any) -> None:
    """F4: Posting to a next link is refused with the key in it, and works without."""

    def search_with(*bases: Any) -> Any:
        @api_view(["POST"])
        @idempotent
        def search(request: Request) -> Response:
            pages = type("Pagination", (*bases, Pages, base), {})()
            found = pages.paginate_queryset(Effect.objects.order_by("pk"), request)
            return pages.get_paginated_response([effect.note for effect in found])

        return search

    serve(settings, plain=search_with(), mended=search_with(WithoutKey))
    Effect.objects.bulk_create(Effect(note=str(n)) for n in range(3))

    first = client.post(f"/plain/?$idempotency={KEY}&q=a")
    refused = client.post(first.json()["next"])
    assert (refused.status_code, code_of(refused)) == (422, "idempotency_key_reused")

    first = client.post(f"/mended/?$idempotency=other-{KEY}&q=a")
    assert first.json()["results"] == ["0", "1"]
    assert KEY not in first.json()["next"]
    assert "q=a" in first.json()["next"]
    for value in (f"second-{KEY}", f"third-{KEY}"):
        second = client.post(f"{first.json()['next']}&$idempotency={value}")
        assert second.json()["results"] == ["2"]
        assert "Idempotent-Replayed" not in second.headers
