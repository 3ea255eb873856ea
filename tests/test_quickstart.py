"""The quick start, line by line, in a project that is made on the way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from django.db import connection

from tests.run_suites import NOT_INHERITED
from tests.support.processes import PATIENCE, wait_until
from tests.test_docs import DOCUMENTS

pytestmark = [
    pytest.mark.skipif(
        connection.vendor != "sqlite", reason="The project brings its own database."
    ),
    pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed."),
]

PAGE = DOCUMENTS["docs/quickstart.md"]
# The tests' own environment has what these would install.
NOT_RUN = {
    "python3 -m venv env",
    ". env/bin/activate",
    ". ../env/bin/activate",
    "python -m pip install './django-idempotency[celery]'",
}
# These go on until somebody ends them; each says this when it is there.
STAYING = {"python manage.py runserver": None, "celery": "ready."}


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    with closing(socket.socket()) as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def steps() -> Iterator[tuple[str, str]]:
    """Yield each file as its first line names it, and each command, with what follows.

    What follows a file's name is its content; what follows a command is its output.
    """
    for language, code in re.findall(
        r"^```(console|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            name, _, content = code.partition("\n")
            yield name, content
        else:
            for told in re.split(r"^(?=\$ )", code, flags=re.MULTILINE):
                if told:
                    command, _, output = told.partition("\n")
                    yield command, output


class Reader:
    """Somebody who does what the page says."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        # Where a new terminal is, and where this one is by now.
        self.terminal = self.folder = folder
        self.stack = stack
        self.port = free_port()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        # A broker that needs no server, in the place of the one that a reader has.
        self.environment = {**kept, "PATH": path, "CELERY_BROKER_URL": "filesystem://"}

    def do(self, what: str, following: str) -> None:
        if what.startswith("# "):
            self.write(*what.removeprefix("# ").split(", ", 1), content=following)
            return
        command = what.removeprefix("$ ")
        if command in NOT_RUN:
            return
        if command.startswith("cd "):
            self.folder = self.terminal / command.removeprefix("cd ")
        elif any(command.startswith(name) for name in STAYING):
            self.start(command)
        else:
            self.run(command, following)

    def write(self, name: str, where: str = "", *, content: str) -> None:
        path = self.folder / name
        assert path.parent.is_dir()
        assert where in ("", "at the end")
        before = path.read_text(encoding="utf-8") if where else ""
        path.write_text(before + content, encoding="utf-8")

    def run(self, command: str, output: str) -> None:
        """Run a command; the lines that the page shows come, in their order."""
        done = subprocess.run(
            command.replace(":8000", f":{self.port}"),
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        told = f"$ {command}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, told
        # Python 3.13 has the newer name of the status.
        named = told.replace("Unprocessable Content", "Unprocessable Entity")
        lines = iter(named.splitlines())
        for wanted in output.splitlines():
            assert wanted == "..." or wanted in (line.rstrip() for line in lines), told

    def start(self, command: str) -> None:
        program, *_arguments = command.split()
        log = self.folder / f"{program}.log"
        if command.startswith("celery"):
            for name in ("control", "data_in", "data_out"):
                (self.folder / name).mkdir()
        else:
            command += f" 127.0.0.1:{self.port} --noreload"
        self.stack.enter_context(self.staying(command, log))
        said = STAYING.get(program)
        wait_until(
            lambda: (
                said in log.read_text(errors="replace")
                if said
                else is_listening(self.port)
            ),
            command,
            {command: log},
        )

    @contextmanager
    def staying(self, command: str, log: Path) -> Iterator[None]:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command.split(),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_every_line(tmp_path: Path) -> None:
    """P3, X2: A new user gets what the page says, and Beat has the purge's entry."""
    with ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        for what, following in steps():
            reader.do(what, following)
    log = (tmp_path / "shop" / "celery.log").read_text(errors="replace")
    assert "idempotency.tasks.purge_expired_records" in log
    assert "beat: Starting..." in log


def test_what_is_not_run_is_there() -> None:
    """The page has the lines that this test leaves out."""
    assert {f"$ {command}" for command in NOT_RUN} <= {what for what, _ in steps()}
