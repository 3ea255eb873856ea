"""What the outside world has seen: charges, in a file that no crash takes back."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Charge:
    """One outside call."""

    # The client's idempotency key, by which a test finds its own charges.
    of: str
    # The derived key that the call was made with.
    key: str
    # Which run of the handler has made it.
    run: str


@dataclass(frozen=True)
class Ledger:
    """A file of charges, one a line. Handlers find it by a header."""

    path: Path

    @property
    def header(self) -> dict[str, str]:
        """The header that makes a handler charge here."""
        return {"X-Ledger": str(self.path)}

    def add(self, charge: Charge) -> None:
        """Charge: one write, which is there whole once it has returned."""
        line = json.dumps(asdict(charge)) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def charges(self) -> list[Charge]:
        """Return all charges."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [Charge(**json.loads(line)) for line in lines]

    def charges_of(self, of: str) -> list[Charge]:
        """Return the charges under a client's key."""
        return [charge for charge in self.charges() if charge.of == of]
