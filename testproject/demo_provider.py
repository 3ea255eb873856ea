"""A fake payment provider: ``python -m testproject.demo_provider``.

Its ledger is an SQLite file with one row for each idempotency key:

- ``POST /charges`` charges a card, or declines ``tok_declined``; the same key returns
  the same charge again
- ``GET /charges/<key>`` returns the charge of a key
- ``GET /charges`` lists all charges; ``requests`` counts the requests for each
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import uuid
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent

TABLE = """\
CREATE TABLE IF NOT EXISTS charges (
    key TEXT PRIMARY KEY,
    payment TEXT NOT NULL,
    id TEXT NOT NULL,
    status TEXT NOT NULL,
    requests INTEGER NOT NULL DEFAULT 1
)"""
# One statement, so the second of two requests with one key finds the first one's row.
CHARGE = """\
INSERT INTO charges (key, payment, id, status) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET requests = requests + 1"""
SELECT = "SELECT key, payment, id, status, requests FROM charges"

Charge = dict[str, Any]
Answer = tuple[int, Any]


class Ledger:
    """The charges by idempotency key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run(TABLE)

    def charge(self, key: str, payment: Charge) -> Answer:
        """Charge a card, or return the existing charge of its key."""
        status = "declined" if payment["card"] == "tok_declined" else "charged"
        asked = json.dumps(payment, sort_keys=True)
        self._run(CHARGE, key, asked, f"ch_{uuid.uuid4().hex}", status)
        found = self._run(f"{SELECT} WHERE key = ? AND payment = ?", key, asked)
        if not found:
            return 422, {"error": "This key belongs to a different charge."}
        return 201 if found[0]["status"] == "charged" else 402, found[0]

    def find(self, key: str) -> Answer:
        """Return the charge of a key."""
        found = self._run(f"{SELECT} WHERE key = ?", key)
        return (200, found[0]) if found else (404, {"error": "Unknown key."})

    def show(self) -> Answer:
        """Return all charges."""
        return 200, self._run(f"{SELECT} ORDER BY rowid")

    def _run(self, statement: str, *parameters: str) -> list[Charge]:
        # Each request has its own thread, which needs its own connection.
        with closing(sqlite3.connect(self.path, timeout=20)) as connection, connection:
            connection.row_factory = sqlite3.Row
            # The ledger must survive a crash of this process, not of the machine.
            connection.execute("PRAGMA synchronous = OFF")
            rows = [dict(row) for row in connection.execute(statement, parameters)]
        return [{**json.loads(row.pop("payment")), **row} for row in rows]


class Provider(BaseHTTPRequestHandler):
    """The provider's API."""

    ledger: Ledger

    def do_POST(self) -> None:
        """Charge a card."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers["Idempotency-Key"]
        if self.path == "/charges" and key:
            self._answer(*self.ledger.charge(key, json.loads(body)))
        else:
            self._answer(400, {"error": "POST /charges needs an Idempotency-Key."})

    def do_GET(self) -> None:
        """Show one charge, or all."""
        _, charges, *keys = self.path.split("/")
        if charges != "charges":
            self._answer(400, {"error": "GET /charges"})
        elif keys:
            self._answer(*self.ledger.find(keys[0]))
        else:
            self._answer(*self.ledger.show())

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description="A fake payment provider.")
    var_dir = Path(os.environ.get("DEMO_VAR_DIR", BASE_DIR / "var"))
    parser.add_argument("--ledger", type=Path, default=var_dir / "ledger.sqlite3")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--fd", type=int, help="the descriptor of an open socket")
    options = parser.parse_args()
    if options.fd is None:
        listener = socket.create_server(("127.0.0.1", options.port))
    else:
        listener = socket.socket(fileno=options.fd)
    options.ledger.parent.mkdir(parents=True, exist_ok=True)
    Provider.ledger = Ledger(options.ledger)
    address = listener.getsockname()
    with ThreadingHTTPServer(address, Provider, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = listener
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
