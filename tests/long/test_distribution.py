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
from importlib.metadata import version
from pathlib import Path

import pytest
from django.db import connection

from tests.processes import ROOT
from tests.run_suites import NOT_INHERITED

pytestmark = pytest.mark.skipif(
    connection.vendor != "sqlite", reason="The project brings its own database."
)

MINUTES = 600
TYPED = Path(__file__).parent / "typed"
# Types of what the app stands on, as a project under strict rules has them.
STUBS = ("django-stubs", "djangorestframework-stubs")

SETTINGS = """
from idempotency.schedules import BEAT_SCHEDULE

INSTALLED_APPS += ["rest_framework", "idempotency"]
MIDDLEWARE += ["idempotency.middleware.IdempotencyMiddleware"]
CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE}
DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}
ALLOWED_HOSTS = ["testserver"]
"""
URLS = """
from uuid import uuid4

from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.response import Response

from idempotency.decorators import idempotent


@api_view(["POST"])
@idempotent
def make_group(request):
    group = Group.objects.create(name=str(uuid4()))
    return Response({"name": group.name}, status=201)


urlpatterns = [path("admin/", admin.site.urls), path("groups", make_group)]
"""
POST = """
from django.contrib.auth.models import Group
from django.test import Client

headers = {"Idempotency-Key": "RfOScIg0JwGS5M7MPS6vCvGlDKkbj3Qc"}
response = Client().post("/groups", {}, headers=headers)
told = response.headers.get("Idempotent-Replayed"), response.content
print(response.status_code, *told, Group.objects.count())
"""
ADMIN = """
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from idempotency.models import IdempotencyRecord

client = Client()
client.force_login(User.objects.create_superuser("root"))
admin = "admin:idempotency_idempotencyrecord_"
record = IdempotencyRecord.objects.get()
for name, args in (("changelist", []), ("change", [record.pk])):
    print(client.get(reverse(admin + name, args=args)).status_code)
"""


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


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment in which only the wheel was installed."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=folder.parent)
    return python


def test_index_would_take_them(dist: Path) -> None:
    """Metadata and description are as an index wants them."""
    files = sorted(dist.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=dist)


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
        *("SECURITY.md", "manage.py", "pyproject.toml", "setup.cfg", "tox.ini"),
        *("docs/index.md", "idempotency/py.typed", "tests/conftest.py"),
        *("testproject/settings.py", "benchmarks/__init__.py"),
    } <= names
    made = {"__pycache__", ".venv", ".tox", "var", "build", "dist"}
    assert not [name for name in names if made & {*name.split("/")}]


def test_new_project(python: Path, tmp_path: Path) -> None:
    """A new project with nothing but the wheel: one effect, the same bytes again."""
    run(python, "-m", "django", "startproject", "shop", ".", cwd=tmp_path)
    with (tmp_path / "shop" / "settings.py").open("a", encoding="utf-8") as settings:
        settings.write(SETTINGS)
    (tmp_path / "shop" / "urls.py").write_text(URLS, encoding="utf-8")

    def manage(*arguments: str) -> str:
        return run(python, "-W", "error", "manage.py", *arguments, cwd=tmp_path)

    manage("check", "--fail-level", "WARNING")
    manage("migrate")
    manage("makemigrations", "--check", "--dry-run")
    first, second = (manage("shell", "--verbosity=0", "-c", POST) for _ in range(2))
    match = re.fullmatch(r"201 None (b'.+') 1\n", first)
    assert match is not None, first
    assert second == f"201 true {match[1]} 1\n"
    assert manage("shell", "--verbosity=0", "-c", ADMIN) == "200\n200\n"
    assert "admin.css" in manage("findstatic", "idempotency/admin.css")
    manage("purge_idempotency_records")
    manage("idempotency_audit", "--fail-unprotected", "--exclude", "/admin/*")


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
