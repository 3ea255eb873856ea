"""Check that a handler which resumes acts once, wherever its process is killed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

from django.db.models import Model
from django.test import Client

from idempotency.exceptions import OutcomeUnknown
from idempotency.models import IdempotencyRecord, State
from idempotency.modes import LeasedMode
from idempotency.modes.stray_writes import StrayWrite, stray_writes_reported
from idempotency.responses import ERROR_HEADER, EXPIRES_HEADER
from idempotency.testing.assertions import Sent, Trial
from idempotency.testing.boundaries import Boundaries, Killed
from idempotency.testing.effects import (
    Effects,
    Numbers,
    Watch,
    beyond,
    compare_changes,
)
from idempotency.testing.records import end_lease
from idempotency.testing.sending import (
    KeyIn,
    SentRequest,
    describe_response,
    fail,
    log_silenced,
    new_key,
)

NOT_RESUMING = (
    'assert_resumable() is for handlers with atomic=False and on_abandoned="resume". '
    "For all others, use assert_idempotent()."
)
TRY_NEW_DATA = (
    "If the endpoint does not accept the same payload twice, pass data=<a function "
    "that returns another payload each time>."
)
KEEP_NAMES = (
    "A recorded step or call is found by its name. Make the name from the payload or "
    "from recorded results, not from random values or the time."
)
MAKE_STEPS = (
    "A run that resumes repeats what is in no step and no call. Put writes into "
    "request.idempotency.step(), and external calls into request.idempotency.call()."
)
PASS_THE_KEY = (
    "A call is repeated if the process dies before its result is recorded. Pass the "
    "key that its function gets to the other side. If that takes no key, set the "
    'call\'s on_abandoned to "hold" or to a callable that finds out.'
)
MOVE_OUT_OF_STEPS = (
    "A step that was not committed is repeated, and only its writes in the record's "
    "database are undone. Move what it does elsewhere to request.idempotency.call()."
)
USE_RESULTS = (
    "The retry may have found what the ended request left. Let the handler decide by "
    "results of steps and calls, which every run gets, instead of by rows that it has "
    "written, and make the response from these results."
)

MENDS = {None: MAKE_STEPS, "call": PASS_THE_KEY, "step": MOVE_OUT_OF_STEPS}


class Missing:
    """The type of ``MISSING``, a part that a response does not have."""


MISSING = Missing()


def assert_resumable(
    client: Client,
    method: str,
    url: str,
    data: Any = None,
    *,
    effects: Effects = None,
    ignore: Collection[type[Model]] = (),
    key_in: KeyIn = "header",
    **extra: Any,
) -> Any:
    """Check that a request acts once, wherever its process is killed (E12 to E16).

    Send it undisturbed. Then, for each boundary that it passes, send it with a new key,
    end it there, end its lease, and retry. Boundaries are before and after each
    statement, step and call. Both attempts together must do what the undisturbed
    request does, and the retry must get the same response; values that differ between
    undisturbed requests, such as primary keys, may differ. If the request ended in a
    call with ``on_abandoned="hold"``, the retry may get ``idempotency_outcome_unknown``
    instead.

    ``data`` may be a function that returns the payload of each new request, for
    endpoints that do not accept the same one twice. The other arguments are those of
    ``assert_idempotent``.

    Return the response of the undisturbed request. Issue a ``WriteOutsideStep`` warning
    for each line that writes outside of a step, even if no effect doubled.

    Raise ``AssertionError`` with the boundary, what doubled or was left out, and how to
    fix it; and the errors of ``assert_idempotent``.
    """
    request = SentRequest(
        client=client, method=method, url=url, data=data, key_in=key_in, extra=extra
    )
    return Resumption(request, Watch(effects, ignore)).run()


class Resumption:
    """The checks of one ``assert_resumable``."""

    def __init__(self, request: SentRequest, watch: Watch) -> None:
        self.request = request
        self.watch = watch
        # What the latest undisturbed request did, and what all of them got.
        self.once: Numbers = {}
        self.responses: list[dict[str, Any]] = []
        self.stray_writes: dict[StrayWrite, None] = {}

    def new_request(self) -> SentRequest:
        """Return the request with a payload for a new key."""
        data = self.request.data
        return self.request.with_data(data() if callable(data) else data)

    def run(self) -> Any:
        """Send all requests and check them; return the first response."""
        with stray_writes_reported(self.stray_writes.setdefault):
            acted = self.send_first()
            for number in range(1, self.send_undisturbed() + 1):
                if not self.end_and_retry(number):
                    break  # a later request may pass fewer, for example due to a cache
        for write in self.stray_writes:
            write.warn()
        return acted.response

    def send_first(self) -> Sent:
        """Send a request and a duplicate, and check what ``assert_idempotent`` does."""
        trial = Trial(self.new_request(), None, self.watch)
        key = new_key()
        acted = trial.send(key)
        trial.check_taken(acted)
        mode = acted.mode
        if not (isinstance(mode, LeasedMode) and mode.resumes):
            fail(f"{self.request} got {acted.summary}", mend=NOT_RESUMING)
        trial.replay(key, acted)
        self.alias = mode.alias
        self.trial = trial
        self.responses.append(parts_of(acted.response))
        return acted

    def send_undisturbed(self) -> int:
        """Note what a request does and gets; return how many boundaries it passes."""
        boundaries, request = Boundaries(), self.new_request()
        before = self.watch.count()
        with boundaries.watched():
            response = request.send(new_key())
        self.once = self.watch.changes_since(before)
        self.responses.append(parts_of(response))
        if self.responses[-1]["status"] != self.responses[0]["status"]:
            got = describe_response(response)
            fail(f"{request}: with another key it got {got}", mend=TRY_NEW_DATA)
        return boundaries.passed

    def end_and_retry(self, number: int) -> bool:
        """End a request at a boundary and check its retry; return whether it ended."""
        key, request, boundaries = new_key(), self.new_request(), Boundaries(number)
        before = self.watch.count()
        with (
            boundaries.watched(),
            log_silenced(lambda: True, "idempotency"),
            suppress(Killed),
        ):
            request.send(key)
        if boundaries.end is None:
            return False
        ended = f"{request}: ended {boundaries.end}, the retry"
        found = end_lease(key, self.alias)
        resumed = Boundaries()
        try:
            with resumed.watched():
                retry = self.trial.send(key, request=request)
        except Exception as error:  # noqa: BLE001  # any error of the view
            self.fail(f"{ended} raised {error!r}")
        done = self.watch.changes_since(before)
        got = f"{ended} got {retry.summary}"
        if found is not None and retry.mode is not None:
            check_names(got, found, [*resumed.names])
        if found is not None and is_held(found, retry):
            wrong = beyond(self.once, done)
        else:
            wrong = compared(self.once, done)
            if not wrong and not is_tombstone(found):
                self.check_response(got, retry)
        if wrong:
            self.fail(
                f"{got}. Together they did not do what one request does:",
                lines=compare_changes(self.once, "one request", wrong, "both"),
                mend=MENDS[boundaries.end_in] if beyond(self.once, wrong) else None,
            )
        return True

    def check_response(self, got: str, retry: Sent) -> None:
        """Check that the retry got what undisturbed requests get."""
        parts = parts_of(retry.response)
        wrong = self.unknown_parts(parts)
        if wrong:
            self.send_undisturbed()  # the time may have changed a part
            wrong = self.unknown_parts(parts)
        if wrong:
            known = self.responses[-1]
            self.fail(
                f"{got}, unlike an undisturbed request:",
                lines=(
                    f"{name}: {known.get(name)!r} undisturbed, {parts.get(name)!r} by "
                    "the retry"
                    for name in wrong
                ),
            )

    def fail(
        self, what: str, *, lines: Iterable[str] = (), mend: str | None = None
    ) -> NoReturn:
        """Fail, and name the writes outside of steps if they may be the reason."""
        writes = [
            f"{write.statement} outside of a step: {write.filename}:{write.line}"
            for write in self.stray_writes
            if mend in (None, MAKE_STEPS)
        ]
        fail(what, lines=[*lines, *writes], mend=mend or USE_RESULTS)

    def unknown_parts(self, parts: dict[str, Any]) -> list[str]:
        """Return the parts of a response that no undisturbed request has got.

        If a part differs between undisturbed requests, its type counts alone.
        """
        return [
            name
            for name in {**self.responses[-1], **parts}
            if not is_among(
                parts.get(name, MISSING),
                [each.get(name, MISSING) for each in self.responses],
            )
        ]


def check_names(got: str, found: IdempotencyRecord, asked: list[str]) -> None:
    """Check that a retry asked for what was recorded, and not for new names (E16)."""
    recorded = [entry["name"] for entry in found.entries]
    skipped = [name for name in recorded if name not in asked]
    new = [name for name in asked if name not in recorded]
    if skipped and new:
        fail(
            f"{got} and did not ask for what was recorded:",
            lines=(
                f"recorded: {', '.join(map(repr, skipped))}",
                f"asked for: {', '.join(map(repr, new))}",
            ),
            mend=KEEP_NAMES,
        )


def is_held(found: IdempotencyRecord, retry: Sent) -> bool:
    """Return whether a retry was rightly refused, because a call is in doubt (E13)."""
    code = retry.response.get(ERROR_HEADER)
    return found.call_in_doubt is not None and code == OutcomeUnknown.default_code


def is_tombstone(found: IdempotencyRecord | None) -> bool:
    """Return whether the response was stored, but can't be replayed (R4)."""
    if found is None or found.state != State.COMPLETED:
        return False
    return found.body_size is None


def compared(once: Numbers, done: Numbers) -> Numbers:
    """Return the changes that differ from one request's."""
    names = {**once, **done}
    return {n: done.get(n, 0) for n in names if once.get(n, 0) != done.get(n, 0)}


def is_among(value: Any, known: list[Any]) -> bool:
    """Return whether a value is known, or of a known type if the values vary."""
    if value in known:
        return True
    is_varying = any(each != known[0] for each in known)
    return is_varying and type(value) in map(type, known)


def parts_of(response: Any) -> dict[str, Any]:
    """Return the parts of a response to compare: the values of a JSON body by path."""
    body = getattr(response, "content", b"")
    parts = {
        "status": response.status_code,
        "Content-Type": response.get("Content-Type"),
        "is stored": EXPIRES_HEADER in response,
    }
    try:
        return {**parts, **dict(leaves(json.loads(body), "body"))}
    except ValueError:
        return {**parts, "body": body}


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the values in JSON that contain no others, by their paths."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, f"{path}[{name!r}]")
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, f"{path}[{index}]")
    else:
        yield path, value
