"""Three MariaDB servers with Galera, each in a folder of its own, on loopback."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.cluster.ports import LOOPBACK, free_ports
from tests.support.database_servers import DATABASE, PATIENCE, MariaDB, NotInstalled

NODES = 3
PROVIDERS = (
    "/usr/lib/galera/libgalera_smm.so",
    "/usr/lib64/galera-4/libgalera_smm.so",
    "/usr/lib64/galera/libgalera_smm.so",
)
# How soon the others take a silent node for dead: Galera's own 5 and 15 seconds would
# make each run longer and nothing else.
SILENCE = (
    "evs.keepalive_period=PT0.3S;evs.inactive_check_period=PT0.3S;"
    "evs.suspect_timeout=PT2S;evs.inactive_timeout=PT4S"
)
RECOVERED = re.compile(r"Recovered position:\s*(\S+:-?\d+)")


class Node(MariaDB):
    """One node. Only the first creates its files; the others get them from it."""

    def __init__(
        self, directory: Path, provider: str, number: int, groups: Sequence[int]
    ) -> None:
        super().__init__(directory)
        self.provider = provider
        self.number = number
        self.groups = groups
        self.port, self.transfers, self.increments = free_ports(3)
        self.position: str | None = None
        self.is_first = False

    def found(self) -> None:
        """Create the files, start the cluster and create the database."""
        self.is_first = True
        self.create()
        self.is_first = False

    def join(self) -> None:
        """Get the files from another node, and start."""
        self.data.mkdir()
        if self.user is not None:
            for path in (self.directory, self.data):
                os.chown(path, *owner_of(self.user))
        self.start()

    def start(self) -> None:
        """Start, and return when the node has caught up with the others."""
        super().start()
        wait_for(self.is_synced, f"node {self.number}", self)

    def rejoin(self) -> None:
        """Start again after a crash, as Debian's unit does it: recover, then join."""
        recovering = [*self._command(), "--wsrep-recover"]
        log = self.directory / "recovery.log"
        with log.open("wb") as output:
            self._run(recovering, output).wait(PATIENCE)
        found = RECOVERED.findall(log.read_text(errors="replace"))
        self.position = found[-1] if found else None
        try:
            self.start()
        finally:
            self.position = None
        wait_for(self.is_back, f"node {self.number}", self)

    def pause(self) -> None:
        """Stop the process, as a machine that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process go on, and wait until it is one of the cluster again."""
        os.kill(self.pid, signal.SIGCONT)
        wait_for(self.is_back, f"node {self.number}", self)

    def cut_off(self) -> None:
        """Take the node from the others, as a network does; clients still reach it."""
        self.execute("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'")

    def connect_again(self) -> None:
        """Undo ``cut_off()``, and wait until the node is one of the cluster again."""
        self.execute("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=0'")
        wait_for(self.is_back, f"node {self.number}", self)

    def is_synced(self) -> bool:
        """Return whether the node is one of the cluster and has caught up."""
        found = self.status()
        return (
            found.get("wsrep_ready") == "ON"
            and found.get("wsrep_local_state_comment") == "Synced"
            and found.get("wsrep_cluster_status") == "Primary"
        )

    def is_back(self) -> bool:
        """Return whether it sees all the others again, too."""
        return self.is_synced() and self.status()["wsrep_cluster_size"] == str(NODES)

    def status(self) -> dict[str, str]:
        """Return what the node says of itself and the cluster."""
        return dict(self.execute("SHOW STATUS LIKE 'wsrep_%'"))

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own."""
        with (
            closing(self._connect()) as connection,
            closing(connection.cursor()) as cursor,
        ):
            cursor.execute(sql)
            return list(cursor.fetchall())

    def end(self) -> None:
        """Kill the process and what it has started, such as a transfer of files."""
        process = self.process
        if process is not None:
            self.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _command(self) -> Sequence[str | Path]:
        others = "" if self.is_first else ",".join(map(address_of, self.groups))
        options = {
            "bind-address": LOOPBACK,
            "port": self.port,
            # Recovery after a SIGKILL needs no write that the system has not seen.
            "innodb-flush-log-at-trx-commit": 2,
            "innodb-autoinc-lock-mode": 2,
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "32M",
            "innodb-use-native-aio": 0,
            "binlog-format": "ROW",
            "wsrep-on": "ON",
            "wsrep-provider": self.provider,
            "wsrep-cluster-name": "idempotency",
            "wsrep-cluster-address": f"gcomm://{others}",
            "wsrep-node-name": f"node{self.number}",
            "wsrep-node-address": LOOPBACK,
            "wsrep-sst-method": "rsync",
            "wsrep-sst-receive-address": address_of(self.transfers),
            "wsrep-provider-options": (
                f"gmcast.listen_addr=tcp://{address_of(self.groups[self.number])};"
                f"ist.recv_addr={address_of(self.increments)};gcache.size=64M;{SILENCE}"
            ),
        }
        if self.position is not None:
            options["wsrep-start-position"] = self.position
        usual = [part for part in super()._command() if part != "--skip-networking"]
        return [*usual, *(f"--{name}={value}" for name, value in options.items())]


class Galera:
    """A cluster of several nodes, each of which takes writes."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes

    def settings(self, node: int, **more: Any) -> dict[str, Any]:
        """Return Django's settings for a connection to one node."""
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": DATABASE,
            "USER": "root",
            "HOST": LOOPBACK,
            "PORT": self.nodes[node].port,
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
            "ATOMIC_REQUESTS": False,
            **more,
            "OPTIONS": {"connect_timeout": 5, **more.get("OPTIONS", {})},
        }


@contextmanager
def galera() -> Iterator[Galera]:
    """Run a cluster for the block. Raise ``NotInstalled``."""
    provider = find_provider()
    groups = free_ports(NODES)
    with TemporaryDirectory(prefix="idem") as folder:
        Path(folder).chmod(0o755)
        nodes = []
        for number in range(NODES):
            directory = Path(folder, f"node{number}")
            directory.mkdir()
            nodes.append(Node(directory, provider, number, groups))
        try:
            # One after another: the first is what the others join.
            nodes[0].found()
            for node in nodes[1:]:
                node.join()
            yield Galera(nodes)
        finally:
            for node in nodes:
                node.end()


def find_provider() -> str:
    """Return Galera's library, or raise ``NotInstalled``."""
    for path in PROVIDERS:
        if Path(path).exists():
            return path
    raise NotInstalled("galera: not installed: apt-get install galera-4 rsync lsof")


def address_of(port: int) -> str:
    """Return a port of this machine's as an address."""
    return f"{LOOPBACK}:{port}"


def owner_of(user: str) -> tuple[int, int]:
    """Return the numbers of a user and its group."""
    import pwd  # noqa: PLC0415

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def wait_for(condition: Callable[[], bool], what: str, server: MariaDB) -> None:
    """Wait until a server has come so far; fail with the end of its log."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        with suppress(server._error()):
            if condition():
                return
        if time.monotonic() > give_up_at:
            raise AssertionError(f"Waited for {what}\n{server.end_of_log()}")
        time.sleep(0.1)
