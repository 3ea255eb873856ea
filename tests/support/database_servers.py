"""Database servers of the tests' own, that may be killed and started again.

A server that others use must stay up, so a test that kills one starts its own:

    with postgresql() as server:
        ...  # DATABASE_URL is server.url
        server.restart()

They listen on sockets in a temporary directory alone, and leave nothing behind.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import psycopg

from tests.support.available_services import first_line

DATABASE = "idempotency"
PATIENCE = 60
PAUSE = 0.02
LOG_END = 4000


class NotInstalled(Exception):
    """A database server that this machine does not have; the message says what."""


class DatabaseServer(ABC):
    """One server with one empty database, at ``url``, until it is killed."""

    name: str
    # Who runs it where the tests are run by root: the first of them that there is.
    users: Sequence[str]

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        self.directory = directory
        self.options = options
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.user = self._find_user()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """What DATABASE_URL has to be."""

    @property
    def pid(self) -> int:
        """The process of the server that runs."""
        assert self.process is not None
        return self.process.pid

    def create(self) -> None:
        """Make its files, start it, and make the database."""
        if self.user is not None:
            shutil.chown(self.directory, self.user)
        with self.log.open("ab") as log:
            status = self._run(self._creation(), log).wait(PATIENCE)
        assert status == 0, f"{self.name} can't be set up\n{self.end_of_log()}"
        self.start()
        with (
            closing(self._connect()) as connection,
            closing(connection.cursor()) as cursor,
        ):
            cursor.execute(f"CREATE DATABASE {DATABASE}")

    def start(self) -> None:
        """Start it, and return as soon as it answers."""
        assert self.process is None, "it runs already"
        with self.log.open("ab") as log:
            self.process = self._run(self._command(), log)
        give_up_at = time.monotonic() + PATIENCE
        while True:
            try:
                self._connect().close()
            except self._error() as error:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > give_up_at:
                    raise AssertionError(
                        f"{self.name} does not start: {first_line(error)}\n"
                        f"{self.end_of_log()}"
                    ) from error
                time.sleep(PAUSE)
            else:
                return

    def kill(self) -> None:
        """End it as a crash would: nothing is written any more, recovery follows."""
        self._end(self._crash_signal())

    def stop(self) -> None:
        """End it in order; open transactions are rolled back, connections closed."""
        self._end(self._stop_signal())

    def restart(self, *, hard: bool = True) -> None:
        """Kill it, or stop it in order, and start it again."""
        if hard:
            self.kill()
        else:
            self.stop()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None

    def end_of_log(self) -> str:
        """Return what the server said last."""
        return self.log.read_text(errors="replace")[-LOG_END:]

    def _run(self, command: Sequence[str | Path], log: Any) -> subprocess.Popen[bytes]:
        drop: dict[str, Any] = {}
        if self.user is not None:
            group = pwd.getpwnam(self.user).pw_gid
            drop = {"user": self.user, "group": group, "extra_groups": []}
        return subprocess.Popen(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **drop,
        )

    def _find_user(self) -> str | None:
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return next(user for user in (*self.users, "nobody", "root") if user in known)

    @abstractmethod
    def _creation(self) -> Sequence[str | Path]:
        """Return the command that makes the server's files."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Return the command that is the server."""

    @abstractmethod
    def _connect(self) -> Any:
        """Return a connection of the driver's, without Django."""

    @abstractmethod
    def _error(self) -> type[Exception]:
        """Return the base class of the driver's errors."""

    @abstractmethod
    def _crash_signal(self) -> signal.Signals: ...

    @abstractmethod
    def _stop_signal(self) -> signal.Signals: ...


class PostgreSQL(DatabaseServer):
    name = "PostgreSQL"
    users = ("postgres",)

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        super().__init__(directory, options)
        self.binaries = find_postgresql()

    @property
    def url(self) -> str:
        return f"postgres://postgres@{quote(str(self.directory), safe='')}/{DATABASE}"

    def _creation(self) -> Sequence[str | Path]:
        return [
            *(self.binaries / "initdb", "--pgdata", self.data, "--no-sync"),
            *("--username", "postgres", "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C"),
        ]

    def _command(self) -> Sequence[str | Path]:
        return [
            *(self.binaries / "postgres", "-D", self.data),
            *("-c", "listen_addresses="),
            # The server crashes here, the machine does not: what was written is there.
            *("-c", "fsync=off"),
            *("-c", f"unix_socket_directories={self.directory}"),
            *self.options,
        ]

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.directory),
            user="postgres",
            dbname="postgres",
            autocommit=True,
        )

    def _error(self) -> type[Exception]:
        return psycopg.Error

    def _crash_signal(self) -> signal.Signals:
        # An immediate shutdown. After a SIGKILL of the first process alone its
        # children would live on for a while, and keep another server from starting.
        return signal.SIGQUIT

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGINT


class MariaDB(DatabaseServer):
    name = "MariaDB"
    users = ("mysql",)

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        super().__init__(directory, options)
        self.server = find_program("mariadbd")
        self.installer = find_program("mariadb-install-db")
        self.socket = directory / "socket"

    @property
    def url(self) -> str:
        return f"mysql://root@{quote(str(self.socket), safe='')}/{DATABASE}"

    def _creation(self) -> Sequence[str | Path]:
        return [
            *(self.installer, "--no-defaults", f"--datadir={self.data}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
            *([f"--user={self.user}"] if self.user else []),
        ]

    def _command(self) -> Sequence[str | Path]:
        return [
            *(self.server, "--no-defaults", f"--datadir={self.data}"),
            *(f"--socket={self.socket}", f"--pid-file={self.directory / 'pid'}"),
            *("--skip-networking", "--character-set-server=utf8mb4"),
            # A server that starts removes what others have in the same directory.
            f"--tmpdir={self.directory}",
            *([f"--user={self.user}"] if self.user else []),
            *self.options,
        ]

    def _connect(self) -> Any:
        import MySQLdb  # noqa: PLC0415  # an extra

        return MySQLdb.connect(unix_socket=str(self.socket), user="root")

    def _error(self) -> type[Exception]:
        import MySQLdb  # noqa: PLC0415  # an extra

        error: type[Exception] = MySQLdb.Error
        return error

    def _crash_signal(self) -> signal.Signals:
        return signal.SIGKILL

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGTERM


@contextmanager
def postgresql(*options: str) -> Iterator[DatabaseServer]:
    """Run a PostgreSQL for the block, with more of its command line's options.

    Raises ``NotInstalled`` where there is none to run.
    """
    with _running(PostgreSQL, options) as server:
        yield server


@contextmanager
def mariadb(*options: str) -> Iterator[DatabaseServer]:
    """Run a MariaDB for the block, with more of its command line's options.

    Raises ``NotInstalled`` where there is none to run.
    """
    try:
        import MySQLdb  # noqa: F401, PLC0415  # an extra
    except ImportError as error:
        raise NotInstalled("mysqlclient is not installed") from error
    with _running(MariaDB, options) as server:
        yield server


@contextmanager
def _running(
    kind: type[DatabaseServer], options: Sequence[str]
) -> Iterator[DatabaseServer]:
    with TemporaryDirectory(prefix="idem") as directory:
        server = kind(Path(directory), options)
        try:
            server.create()
            yield server
        finally:
            server.kill()


def find_postgresql() -> Path:
    """Return the folder of PostgreSQL's programs, which Debian keeps out of PATH."""
    found = []
    if shutil.which("pg_config"):
        command = ["pg_config", "--bindir"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        found.append(Path(told.stdout.strip()))
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    found += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NotInstalled("There is no initdb: PostgreSQL's server is not installed")


def find_program(name: str) -> str:
    """Return a program, also from where only root has its PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise NotInstalled(f"There is no {name}: MariaDB's server is not installed")
    return found
