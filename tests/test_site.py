"""The documentation's site: built strictly, and whole without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from django.db import connection

from tests.test_docs import DOCUMENTS, ROOT

for needed in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(needed)
pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="One site will do."
)

# What a browser fetches without being asked to.
FETCHED = {"audio", "embed", "iframe", "img", "link", "object", "script", "source"}


class Page(HTMLParser):
    """What a page fetches, links to, can be linked at, and shows without words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.wordless: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        for name in ("src", "href", "data", "srcset"):
            if name in found:
                (self.fetched if tag in FETCHED else self.links).append(found[name])
        if tag == "img" and len(found.get("alt", "").split()) < 2:
            self.wordless.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as ``make docs`` does."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    command += ["-b", "html", "-d", str(place / "doctrees")]
    done = subprocess.run(
        [*command, ROOT / "docs", place / "html"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return place / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_document_is_a_page(pages: dict[Path, Page], site: Path) -> None:
    """Each document has its page, and each page its place in the contents."""
    contents = {*pages[site / "index.html"].links}
    for name in DOCUMENTS:
        if name.startswith("docs/") and name != "docs/index.md":
            page = f"{Path(name).stem}.html"
            assert site / page in pages
            assert page in contents


def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    """No page needs more than the site's own files: no script, font or picture."""
    for page in pages.values():
        for address in page.fetched:
            assert not urlsplit(address).netloc, f"{page.path.name}: {address}"
    for sheet in (*site.rglob("*.css"), *site.rglob("*.svg")):
        text = sheet.read_text(encoding="utf-8")
        fetched = re.findall(
            r"(?:@import\s*|url\()[\"']?((?:https?:)?//[^\"')]+)", text
        )
        assert fetched == [], sheet.name


def local(page: Page, address: str) -> tuple[Path, str] | None:
    """Return the file and the id that an address within the site means."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    target = page.path.parent / unquote(parts.path) if parts.path else page.path
    return target.resolve(), unquote(parts.fragment)


def addresses(pages: dict[Path, Page]) -> Iterator[tuple[Page, str]]:
    for page in pages.values():
        for address in (*page.links, *page.fetched):
            yield page, address


def test_links(pages: dict[Path, Page]) -> None:
    """Every link within the site leads to a file, and to a place on its page."""
    for page, address in addresses(pages):
        if found := local(page, address):
            path, fragment = found
            assert path.exists(), f"{page.path.name}: {address}"
            if fragment and path in pages:
                told = f"{page.path.name}: {address}"
                assert fragment in pages[path].ids, told


def test_pictures_have_words(pages: dict[Path, Page]) -> None:
    """Each picture has an alternative text."""
    for page in pages.values():
        assert page.wordless == [], page.path.name


def test_included_tables(site: Path) -> None:
    """The tables that stand in another document are on their pages, too."""
    for page, said in (
        ("codes.html", "idempotency_transaction_failed"),
        ("guarantees.html", "at least once; exactly once for a provider"),
        ("glossary.html", "the token that a client chose"),
        ("index.html", "What clients must do"),
    ):
        assert said in (site / page).read_text(encoding="utf-8")
