"""Encrypt what a record stores, and key its fingerprint (contract P5, F4).

Both formats never change: what was stored must be readable until it expires.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured

from idempotency.conf import get_settings

# An id, by which records name the key, and 256 bits in base64url.
ENTRY = re.compile(r"([0-9a-f]{8}):([A-Za-z0-9_-]{43})")
FORMAT = "1"
HEAD_BYTES = len(f"{FORMAT}:01234567:")
NONCE_BYTES, TAG_BYTES = 12, 16
# What a stored value has on top of its content.
OVERHEAD = HEAD_BYTES + NONCE_BYTES + TAG_BYTES

MALFORMED = """\
Entry {number} of ENCRYPTION_KEYS is not a key. Write what \
"manage.py idempotency_encryption_key" prints: 8 hexadecimal digits, a colon and 43 \
characters."""
MISCOPIED = """\
Entry {number} of ENCRYPTION_KEYS is not the key that its id belongs to: one of them \
was changed or cut off. Copy the whole entry again."""
REPEATED = "Entry {number} of ENCRYPTION_KEYS is there twice. Remove one of them."
NO_LIBRARY = """\
ENCRYPTION_KEYS needs the package cryptography. Install it with "python -m pip install \
'django-idempotency[encryption]'"."""
NO_KEY = "its encryption key {id} is not in ENCRYPTION_KEYS"
CHANGED = "its {field} can't be decrypted: changed, cut off, or another record's"


class Unreadable(Exception):
    """A record's stored content can't be decrypted; the message says why."""


class Key(NamedTuple):
    """A key of ENCRYPTION_KEYS."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<Key: {self.id}>"

    def derived(self, purpose: bytes) -> bytes:
        """Return a key for one purpose (HKDF-Expand, RFC 5869 section 2.3)."""
        return hmac.digest(self.secret, purpose + b"\1", hashlib.sha256)


class Keys(NamedTuple):
    """The key that encrypts, if there is one, and all keys by their ids."""

    first: Key | None
    by_id: Mapping[str, Key]

    def __repr__(self) -> str:
        return f"<Keys: {', '.join(self.by_id)}>"


def new_entry() -> str:
    """Return a new random key as an entry of ENCRYPTION_KEYS."""
    secret = os.urandom(32)
    text = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    return f"{_id_of(secret)}:{text}"


def current_keys() -> Keys:
    """Return the keys of the settings.

    Raise ``ImproperlyConfigured`` if one of them is wrong or the library is missing.
    """
    return _keys(tuple(get_settings().ENCRYPTION_KEYS))


def first_key_id() -> str | None:
    """Return the id of the key for new records, or None if they are not encrypted."""
    if not get_settings().ENCRYPTION_KEYS:
        return None
    first = current_keys().first
    return None if first is None else first.id


def why_missing(key_id: str) -> str:
    """Return why a record under a key can't be read, or nothing if the key is there."""
    return "" if key_id in current_keys().by_id else NO_KEY.format(id=key_id)


def mistakes_in(entries: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the entries of ENCRYPTION_KEYS, without quoting any."""
    seen = set()
    for number, entry in enumerate(entries, 1):
        if not entry and number == 1:
            continue
        match = ENTRY.fullmatch(entry)
        if match is None:
            yield MALFORMED.format(number=number)
        elif _id_of(_decoded(match[2])) != match[1]:
            yield MISCOPIED.format(number=number)
        elif match[1] in seen:
            yield REPEATED.format(number=number)
        else:
            seen.add(match[1])


@lru_cache
def has_library() -> bool:
    """Return whether the package cryptography is installed."""
    return find_spec("cryptography") is not None


def seal(key_id: str, record_id: UUID, field: str, content: bytes) -> bytes:
    """Return a field's content as a record under that key stores it.

    ``field`` names the field, with whatever else must not change. Raise ``Unreadable``
    if the key is missing.
    """
    head = _head(key_id)
    nonce = os.urandom(NONCE_BYTES)
    encrypt = _cipher(key_id, record_id).encrypt
    sealed: bytes = encrypt(nonce, content, _bound(head, record_id, field))
    return head + nonce + sealed


def unseal(key_id: str, record_id: UUID, field: str, stored: bytes) -> bytes:
    """Return the content that ``seal()`` was given.

    Raise ``Unreadable`` if the key is missing, or if anything is not as it was.
    """
    cipher, head = _cipher(key_id, record_id), _head(key_id)
    if stored.startswith(head):
        nonce, sealed = _split(stored[len(head) :], NONCE_BYTES)
        try:
            content: bytes = cipher.decrypt(
                nonce, sealed, _bound(head, record_id, field)
            )
        except (_library().invalid, ValueError):
            pass  # the latter for a nonce that was cut off
        else:
            return content
    raise Unreadable(CHANGED.format(field=field.partition(" ")[0]))


def stored_size(size: int) -> int:
    """Return how many bytes a new record needs for a content of that size."""
    return size if first_key_id() is None else size + OVERHEAD


def stored_text_size(size: int) -> int:
    """Return the same for a column of text."""
    if first_key_id() is None:
        return size
    return HEAD_BYTES + (size + NONCE_BYTES + TAG_BYTES + 2) // 3 * 4


def as_text(sealed: bytes) -> str:
    """Return sealed content for a column of text; its head stays readable."""
    head, rest = _split(sealed, HEAD_BYTES)
    return head.decode() + base64.b64encode(rest).decode()


def from_text(text: str) -> bytes:
    """Return what ``as_text()`` was given; for another text, what can't be unsealed."""
    head, rest = _split(text.encode(), HEAD_BYTES)
    try:
        return head + base64.b64decode(rest, validate=True)
    except ValueError:
        return b""


def keyed_digest(key_id: str, record_id: UUID, digest: str) -> str:
    """Return a digest from which nobody without the key can guess what it is of.

    It depends on the record, so that equal requests of two callers differ. Raise
    ``Unreadable`` if the key is missing.
    """
    secret = _key(key_id).derived(b"idempotency fingerprint")
    message = record_id.bytes + digest.encode()
    return hmac.digest(secret, message, hashlib.sha256).hex()


class _Library(NamedTuple):
    cipher: Callable[[bytes], Any]
    invalid: type[Exception]


@lru_cache
def _library() -> _Library:
    # Imported when it is needed, because it is large.
    ciphers = import_module("cryptography.hazmat.primitives.ciphers.aead")
    return _Library(ciphers.AESGCM, import_module("cryptography.exceptions").InvalidTag)


@lru_cache
def _keys(entries: tuple[str, ...]) -> Keys:
    for mistake in mistakes_in(entries):
        raise ImproperlyConfigured(mistake)
    keys = [Key(entry[:8], _decoded(entry[9:])) for entry in entries if entry]
    if keys and not has_library():
        raise ImproperlyConfigured(NO_LIBRARY)
    first = keys[0] if entries and entries[0] else None
    return Keys(first, {key.id: key for key in keys})


def _key(key_id: str) -> Key:
    key = current_keys().by_id.get(key_id)
    if key is None:
        raise Unreadable(NO_KEY.format(id=key_id))
    return key


def _cipher(key_id: str, record_id: UUID) -> Any:
    # Each record has a key of its own, so random nonces do not run out.
    secret = _key(key_id).derived(b"idempotency record" + record_id.bytes)
    return _library().cipher(secret)


def _head(key_id: str) -> bytes:
    return f"{FORMAT}:{key_id}:".encode()


def _bound(head: bytes, record_id: UUID, field: str) -> bytes:
    return head + record_id.bytes + field.encode()


def _split(octets: bytes, at: int) -> tuple[bytes, bytes]:
    return octets[:at], octets[at:]


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(f"{text}=")


def _id_of(secret: bytes) -> str:
    return Key("", secret).derived(b"idempotency key id")[:4].hex()
