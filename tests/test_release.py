"""What a release says of itself, told in one place or the same in each."""

from __future__ import annotations

import re
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

import idempotency
from tests.processes import ROOT
from tests.test_docs import RULES

ENVIRONMENTS = {
    "py310-django52-drf316",
    "py311-django52-drf318",
    "py312-django60-drf318",
    "py313-django61-drf318",
}


def read(name: str) -> str:
    return Path(ROOT, name).read_text(encoding="utf-8")


def parsed(name: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read_string(read(name))
    return parser


def classified(name: str) -> list[str]:
    """Return the versions that the classifiers name after a word."""
    told = parsed("setup.cfg")["metadata"]["classifiers"]
    return re.findall(rf"^{name} :: ([\d.]+\d)$", told, re.MULTILINE)


def test_the_version_stands_in_one_place() -> None:
    """Metadata take it from the package, and the changelog is of the same one."""
    assert version("django-idempotency") == idempotency.__version__
    assert parsed("setup.cfg")["metadata"]["version"] == "attr: idempotency.__version__"
    for name in ("setup.cfg", "pyproject.toml", "tox.ini", "docs/conf.py"):
        own = rf"(?<![=<>~.\d]){re.escape(idempotency.__version__)}(?![.\d])"
        assert not re.search(own, read(name)), name
    changes = read("CHANGELOG.md")
    newest = re.search(r"^## (?:Unreleased / )?(\S+)", changes, re.MULTILINE)
    assert newest is not None
    assert newest[1] == idempotency.__version__


def test_the_environments_of_tox() -> None:
    """Each supported Python and Django, and the oldest and the newest DRF."""
    names = parsed("tox.ini")["tox"]["env_list"].split()
    assert len(names) == len(ENVIRONMENTS)
    assert {*names} == ENVIRONMENTS


@pytest.mark.parametrize(
    ("factor", "word"),
    [("py", "Programming Language :: Python"), ("django", "Framework :: Django")],
)
def test_classifiers(factor: str, word: str) -> None:
    """What the classifiers promise is what tox tries."""
    tried = {re.search(rf"\b{factor}(\d)(\d+)", name) for name in ENVIRONMENTS}
    versions = {f"{match[1]}.{match[2]}" for match in tried if match}
    assert {each for each in classified(word) if "." in each} == versions


def test_requirements() -> None:
    """The oldest versions that may be installed are the oldest that tox tries."""
    told = parsed("setup.cfg")["options"]
    requires = told["install_requires"].split()
    oldest = {
        factor: min((int(major), int(minor)) for major, minor in tried)
        for factor in ("py", "django", "drf")
        if (tried := re.findall(rf"\b{factor}(\d)(\d+)", " ".join(ENVIRONMENTS)))
    }
    assert told["python_requires"] == ">={}.{}".format(*oldest["py"])
    assert requires[0].startswith("django>={}.{},".format(*oldest["django"]))
    assert requires[1] == "djangorestframework>={}.{}".format(*oldest["drf"])


def test_oldest_versions_of_the_rest() -> None:
    """What else the app works with is tried as old as it may be, by the oldest tox."""
    told = parsed("setup.cfg")
    extras = told["options.extras_require"]
    wanted = [*told["options"]["install_requires"].split("\n"), extras["beat"]]
    wanted += [extras["openapi"]]
    allowed = dict(each.strip().split(">=") for each in wanted if each.strip())
    pinned = re.findall(
        r"^py310: ([\w-]+)>=([\d.]+),<",
        parsed("tox.ini")["testenv"]["deps"],
        re.MULTILINE,
    )
    others = {*allowed} - {"django", "djangorestframework"}
    assert dict(pinned) == {name: allowed[name] for name in others}
    assert {name for name in ENVIRONMENTS if "py310" in name} == {min(ENVIRONMENTS)}


def test_contributing() -> None:
    """Its commands are targets of make, its files are there, its rules are rules."""
    page = read("CONTRIBUTING.md")
    targets = re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE)
    named = re.findall(r"(?:`|\$ )make (\w+)", page)
    assert {"demo", "test", "check"} <= {*named} <= {*targets}
    for name in re.findall(r"`((?:tests|docs|idempotency)/[\w/.]+)`", page):
        assert Path(ROOT, name).exists(), name
    for _, name in re.findall(r"\[([^]]+)\]\(([^)#]+)[^)]*\)", page):
        assert Path(ROOT, name).exists(), name
    rules = re.findall(r"\b([A-Z]\d+)\b", page)
    assert rules
    assert {*rules} <= {*RULES}


def test_security_policy() -> None:
    """It names the versions that get fixes, and pages that are there."""
    page = read("SECURITY.md")
    minor = idempotency.__version__.rpartition(".")[0]
    assert f"| {minor} | yes |" in page
    for _, name in re.findall(r"\[([^]]+)\]\(([^)#]+)[^)]*\)", page):
        assert Path(ROOT, name).exists(), name
