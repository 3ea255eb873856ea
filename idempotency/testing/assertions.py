"""Check that an endpoint keeps the app's guarantees for sequential requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from django.db.models import Model
from django.test import Client

from idempotency.conf import get_settings
from idempotency.models import IdempotencyRecord
from idempotency.modes import AtomicMode, LeasedMode, Mode
from idempotency.protection import is_exempt
from idempotency.responses import REPLAYED_HEADER
from idempotency.testing.effects import (
    Effects,
    Numbers,
    Watch,
    beyond,
    compare_changes,
    writes_counted,
)
from idempotency.testing.sending import (
    HandlerFailed,
    KeyIn,
    SentRequest,
    another_payload,
    describe_response,
    fail,
    log_silenced,
    new_key,
    runs_watched,
)

NO_EFFECT = (
    "No effect was counted, so nothing is proved. Name the endpoint's effects, "
    "including changes of existing rows: effects=<a queryset, or a function that "
    "returns a number>, or a dictionary of several."
)
TRY_OTHER_DATA = (
    "If the endpoint does not accept the same payload twice, pass other_data=<another "
    "payload that it accepts>."
)
MAKE_ONE_TRANSACTION = (
    "The retry repeats effects outside the record's transaction. Move them to "
    'transaction.on_commit(), pass request.idempotency.derive("a name") to the other '
    "side, or use leased mode."
)
AT_LEAST_ONCE = (
    "A leased handler may run again after an error. Pass "
    'request.idempotency.derive("a name") to the other side, so that it recognises the '
    'retry, or set on_abandoned to "hold" or to a callable that finds out.'
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
    """Check that a request acts once, however often it is sent with one key.

    Send it by ``client.<method>(url, data, **extra)`` with a new key:

    - with an error after the handler: it leaves no effects and no record
    - a retry: it acts
    - a duplicate: it gets the same status and bytes, and has no effect (R2, R3)
    - another payload with the same key: it gets 422, and has no effect (F4)

    In leased mode the error comes last, with another key, because no transaction undoes
    effects: the attempt and its retry may do no more than one request does (E9).

    ``client`` is Django's or REST framework's, logged in if necessary. ``other_data``
    is another payload that the endpoint accepts, for endpoints that do not accept the
    same one twice, and for fingerprints that leave members out; the default is ``data``
    with an addition. Effects are counted in the rows of the project's tables, except
    models in ``ignore``, and in ``mail.outbox``. ``effects`` adds a queryset, a
    function that returns a number, or a dictionary of these by name; changes of
    existing rows, such as a balance, are only seen there. ``key_in`` is ``"header"`` or
    ``"query"``.

    Return the response of the run that acted.

    Raise ``AssertionError`` with what doubled or was left, and how to fix it;
    ``TypeError`` for an effect that is not a number; ``ValueError`` if the settings
    turn ``key_in`` off, and for ``follow=True``; and any error of the view.
    """
    request = SentRequest(
        client=client, method=method, url=url, data=data, key_in=key_in, extra=extra
    )
    return Trial(request, other_data, Watch(effects, ignore)).run().response


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The result of one request; ``mode`` is None if no handler ran to its end."""

    response: Any
    mode: Mode | None
    has_failed: bool
    changes: Numbers
    writes: Counter[str]

    @property
    def record(self) -> IdempotencyRecord | None:
        """The record as it is now."""
        if self.mode is None:
            return None
        records = IdempotencyRecord.objects.using(self.mode.alias)
        found: Any = self.mode.context.record_id
        return records.filter(pk=found).first()

    @property
    def summary(self) -> str:
        """The response in short."""
        return describe_response(self.response)

    @property
    def exact_response(self) -> tuple[int, bytes, str]:
        """The parts of the response that a replay repeats."""
        response = self.response
        content_type = response.get("Content-Type", "")
        return response.status_code, response.content, content_type


class Trial:
    """The checks of one ``assert_idempotent``, in their order."""

    def __init__(self, request: SentRequest, other_data: Any, watch: Watch) -> None:
        self.request = request
        self.other_data = other_data
        self.watch = watch

    def send(
        self,
        key: str,
        *,
        fails_in: type[Mode] | None = None,
        request: SentRequest | None = None,
    ) -> Sent:
        """Send the request, and raise an error after a handler in mode ``fails_in``."""
        modes: list[Mode] = []
        response = None
        before = self.watch.count()

        def end(mode: Mode) -> None:
            modes.append(mode)
            if has_failed():
                raise HandlerFailed("The error that idempotency.testing provokes.")

        def has_failed() -> bool:
            return fails_in is not None and any(isinstance(m, fails_in) for m in modes)

        with runs_watched(end), log_silenced(has_failed), writes_counted() as writes:
            try:
                response = (request or self.request).send(key)
            except Exception:
                if not has_failed():
                    raise
        return Sent(
            response=response,
            mode=modes[-1] if modes else None,
            has_failed=has_failed(),
            changes=self.watch.changes_since(before),
            writes=writes,
        )

    def run(self) -> Sent:
        """Send all requests and check them; return the run that acted."""
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
        """Check that an error leaves nothing, and that the retry acts (E1, O3)."""
        has_record = failed.record is not None
        retry = self.send(key)
        if failed.changes:
            fail(
                f"{self.request}: an error after the handler did not undo all its "
                "effects:",
                lines=compare_changes(
                    retry.changes,
                    "the retry",
                    failed.changes,
                    "the failed attempt",
                ),
                mend=MAKE_ONE_TRANSACTION,
            )
        if has_record:
            fail(
                f"{self.request}: an error after the handler left a record, and the "
                f"retry got {retry.summary}. The handler commits by itself: use leased "
                "mode."
            )
        if retry.mode is None:
            fail(
                f"{self.request}: after an error that undid everything, the retry got "
                f"{retry.summary}",
                mend="The handler stores something elsewhere, such as in a cache.",
            )
        return retry

    def check_taken(self, acted: Sent) -> None:
        """Check that the endpoint accepted the request."""
        if acted.mode is None and acted.response.status_code >= 400:
            fail(
                f"{self.request} got {acted.summary}",
                mend="Such a response releases the key. Use a client and data that the "
                "endpoint accepts.",
            )

    def replay(self, key: str, acted: Sent) -> None:
        """Check that a duplicate gets the same response, and has no effect (R2, R6)."""
        again = self.send(key)
        record = acted.record
        is_tombstone = record is not None and record.body_size is None
        is_replay = again.response.get(REPLAYED_HEADER) == "true"
        if not (is_replay or (is_tombstone and again.response.status_code == 409)):
            self.fail_to_replay(acted, again)
        if again.changes:
            fail(
                f"{self.request}: the duplicate got a replay, but code other than the "
                "handler acted:",
                lines=compare_changes(
                    acted.changes, "the first request", again.changes, "the duplicate"
                ),
                mend="If this is intended, such as a log of all requests, pass "
                "ignore=[<its model>].",
            )
        if is_replay and again.exact_response != acted.exact_response:
            fail(
                f"{self.request}: the duplicate got another response:\n"
                f"    first: {acted.summary}\n    duplicate: {again.summary}",
                mend="A middleware changes stored responses: let the view return the "
                "response in its final form.",
            )
        # Repeated writes of a leased handler show in the counted effects only.
        is_seen = acted.changes or (
            isinstance(acted.mode, AtomicMode) and acted.writes - again.writes
        )
        if not is_seen:
            fail(f"{self.request} got {acted.summary}", mend=NO_EFFECT)

    def fail_to_replay(self, acted: Sent, again: Sent) -> NoReturn:
        """Fail with what doubled, and a reason."""
        fail(
            f"{self.request}: a duplicate with the same key got no replay, but "
            f"{again.summary}. What doubled:",
            lines=compare_changes(
                {**acted.changes, **acted.writes},
                "the first request",
                {**again.changes, **again.writes},
                "the duplicate",
            ),
            mend=self.reason(acted),
        )

    def reason(self, acted: Sent) -> str:
        """Return why the duplicate may have got no replay."""
        method = self.request.method.upper()
        if acted.mode is not None:
            return (
                "A response was stored, but the duplicate did not find it: does the "
                "scope change with each request?"
            )
        if not get_settings().ENABLED:
            return "The settings turn the app off: ENABLED is False."
        match = getattr(acted.response, "resolver_match", None)
        if match and is_exempt(match.func, method):
            return "The handler is exempt, by @idempotency_exempt."
        return (
            "No protected handler stored a response. Does the view lack "
            "IdempotencyMixin and the handler @idempotent, or do their methods lack "
            f"{method}?"
        )

    def refuse_another_payload(self, key: str) -> None:
        """Check that the key is valid for one payload only (F4)."""
        data = self.other_data
        if data is None:
            data = another_payload(self.request.data)
        other = self.send(key, request=self.request.with_data(data))
        if other.response.status_code != 422 or other.mode or other.changes:
            fail(
                f"{self.request}: another payload with the same key got "
                f"{other.summary}, instead of 422 idempotency_key_reused.",
                lines=(
                    f"{name}: {change:+} by the other payload"
                    for name, change in other.changes.items()
                ),
                mend="If the endpoint's own fingerprint leaves out the difference, "
                "pass other_data=<a payload with another fingerprint>.",
            )

    def fail_in_leased_mode(self, acted: Sent) -> None:
        """Check the effects of a failed attempt and its retry (E9)."""
        key = new_key()
        request = self.request
        if self.other_data is not None:
            request = request.with_data(self.other_data)
        before = self.watch.count()
        failed = self.send(key, fails_in=LeasedMode, request=request)
        if not failed.has_failed:
            fail(
                f"{request}: with another key it got {failed.summary}",
                mend=TRY_OTHER_DATA,
            )
        self.send(key, request=request)
        doubled = beyond(acted.changes, self.watch.changes_since(before))
        if doubled:
            fail(
                f"{request}: a failed attempt and its retry did more than one request "
                "does:",
                lines=compare_changes(
                    acted.changes, "one request", doubled, "both together"
                ),
                mend=AT_LEAST_ONCE,
            )
