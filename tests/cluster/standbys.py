"""A PostgreSQL primary, a synchronous and an asynchronous standby, and PgBouncer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from tests.cluster.ports import LOOPBACK, free_ports
from tests.support.database_servers import (
    DATABASE,
    PATIENCE,
    NotInstalled,
    PostgreSQL,
)

SYNCHRONOUS, ASYNCHRONOUS = "synchronous", "asynchronous"
CONSOLE = "pgbouncer"


class Server(PostgreSQL):
    """A primary, or a standby of one."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory)
        self.own_name = name
        (self.port,) = free_ports(1)

    def follow(self, primary: Server) -> None:
        """Copy the primary's files, and start as its standby."""
        if self.user is not None:
            shutil.chown(self.directory, self.user)
        with self.log.open("ab") as log:
            copying = [
                *(self.binaries / "pg_basebackup", "--pgdata", self.data),
                *("--host", LOOPBACK, "--port", str(primary.port)),
                *("--username", "postgres", "--write-recovery-conf"),
                *("--checkpoint", "fast", "--wal-method", "stream", "--no-sync"),
            ]
            status = self._run(copying, log).wait(PATIENCE)
        assert status == 0, f"No copy of the primary\n{self.end_of_log()}"
        self.start()

    def promote(self) -> None:
        """Make a standby the primary."""
        self.execute("SELECT pg_promote(true, 60)")

    def crash(self) -> None:
        """Kill every process at once, as the end of the machine would."""
        children = children_of(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.kill()

    def silence(self, standby: str) -> None:
        """Let what is committed from now on never get to a standby."""
        rows = self.execute(
            f"SELECT pid FROM pg_stat_replication WHERE application_name = '{standby}'"
        )
        for (pid,) in rows:
            os.kill(pid, signal.SIGSTOP)

    def streams_to(self) -> set[str]:
        """Return the standbys that get what is committed."""
        rows = self.execute(
            "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
        )
        return {name for (name,) in rows}

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own."""
        with closing(self._connect()) as connection:
            cursor = connection.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def _command(self) -> Sequence[str | Path]:
        usual = [
            f"listen_addresses={LOOPBACK}" if part == "listen_addresses=" else part
            for part in super()._command()
        ]
        # The cluster's name is what a standby tells the primary as its own.
        return [
            *usual,
            *("-c", f"port={self.port}", "-c", f"cluster_name={self.own_name}"),
            *("-c", "max_connections=300", "-c", "deadlock_timeout=100ms"),
        ]

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=LOOPBACK,
            port=self.port,
            user="postgres",
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )


class PgBouncer:
    """A PgBouncer in transaction mode in front of whoever is the primary."""

    def __init__(self, directory: Path, user: str | None) -> None:
        program = shutil.which(
            "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"
        )
        if program is None:
            raise NotInstalled("pgbouncer: not installed: apt-get install pgbouncer")
        self.program = program
        self.directory = directory
        self.config = directory / "pgbouncer.ini"
        self.user = user
        (self.port,) = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, primary: Server) -> None:
        """Start in front of a primary."""
        self._write(primary)
        if self.user is not None:
            shutil.chown(self.directory, self.user)
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [self.program, str(self.config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=self.user,
            )
        give_up_at = time.monotonic() + PATIENCE
        while True:
            try:
                self._tell("SHOW VERSION")
            except psycopg.OperationalError:
                assert time.monotonic() < give_up_at, (
                    self.directory / "log"
                ).read_text()
                time.sleep(0.05)
            else:
                return

    def point_to(self, primary: Server) -> None:
        """Go to another primary from now on."""
        self._write(primary)
        self._tell("RELOAD")

    def end(self) -> None:
        """Stop."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _tell(self, command: str) -> None:
        with closing(
            psycopg.connect(
                host=LOOPBACK, port=self.port, user="console", dbname=CONSOLE
            )
        ) as console:
            console.autocommit = True
            # The console knows simple queries only.
            psycopg.ClientCursor(console).execute(command)

    def _write(self, primary: Server) -> None:
        address = f"host={LOOPBACK} port={primary.port} user=postgres"
        lines = [
            "[pgbouncer]",
            f"listen_addr = {LOOPBACK}",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "pool_mode = transaction",
            "auth_type = any",
            "admin_users = console",
            "default_pool_size = 30",
            "max_client_conn = 500",
            "server_login_retry = 1",
            "ignore_startup_parameters = extra_float_digits,options",
            "[databases]",
            f"* = {address}",
        ]
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.config.chmod(0o644)


class Standbys:
    """A primary, its standbys and the ways to them."""

    def __init__(self, servers: dict[str, Server], bouncer: PgBouncer | None) -> None:
        self.servers = servers
        self.bouncer = bouncer

    @property
    def primary(self) -> Server:
        """Whoever was the first primary."""
        return self.servers["primary"]

    def fail_over(self, standby: str, *, after: float) -> None:
        """Kill the primary, and after a time promote a standby."""
        self.primary.crash()
        time.sleep(after)
        self.servers[standby].promote()
        if self.bouncer is not None:
            self.bouncer.point_to(self.servers[standby])

    def settings(self, route: str = "hosts", **more: Any) -> dict[str, Any]:
        """Return Django's settings for a connection to whoever is the primary."""
        if route == "hosts":
            servers = [*self.servers.values()]
            host = ",".join(LOOPBACK for _ in servers)
            port = ",".join(str(server.port) for server in servers)
            options = {"target_session_attrs": "read-write", "connect_timeout": 5}
        else:
            assert self.bouncer is not None
            host, port, options = LOOPBACK, str(self.bouncer.port), {}
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": DATABASE,
            "USER": "postgres",
            "HOST": host,
            "PORT": port,
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
            "DISABLE_SERVER_SIDE_CURSORS": route != "hosts",
            "ATOMIC_REQUESTS": False,
            **more,
            "OPTIONS": {**options, **more.get("OPTIONS", {})},
        }


@contextmanager
def standbys() -> Iterator[Standbys]:
    """Run all servers for the block. Raise ``NotInstalled`` without PostgreSQL."""
    with TemporaryDirectory(prefix="idem") as folder:
        Path(folder).chmod(0o755)
        servers = {}
        for name in ("primary", SYNCHRONOUS, ASYNCHRONOUS):
            directory = Path(folder, name)
            directory.mkdir()
            servers[name] = Server(directory, name)
        primary = servers["primary"]
        bouncer = None
        try:
            primary.create()
            for name in (SYNCHRONOUS, ASYNCHRONOUS):
                servers[name].follow(primary)
            wait_until_streaming(primary)
            primary.execute(
                f"ALTER SYSTEM SET synchronous_standby_names = '{SYNCHRONOUS}'"
            )
            primary.execute("SELECT pg_reload_conf()")
            with suppress(NotInstalled):
                directory = Path(folder, "pgbouncer")
                directory.mkdir()
                bouncer = PgBouncer(directory, primary.user)
                bouncer.start(primary)
            yield Standbys(servers, bouncer)
        finally:
            if bouncer is not None:
                bouncer.end()
            for server in servers.values():
                server.kill()


def wait_until_streaming(primary: Server) -> None:
    """Wait until both standbys get what the primary commits."""
    give_up_at = time.monotonic() + PATIENCE
    while primary.streams_to() != {SYNCHRONOUS, ASYNCHRONOUS}:
        assert time.monotonic() < give_up_at, primary.end_of_log()
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(number) for number in found.split()]
