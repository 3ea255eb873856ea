"""What fails in a page of the admin leaves no record's values in reports of errors."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from traceback import walk_tb
from types import CodeType, FrameType
from typing import Any

import pytest
from django.contrib.admin import ModelAdmin, site
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.signals import got_request_exception
from django.db import connection
from django.http import HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client
from django.urls import URLResolver, include, path
from django.utils import timezone

from idempotency.admin import IdempotencyRecordAdmin
from idempotency.admin.lists import OF_A_CALLER
from idempotency.discretion import _with_all_before, discreet_page
from idempotency.models import IdempotencyRecord, State
from idempotency.steps import as_text, held_entry, new_entry
from tests.support.admin_pages import (
    EVERYTHING,
    LIST,
    Enter,
)
from tests.support.record_factories import new_record
from tests.test_error_reports import (
    ANSWERED,
    FINGERPRINT,
    KEY,
    NO_ANSWER,
    SCOPE,
    SENT,
    Reports,
    reports,
    told,
)

__all__ = ["reports"]
pytestmark = [
    pytest.mark.usefixtures("database"),
    pytest.mark.urls("tests.support.record_admins"),
]


Ask = Callable[[Client], Any]
# A function, and the last line of it that a page has run.
Place = tuple[CodeType, int]
WATCHED = ("idempotency", "django.contrib.admin")
# What empties the frames, and what logging calls, which lets no error out.
UNWATCHED = ("idempotency.discretion", "idempotency.signals")


class Planted(Exception):
    """What fails."""


@contextmanager
def tracing(tracer: Any) -> Iterator[None]:
    """Let a function see what is called, and no other one meanwhile."""
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(before)


def places_of(ask: Callable[[], Any]) -> set[Place]:
    """Return the functions of the app and of Django's admin that a request calls."""
    found: dict[CodeType, int] = {}

    def see_end(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return":
            found.setdefault(frame.f_code, frame.f_lineno)
        return see_end

    def see_call(frame: FrameType, event: str, arg: Any) -> Any:
        name = str(frame.f_globals.get("__name__"))
        if not name.startswith(WATCHED) or name in UNWATCHED:
            return None
        frame.f_trace_lines = False
        return see_end

    with tracing(see_call):
        ask()
    return {*found.items()}


@contextmanager
def failing_at(place: Place) -> Iterator[None]:
    """Fail in a function when it is about to end, with all its variables set."""
    code, line = place

    def see_line(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and frame.f_lineno == line:
            raise Planted
        return see_line

    def see_call(frame: FrameType, event: str, arg: Any) -> Any:
        return see_line if frame.f_code is code else None

    with tracing(see_call):
        yield


def new_secret(**fields: Any) -> IdempotencyRecord:
    return new_record(
        **{
            "scope": SCOPE,
            "path": f"/reset/{SENT}/",
            "fingerprint": FINGERPRINT,
            "body": json.dumps({"answered": ANSWERED}).encode(),
            "headers": [
                ["Content-Type", "application/json"],
                ["Location", f"/{ANSWERED}/"],
            ],
            **fields,
        }
    )


def make_records() -> tuple[IdempotencyRecord, IdempotencyRecord]:
    """Store an answer, and more abandoned records of a caller than the list has."""
    done = new_secret(key=KEY)
    ended = timezone.now() - timedelta(minutes=5)
    own: Any = {**NO_ANSWER, "state": State.ABANDONED, "lease_expires_at": ended}
    ride = new_entry("step", "ride", ended) | {
        "ended": ended.isoformat(),
        "result": {"answered": ANSWERED},
    }
    steps = as_text(FINGERPRINT, [ride, held_entry("charge", ended)])
    stuck = new_secret(key=f"1-{KEY}", steps=steps, **own)
    more = [new_secret(key=f"2-{n}-{KEY}", **own) for n in range(OF_A_CALLER)]
    # Addresses of pages are in reports, so these name another caller.
    more.append(new_secret(key=f"3-{KEY}", scope="another"))
    IdempotencyRecord.objects.bulk_create([done, stuck, *more])
    return done, stuck


PAGES: dict[str, Callable[[Any, Any], tuple[str, Any]]] = {
    "list": lambda done, stuck: (LIST, None),
    "abandoned": lambda done, stuck: (f"{LIST}?state=abandoned", None),
    "search": lambda done, stuck: (f"{LIST}?q=1-{done.pk}", None),
    "a caller": lambda done, stuck: (f"{LIST}?caller=another", None),
    "search for a caller": lambda done, stuck: (f"{LIST}?q=another", None),
    "record": lambda done, stuck: (f"{LIST}{done.pk}/change/", None),
    "abandoned record": lambda done, stuck: (f"{LIST}{stuck.pk}/change/", None),
    "history": lambda done, stuck: (f"{LIST}{done.pk}/history/", None),
    "overview": lambda done, stuck: (f"{LIST}overview/", None),
    "purge": lambda done, stuck: (f"{LIST}purge/", {}),
    "release": lambda done, stuck: (f"{LIST}{done.pk}/release/", None),
    "released": lambda done, stuck: (
        f"{LIST}{done.pk}/release/",
        {"token": str(done.token), "reason": "lost"},
    ),
    "resolve": lambda done, stuck: (f"{LIST}{stuck.pk}/resolve/", None),
    "resolved": lambda done, stuck: (
        f"{LIST}{stuck.pk}/resolve/",
        {"token": str(stuck.token), "status_code": "204", "content_type": "a/b"},
    ),
    "call": lambda done, stuck: (f"{LIST}{stuck.pk}/call/", None),
    "called": lambda done, stuck: (
        f"{LIST}{stuck.pk}/call/",
        {
            "token": str(stuck.token),
            "outcome": "returned",
            "result": "1",
        },
    ),
    "download": lambda done, stuck: (f"{LIST}{done.pk}/body/", None),
}

CHANGING = {"purge", "released", "resolved", "called"}


@pytest.fixture
def desk(
    enter: Enter, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """Return a client that may do all, and sees 500 as an answer."""
    monkeypatch.setattr("idempotency.admin.purge.has_worker", lambda: False)
    client = enter(*EVERYTHING)
    client.raise_request_exception = False
    # What fails there fails around the page.
    settings.MIDDLEWARE = [
        name for name in settings.MIDDLEWARE if not name.startswith("idempotency")
    ]
    yield client
    LogEntry.objects.all().delete()
    User.objects.all().delete()


def make(page: str, client: Client) -> Callable[[], Any]:
    """Store records, and return what asks for a page of them."""
    IdempotencyRecord.objects.all()._raw_delete("default")
    address, data = PAGES[page](*make_records())
    if data is None:
        return lambda: client.get(address)
    return lambda: client.post(address, data)


def locals_left(error: BaseException) -> list[Any]:
    """Return what an error has of the variables of what a page calls."""
    left = []
    for each in _with_all_before(error):
        frames = [frame for frame, _line in walk_tb(each.__traceback__)]
        names = [frame.f_code.co_name for frame in frames]
        is_outermost = "silently" in names
        below = frames[names.index("silently") + 1 :] if is_outermost else frames
        left += [frame.f_locals for frame in below if frame.f_locals]
    return left


def test_any_function_fails(desk: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """X1: Wherever a page fails, in its template, too, no frame has a variable left."""
    if connection.vendor != "sqlite":
        pytest.skip("The same on every database, and long")
    errors: list[Any] = []

    def note(**kwargs: Any) -> None:
        errors.append(sys.exc_info()[1])

    for page in PAGES:
        make(page, desk)()  # so that all is imported
    places = {page: places_of(make(page, desk)) for page in PAGES}
    seen, failed = set(), 0
    # To format each traceback would take longer than the requests.
    monkeypatch.setattr(logging.getLogger("django.request"), "disabled", True)
    got_request_exception.connect(note)
    # Each function fails once, on the page that calls the fewest.
    for page in sorted(PAGES, key=lambda page: len(places[page])):
        ask = make(page, desk)
        for code, line in places[page]:
            if code in seen:
                continue
            seen.add(code)
            errors.clear()
            with failing_at((code, line)):
                ask()
            for error in errors:
                assert locals_left(error) == [], f"{page}: {code.co_name}"
            failed += len(errors)
            if page in CHANGING:
                ask = make(page, desk)
    got_request_exception.disconnect(note)
    # The rest is expected to fail sometimes, and is caught by the pages.
    assert failed > 0.9 * len(seen) > 200


def fail(*args: Any, **kwargs: Any) -> Any:
    """Stand in for a step, with what it was given."""
    raise Planted


@pytest.mark.parametrize(
    ("page", "step"),
    [
        ("list", "idempotency.admin.lists.RecordList.get_results"),
        ("list", "idempotency.admin.columns.Columns._listed_caller"),
        ("list", "idempotency.admin.display.in_a_column"),
        ("list", "idempotency.admin.display.distance"),
        ("list", "django.contrib.admin.templatetags.admin_list.display_for_value"),
        ("list", "django.contrib.messages.context_processors.messages"),
        ("abandoned", "idempotency.admin.base.urlencode"),
        ("a caller", "idempotency.admin.lists.that_have"),
        ("a caller", "idempotency.admin.lists.presentable"),
        ("search for a caller", "idempotency.admin.search.find_routes"),
        ("search for a caller", "idempotency.admin.search.HttpResponseRedirect"),
        ("abandoned", "idempotency.admin.base.display.in_a_column"),
        ("record", "idempotency.admin.pages.is_open"),
        ("record", "idempotency.admin.columns.replayed_headers"),
        ("record", "idempotency.admin.decoding.presentable"),
        ("record", "idempotency.admin.display.preformatted"),
        ("record", "idempotency.admin.columns.decode"),
        ("record", "django.contrib.admin.helpers.linebreaksbr"),
        ("record", "django.template.defaultfilters.Truncator"),
        ("abandoned record", "idempotency.admin.messages.get_settings"),
        ("abandoned record", "idempotency.admin.columns.indented"),
        ("abandoned record", "idempotency.admin.columns._course"),
        ("call", "idempotency.admin.pages.CallForm"),
        ("called", "idempotency.admin.forms.CallForm.settle"),
        ("called", "idempotency.models.limited"),
        ("history", "django.contrib.admin.options.get_content_type_for_model"),
        ("overview", "idempotency.admin.overview.route_of"),
        ("overview", "idempotency.admin.overview.Caller"),
        ("overview", "django.template.defaultfilters.formats.number_format"),
        ("overview", "django.template.defaultfilters.quote"),
        ("purge", "idempotency.admin.purge.in_the_log"),
        ("release", "idempotency.admin.display.asked"),
        ("release", "django.templatetags.tz.do_timezone"),
        ("released", "idempotency.admin.pages.HttpResponseRedirect"),
        ("released", "idempotency.admin.pages._released"),
        ("resolve", "idempotency.admin.pages.ResolveForm"),
        ("resolve", "django.forms.boundfield.BoundField.label_tag"),
        ("resolved", "idempotency.admin.display.second"),
        ("download", "idempotency.admin.pages.HttpResponse"),
    ],
)
def test_reports_of_a_page(
    desk: Client,
    page: str,
    step: str,
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """X1: Django's technical page and Sentry's event of a page tell no secret."""
    ask = make(page, desk)
    monkeypatch.setattr(step, fail)
    assert ask().status_code == 500
    assert "Planted" in reports.text
    assert told(reports.text) == []


def test_a_column_of_a_project(
    desk: Client, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: A project's functions leave no variables either, and keep their lines."""

    def listed_times(admin: Any, record: IdempotencyRecord) -> str:
        title = f"{record.scope} {record.key}"
        raise Planted(len(title))

    monkeypatch.setattr(IdempotencyRecordAdmin, "listed_times", listed_times)
    assert make("list", desk)().status_code == 500
    assert "raise Planted(len(title))" in reports.text
    assert told(reports.text) == []


def test_a_variable_that_does_not_exist(
    desk: Client, reports: Reports, settings: Any
) -> None:
    """X1: Django's error of a project's own template quotes no context."""
    (engine,) = settings.TEMPLATES
    template = "{{ subtitle|add:nothing }}"
    own = {IdempotencyRecordAdmin.change_form_template: template}
    loaders = [
        ("django.template.loaders.locmem.Loader", own),
        "django.template.loaders.app_directories.Loader",
    ]
    options = {**engine["OPTIONS"], "loaders": loaders}
    settings.TEMPLATES = [{**engine, "APP_DIRS": False, "OPTIONS": options}]
    assert make("record", desk)().status_code == 500
    assert "Failed lookup for key [nothing] in" in reports.text
    assert told(reports.text) == []


def test_a_page_that_can_not_be_encoded(
    desk: Client, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: Python's error of a text has the whole text, and loses it."""
    monkeypatch.setattr(
        IdempotencyRecordAdmin, "hidden_answer", lambda admin, record: "\ud800"
    )
    monkeypatch.setattr(
        IdempotencyRecordAdmin, "has_body_permission", lambda *args: False
    )
    assert make("record", desk)().status_code == 500
    assert "surrogates not allowed" in reports.text
    assert told(reports.text) == []


def test_a_statement_of_the_list(
    desk: Client, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X1: What a database says of a statement of Django's quotes no values."""

    # PostgreSQL quotes a value, and MariaDB what comes after a mistake.
    mistake = "1 IN IN (%s)"
    if connection.vendor == "postgresql":
        mistake = "1 = CAST(%s AS integer)"

    def get_queryset(admin: Any, request: Any) -> Any:
        records: Any = IdempotencyRecord.objects.with_lease_state()
        return records.extra(where=[mistake], params=[KEY])

    monkeypatch.setattr(IdempotencyRecordAdmin, "get_queryset", get_queryset)
    assert make("list", desk)().status_code == 500
    assert "Error at /admin/" in reports.text
    assert told(reports.text) == []


def test_errors_of_others(rf: Any) -> None:
    """X1: An error that is handled around a page keeps its variables."""

    def fails(clue: str) -> None:
        raise ValueError

    def view(request: Any) -> HttpResponse:
        raise Planted

    def reporting(request: Any) -> None:
        try:
            fails("a clue")
        except ValueError:
            discreet_page(view)(request)

    with pytest.raises(Planted) as caught:
        reporting(rf.get("/"))
    inner = [frame for frame, _line in walk_tb(caught.value.__traceback__)][-1]
    around: Any = caught.value.__context__
    outer = [frame for frame, _line in walk_tb(around.__traceback__)][-1]
    assert (inner.f_locals, outer.f_locals) == ({}, {"clue": "a clue"})


def test_responses_of_pages(rf: Any) -> None:
    """X1: What is rendered is what the view returned, and a cache can keep it."""
    engine = engines["django"]

    def view(request: Any) -> TemplateResponse:
        return TemplateResponse(request, engine.from_string("{{ a }}"), {"a": 1})

    response: Any = discreet_page(view)(rf.get("/"))
    assert response.render() is response
    assert response.content == b"1"
    assert pickle.loads(pickle.dumps(response)).content == b"1"
    rendered = view(rf.get("/")).render()
    assert discreet_page(lambda request: rendered)(None) is rendered
    assert "render" not in vars(rendered)


class Nested(ModelAdmin):  # type: ignore[type-arg]  # generic for the stubs alone
    """Another package's admin, with pages of its own below one address."""

    def get_urls(self) -> list[Any]:
        return [path("more/", include([])), *super().get_urls()]


class NestedAdmin(IdempotencyRecordAdmin, Nested):
    """Both together."""


def test_addresses_of_others() -> None:
    """A1: What another package includes among the admin's addresses stays there."""
    patterns = NestedAdmin(IdempotencyRecord, site).get_urls()
    included = [each for each in patterns if isinstance(each, URLResolver)]
    assert [each.callback for each in included] == [None]
