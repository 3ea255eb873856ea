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
        found = record.__dict__
        is_encrypted = found.get("encrypted_by", "") is not None
        if is_encrypted or found.get("fingerprint_version", 0) >= KEYED:
            record._decrypt()
        return record

    def refresh_from_db(
        self, using: Any = None, fields: Any = None, from_queryset: Any = None
    ) -> None:
        """Reload fields; with an encrypted one, what its decryption needs."""
        is_encrypted = fields is None or not ENCRYPTED.isdisjoint(fields)
        if fields is not None and is_encrypted:
            fields = {*fields, "encrypted_by", "status_code", "body_size"}
        above: Any = super()
        above.refresh_from_db(using, fields, from_queryset)
        if fields is None:
            self.unreadable = ""
        if is_encrypted and not self.unreadable:
            # Django copies the fields alone.
            self._note_unreadable(self._why_without_content())

    def _decrypt(self) -> None:
        loaded = [name for name in ENCRYPTED if vars(self).get(name) is not None]
        if not loaded and "encrypted_by" not in vars(self):
            return
        why = self._why_no_key()
        if self.encrypted_by is not None:
            for name in () if why else loaded:
                try:
                    setattr(self, name, self._decrypted(name))
                except Unreadable as error:
                    why = str(error)
            why = why or self._missing()
        self._note_unreadable(why)

    def _note_unreadable(self, why: str) -> None:
        """Note why the record can't be read, if so, and keep no part of its content."""
        if why:
            self.unreadable = why
            for name in ENCRYPTED & vars(self).keys():
                setattr(self, name, None)

    def _why_no_key(self) -> str:
        """Return why there is no key for the record, or nothing."""
        if vars(self).get("key") == "":
            return ""  # an erased record has nothing to read (P4)
        if self.encrypted_by is not None:
            return encryption.why_missing(self.encrypted_by)
        is_keyed = vars(self).get("fingerprint_version", 0) >= KEYED
        return NOT_SAID if is_keyed else ""

    def _why_without_content(self) -> str:
        """Return why content that has been reloaded is not there, or nothing."""
        if {"encrypted_by", *ENCRYPTED}.isdisjoint(vars(self)):
            return ""
        why = self._why_no_key()
        if why or self.encrypted_by is None:
            return why
        if vars(self).get("steps", "") is None and self._has_steps():
            return encryption.CHANGED.format(field="steps")
        return self._missing()

    def _has_steps(self) -> bool:
        """Return whether the row has steps."""
        record: Any = self
        rows = type(record)._base_manager.using(record._state.db)
        found: bool = rows.filter(pk=self.pk, steps__isnull=False).exists()
        return found

    def _missing(self) -> str:
        """Return which part of a response is not there any more, or nothing."""
        is_kept = vars(self).get("body_size") is not None
        lost = [n for n in ("headers", "body") if vars(self).get(n, "") is None]
        if not (is_kept and lost):
            return ""
        return encryption.CHANGED.format(
            field=lost[0] if len(lost) == 1 else "response"
        )

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
