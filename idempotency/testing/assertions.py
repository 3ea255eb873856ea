"""Whether an endpoint keeps the app's promises to one client after another request."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

from django.db.models import Model
from django.test import Client

from idempotency.conf import get_settings
from idempotency.modes import AtomicMode, LeasedMode
from idempotency.protection import is_exempt
from idempotency.responses import REPLAYED_HEADER
from idempotency.testing.effects import (
    Effects,
    Watch,
    beyond,
    compare_changes,
    describe_changes,
)
from idempotency.testing.sending import (
    KeyIn,
    SentRequest,
    another_payload,
    fail,
    new_key,
)
from idempotency.testing.trials import Sent, Trial

NO_EFFECT = (
    "Nothing was seen to happen, so nothing is proved. Name what the endpoint does, "
    "what it changes in rows that are there, too: effects=<a queryset, or a function "
    "that returns a number>, or a dictionary of several."
)
TRY_OTHER_DATA = (
    "If the endpoint does not take the same payload twice, pass other_data=<another "
    "payload that it takes>."
)
MAKE_ONE_TRANSACTION = (
    "What is done outside the record's transaction is done again by the retry. Do it "
    "in transaction.on_commit(), hand the other side "
    'request.idempotency.derive("a name"), or use leased mode.'
)
AT_LEAST_ONCE = (
    "A leased handler may run again after an error. Let what it does be the same thing "
    'under the same request.idempotency.derive("a name"), or let on_abandoned be '
    '"hold" or a callable that finds out.'
)


def assert_idempotent(
    client: Client,
    method: str,
    url: str,
    data: Any = None,
    *,
    other_data: Any = None,
    effects: Effects = None,
    ignore: Collection[type[Model]] = (),
    key_in: KeyIn = "header",
    **extra: Any,
) -> Any:
    """Check that a request acts once, however often it is sent under one key.

    Sends it with ``client.<method>(url, data, **extra)`` and keys of its own:

    - with an error after the handler: nothing is left, neither effects nor a record
    - the retry: it acts
    - a duplicate: it gets the same status and bytes, and nothing happens (R2, R3)
    - another payload under the same key: 422, and nothing happens (F4)

    In leased mode no transaction takes effects back. There the error comes last, under
    another key: whether its record is abandoned then or gone, attempt and retry
    together do no more than one request does (E9).

    ``client`` is Django's or REST framework's, logged in as its requests need it.
    ``other_data`` is another payload that the endpoint takes, for endpoints that do
    not take the same one twice and for fingerprints that leave members out; by default
    it is ``data`` and something more. What happens is seen in the number of rows of the
    project's tables, those of the models in ``ignore`` apart, and in ``mail.outbox``;
    ``effects`` adds more: a queryset whose rows count, a function that returns a
    number, or a dictionary of those by name. Rows that are changed, such as a balance,
    change no number: name them in ``effects``. ``key_in`` is ``"header"`` or
    ``"query"``.

    Returns the answer of the run that acted.

    Raises ``AssertionError``, which says what doubled or was left and how to mend it;
    ``TypeError`` for an effect that is no number; ``ValueError`` where the settings let
    no key in; and what the view raises by itself.
    """
    request = SentRequest(
        client=client, method=method, url=url, data=data, key_in=key_in, extra=extra
    )
    trial = IdempotencyTrial(request, other_data, Watch(effects, ignore))
    return trial.run().response


class IdempotencyTrial(Trial):
    """The checks of one ``assert_idempotent``, in their order."""

    def run(self) -> Sent:
        """Send what there is to send; return the run that acted."""
        key = new_key()
        acted = self.send(key, fails_in=AtomicMode)
        if acted.has_failed:
            acted = self.retry_after_error(key, acted)
        self.check_taken(acted)
        self.replay(key, acted)
        self.refuse_another_payload(key)
        if isinstance(acted.mode, LeasedMode):
            self.fail_in_leased_mode(acted)
        return acted

    def retry_after_error(self, key: str, failed: Sent) -> Sent:
        """Check that an error has left nothing, and that the retry acts (E1, O3)."""
        has_record = failed.record is not None
        retry = self.send(key)
        if failed.changes:
            fail(
                f"{self.request}: an error after the handler did not undo all that it "
                "had done:",
                lines=compare_changes(
                    retry.changes,
                    "the retry",
                    failed.changes,
                    "the attempt that failed",
                ),
                mend=MAKE_ONE_TRANSACTION,
            )
        if has_record:
            fail(
                f"{self.request}: an error after the handler left a record, and the "
                f"retry was answered {retry.summary}. The handler commits by itself: "
                "leased mode is for such handlers."
            )
        if retry.mode is None:
            fail(
                f"{self.request}: after an error that undid everything the retry was "
                f"answered {retry.summary}",
                mend="The handler keeps something elsewhere, such as in a cache.",
            )
        return retry

    def check_taken(self, acted: Sent) -> None:
        """Check that the endpoint took the request."""
        if acted.mode is None and acted.response.status_code >= 400:
            fail(
                f"{self.request} was answered {acted.summary}",
                mend="Such an answer gives the key back. The client and the data must "
                "be such that the endpoint acts.",
            )

    def replay(self, key: str, acted: Sent) -> None:
        """Check that a duplicate gets the same answer, and does nothing (R2, R6)."""
        again = self.send(key)
        record = acted.record
        is_tombstone = record is not None and record.body_size is None
        is_replay = again.response.get(REPLAYED_HEADER) == "true"
        if not (is_replay or (is_tombstone and again.response.status_code == 409)):
            self.fail_to_replay(acted, again)
        if again.changes:
            fail(
                f"{self.request}: the duplicate was answered from the record, but "
                "something else than the handler acted:",
                lines=compare_changes(
                    acted.changes, "the first request", again.changes, "the duplicate"
                ),
                mend="If that is meant, such as a log of all requests, pass "
                "ignore=[<its model>].",
            )
        if is_replay and again.exact_response != acted.exact_response:
            fail(
                f"{self.request}: the duplicate got another answer:\n"
                f"    first: {acted.summary}\n    duplicate: {again.summary}",
                mend="A middleware changes stored answers: let the view give the "
                "answer its final form.",
            )
        # What a leased handler writes twice, the numbers alone would tell.
        is_seen = acted.changes or (
            isinstance(acted.mode, AtomicMode) and acted.writes - again.writes
        )
        if not is_seen:
            fail(f"{self.request} was answered {acted.summary}", mend=NO_EFFECT)

    def fail_to_replay(self, acted: Sent, again: Sent) -> NoReturn:
        """Say that a duplicate was not recognised, what doubled, and why."""
        fail(
            f"{self.request}: a duplicate under the same key was not answered from a "
            f"record, but {again.summary}. What doubled:",
            lines=compare_changes(
                {**acted.changes, **acted.writes},
                "the first request",
                {**again.changes, **again.writes},
                "the duplicate",
            ),
            mend=self.reason(acted),
        )

    def reason(self, acted: Sent) -> str:
        """Say why a duplicate may not have been recognised."""
        if acted.mode is not None:
            return (
                "An answer was stored, but the duplicate did not find it: is the scope "
                "another one for each request?"
            )
        if not get_settings().ENABLED:
            return "The settings switch the app off: ENABLED is False."
        match = getattr(acted.response, "resolver_match", None)
        if match and is_exempt(match.func, self.request.method.upper()):
            return "The handler is left alone on purpose, by @idempotency_exempt."
        return (
            "No protected handler has stored an answer: is the view without "
            "IdempotencyMixin and its handler without @idempotent, or is the method "
            f"{self.request.method.upper()} not among its methods?"
        )

    def refuse_another_payload(self, key: str) -> None:
        """Check that the key is good for one payload only (F4)."""
        data = self.other_data
        if data is None:
            data = another_payload(self.request.data)
        other = self.send(key, request=self.request.with_data(data))
        if other.response.status_code != 422 or other.mode or other.changes:
            fail(
                f"{self.request}: another payload under the same key was answered "
                f"{other.summary}, instead of 422 idempotency_key_reused.",
                lines=describe_changes(other.changes, "the other payload"),
                mend="If the endpoint's own fingerprint leaves out what differs, pass "
                "other_data=<a payload that it tells apart>.",
            )

    def fail_in_leased_mode(self, acted: Sent) -> None:
        """Check what an error leaves where no transaction takes effects back (E9)."""
        key = new_key()
        request = self.request
        if self.other_data is not None:
            request = request.with_data(self.other_data)
        before = self.watch.count()
        failed = self.send(key, fails_in=LeasedMode, request=request)
        if not failed.has_failed:
            fail(
                f"{request}: under another key it was answered {failed.summary}",
                mend=TRY_OTHER_DATA,
            )
        self.send(key, request=request)
        doubled = beyond(acted.changes, self.watch.changes_since(before))
        if doubled:
            fail(
                f"{request}: an attempt that failed and its retry did more than one "
                "request does:",
                lines=compare_changes(
                    acted.changes, "one request", doubled, "the two of them"
                ),
                mend=AT_LEAST_ONCE,
            )
