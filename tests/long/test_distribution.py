"""What is uploaded: built, looked into, installed alone, tried, and type-checked.

``make dist`` leaves it in ``dist``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import pytest
from django.db import connection
from markdown_it import MarkdownIt

from tests.run_suites import NOT_INHERITED
from tests.support.minimal_project import (
    BY_CELERY,
    BY_CRON,
    Manage,
    assert_task_says_what_it_needs,
    assert_works,
    make_project,
)
from tests.support.processes import ROOT

pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="The project brings its own database."
)

MINUTES = 600
TYPED = Path(__file__).parent / "typed"
# Types of what the app stands on, as a project under strict rules has them.
STUBS = ("django-stubs", "djangorestframework-stubs")


def run(*command: str | Path, cwd: Path) -> str:
    """Run something as a user would, away from the clone; return what it says."""
    dropped = {*NOT_INHERITED, "PYTHONDEVMODE", "PYTHONPATH", "DEMO_VAR_DIR"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in dropped},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MINUTES,
        check=False,
    )
    assert done.returncode == 0, f"$ {' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the source archive, so that both are whole."""
    folder = Path(os.environ.get("DIST_DIR") or tmp_path_factory.mktemp("dist"))
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def make_environment(what: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment in which one thing was installed."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", what, cwd=folder.parent)
    return python


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment in which only the wheel was installed."""
    return make_environment(str(wheel), tmp_path_factory)


def test_index_would_take_them(dist: Path) -> None:
    """Metadata and description are as an index wants them."""
    files = sorted(dist.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=dist)


class Links(HTMLParser):
    """What a page links to or shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [told or "" for name, told in attrs if name in ("href", "src")]


def test_page_of_an_index(wheel: Path) -> None:
    """The built description and addresses lead to no file beside them."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = MarkdownIt().render(metadata.get_payload())
    assert "Idempotency keys for Django REST framework" in page
    addresses = [told.split(", ")[1] for told in metadata.get_all("Project-URL", [])]
    assert len(addresses) == 5
    for address in (*Links(page).found, *addresses):
        assert address.startswith("https://")


def test_what_it_needs(python: Path) -> None:
    """The wheel brings Django and Django REST framework, and what these bring."""
    told = run(python, "-m", "pip", "list", "--format=freeze", cwd=python.parent)
    names = {line.partition("==")[0].lower() for line in told.splitlines()}
    assert names - {"pip", "setuptools", "wheel"} == {
        *("django", "djangorestframework", "django-idempotency"),
        *("asgiref", "sqlparse"),
    }


def test_wheel(wheel: Path) -> None:
    """It has the package, whole, and nothing else."""
    own = {
        str(path.relative_to(ROOT))
        for path in Path(ROOT, "idempotency").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for kind in ("py.typed", "/templates/", "/static/", "/migrations/", "/commands/"):
        assert any(kind in name for name in own)
    names = {*zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if ".dist-info/" not in name} == own


def test_source_archive(dist: Path) -> None:
    """It has what tests, documents and tools need, and nothing that they made."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"),
        *("CODE_OF_CONDUCT.md", "DESCRIPTION.md", ".ci/run"),
        *(".github/workflows/ci.yml", ".github/ISSUE_TEMPLATE/bug.md"),
        *("SECURITY.md", "manage.py", "pyproject.toml", "setup.cfg", "tox.ini"),
        *("docs/index.md", "idempotency/py.typed", "tests/conftest.py"),
        *("testproject/settings.py", "benchmarks/__init__.py"),
    } <= names
    made = {"__pycache__", ".venv", ".tox", "var", "build", "dist"}
    assert not [name for name in names if made & {*name.split("/")}]


def manage_of(python: Path, folder: Path) -> Manage:
    """Return the manage.py of a new project, run by an environment's Python."""
    run(python, "-m", "django", "startproject", "shop", ".", cwd=folder)
    command = (python, "-W", "error", "manage.py")
    return lambda *arguments: run(*command, *arguments, cwd=folder)


def test_new_project(python: Path, tmp_path: Path) -> None:
    """P3: A new project with nothing but the wheel; Celery is not there."""
    manage = manage_of(python, tmp_path)
    make_project(manage, tmp_path, BY_CRON)
    assert_works(manage)
    assert_task_says_what_it_needs(manage)
    assert "admin.css" in manage("findstatic", "idempotency/admin.css")


def test_new_project_with_celery(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """P3: With the extra, the settings' schedule counts and the task is there."""
    python = make_environment(f"{wheel}[celery]", tmp_path_factory)
    manage = manage_of(python, tmp_path)
    make_project(manage, tmp_path, BY_CELERY)
    assert_works(manage)
    purge = "from idempotency.tasks import purge_expired_records as it; it.apply()"
    manage("shell", "--verbosity=0", "-c", f"{purge}; print(it.name)")


@pytest.fixture(scope="module")
def typed_python(
    python: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return it with types of Django, and a folder with the user's modules."""
    folder = tmp_path_factory.mktemp("typed")
    for module in ("user.py", "mistakes.py"):
        shutil.copy(TYPED / module, folder)
    stubs = [f"{name}=={version(name)}" for name in STUBS]
    run(python, "-m", "pip", "install", "--quiet", *stubs, cwd=folder)
    return python, folder


CHECKERS = {
    "mypy": "mypy --strict --python-executable {python} {module}",
    "pyright": "basedpyright --pythonpath {python} {module}",
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_types(checker: str, typed_python: tuple[Path, Path]) -> None:
    """A user's module is right under strict rules, and each mistake is found."""
    python, folder = typed_python
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')

    def command(module: str) -> list[str]:
        told = CHECKERS[checker].format(python=python, module=module)
        return [sys.executable, "-m", *told.split()]

    run(*command("user.py"), cwd=folder)
    done = subprocess.run(
        command("mistakes.py"), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    lines = (folder / "mistakes.py").read_text(encoding="utf-8").splitlines()
    wrong = {n for n, line in enumerate(lines, 1) if "# mistake:" in line}
    found = re.findall(r"mistakes\.py:(\d+):.*\berror:", done.stdout)
    assert {*map(int, found)} == wrong, done.stdout
