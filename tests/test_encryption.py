"""Encryption: what a record stores is read by its key alone, or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.views.debug import get_exception_reporter_filter
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient

from idempotency import encryption
from idempotency.checks import check_encryption_keys
from idempotency.claims import claims_in
from idempotency.completing import complete_abandoned, resume
from idempotency.context import RequestContext, context_of
from idempotency.database import UTCNow
from idempotency.decorators import idempotent
from idempotency.encrypted_fields import ENCRYPTED
from idempotency.encryption import OVERHEAD, Unreadable, new_entry
from idempotency.fingerprints import KEYED
from idempotency.models import IdempotencyRecord, State
from idempotency.steps import HAS_ENTRIES, IS_IN_DOUBT, held_entry
from idempotency.steps import as_text as steps_text
from idempotency.testing import age_records
from tests.app.models import Effect
from tests.conftest import KEY, code_of, key, once
from tests.support.admin_pages import (
    RELEASE,
    RESOLVE,
    SEE_BODY,
    VIEW,
    Enter,
    Page,
    address,
)
from tests.support.processes import ROOT
from tests.support.record_factories import make_record, new_record
from tests.urls import urlpatterns as usual_urls

# Never change one: what was stored must be readable, and comparable, until it expires.
FIXED = "765ff456:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
FIXED_RECORD = UUID("7f0c1f8e-2f2c-5c0e-9f60-5f8f3d1f9b11")
FIXED_BODY = bytes.fromhex(
    "313a37363566663435363a000102030405060708090a0b3a6a74169ee449291f"
    "5fb4b0cd6fcd7f531758481e502b451f"
)
FIXED_STEPS = (
    "1:765ff456:AAECAwQFBgcICQoLOmptE8WyBnkGpQacDx55"
    "H0SLLR0gtvNe0jBduagljJNDlv7UH/RTnicx1Sigeg=="
)
FIXED_DIGEST = "ad1feb0385d3d3b1309182d8afbcb38786fe1485f4691860a151a1326c1140fb"

OLD, NEW, OTHER = new_entry(), new_entry(), new_entry()
SECRET = "Zq7-the-secret-of-an-answer"
STEP_SECRET = "Wk3-the-secret-of-a-step"


@contextmanager
def keys(*entries: str, **more: Any) -> Iterator[None]:
    """Let the project have these keys."""
    with override_settings(IDEMPOTENCY={"ENCRYPTION_KEYS": entries, **more}):
        yield


def key_id(entry: str) -> str:
    return entry.partition(":")[0]


def raw() -> dict[str, Any]:
    """Return the only row as the database has it."""
    row = IdempotencyRecord.objects.values().get()
    return {n: bytes(v) if isinstance(v, memoryview) else v for n, v in row.items()}


def change(**columns: Any) -> None:
    """Change the only row behind the app's back."""
    assert IdempotencyRecord.objects.update(**columns) == 1


MISCOPIED = (
    "Entry 1 of ENCRYPTION_KEYS is not the key that its id belongs to: one of them was "
    "changed or cut off."
)

# What the views do.


class Killed(BaseException):
    """The end of a process."""


runs: list[str] = []


def answer(request: Request) -> Response:
    runs.append("answer")
    Effect.objects.create()
    if request.data.get("die"):
        raise Killed
    return Response({"said": SECRET}, 201, headers={"X-Said": SECRET, "Location": "/1"})


def find_out(record: IdempotencyRecord, request: Request) -> None:
    runs.append("find_out")


def go(steps: RequestContext) -> Response:
    given = steps.recorded["given"]

    def effect() -> dict[str, Any]:
        runs.append("effect")
        Effect.objects.create()
        return {"secret": STEP_SECRET}

    found = steps.step("effect", effect)
    if given.get("die") and steps.attempt == 1:
        raise Killed
    charged = steps.call("charge", lambda derived: {"derived": derived})
    return Response({**found, **charged}, 201)


def finish(steps: RequestContext) -> Response:
    runs.append("finish")
    return go(steps)


def view(**options: Any) -> Any:
    @transaction.non_atomic_requests
    @api_view(["POST"])
    @idempotent(atomic=False, **options)
    def leased(request: Request) -> Response:
        return answer(request)

    return leased


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="resume", completer=finish)
def resuming(request: Request) -> Response:
    runs.append("resuming")
    steps = context_of(request)
    steps.step("given", lambda: dict(request.data))
    return go(steps)


@api_view(["POST"])
@idempotent
def atomic(request: Request) -> Response:
    return answer(request)


@api_view(["POST"])
@idempotent
def deriving(request: Request) -> Response:
    return Response(context_of(request).derive("charge"), 201)


@api_view(["POST"])
@idempotent(atomic=True)
def refusing(request: Request) -> Response:
    raise ValidationError(SECRET)


urlpatterns = [
    *usual_urls,
    path("atomic/", atomic),
    path("hold/", view(on_abandoned="hold")),
    path("rerun/", view(on_abandoned="rerun")),
    path("ask/", view(on_abandoned=find_out)),
    path("resuming/", resuming),
    path("deriving/", deriving),
    path("refusing/", refusing),
]
LEASED = ("/hold/", "/rerun/", "/ask/", "/resuming/")

with_rows = [pytest.mark.usefixtures("database"), pytest.mark.urls(__name__)]
pytestmark = with_rows


@pytest.fixture(autouse=True)
def no_runs() -> None:
    runs.clear()


def post(client: APIClient, place: str = "/atomic/", **data: Any) -> Any:
    return client.post(place, {"text": "same", **data}, **key())


def cut_off(client: APIClient, place: str) -> IdempotencyRecord:
    """Return the record of a run that was cut off an hour ago."""
    with pytest.raises(Killed):
        post(client, place, die=1)
    IdempotencyRecord.objects.update(
        state=State.IN_PROGRESS, lease_expires_at=UTCNow() - timedelta(hours=1)
    )
    runs.clear()
    return IdempotencyRecord.objects.get()


def unreadable_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        line.getMessage()
        for line in caplog.records
        if vars(line).get("idempotency_event") == "record_unreadable"
    ]


# Keys.


@once
def test_new_key() -> None:
    """P5: The command prints a random key as the setting takes it."""
    printed = []
    # Also in a project whose keys are wrong.
    with keys("nonsense"):
        for _time in range(2):
            out = StringIO()
            call_command("idempotency_encryption_key", stdout=out)
            printed.append(out.getvalue().strip())
    assert printed[0] != printed[1]
    with keys(*printed):
        assert check_encryption_keys() == []
        assert [*encryption.current_keys().by_id] == [key_id(each) for each in printed]
        assert encryption.first_key_id() == key_id(printed[0])


@once
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["nonsense"], ["Entry 1 of ENCRYPTION_KEYS is not a key."]),
        ([OLD, OLD[:-1]], ["Entry 2 of ENCRYPTION_KEYS is not a key."]),
        ([f"{OLD} "], ["Entry 1 of ENCRYPTION_KEYS is not a key."]),
        ([OLD, ""], ["Entry 2 of ENCRYPTION_KEYS is not a key."]),
        (
            [f"{key_id(OLD)}:{NEW.partition(':')[2]}", "nonsense"],
            [MISCOPIED, "Entry 2 of ENCRYPTION_KEYS is not a key."],
        ),
        ([OLD, NEW, OLD], ["Entry 3 of ENCRYPTION_KEYS is there twice."]),
    ],
)
def test_wrong_keys(entries: list[str], said: list[str], client: APIClient) -> None:
    """P5: E015, a wrong key fails each keyed request before anything runs."""
    with keys(*entries):
        found = check_encryption_keys()
        assert [message.msg for message in found] == said
        assert {message.id for message in found} == {"idempotency.E015"}
        for message in found:
            assert message.hint
            assert message.hint.endswith(".")
            # Messages end up in logs.
            assert not any(each[9:] in str(message) for each in entries if each[9:])
        with pytest.raises(ImproperlyConfigured, match=said[0]):
            APIClient().post("/atomic/", {}, HTTP_X_USER="ada", **key())
        assert client.post("/atomic/", {}).status_code == 201  # no key, no change
    assert runs == ["answer"]


@once
def test_missing_library(client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """P5: E016, without the library nothing runs; without keys nobody needs it."""
    monkeypatch.setattr(encryption, "find_spec", lambda name: None)
    encryption.has_library.cache_clear()
    encryption._keys.cache_clear()
    try:
        for entries in ((), ("",)):
            with keys(*entries):
                assert check_encryption_keys() == []
                assert post(client).status_code == 201
        IdempotencyRecord.objects.all().delete()
        runs.clear()
        with keys("", OLD):
            (message,) = check_encryption_keys()
            assert message.id == "idempotency.E016"
            assert "django-idempotency[encryption]" in str(message.hint)
            assert post(client).status_code == 500
    finally:
        encryption.has_library.cache_clear()
        encryption._keys.cache_clear()
    assert runs == []


@once
def test_keys_are_not_shown() -> None:
    """X1: Neither a repr nor Django's error report shows a key."""
    with keys(OLD, NEW):
        found = encryption.current_keys()
        shown = repr((found, *found))
        filtered = get_exception_reporter_filter(None).get_safe_settings()  # type: ignore[arg-type]
        shown += repr(filtered["IDEMPOTENCY"])
        for entry in (OLD, NEW):
            assert entry[9:] not in shown
            assert repr(found.by_id[key_id(entry)].secret) not in shown
    with pytest.raises(Unreadable) as raised:
        encryption.keyed_digest(key_id(OLD), uuid4(), "f" * 64)
    assert key_id(OLD) in str(raised.value)


# The formats.


@once
def test_formats() -> None:
    """P5: What any release has stored can be read, by the documented construction."""
    with keys(FIXED):
        id_ = key_id(FIXED)
        body = encryption.unseal(id_, FIXED_RECORD, "body 201", FIXED_BODY)
        assert body == b'{"id": 1}'
        steps = encryption.from_text(FIXED_STEPS)
        assert encryption.as_text(steps) == FIXED_STEPS
        steps = encryption.unseal(id_, FIXED_RECORD, "steps", steps)
        assert steps == steps_text("").encode()
        digest = encryption.keyed_digest(id_, FIXED_RECORD, "f" * 64)
        assert digest == FIXED_DIGEST
    secret = bytes(range(32))

    def derived(purpose: bytes) -> bytes:
        return HKDFExpand(SHA256(), 32, purpose).derive(secret)

    assert derived(b"idempotency key id")[:4].hex() == id_
    head, rest = FIXED_BODY[:11], FIXED_BODY[11:]
    assert head == b"1:765ff456:"
    cipher = AESGCM(derived(b"idempotency record" + FIXED_RECORD.bytes))
    bound = head + FIXED_RECORD.bytes + b"body 201"
    assert cipher.decrypt(rest[:12], rest[12:], bound) == b'{"id": 1}'
    assert len(FIXED_BODY) == len(b'{"id": 1}') + OVERHEAD
    page = (ROOT / "docs" / "settings.md").read_text()
    assert f"encryption adds {OVERHEAD} bytes" in page


# What is stored, and what comes back.


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("place", ["/atomic/", "/hold/"])
def test_round_trip(client: APIClient, place: str, atomic_requests: bool) -> None:
    """P5: The row has neither body nor header, and a replay has both, byte for byte."""
    with keys(OLD):
        first = post(client, place)
        row = raw()
        again = post(client, place)
    assert row["encrypted_by"] == key_id(OLD)
    assert SECRET not in str(row)
    assert row["body"].startswith(b"1:")
    assert len(row["body"]) == len(first.content) + OVERHEAD
    assert row["body_size"] == len(first.content)
    assert isinstance(row["headers"], str)
    assert again.content == first.content
    assert again["Idempotent-Replayed"] == "true"
    for name in ("X-Said", "Location", "Content-Type"):
        assert again[name] == first[name]
    assert runs == ["answer"]


@pytest.mark.usefixtures("each_way", "atomic_requests")
def test_as_many_statements(client: APIClient) -> None:
    """P5, R6: Encryption adds no statement, whatever a request does."""

    def statements(place: str) -> list[int]:
        counts = []
        for _time in range(2):
            with CaptureQueriesContext(connection) as captured:
                assert post(client, place).status_code in (201, 400)
            counts.append(len(captured))
        IdempotencyRecord.objects.all().delete()
        return counts

    for place in ("/atomic/", "/refusing/", "/hold/", "/resuming/"):
        statements(place)  # connections
        plain = statements(place)
        with keys(OLD):
            assert statements(place) == plain


@pytest.mark.usefixtures("each_way")
def test_steps(client: APIClient) -> None:
    """P5: Names and results of steps are encrypted, and a later run resumes."""
    with keys(OLD):
        record = cut_off(client, "/resuming/")
        text = raw()["steps"]
        for hidden in (STEP_SECRET, "same", "effect", "payload"):
            assert hidden not in text
        names = [entry["name"] for entry in record.entries]
        assert names == ["given", "effect"]
        assert IdempotencyRecord.objects.resumable().count() == 1
        answered = post(client, "/resuming/", die=1)
        assert answered.status_code == 201
        assert answered.data["secret"] == STEP_SECRET
        assert runs == ["resuming"]
        row = raw()
        assert STEP_SECRET not in str(row)
        assert "effect" not in row["steps"]
        record = IdempotencyRecord.objects.get()
        names = [entry["name"] for entry in record.entries]
        assert names == ["given", "effect", "charge"]
        assert not any("result" in entry for entry in record.entries)
    assert Effect.objects.count() == 1


def test_queries_of_steps() -> None:
    """P5: Queries see whether there are steps and a call in doubt, and nothing else."""
    entry = {"name": "a", "kind": "step", "began": "x", "result": MARKS}
    doubt = held_entry("b", new_record().created_at)
    with keys(OLD):
        for entries, has, is_in_doubt in (
            ([], False, False),
            ([entry], True, False),
            ([entry, doubt], True, True),
        ):
            make_record(
                encrypted_by=key_id(OLD),
                status_code=None,
                headers=None,
                body=None,
                state=State.ABANDONED,
                steps=steps_text("p", entries),
            )
            found = IdempotencyRecord.objects.filter(encrypted_by=key_id(OLD))
            assert found.filter(HAS_ENTRIES).exists() is has
            assert found.filter(IS_IN_DOUBT).exists() is is_in_doubt
            assert found.get().entries == entries
            found.delete()


MARKS = {"in_doubt": True, "name": "x", "encrypted": ""}


@pytest.mark.usefixtures("each_way")
def test_what_was_there_before(client: APIClient) -> None:
    """P5: Records from before the keys, and of earlier keys, replay as they did."""
    answers = [post(client).content]
    rows = [raw()["encrypted_by"]]
    with keys("", NEW):
        assert post(client).content == answers[0]
    for entries in ([OLD], [NEW, OLD], ["", OLD, NEW]):
        with keys(*entries):
            again = post(client)
            assert (again.content, again["Idempotent-Replayed"]) == (answers[0], "true")
            assert code_of(post(client, text="other")) == "idempotency_key_reused"
    IdempotencyRecord.objects.all().delete()
    with keys(OLD):
        first = post(client)
    for entries in ([NEW, OLD], ["", NEW, OLD], [OTHER, NEW, OLD], [OLD]):
        with keys(*entries):
            again = post(client)
            assert (again.content, again["Idempotent-Replayed"]) == (
                first.content,
                "true",
            )
            assert code_of(post(client, text="other")) == "idempotency_key_reused"
    rows.append(raw()["encrypted_by"])
    assert rows == [None, key_id(OLD)]
    assert runs == ["answer"] * 2


@pytest.mark.parametrize("place", ["/rerun/", "/resuming/"])
def test_rotation_while_abandoned(client: APIClient, place: str) -> None:
    """P5: A run that takes over a record gives it the first key, steps included."""
    with keys(OLD):
        cut_off(client, place)
    with keys(NEW, OLD):
        with pytest.raises(Killed) if place == "/rerun/" else nothing():
            post(client, place, die=1)
        row = raw()
    assert row["encrypted_by"] == key_id(NEW)
    for name in ENCRYPTED:
        assert key_id(OLD) not in str(row[name])
    if place == "/resuming/":
        with keys(NEW):
            assert post(client, place, die=1)["Idempotent-Replayed"] == "true"
        assert runs == ["resuming"]


@contextmanager
def nothing() -> Iterator[None]:
    yield


# Fingerprints.


def test_fingerprint(client: APIClient, settings: Any) -> None:
    """P5, F4: It is keyed, differs by record, and its version says so."""
    plain = []
    for _time in range(2):
        post(client)
        plain.append((raw()["fingerprint_version"], raw()["fingerprint"]))
        IdempotencyRecord.objects.all().delete()
    assert plain[0] == plain[1]
    with keys(OLD):
        post(client)
        client.post("/atomic/", {"text": "same"}, **key(str(uuid4())))
        first, second = IdempotencyRecord.objects.all()
        assert first.fingerprint_version == second.fingerprint_version == KEYED + 1
        digests = {first.fingerprint, second.fingerprint, plain[0][1]}
        assert len(digests) == 3
        for record in (first, second):
            digest = encryption.keyed_digest(key_id(OLD), record.pk, plain[0][1])
            assert record.fingerprint == digest
        # A version that this release does not know is another request.
        IdempotencyRecord.objects.update(fingerprint_version=KEYED + 77)
        assert code_of(post(client)) == "idempotency_key_reused"


def test_fingerprint_of_the_project(client: APIClient) -> None:
    """P5, F4: The digest of a project's own function is keyed, too."""
    with keys(OLD, FINGERPRINT=lambda request: str(request.data["text"])):
        post(client)
        assert raw()["fingerprint_version"] == KEYED
        assert post(client, more=1)["Idempotent-Replayed"] == "true"
        assert code_of(post(client, text="other")) == "idempotency_key_reused"


def test_derived_keys(client: APIClient) -> None:
    """E10, P5: Derived keys are the same with any keys and without."""
    derived = set()
    for entries in ([], [OLD], [NEW, OLD]):
        with keys(*entries):
            derived.add(post(client, "/deriving/").data)
        IdempotencyRecord.objects.all().delete()
    for entries in ([], [OLD]):
        with keys(*entries):
            derived_in_call = post(client, "/resuming/").data["derived"]
            IdempotencyRecord.objects.all().delete()
            record = cut_off(client, "/resuming/")
            completed = resume(record, finish)
            IdempotencyRecord.objects.all().delete()
            assert post(client, "/resuming/", die=0).status_code == 201
            IdempotencyRecord.objects.all().delete()
            derived.add((derived_in_call, completed.data["derived"]))  # type: ignore[attr-defined]
    assert len(derived) == 2


def test_part_of_a_batch(client: APIClient, handle: Callable[..., None]) -> None:
    """E6, P5: A part with the batch's own key runs under its claim."""
    inner: list[Any] = []

    def batch(request: Request) -> Response:
        sender = APIClient()
        headers = {**key(), "HTTP_X_USER": "ada"}
        inner.append(sender.post("/mixin-view/", {"part": 1}, **headers))
        return Response({"parts": 1})

    def behave(request: Request) -> Any:
        return batch(request) if "parts" in request.data else Response({"part": 1})

    handle(behave)
    with keys(OLD):
        assert client.post("/function/", {"parts": 1}, **key()).status_code == 200
    assert inner[0].data == {"part": 1}
    assert IdempotencyRecord.objects.count() == 1


# Keys that are lost.

LOST = [pytest.param([], id="none"), pytest.param([NEW], id="others")]


@pytest.mark.parametrize("entries", LOST)
@pytest.mark.parametrize("place", ["/atomic/", "/hold/", "/rerun/", "/resuming/"])
def test_lost_key(
    client: APIClient,
    caplog: pytest.LogCaptureFixture,
    place: str,
    entries: list[str],
) -> None:
    """P5: A response without its key is not kept, and the log says why."""
    with keys(OLD):
        first = post(client, place)
        before = raw()
    done = [*runs]
    with keys(*entries):
        for text in ("same", "other"):
            retry = post(client, place, text=text)
            assert retry.status_code == 409
            assert code_of(retry) == "idempotency_response_not_kept"
            assert "status 201" in str(retry.data)
            assert "Location" not in retry
    assert runs == done
    assert raw() == before
    lines = unreadable_lines(caplog)
    assert len(lines) == 2
    for line in lines:
        assert f"its encryption key {key_id(OLD)} is not in ENCRYPTION_KEYS" in line
        assert str(before["id"]) in line
        assert KEY not in line
    with keys(*entries, *([] if entries else [""]), OLD):
        assert post(client, place).content == first.content


@pytest.mark.parametrize("entries", LOST)
@pytest.mark.parametrize("place", LEASED)
def test_lost_key_of_an_abandoned_record(
    client: APIClient,
    caplog: pytest.LogCaptureFixture,
    place: str,
    entries: list[str],
) -> None:
    """P5: Without its key nobody runs an abandoned record, whatever its policy says."""
    with keys(OLD):
        record = cut_off(client, place)
        before = raw()
    with keys(*entries):
        for text in ("same", "other"):
            assert (
                code_of(post(client, place, text=text)) == "idempotency_outcome_unknown"
            )
        found = IdempotencyRecord.objects.with_lease_state().get()
        assert key_id(OLD) in found.unreadable
        with pytest.raises(Unreadable, match=key_id(OLD)):
            found.resolve(HttpResponse(b"1"))
        if place == "/resuming/":
            assert (found.entries, found.call_in_doubt) == ([], None)
            with pytest.raises(Unreadable, match=key_id(OLD)):
                resume(record, finish)
            report = complete_abandoned()
            assert (report.completed, report.failed, report.left) == (0, 0, 1)
    assert runs == []
    assert raw() == before
    assert len(unreadable_lines(caplog)) == (3 if place == "/resuming/" else 2)


def test_completer_tells_of_one(
    client: APIClient, caplog: pytest.LogCaptureFixture
) -> None:
    """P5, E17: Records without their key neither delay others nor fill the log."""
    with keys(OLD):
        for _number in range(3):
            value = str(uuid4())
            with pytest.raises(Killed):
                client.post("/resuming/", {"die": 1}, **key(value))
    with keys(NEW):
        with pytest.raises(Killed):
            client.post("/resuming/", {"die": 1}, **key(str(uuid4())))
        IdempotencyRecord.objects.update(
            state=State.ABANDONED, lease_expires_at=UTCNow() - timedelta(hours=1)
        )
        IdempotencyRecord.objects.filter(encrypted_by=key_id(OLD)).update(
            lease_expires_at=UTCNow() - timedelta(hours=2)
        )
        report = complete_abandoned(limit=1)
    assert (report.completed, report.failed, report.left) == (1, 0, 3)
    assert len(unreadable_lines(caplog)) == 1


def test_lost_key_of_a_running_record(
    client: APIClient, caplog: pytest.LogCaptureFixture
) -> None:
    """P5: While a handler runs, a duplicate is told so."""
    with keys(OLD):
        cut_off(client, "/rerun/")
    change(lease_expires_at=UTCNow() + timedelta(hours=1))
    with keys():
        assert code_of(post(client, "/rerun/")) == "idempotency_in_progress"
    assert unreadable_lines(caplog) == []
    assert runs == []


def test_lost_key_of_an_expired_record(client: APIClient) -> None:
    """P5, P1: Past its retention a key is new, even if the record is unreadable."""
    with keys(OLD):
        post(client)
        age_records(timedelta(days=31))
    with keys(NEW):
        assert "Idempotent-Replayed" not in post(client)
        assert post(client)["Idempotent-Replayed"] == "true"
        assert raw()["encrypted_by"] == key_id(NEW)
        age_records(timedelta(days=31))
    assert IdempotencyRecord.objects.purge().deleted == 1
    assert runs == ["answer"] * 2


# What was changed.


def flipped(text: Any, at: int) -> Any:
    """Return text or bytes with another character."""
    if isinstance(text, bytes):
        return text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
    other = "A" if text[at] != "A" else "B"
    return text[:at] + other + text[at + 1 :]


def within_steps(change_text: Callable[[str], str]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        told = json.loads(text)
        return json.dumps({**told, "encrypted": change_text(told["encrypted"])})

    return changed


# Ways to change a ciphertext. Texts have 11 characters of head, then base64.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "flipped at its end": lambda sealed: flipped(sealed, -5),
    "flipped in its nonce": lambda sealed: flipped(sealed, 13),
    "other format": lambda sealed: type(sealed)(sealed)[:0] + flipped(sealed, 0),
    "other key in front": lambda sealed: flipped(sealed, 3),
    "cut off": lambda sealed: sealed[:-4],
    "cut off in its nonce": lambda sealed: sealed[:15],
    "cut off in its head": lambda sealed: sealed[:5],
    "nothing left": lambda sealed: sealed[:0],
}


def assert_refused(
    client: APIClient, caplog: pytest.LogCaptureFixture, place: str, code: str
) -> None:
    """Check that nothing of a changed record is replayed or run."""
    done, effects = [*runs], Effect.objects.count()
    before = raw()
    retry = post(client, place) if code.endswith("kept") else post(client, place, die=1)
    assert (retry.status_code, code_of(retry)) == (409, code)
    assert SECRET not in str(retry.content)
    assert (runs, Effect.objects.count()) == (done, effects)
    assert len(unreadable_lines(caplog)) == 1
    assert raw() == before


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("field", ["headers", "body"])
@pytest.mark.parametrize("place", ["/atomic/", "/hold/"])
def test_changed_response(
    client: APIClient,
    caplog: pytest.LogCaptureFixture,
    place: str,
    field: str,
    how: str,
) -> None:
    """P5: A response of which a byte was changed or cut off is never replayed."""
    with keys(OLD, NEW):
        post(client, place)
        change(**{field: CHANGES[how](raw()[field])})
        assert_refused(client, caplog, place, "idempotency_response_not_kept")


@pytest.mark.parametrize("how", CHANGES)
def test_changed_steps(
    client: APIClient, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """P5: Steps of which a byte was changed are never resumed."""
    with keys(OLD, NEW):
        cut_off(client, "/resuming/")
        change(steps=within_steps(CHANGES[how])(raw()["steps"]))
        assert_refused(client, caplog, "/resuming/", "idempotency_outcome_unknown")
        with pytest.raises(Unreadable):
            resume(IdempotencyRecord.objects.get(), finish)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "1", '{"encrypted": 1}', steps_text("p"), '{"encrypted": "é"}'],
)
def test_steps_that_are_none(
    client: APIClient, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """P5: Text that is no ciphertext, such as steps in the clear, is refused."""
    with keys(OLD):
        cut_off(client, "/resuming/")
        change(steps=text)
        assert_refused(client, caplog, "/resuming/", "idempotency_outcome_unknown")


@pytest.mark.parametrize(
    "columns",
    [
        {"status_code": 200},
        {"encrypted_by": None},
        {"encrypted_by": key_id(NEW)},
        {"encrypted_by": "x\nforged"},
        {"headers": [["Location", "/2"]]},
        {"headers": None},
        {"body": None},
        {"body": b"1"},
        {"headers": [["Location", "/2"]], "body": b"1", "encrypted_by": None},
    ],
    ids=str,
)
def test_changed_columns(
    client: APIClient, caplog: pytest.LogCaptureFixture, columns: dict[str, Any]
) -> None:
    """P5: Content in the clear, another status or another key's id is refused."""
    with keys(OLD, NEW):
        post(client)
        change(**columns)
        retry = post(client)
    # Another key gives another fingerprint.
    is_other_key = columns == {"encrypted_by": key_id(NEW)}
    code = "key_reused" if is_other_key else "response_not_kept"
    assert code_of(retry) == f"idempotency_{code}"
    assert SECRET not in str(retry.content)
    assert runs == ["answer"]
    lines = unreadable_lines(caplog)
    assert len(lines) == (not is_other_key)
    assert all(map(str.isprintable, lines))


@pytest.mark.parametrize("field", ["headers", "body", "steps"])
@pytest.mark.parametrize("entries", [[OLD], [NEW, OLD]], ids=["one key", "two keys"])
def test_swapped_records(
    client: APIClient, field: str, entries: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """P5: What belongs to another record, of the same key or not, is refused."""
    values = [str(uuid4()) for _number in range(2)]
    place = "/resuming/" if field == "steps" else "/atomic/"
    for value, first in zip(values, (OLD, entries[0]), strict=True):
        with keys(first, *({*entries} - {first})):
            if field == "steps":
                with pytest.raises(Killed):
                    client.post(place, {"die": 1}, **key(value))
            else:
                client.post(place, {}, **key(value))
    mine, other = (IdempotencyRecord.objects.filter(key=value) for value in values)
    mine.update(**other.values(field, "encrypted_by").get())
    IdempotencyRecord.objects.update(lease_expires_at=UTCNow())
    done = [*runs]
    with keys(*entries):
        retry = client.post(
            place, {"die": 1} if field == "steps" else {}, **key(values[0])
        )
    assert retry.status_code in (409, 422)
    assert runs == done
    same_key = entries == [OLD]
    if same_key:
        assert len(unreadable_lines(caplog)) == 1


def test_swapped_fields(client: APIClient, caplog: pytest.LogCaptureFixture) -> None:
    """P5: What belongs to another field of the record is refused."""
    with keys(OLD):
        post(client)
        change(body=encryption.from_text(raw()["headers"]))
        assert_refused(client, caplog, "/atomic/", "idempotency_response_not_kept")


# What people and jobs do with encrypted records.


def test_resolve(client: APIClient) -> None:
    """P5: A person's response is stored encrypted, and replayed."""
    with keys(OLD):
        record = cut_off(client, "/resuming/")
    with keys(NEW, OLD):
        record = IdempotencyRecord.objects.with_lease_state().get()
        record.resolve(HttpResponse(SECRET, headers={"X-Said": SECRET}))
        assert bytes(record.body or b"") == SECRET.encode()
        row = raw()
        assert row["encrypted_by"] == key_id(OLD)
        assert SECRET not in str(row)
        assert STEP_SECRET not in str(IdempotencyRecord.objects.get().entries)
        again = post(client, "/resuming/", die=1)
        assert (again.content, again["X-Said"]) == (SECRET.encode(), SECRET)
    assert runs == []


@pytest.mark.parametrize("returned", [True, False])
def test_settle_a_call(client: APIClient, returned: bool) -> None:
    """P5: What a person says of a call in doubt is encrypted, also in older records."""
    record = cut_off(client, "/resuming/")
    doubt = held_entry("charge", record.created_at)
    change(
        state=State.ABANDONED,
        steps=steps_text("p", [*record.entries, doubt]),
        lease_expires_at=UTCNow() - timedelta(hours=1),
    )
    with keys(OLD):
        record = IdempotencyRecord.objects.with_lease_state().get()
        assert record.call_in_doubt == "charge"
        if returned:
            record.call_returned("charge", {"derived": SECRET})
        else:
            record.call_never_happened("charge")
        row = raw()
        assert row["encrypted_by"] == key_id(OLD)
        assert SECRET not in row["steps"]
        assert row["fingerprint_version"] == 1
        answered = post(client, "/resuming/", die=1)
        assert (answered.data["derived"] == SECRET) is returned
        assert raw()["fingerprint_version"] == KEYED + 1
    assert runs == ["resuming"]


@pytest.mark.parametrize("before", [[], [OLD]], ids=["plain", "encrypted"])
def test_complete(client: APIClient, before: list[str]) -> None:
    """P5, E17: A completer resumes encrypted steps, and encrypts those of before."""
    with keys(*before):
        cut_off(client, "/resuming/")
    change(state=State.ABANDONED)
    with keys(NEW, OLD):
        assert complete_abandoned().completed == 1
        row = raw()
        assert row["encrypted_by"] == key_id(before[0] if before else NEW)
        assert row["body"].startswith(b"1:")
        assert isinstance(row["headers"], str)
        assert '"encrypted"' in row["steps"]
        assert post(client, "/resuming/", die=1)["Idempotent-Replayed"] == "true"
        assert code_of(post(client, "/resuming/")) == "idempotency_key_reused"
    assert runs == ["finish"]


def test_tombstone(client: APIClient, handle: Callable[..., None]) -> None:
    """P5, R4: The Location of a tombstone is encrypted, and repeated."""
    with keys(OLD, STORE=False):
        post(client)
        row = raw()
        assert row["body"] is None
        assert "Location" not in str(row["headers"])
        for _time in range(2):
            retry = post(client)
            assert code_of(retry) == "idempotency_response_not_kept"
            assert retry["Location"] == "/1"
    assert runs == ["answer"]


def test_admin(enter: Enter, client: APIClient) -> None:
    """P5, A1: Staff read and download what is encrypted."""
    with keys(OLD):
        body = post(client).content
        staff, record = enter(VIEW, SEE_BODY), IdempotencyRecord.objects.get()
        text = Page(staff.get(address(record))).text
        assert f"X-Said: {SECRET}" in text
        assert f'"said": "{SECRET}"' in text
        assert staff.get(address(record, "body")).content == body


def test_admin_of_steps(enter: Enter, client: APIClient) -> None:
    """P5, A1: Staff read the time line and the results of encrypted steps."""
    with keys(OLD):
        record = cut_off(client, "/resuming/")
        text = Page(enter(VIEW, SEE_BODY).get(address(record))).text
        assert "step “effect”" in text
        assert STEP_SECRET in text


def test_admin_without_the_key(enter: Enter, client: APIClient) -> None:
    """P5, A1: The page says what is missing and what a retry gets."""
    staff = enter(VIEW, SEE_BODY, RESOLVE, RELEASE)
    with keys(OLD):
        post(client)
        record = IdempotencyRecord.objects.get()
    with keys(NEW):
        text = Page(staff.get(address(record))).text
        assert f"its encryption key {key_id(OLD)} is not in ENCRYPTION_KEYS" in text
        assert "refused with 409 idempotency_response_not_kept" in text
        assert "The response can't be decrypted." in text
        assert staff.get(address(record, "body")).status_code == 404
    with keys(OLD):
        change(body=flipped(raw()["body"], -1))
        text = Page(staff.get(address(record))).text
        assert "The response can't be decrypted." in text
        assert "another record's" in text
        assert SECRET not in text.replace(f"X-Said: {SECRET}", "")


def test_admin_of_an_abandoned_record_without_its_key(
    enter: Enter, client: APIClient
) -> None:
    """P5, A3: Nobody resolves what can't be read, but staff can release the key."""
    staff = enter(VIEW, SEE_BODY, RESOLVE, RELEASE)
    with keys(OLD):
        record = cut_off(client, "/resuming/")
    with keys(NEW):
        page = Page(staff.get(address(record)))
        assert "refused with 409 idempotency_outcome_unknown" in page.text
        assert page.links("/resolve/") == page.links("/complete/") == []
        assert page.links("/release/")
        posted = {"status_code": 201, "content_type": "text/plain", "body": "1"}
        staff.post(address(record, "resolve"), {**posted, "token": record.token})
        assert raw()["status_code"] is None
        staff.post(
            address(record, "release"),
            {"token": record.token, "reason": "The key is lost."},
        )
    assert not IdempotencyRecord.objects.exists()
    change_is_logged(client)


def change_is_logged(client: APIClient) -> None:
    """After the release the key is new."""
    with keys(NEW):
        assert post(client, "/resuming/").status_code == 201
    assert runs == ["resuming", "effect"]


# How Django's own ways of reading and writing see a record.


def test_fixtures(client: APIClient, tmp_path: Any) -> None:
    """P5: ``dumpdata`` has the ciphertext, and ``loaddata`` brings it back."""
    out = tmp_path / "records.json"
    with keys(OLD):
        first = post(client)
        call_command("dumpdata", "idempotency", output=str(out), verbosity=0)
        assert SECRET not in out.read_text()
        IdempotencyRecord.objects.all().delete()
        call_command("loaddata", str(out), verbosity=0)
        assert post(client).content == first.content
    with keys(NEW), pytest.raises(Exception, match=key_id(OLD)):
        call_command("dumpdata", "idempotency", output=str(out), verbosity=0)


def test_saving(client: APIClient) -> None:
    """P5: ``save()`` encrypts, and never replaces what it could not read."""
    with keys(OLD):
        first = post(client)
        IdempotencyRecord.objects.get().save()
        row = raw()
        assert SECRET not in str(row)
        assert post(client).content == first.content
    with keys(NEW):
        record = IdempotencyRecord.objects.get()
        assert (record.body, record.headers, record.stored_response.body) == (  # type: ignore[union-attr]
            None,
            None,
            None,
        )
        with pytest.raises(Unreadable, match=key_id(OLD)):
            record.save()
        record.save(update_fields=["attempt"])
    assert raw() == row


def test_deferred_fields(client: APIClient) -> None:
    """P5: A field that is loaded later, alone or again, is decrypted."""
    with keys(OLD):
        first = post(client)
        for deferred in (
            IdempotencyRecord.objects.only("key").get(),
            IdempotencyRecord.objects.only("body").get(),
            IdempotencyRecord.objects.only("headers").get(),
            IdempotencyRecord.objects.only("attempt", "encrypted_by").get(),
            IdempotencyRecord.objects.defer("body", "headers", "steps").get(),
            IdempotencyRecord.objects.defer("encrypted_by").get(),
        ):
            assert bytes(deferred.body or b"") == first.content
            assert ["X-Said", SECRET] in (deferred.headers or [])
            assert (deferred.steps, deferred.unreadable) == (None, "")
        record = IdempotencyRecord.objects.get()
        record.refresh_from_db()
        assert bytes(record.body or b"") == first.content
        change(body=flipped(raw()["body"], -1))
        late = IdempotencyRecord.objects.defer("body").get()
        assert late.unreadable == ""
        assert late.body is None
        assert "can't be decrypted" in late.unreadable


def test_deferred_fields_in_the_clear(client: APIClient) -> None:
    """P5: With keys, a record from before is read field by field, too."""
    body = post(client).content
    with keys(OLD):
        for name in ("body", "encrypted_by"):
            record = IdempotencyRecord.objects.only(name).get()
            assert bytes(record.body or b"") == body
            assert (record.steps, record.why_unreadable()) == (None, "")


@once
def test_columns() -> None:
    """P5: The columns are those of Django's fields, so migrations change none."""
    for name, kind in (
        ("headers", "JSONField"),
        ("body", "BinaryField"),
        ("steps", "TextField"),
    ):
        field: Any = IdempotencyRecord._meta.get_field(name)
        assert field.deconstruct()[1] == f"django.db.models.{kind}"
        assert field.get_internal_type() == kind


def test_bulk_create() -> None:
    """P5: Statements of Django's own, as on other databases, encrypt as well."""
    record = new_record(
        encrypted_by=key_id(OLD), body=SECRET.encode(), headers=[["X-Said", SECRET]]
    )
    with keys(OLD):
        IdempotencyRecord.objects.bulk_create([record])
        assert SECRET not in str(raw())
        assert bytes(IdempotencyRecord.objects.get().body or b"") == SECRET.encode()


# Limits.


@pytest.mark.parametrize("fits", [True, False])
def test_max_response_bytes(client: APIClient, fits: bool) -> None:
    """P5, R4: MAX_RESPONSE_BYTES counts what is stored."""
    body = post(client).content
    IdempotencyRecord.objects.all().delete()
    limit = len(body) + OVERHEAD - (not fits)
    with keys(OLD, MAX_RESPONSE_BYTES=limit):
        post(client)
        kept = raw()["body"]
        assert (kept is not None) is fits
        assert kept is None or len(kept) == limit
        assert ("Idempotent-Replayed" in post(client)) is fits
    with keys(MAX_RESPONSE_BYTES=len(body)):
        IdempotencyRecord.objects.all().delete()
        post(client)
        assert post(client).content == body


def test_largest_form(enter: Enter, client: APIClient) -> None:
    """P5, A3: The form for a person's response counts the same bytes."""
    staff = enter(VIEW, SEE_BODY, RESOLVE)
    with keys(OLD, MAX_RESPONSE_BYTES=100 + OVERHEAD):
        record = cut_off(client, "/hold/")
        posted = {"status_code": 201, "content_type": "text/plain"}
        for size, status in ((101, 200), (100, 302)):
            data = {**posted, "body": "x" * size, "token": record.token}
            got = staff.post(address(record, "resolve"), data)
            assert got.status_code == status
        assert len(raw()["body"]) == 100 + OVERHEAD


def test_largest_steps(client: APIClient) -> None:
    """P5, E14: The limit of steps counts what is stored of them."""
    with keys(OLD):
        cut_off(client, "/resuming/")
        stored = len(json.loads(raw()["steps"])["encrypted"])
        plain = len(IdempotencyRecord.objects.get().steps or "")
    IdempotencyRecord.objects.all().delete()
    assert plain < stored
    for limit, entries in ((plain, []), (stored, [OLD])):
        for less, expected in ((0, Killed), (1, ValueError)):
            with (
                keys(*entries, MAX_RESPONSE_BYTES=limit - less),
                pytest.raises(expected),
            ):
                APIClient().post(
                    "/resuming/", {"text": "same", "die": 1}, HTTP_X_USER="ada", **key()
                )
            IdempotencyRecord.objects.all().delete()


@pytest.mark.skipif(connection.vendor != "mysql", reason="MariaDB's own")
@pytest.mark.parametrize(
    ("content", "is_kept"),
    # What the driver has to escape counts after the encryption.
    [(b'"' * 9, True), (b"a" * 15, True), (b"a" * 16, False)],
)
def test_larger_than_a_statement(
    client: APIClient, handle: Callable[..., None], content: bytes, is_kept: bool
) -> None:
    """P5, R4: What MariaDB takes in a statement is the ciphertext."""
    assert claims_in("default").largest_statement == 16 * 1024 * 1024  # type: ignore[attr-defined]
    body = content * 1024 * 1024
    handle(lambda request: HttpResponse(body))
    with keys(OLD, MAX_RESPONSE_BYTES=10**9):
        assert client.post("/function/", {}, **key()).status_code == 200
        retry = client.post("/function/", {}, **key())
    assert (retry.content == body) is is_kept
    if not is_kept:
        assert code_of(retry) == "idempotency_response_not_kept"


def test_other_databases(client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """P5: The claim that works on every database encrypts the steps it begins with."""
    from idempotency.claims.base import Claims  # noqa: PLC0415  # beside its use

    claims = claims_in("default")
    monkeypatch.setattr(type(claims), "insert", Claims.insert)
    with keys(OLD):
        assert post(client, "/resuming/").status_code == 201
        record = cut_off_again(client)
        assert [entry["name"] for entry in record.entries] == ["given", "effect"]
    connections.close_all()


def cut_off_again(client: APIClient) -> IdempotencyRecord:
    IdempotencyRecord.objects.all().delete()
    return cut_off(client, "/resuming/")


def test_levels(client: APIClient, caplog: pytest.LogCaptureFixture) -> None:
    """P5: The line is an error, with the record and the id of the key."""
    with keys(OLD):
        post(client)
    with keys(NEW):
        post(client)
    (line,) = (
        line
        for line in caplog.records
        if vars(line).get("idempotency_event") == "record_unreadable"
    )
    assert line.levelno == logging.ERROR
    assert vars(line)["idempotency_encrypted_by"] == key_id(OLD)
    assert vars(line)["idempotency_record_id"] == raw()["id"]


@pytest.mark.parametrize(
    "columns",
    [{"body": None}, {"body": b"1"}, {"steps": '{"encrypted": "1"}'}],
    ids=str,
)
def test_headers_of_what_is_refused(client: APIClient, columns: dict[str, Any]) -> None:
    """P5, R4: A refusal has no header of a response that can't be read as a whole."""
    with keys(OLD):
        first = post(client)
        assert first["X-Said"] == SECRET
        change(**columns)
        retry = post(client)
        record = IdempotencyRecord.objects.get()
    assert code_of(retry) == "idempotency_response_not_kept"
    assert SECRET not in str(retry.headers)
    assert "Location" not in retry
    assert record.unreadable
    assert (record.headers, record.body, record.steps) == (None, None, None)


@pytest.mark.parametrize("field", ["headers", "body", "steps"])
def test_refresh_of_what_was_changed(client: APIClient, field: str) -> None:
    """P5: What a refresh can't read is neither taken for missing nor replaced."""
    with keys(OLD):
        post(client, "/resuming/")
        record = IdempotencyRecord.objects.get()
        late = IdempotencyRecord.objects.defer(field).get()
        change(
            **{
                field: '{"encrypted": "1"}'
                if field == "steps"
                else "1"
                if field == "headers"
                else b"1"
            }
        )
        before = raw()
        record.refresh_from_db()
        assert getattr(late, field) is None
        for each in (record, late):
            assert "can't be decrypted" in each.unreadable
            with pytest.raises(Unreadable):
                each.save()
    assert raw() == before


def test_refresh_with_another_key(client: APIClient) -> None:
    """P5: A refresh reads what its key has become, in both directions."""
    with keys(OLD):
        first = post(client)
        record, before = IdempotencyRecord.objects.get(), raw()
    with keys(NEW):
        for name in ("attempt", "encrypted_by", "body"):
            part = IdempotencyRecord.objects.only(name).get()
            part.refresh_from_db()
            assert (key_id(OLD) in part.unreadable) is (name != "attempt")
        record.refresh_from_db()
        assert key_id(OLD) in record.unreadable
        with pytest.raises(Unreadable):
            record.save()
    assert raw() == before
    with keys(OLD):
        record.refresh_from_db()
        assert record.unreadable == ""
        assert bytes(record.body or b"") == first.content


@pytest.mark.parametrize("place", ["/atomic/", "/rerun/"])
def test_erased_without_the_key(
    client: APIClient, caplog: pytest.LogCaptureFixture, enter: Enter, place: str
) -> None:
    """P5, P4: Of an erased record no key is missing: there is nothing to read."""
    with keys(OLD):
        if place == "/rerun/":
            cut_off(client, place)
        else:
            post(client, place)
    with keys(NEW):
        record = IdempotencyRecord.objects.get()
        assert record.unreadable
        record.erase()
        assert record.unreadable == ""
        retry = post(client, place)
        assert code_of(retry) == "idempotency_response_not_kept"
        assert unreadable_lines(caplog) == []
        text = Page(enter(VIEW, SEE_BODY).get(address(record))).text
        assert "What this record said of a person is erased." in text
        assert "can't be read" not in text
