"""Somebody who does what a page says, line by line, in a project of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.run_suites import NOT_INHERITED
from tests.support.processes import PATIENCE, ROOT, wait_until

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


def steps(page: str) -> Iterator[tuple[str, str]]:
    """Yield each file as its first line names it, and each command, with what follows.

    What follows a file's name is its content, or what changes in it; what follows a
    command is its output.
    """
    for language, code in re.findall(
        r"^```(console|python|diff)\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    ):
        if language == "console":
            for told in re.split(r"^(?=\$ )", code, flags=re.MULTILINE):
                if told:
                    command, _, output = told.partition("\n")
                    yield command, output
        else:
            name, _, content = code.partition("\n")
            yield name, content


class Reader:
    """Somebody who does what a page says."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        not_run: Collection[str],
        **variables: str,
    ) -> None:
        # Where a new terminal is, and where this one is by now.
        self.terminal = self.folder = folder
        self.stack = stack
        self.not_run = not_run
        self.port = free_port()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        # A broker that needs no server, in the place of the one that a reader has.
        broker = {"CELERY_BROKER_URL": "filesystem://"}
        found = {"PATH": path, "PYTHONPATH": str(ROOT)}
        self.environment = {**kept, **found, **broker, **variables}

    def read(self, page: str) -> None:
        """Do all that the page says."""
        for what, following in steps(page):
            self.do(what, following)

    def do(self, what: str, following: str) -> None:
        if what.startswith("# "):
            self.write(*what.removeprefix("# ").split(", ", 1), content=following)
            return
        if what.startswith("--- "):
            self.change(what.removeprefix("--- "), following)
            return
        command = what.removeprefix("$ ")
        if command in self.not_run:
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

    def change(self, name: str, lines: str) -> None:
        """Change a file as a diff says, whose parts begin with ``@@``."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        for part in lines.split("@@\n"):
            old, new = (
                "".join(
                    line[1:] or "\n"
                    for line in part.splitlines(True)
                    if line[0] in kept
                )
                for kept in (" -\n", " +\n")
            )
            assert text.count(old) == 1, f"{name} has not once:\n{old}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    def run(self, command: str, output: str = "", status: int = 0) -> str:
        """Run a command; the lines that the page shows come, in their order.

        Return its output, errors last.
        """
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
        assert done.returncode == status, told
        # Python 3.13 has the newer name of the status.
        named = told.replace("Unprocessable Content", "Unprocessable Entity")
        lines = iter(named.splitlines())
        for wanted in output.splitlines():
            assert wanted == "..." or wanted in (line.rstrip() for line in lines), told
        return done.stdout + done.stderr

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
