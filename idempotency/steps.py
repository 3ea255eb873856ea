"""Steps of a handler: parts whose results a later run takes over (contract E12)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, transaction
from django.db.models import Q
from django.http import HttpResponseBase

from idempotency.conf import get_settings
from idempotency.discretion import discreet
from idempotency.encryption import stored_text_size

if TYPE_CHECKING:
    from idempotency.models import IdempotencyRecord

JSON: TypeAlias = (
    "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"
)
StepResult = TypeVar("StepResult", bound="JSON | HttpResponseBase")
CallResult = TypeVar("CallResult", bound=JSON)
Kind: TypeAlias = Literal["step", "call"]
# A step or call in a record: its name, kind, times and, until the response, result.
Entry: TypeAlias = dict[str, Any]

# In the entry of a call that may have happened and must not again (E13).
IN_DOUBT = "in_doubt"
# The records with a recorded step or call, those of them without a response, and those
# with a call in doubt.
NAMED = '"name": '
HAS_ENTRIES = Q(steps__contains=NAMED)
HALF_DONE = Q(status_code=None) & HAS_ENTRIES
MARK = f'{{"{IN_DOUBT}": true, '
IS_IN_DOUBT = Q(steps__startswith=MARK)

MAX_NAME_LENGTH = 100
OPEN_TRANSACTION = """\
request.idempotency.{kind}({name!r}) can't run inside a transaction, or inside another \
step: what it records must be committed with it. End the transaction first."""
USED_TWICE = """\
Two steps of one run are named {name!r}. A name stands for one result. Number steps in \
a loop: f"line-{{number}}"."""
TOO_LARGE = """\
The results of the steps are longer than MAX_RESPONSE_BYTES. Return less: what later \
steps need, such as a primary key."""
NOT_JSON = """\
The {kind} {name!r} must return JSON, not {type}: {error}. Return what later steps \
need, such as a primary key."""


def through_json(kind: Kind, name: str, value: Any) -> Any:
    """Return a result as later runs get it, read back from JSON (E14).

    Raise ``TypeError`` if it is not JSON as ``DjangoJSONEncoder`` writes it.
    """
    try:
        return json.loads(json.dumps(value, cls=DjangoJSONEncoder, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            NOT_JSON.format(
                kind=kind, name=name, type=type(value).__name__, error=error
            )
        ) from None


def is_name(name: Any) -> bool:
    """Return whether a step or call can have a name: text that can be stored and sent.

    A client's JSON can have lone surrogates, which UTF-8 can't encode.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_LENGTH:
        return False
    return "\0" not in name and name == name.encode(errors="ignore").decode()


def fresh(result: Any) -> Any:
    """Return a copy of a result, because a handler may change what it gets (E14)."""
    return json.loads(json.dumps(result))


def is_in_transaction(connection: Any) -> bool:
    """Return whether ``atomic(durable=True)`` would be refused."""
    blocks = connection.atomic_blocks
    if blocks:
        # Django's private mark of a TestCase's transaction; there is no public one.
        return not blocks[-1]._from_testcase
    return not connection.get_autocommit()


class Steps:
    """Runs steps and calls, and records nothing: without a key, and in atomic mode.

    A handler that resumes behaves with it as with a key, mistakes included (E14).
    ``is_durable`` requires that no transaction is open.
    """

    def __init__(
        self, alias: str, derive: Callable[[str], str], *, is_durable: bool
    ) -> None:
        self.alias = alias
        # The stubs do not know all of its attributes.
        self.connection: Any = connections[alias]
        self.derive = derive
        self.is_durable = is_durable
        self.names: set[str] = set()
        # What is recorded by name; then the key can't be freed (E15).
        self.entries: dict[str, Entry] = {}
        # The transaction of the latest step.
        self.block: Any = None

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The recorded results by name."""
        return {}

    @property
    def is_in_step(self) -> bool:
        """Whether a step's transaction is open."""
        return self.block in self.connection.atomic_blocks

    def transaction(self) -> Any:
        """Return the transaction of a step, or its savepoint if it is not durable."""
        self.block = transaction.atomic(using=self.alias, durable=self.is_durable)
        return self.block

    @discreet
    def step(self, name: str, function: Callable[[], Any]) -> Any:
        """Run a function in a transaction of its own, or in a savepoint."""
        self.admit("step", name)
        with self.transaction():
            result = function()
            if isinstance(result, HttpResponseBase):
                if result.status_code >= 500:
                    transaction.set_rollback(True, using=self.alias)
                return result
            return through_json("step", name, result)

    @discreet
    def call(
        self,
        name: str,
        function: Callable[[str], Any],
        on_abandoned: str | Callable[[str, IdempotencyRecord], Any],
    ) -> Any:
        """Run a function with a derived key, outside of transactions if durable."""
        self.admit("call", name)
        return through_json("call", name, function(self.derive(name)))

    def admit(self, kind: Kind, name: str) -> None:
        """Raise an error for a name that is no name or was used, or a transaction."""
        if not is_name(name):
            raise ValueError(
                f"The name of a {kind} must have 1 to {MAX_NAME_LENGTH} characters, "
                "without NUL and lone surrogates."
            )
        if name in self.names:
            raise RuntimeError(USED_TWICE.format(name=name))
        if self.is_durable and is_in_transaction(self.connection):
            raise RuntimeError(OPEN_TRANSACTION.format(kind=kind, name=name))
        self.names.add(name)


def as_text(payload: str, entries: Iterable[Entry] = ()) -> str:
    """Return the JSON that a record stores, from which a completer can go on (E17).

    ``payload`` is the digest that stands for the request's payload in derived keys.
    """
    told = {"payload": payload, "entries": [*entries]}
    if any(IN_DOUBT in entry for entry in told["entries"]):
        # At the beginning, where no result of the project can say the same.
        return json.dumps({IN_DOUBT: True, **told})
    return json.dumps(told)


def limited(text: str) -> str:
    """Return what a record stores of steps. Raise ``ValueError`` if it is too long."""
    if stored_text_size(len(text)) > get_settings().MAX_RESPONSE_BYTES:
        raise ValueError(TOO_LARGE)
    return text


def around(encrypted: str, text: str) -> str:
    """Return JSON with encrypted steps, and of their text what queries look for."""
    told: dict[str, Any] = {IN_DOUBT: True} if text.startswith(MARK) else {}
    if NAMED in text:
        told["name"] = ""
    return json.dumps({**told, "encrypted": encrypted})


def encrypted_in(text: str) -> str:
    """Return the encrypted steps in JSON, or nothing if there are none."""
    try:
        return str(json.loads(text)["encrypted"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def from_text(text: str | None) -> tuple[str, list[Entry]]:
    """Return the payload and the entries of a record."""
    if text is None:
        return "", []
    stored = json.loads(text)
    return stored["payload"], stored["entries"]


def new_entry(kind: Kind, name: str, began: datetime) -> Entry:
    """Return what a record says of a step or call that has begun."""
    return {"name": name, "kind": kind, "began": began.isoformat()}


def held_entry(name: str, began: datetime) -> Entry:
    """Return what a record says of a call in doubt, or that is running (E13)."""
    return {**new_entry("call", name, began), IN_DOUBT: True}


def without_result(entry: Entry) -> Entry:
    """Return an entry with its name, kind and times alone."""
    return {key: value for key, value in entry.items() if key != "result"}
