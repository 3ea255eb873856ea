"""Fields that are encrypted in a record's row, and decrypted in the record (P5)."""

from __future__ import annotations

import json
from typing import Any

from django.db import models

from idempotency import encryption
from idempotency.encryption import Unreadable
from idempotency.fingerprints import KEYED
from idempotency.steps import around, encrypted_in


class Encrypted:
    """A field whose column has the ciphertext if the record is encrypted (P5).

    Its attribute has the content. All that Django writes of an instance, fixtures
    included, comes from here.
    """

    def pre_save(self: Any, instance: Any, add: bool) -> Any:
        """Return what to store."""
        return instance.as_stored(self.attname)

    def value_from_object(self: Any, obj: Any) -> Any:
        """Return what is stored, for serializers."""
        return obj.as_stored(self.attname)

    def deconstruct(self) -> Any:
        """Return Django's field for migrations, because the column is the same."""
        name, _path, args, kwargs = super().deconstruct()  # type: ignore[misc]  # a mixin
        django_field = type(self).__mro__[2]
        return name, f"django.db.models.{django_field.__name__}", args, kwargs


class EncryptedHeaders(Encrypted, models.JSONField):
    """Headers in JSON, or a string with the ciphertext."""


class EncryptedBody(Encrypted, models.BinaryField):  # type: ignore[type-arg]  # generic for the stubs alone
    """A body, or its ciphertext."""


class EncryptedSteps(Encrypted, models.TextField):  # type: ignore[type-arg]  # generic for the stubs alone
    """Steps as JSON, or what queries ask about them, with the ciphertext."""


ENCRYPTED = frozenset({"headers", "body", "steps"})
NOT_SAID = "it does not say any more which key has encrypted it"


class EncryptedContent:
    """A record's content, which is decrypted when its row is read."""

    pk: Any
    status_code: int | None
    encrypted_by: str | None
    # Why headers, body and steps can't be decrypted; they are None then.
    unreadable = ""

    @classmethod
    def from_db(cls, db: Any, field_names: Any, values: Any, **more: Any) -> Any:
        """Return the record of a row, decrypted."""
        above: Any = super()
        record = above.from_db(db, field_names, values, **more)
        found = vars(record)
        is_encrypted = found.get("encrypted_by", "") is not None
        if is_encrypted or found.get("fingerprint_version", 0) >= KEYED:
            record._decrypt()
        return record

    def refresh_from_db(
        self, using: Any = None, fields: Any = None, from_queryset: Any = None
    ) -> None:
        """Reload fields; with an encrypted one, what its decryption needs."""
        is_encrypted = fields is not None and not ENCRYPTED.isdisjoint(fields)
        if is_encrypted:
            fields = {*fields, "encrypted_by", "status_code", "body_size"}
        above: Any = super()
        above.refresh_from_db(using, fields, from_queryset)
        if is_encrypted and self.encrypted_by is not None and not self.unreadable:
            self.unreadable = self._missing()

    def _decrypt(self) -> None:
        loaded = [name for name in ENCRYPTED if vars(self).get(name) is not None]
        if not loaded and "encrypted_by" not in vars(self):
            return
        if self.encrypted_by is not None:
            self.unreadable = encryption.why_missing(self.encrypted_by)
        elif vars(self).get("fingerprint_version", 0) >= KEYED:
            self.unreadable = NOT_SAID
        else:
            return
        for name in loaded:
            content = None
            if not self.unreadable:
                try:
                    content = self._decrypted(name)
                except Unreadable as error:
                    self.unreadable = str(error)
            setattr(self, name, content)
        if not self.unreadable:
            self.unreadable = self._missing()

    def _missing(self) -> str:
        """Return which part of a response is not there any more, or nothing."""
        is_kept = vars(self).get("body_size") is not None
        lost = [n for n in ("headers", "body") if vars(self).get(n, "") is None]
        return encryption.CHANGED.format(field=lost[0]) if is_kept and lost else ""

    def _decrypted(self, name: str) -> Any:
        """Return the content of a field."""
        value = getattr(self, name)
        if name == "steps":
            value = encrypted_in(value)
        stored = bytes(value) if name == "body" else encryption.from_text(str(value))
        content = encryption.unseal(
            str(self.encrypted_by), self.pk, self._bound(name), stored
        )
        if name == "body":
            return content
        text = content.decode()
        return json.loads(text) if name == "headers" else text

    def as_stored(self, name: str) -> Any:
        """Return the value of a field as the row has it.

        Raise ``Unreadable`` if it could not be read, or its key is missing.
        """
        value = getattr(self, name)
        if name not in ENCRYPTED:
            return value
        if self.unreadable:
            raise Unreadable(self.unreadable)
        if self.encrypted_by is None or value is None:
            return value
        text = json.dumps(value) if name == "headers" else value
        content = bytes(value) if name == "body" else text.encode()
        sealed = encryption.seal(self.encrypted_by, self.pk, self._bound(name), content)
        if name == "body":
            return sealed
        written = encryption.as_text(sealed)
        return around(written, value) if name == "steps" else written

    def _bound(self, name: str) -> str:
        """Return a field's name; for a response, with the status that is replayed."""
        return name if name == "steps" else f"{name} {self.status_code}"
