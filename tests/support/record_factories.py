"""Records that no request has made."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.utils import timezone

from idempotency.models import IdempotencyRecord, State

RETENTION = timedelta(days=30)


def new_record(age: timedelta = timedelta(0), **fields: Any) -> IdempotencyRecord:
    """Return a completed record whose key was claimed so long ago, not yet stored."""
    created_at = fields.pop("created_at", timezone.now() - age)
    body = fields.pop("body", b'{"id": 1}')
    return IdempotencyRecord(
        **{
            "id": uuid4(),
            "scope": "user:auth.user:1",
            "key": f"key-{uuid4()}",
            "method": "POST",
            "path": "/assignments",
            "fingerprint": "f" * 64,
            "fingerprint_version": 1,
            "state": State.COMPLETED,
            "token": uuid4(),
            "status_code": 201,
            "headers": [["Content-Type", "application/json"]],
            "body": body,
            "body_size": None if body is None else len(body),
            "created_at": created_at,
            "completed_at": created_at,
            "expires_at": created_at + RETENTION,
            **fields,
        }
    )


def make_record(age: timedelta = timedelta(0), **fields: Any) -> IdempotencyRecord:
    """Store a completed record whose key was claimed so long ago."""
    record = new_record(age, **fields)
    record.save(force_insert=True)
    return record


def make_records(number: int, age: timedelta = timedelta(0)) -> None:
    """Store that many records of the same age."""
    IdempotencyRecord.objects.bulk_create([new_record(age) for _ in range(number)])


def left() -> set[str]:
    """Return the keys that the table still has."""
    return set(IdempotencyRecord.objects.values_list("key", flat=True))


# Without a blank, so that it can be a key.
MARKUP = "<script>window.ran=true</script><img/src='x'/onerror='window.ran=true'>"
SENTENCE = "Здравствуй, 世界! ¡Olé! 👋 \u202etfel ot thgir"
# What it is shown as: nothing that a record says changes the order of its characters.
SHOWN_SENTENCE = SENTENCE.replace("\u202e", "\\u202e")

# Headers and body of an answer, and what a person should find on its page.
ANSWERS: dict[str, tuple[list[list[str]], bytes | None, str]] = {
    "json": (
        [["Content-Type", "application/json"], ["Location", "/assignments/1"]],
        b'{"$request":"5a","$data":{"price":1.10,"tags":[],"list":[1,2]},"a":1,"a":2}',
        """{
  "$request": "5a",
  "$data": {
    "price": 1.10,
    "tags": [],
    "list": [
      1,
      2
    ]
  },
  "a": 1,
  "a": 2
}""",
    ),
    "problem json, escaped": (
        [["Content-Type", "application/problem+json; charset=utf-8"]],
        b'["\\u0416 \\"<b>\\" \\n", "\\ud83d"]',
        '[\n  "Ж \\"<b>\\" \\n",\n  "\\ud83d"\n]',
    ),
    "json with a BOM": (
        [["content-type", "Application/JSON"]],
        b"\xef\xbb\xbf[1]",
        "[\n  1\n]",
    ),
    "no json at all": ([["Content-Type", "application/json"]], b"{1,", "{1,"),
    "deep json": (
        [["Content-Type", "application/json"]],
        b"[" * 200_000 + b"]" * 200_000,
        "[[[[",
    ),
    "big json": (
        [["Content-Type", "application/json"]],
        b"[" + b"[1]," * 300_000 + b"2]",
        "[\n  [\n    1\n  ],\n  [\n",
    ),
    "text": (
        [["Content-Type", "text/plain; charset=utf-8"]],
        f"{SENTENCE}\n{MARKUP}".encode(),
        f"{SHOWN_SENTENCE}\n{MARKUP}",
    ),
    "latin": (
        [["Content-Type", 'text/csv; header=present; charset="latin-1"']],
        "näme;1".encode("latin-1"),
        "näme;1",
    ),
    "utf-16": (
        [["Content-Type", "text/plain; charset=utf-16"]],
        "näme".encode("utf-16"),
        "näme",
    ),
    "invalid utf-8": ([["Content-Type", "text/plain"]], b"a\xffb", "a\ufffdb"),
    "unknown charset": (
        [["Content-Type", "text/plain; charset=klingon"]],
        b"caf\xc3\xa9",
        "café",
    ),
    "charset that is none": ([["Content-Type", "text/plain; charset=hex"]], b"4", "4"),
    "charset that refuses": (
        [["Content-Type", "text/plain; charset=undefined"]],
        b"4",
        "4",
    ),
    "control characters": (
        [["Content-Type", "text/plain"]],
        b"a\x00b\x1b[31mc\x7f\td",
        "a\u2400b\u241b[31mc\u2421\td",
    ),
    "big text": ([["Content-Type", "text/plain"]], b"x" * 1_000_000, "x" * 50_000),
    "html": (
        [["Content-Type", "text/html"]],
        f"</pre></textarea>{MARKUP}".encode(),
        f"</pre></textarea>{MARKUP}",
    ),
    "svg": (
        [["Content-Type", "image/svg+xml"]],
        b"<svg onload='window.ran = true'/>",
        "<svg onload='window.ran = true'/>",
    ),
    "form": ([["Content-Type", "application/x-www-form-urlencoded"]], b"a=1", "a=1"),
    "binary": ([["Content-Type", "image/png"]], b"\x89PNG\x00<b>", "8 bytes"),
    "compressed": (
        [["Content-Type", "text/plain"], ["Content-Encoding", "br"]],
        b"\x0b\x02\x80",
        "3 bytes",
    ),
    "no type": ([], b"1", "1 byte"),
    "strange type": ([["Content-Type", f"{MARKUP}"]], b"1", MARKUP),
    "strange header": ([["X-Name", MARKUP]], b"1", f"X-Name: {MARKUP}"),
    "empty": ([["Content-Type", "text/plain"]], b"", "The response has no body."),
    "not kept": ([["Location", "/files/1"]], None, "The response was not kept: it was"),
}


def make_answer(name: str, **fields: object) -> IdempotencyRecord:
    """Store a record with one of the answers; its key is the name."""
    headers, body, _shown = ANSWERS[name]
    own = {"key": name.replace(" ", "-"), "headers": headers, "body": body}
    return make_record(**{**own, **fields})  # type: ignore[arg-type]
