"""System checks that look at a whole project, and the table of all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery import current_app
from django.apps import apps
from django.core import checks
from django.core.checks import CheckMessage
from django.db import connections, transaction
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from rest_framework.authentication import BaseAuthentication, TokenAuthentication
from rest_framework.authtoken.views import ObtainAuthToken
from rest_framework.decorators import api_view
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import (
    AllowAny,
    BasePermission,
    DjangoModelPermissions,
    DjangoObjectPermissions,
    IsAdminUser,
    IsAuthenticated,
    IsAuthenticatedOrReadOnly,
)
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from idempotency.checks import (
    check_backlog,
    check_callers,
    check_databases,
    check_decorators,
    check_durability,
    check_enabled,
    check_encryption_keys,
    check_endpoints,
    check_jobs_are_scheduled,
    check_jobs_are_scheduled_in_database,
    check_leased_views,
    check_methods,
    check_quota,
    check_reading,
    check_round_trips,
    check_servers,
    check_settings,
    check_settings_of_their_own,
    check_stored_credentials,
    check_tested_databases,
    check_views_without_the_mixin,
)
from idempotency.claims import PostgreSQLClaims
from idempotency.decorators import idempotent
from idempotency.encryption import has_library, new_entry
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.schedules import (
    BEAT_SCHEDULE,
    COMPLETING_SCHEDULE,
    COMPLETING_TASK,
    PURGE_TASK,
)
from tests.conftest import once
from tests.support.processes import ROOT, run_python
from tests.support.record_factories import make_record
from tests.test_docs import code, table

CHECKS = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
Messages = list[CheckMessage]
Levels = {"info": checks.INFO, "error": checks.ERROR, "warning": checks.WARNING}


def ids(messages: Messages) -> list[str | None]:
    return [message.id for message in messages]


# A project with one mistake for each check.


def everybody(request: Request) -> str:
    return "everybody"


@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="hold")
def leased(request: Request) -> Response:
    return Response()


@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="hold", retention=timedelta(seconds=60))
def short(request: Request) -> Response:
    return Response()


def complete(steps: Any) -> Response:
    return Response()


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="resume", completer=complete)
def completed(request: Request) -> Response:
    return Response()


class Lost(IdempotencyMixin, APIView):
    idempotency_scope = "tests.test_project_checks.nobody"

    def post(self, request: Request) -> Response:
        return Response()


class Found(IdempotencyMixin, APIView):
    idempotency_scope = "tests.test_project_checks.everybody"

    def post(self, request: Request) -> Response:
        return Response()


class NoMixin(APIView):
    idempotency_required = True

    def post(self, request: Request) -> Response:
        return Response()


class NoHooks(APIView):
    @idempotent
    def post(self, request: Request) -> Response:
        return Response()

    def check_replay(self, request: Request, record: Any) -> None:
        raise PermissionDenied


class Unmarked(APIView):
    def post(self, request: Request) -> Response:
        return Response()

    def check_replay(self, request: Request, record: Any) -> None:
        """Do something of the project's own."""


class Put(APIView):
    @idempotent(required=True)
    def put(self, request: Request) -> Response:
        return Response()


@api_view(["GET", "PUT"])
@idempotent
def never(request: Request) -> Response:
    return Response()


class HasApiKey(BasePermission):
    """What tells callers apart and gives none a name."""


try:
    from rest_framework_api_key.permissions import BaseHasAPIKey
except (ImportError, RuntimeError):  # it is no app of this project
    BaseHasAPIKey = type(
        "BaseHasAPIKey",
        (BasePermission,),
        {"__module__": "rest_framework_api_key.permissions"},
    )


class OwnKey(BaseHasAPIKey):  # type: ignore[misc, valid-type]
    """A key of a project's own kind."""


class ByApiKey(IdempotencyMixin, APIView):
    authentication_classes: list[Any] = []
    permission_classes: list[Any] = [HasApiKey]

    def post(self, request: Request) -> Response:
        return Response()


class Login(IdempotencyMixin, ObtainAuthToken):
    """A login by token, protected as a project may do it."""


class Reads(ByApiKey):
    authentication_classes = [TokenAuthentication]
    idempotency_methods = ("GET", "POST")

    def get(self, request: Request) -> Response:
        return Response()


@api_view(["GET", "POST"])
@idempotent
def sometimes(request: Request) -> Response:
    return Response()


@method_decorator(idempotent, name="dispatch")
class Dispatched(APIView):
    """Decorated where no handler is."""


@api_view(["POST"])
@idempotent(using="other")
def elsewhere(request: Request) -> Response:
    return Response()


urlpatterns: list[Any] = []


@pytest.fixture
def urlconf(settings: Any) -> Iterator[Callable[..., None]]:
    """Let a test say which views the project has, each at two addresses."""
    settings.ROOT_URLCONF = __name__

    def set_views(*views: Any) -> None:
        from django.urls import clear_url_caches  # noqa: PLC0415  # beside its use

        urlpatterns[:] = [
            path(f"{prefix}{number}/", view)
            for prefix in ("a", "b")
            for number, view in enumerate(views)
        ]
        clear_url_caches()

    set_views()
    yield set_views
    set_views()


class NoTable:
    """A router that keeps the app out of the other database."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if (db, app_label) == ("other", "idempotency") else None


class KeepsElsewhere:
    """A router that writes records to the other database."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "other" if model._meta.app_label == "idempotency" else None


class Project:
    """What an example changes of a project without mistakes."""

    def __init__(self, patch: pytest.MonkeyPatch, settings: Any, urlconf: Any) -> None:
        self.patch = patch
        self.settings = settings
        self.urls = urlconf

    def without_beat_tables(self) -> None:
        installed = apps.is_installed
        self.patch.setattr(
            apps,
            "is_installed",
            lambda name: name != "django_celery_beat" and installed(name),
        )

    def on(self, vendor: str, alias: str = "default", **attributes: Any) -> None:
        """Let the connection of a database be one to another kind of server."""
        for name, value in {"vendor": vendor, **attributes}.items():
            # What is there before is not read: some of it only the server knows.
            self.patch.setitem(vars(connections[alias]), name, value)

    def quota(self, rate: Any) -> None:
        self.settings.REST_FRAMEWORK = {
            **self.settings.REST_FRAMEWORK,
            "DEFAULT_THROTTLE_RATES": {"idempotency": rate},
        }

    def on_server(self, charset: str, *, undoes_all: bool) -> None:
        """Let the database be on a MariaDB whose server is set up like this."""
        self.on("mysql", mysql_is_mariadb=True)
        cursor = MagicMock()
        cursor.__enter__().fetchone.return_value = (charset, int(undoes_all))
        self.patch.setitem(vars(connections["default"]), "cursor", lambda: cursor)

    def with_durability(self, vendor: str, **values: str) -> None:
        """Let the database be on a server with these settings."""
        self.on(vendor, mysql_is_mariadb=True)
        cursor = MagicMock()
        cursor.__enter__().fetchall.return_value = [*values.items()]
        self.patch.setitem(vars(connections["default"]), "cursor", lambda: cursor)

    def atomic_requests(self, alias: str = "default", **options: Any) -> None:
        database = connections[alias].settings_dict
        self.patch.setitem(database, "ATOMIC_REQUESTS", True)
        self.patch.setitem(database, "OPTIONS", options)


@pytest.fixture
def project(settings: Any, urlconf: Any) -> Iterator[Project]:
    """Return a project whose purge is scheduled in the Celery app."""
    before = current_app.conf.beat_schedule
    # Before Celery 5.6 the settings win over the app's own configuration.
    del settings.CELERY_BEAT_SCHEDULE
    current_app.conf.beat_schedule = {**BEAT_SCHEDULE}
    # Undone before the fixtures around this one look at the database again.
    with pytest.MonkeyPatch.context() as patch:
        yield Project(patch, settings, urlconf)
    current_app.conf.beat_schedule = before


def e001(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = []
    return check_settings()


def e002(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = {"RETENTIONS": timedelta(days=1)}
    return check_settings()


def e003(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = {"USING": "nowhere"}
    return check_settings()


def e004(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = {"QUERY_PARAM": None, "HEADER": None}
    return check_settings()


def e005(project: Project) -> Messages:
    project.atomic_requests()
    project.urls(leased)
    return check_leased_views()


def e007(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = {"LEASE": timedelta(days=30)}
    return check_settings()


def e008(project: Project) -> Messages:
    project.urls(Lost.as_view(), Lost.as_view(), Found.as_view())
    return check_endpoints()


def e009(project: Project) -> Messages:
    project.settings.DATABASE_ROUTERS = [NoTable()]
    project.urls(elsewhere)
    return check_databases()


def e010(project: Project) -> Messages:
    project.on("mysql")
    options = {"isolation_level": "READ UNCOMMITTED"}
    project.patch.setitem(connections["default"].settings_dict, "OPTIONS", options)
    return check_databases()


def e011(project: Project) -> Messages:
    project.urls(NoMixin.as_view(), NoMixin.as_view(), Found.as_view())
    return check_views_without_the_mixin()


def e012(project: Project) -> Messages:
    project.on_server("latin1", undoes_all=True)
    return check_servers(databases=["default"])


def e013(project: Project) -> Messages:
    project.urls(Dispatched.as_view(), Dispatched.as_view(), sometimes)
    return check_decorators()


def e014(project: Project) -> Messages:
    project.quota("1000 per day")
    return check_quota()


def e015(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = {"ENCRYPTION_KEYS": ["secret"]}
    return check_encryption_keys()


def e016(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = {"ENCRYPTION_KEYS": [new_entry()]}
    project.patch.setattr("idempotency.encryption.find_spec", lambda name: None)
    has_library.cache_clear()
    try:
        return check_encryption_keys()
    finally:
        has_library.cache_clear()


def i001(project: Project) -> Messages:
    claims = MagicMock(spec=PostgreSQLClaims)
    claims.why_one_by_one.return_value = "the driver is not psycopg 3"
    place = "idempotency.checks.databases.claims_in"
    project.patch.setattr(place, lambda alias: claims)
    return check_round_trips(databases=["default"])


def w001(project: Project) -> Messages:
    project.without_beat_tables()
    current_app.conf.beat_schedule = {}
    return check_jobs_are_scheduled()


def w002(project: Project) -> Messages:
    if not apps.is_installed("django_celery_beat"):
        pytest.skip("django-celery-beat is not installed.")
    add_row(enabled=False)
    return check_jobs_are_scheduled_in_database(databases=["default"])


def w003(project: Project) -> Messages:
    project.on("sqlite")
    project.atomic_requests(timeout=20)
    return check_databases()


def w004(project: Project) -> Messages:
    project.on("mysql", mysql_is_mariadb=False)
    return check_tested_databases(databases=["default"])


def w005(project: Project) -> Messages:
    project.settings.IDEMPOTENCY = {"ENABLED": False}
    return check_enabled()


def w006(project: Project) -> Messages:
    project.settings.IDEMPOTENCY_REQUIRED = True
    return check_settings_of_their_own()


def w007(project: Project) -> Messages:
    project.atomic_requests()
    project.on_server("utf8mb4", undoes_all=True)
    return check_servers(databases=["default"])


def w008(project: Project) -> Messages:
    project.urls(Put.as_view(), Put.as_view(), sometimes, Found.as_view())
    return check_methods()


def w010(project: Project) -> Messages:
    project.urls(ByApiKey.as_view(), ByApiKey.as_view(), Reads.as_view())
    return check_callers()


def w011(project: Project) -> Messages:
    project.urls(Reads.as_view(), Reads.as_view(), ByApiKey.as_view())
    return check_reading()


def w012(project: Project) -> Messages:
    project.urls(completed)
    project.without_beat_tables()
    current_app.conf.beat_schedule = {**BEAT_SCHEDULE}
    return check_jobs_are_scheduled()


def w013(project: Project) -> Messages:
    if not apps.is_installed("django_celery_beat"):
        pytest.skip("django-celery-beat is not installed.")
    project.urls(completed)
    current_app.conf.beat_schedule = {**BEAT_SCHEDULE, **COMPLETING_SCHEDULE}
    add_row(enabled=False, task=COMPLETING_TASK)
    return check_jobs_are_scheduled_in_database(databases=["default"])


def w014(project: Project) -> Messages:
    project.urls(Login.as_view())
    return check_stored_credentials()


def w015(project: Project) -> Messages:
    make_record(timedelta(days=33))
    return check_backlog(databases=["default"])


def w016(project: Project) -> Messages:
    project.urls(leased, sometimes)
    project.with_durability("postgresql", synchronous_commit="local")
    return check_durability(databases=["default"])


@pytest.mark.parametrize(
    ("vendor", "values", "said"),
    [
        ("postgresql", {"synchronous_commit": "off"}, "synchronous_commit is off"),
        ("postgresql", {"synchronous_commit": "remote_apply"}, None),
        ("mysql", {"innodb_flush_log_at_trx_commit": "2"}, "commit is 2"),
        ("mysql", {"innodb_flush_log_at_trx_commit": "1", "wsrep_on": "OFF"}, None),
        ("mysql", {"innodb_flush_log_at_trx_commit": "0", "wsrep_on": "ON"}, None),
        ("sqlite", {}, None),
    ],
)
def test_durability(
    project: Project, vendor: str, values: dict[str, str], said: str | None
) -> None:
    """E7, X2: Only leased endpoints need it, and Galera has it by its other nodes."""
    project.urls(leased)
    project.with_durability(vendor, **values)
    found = [message.msg for message in check_durability(databases=["default"])]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
    project.urls(sometimes)
    assert check_durability(databases=["default"]) == []


EXAMPLES: dict[str, Callable[[Project], Messages]] = {
    f"idempotency.{name.upper()}": example
    for name, example in sorted(globals().items())
    if re.fullmatch(r"[eiw]\d{3}", name)
}


def add_row(**fields: Any) -> None:
    """Add a purge to django-celery-beat's tables."""
    get_model = apps.get_model
    intervals = get_model("django_celery_beat", "IntervalSchedule").objects
    interval, _is_new = intervals.get_or_create(every=1, period="hours")
    tasks = get_model("django_celery_beat", "PeriodicTask").objects
    values = {"name": "purge", "task": PURGE_TASK, "interval": interval, **fields}
    tasks.create(**values)


@pytest.fixture
def tables(database: None) -> Iterator[None]:
    """Empty django-celery-beat's tables after a test."""
    yield
    if apps.is_installed("django_celery_beat"):
        for name in ("PeriodicTask", "IntervalSchedule"):
            apps.get_model("django_celery_beat", name).objects.all().delete()


def rows() -> dict[str, dict[str, str]]:
    found = table("id", "level", "what is wrong", document=CHECKS)
    return {code(row["id"]): row for row in found}


def test_the_table_has_every_check() -> None:
    """X2: Ids in the table, in the code and in the examples here are the same."""
    sources = Path(ROOT, "idempotency", "checks").glob("*.py")
    told = "".join(path.read_text(encoding="utf-8") for path in sources)
    in_code = re.findall(r'id="(idempotency\.\w+)"', told)
    assert len(in_code) == len({*in_code}), "an id stands for two mistakes"
    assert list(rows()) == sorted(in_code) == list(EXAMPLES)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("check_id", EXAMPLES)
def test_every_check_of_the_table(project: Project, check_id: str) -> None:
    """X2: Each mistake gets its id, its level and a hint, once."""
    (message,) = EXAMPLES[check_id](project)
    assert message.id == check_id
    assert message.level == Levels[rows()[check_id]["level"]]
    assert message.hint
    assert message.hint.endswith(".")


def test_a_project_without_mistakes(project: Project) -> None:
    """X2: None of them is raised for nothing."""
    project.urls(leased, Found.as_view(), sometimes)
    found = [
        *check_callers(),
        *check_quota(),
        *check_reading(),
        *check_settings(),
        *check_settings_of_their_own(),
        *check_views_without_the_mixin(),
        *check_decorators(),
        *check_methods(),
        *check_leased_views(),
        *check_endpoints(),
        *check_databases(),
        *check_jobs_are_scheduled(),
        *check_enabled(),
        *check_encryption_keys(),
        *check_stored_credentials(),
        *check_tested_databases(),
        *check_round_trips(),
        *check_servers(),
        *check_backlog(),
        *check_durability(),
    ]
    assert found == []


def test_when_the_checks_run(project: Project) -> None:
    """X2: As the table says: with a database, with --deploy, or always."""
    registry = checks.registry.registry
    own = "idempotency.checks"
    at_once = {c for c in registry.registered_checks if c.__module__.startswith(own)}
    deployed = {c for c in registry.deployment_checks if c.__module__.startswith(own)}
    databases = {c for c in at_once if checks.Tags.database in c.tags}  # type: ignore[attr-defined]
    when = {name: row["when"] for name, row in rows().items()}
    assert when.pop("idempotency.W005") == "with `--deploy`"
    for check_id in ("I001", "W002", "W004", "W007", "W013", "W015", "W016", "E012"):
        assert when.pop(f"idempotency.{check_id}") == "with a database"
    for check_id in ("W001", "W012"):
        assert when.pop(f"idempotency.{check_id}").startswith("always")
    assert {*when.values()} == {"always"}
    assert deployed == {check_enabled}
    assert databases == {
        check_backlog,
        check_round_trips,
        check_tested_databases,
        check_servers,
        check_durability,
        check_jobs_are_scheduled_in_database,
    }
    assert at_once - databases == {
        check_encryption_keys,
        check_stored_credentials,
        check_callers,
        check_quota,
        check_reading,
        check_settings,
        check_settings_of_their_own,
        check_views_without_the_mixin,
        check_decorators,
        check_leased_views,
        check_methods,
        check_endpoints,
        check_databases,
        check_jobs_are_scheduled,
    }


# Views and their methods.


def test_hooks_without_the_mixin(project: Project) -> None:
    """X2: E011: hooks without the mixin are never called."""
    project.urls(NoHooks.as_view(), Unmarked.as_view())
    (message,) = check_views_without_the_mixin()
    assert message.id == "idempotency.E011"
    assert message.msg.startswith("tests.test_project_checks.NoHooks has check_replay")


def test_functions_of_other_methods(project: Project) -> None:
    """X2, K5: W008 names a function, and knows the methods of the settings."""
    project.urls(never)
    (message,) = check_methods()
    assert message.msg.startswith("@idempotent does nothing for tests.test_project_che")
    project.settings.IDEMPOTENCY = {"METHODS": ("PUT",)}
    assert check_methods() == []


# Callers.


def by_api_key(request: Request) -> str:
    return "key:1"


class Authenticates(ByApiKey):
    def get_authenticators(self) -> list[BaseAuthentication]:
        return [TokenAuthentication()]


class Scoped(ByApiKey):
    idempotency_scope = by_api_key


class ByUserOrKey(ByApiKey):
    authentication_classes = [TokenAuthentication]


class Permits(ByApiKey):
    permission_classes = property(lambda self: [~AllowAny])


class AuthenticatesLater(ByApiKey):
    authentication_classes = property(lambda self: [])


@pytest.mark.parametrize(
    ("view", "arguments", "is_reported"),
    [
        (ByApiKey, {}, True),
        (ByApiKey, {"permission_classes": [AllowAny, ~AllowAny]}, True),
        (ByApiKey, {"permission_classes": [AllowAny]}, False),
        (ByApiKey, {"permission_classes": []}, False),
        (ByApiKey, {"authentication_classes": [TokenAuthentication]}, False),
        *[
            (ByApiKey, {"permission_classes": [composed]}, is_reported)
            for composed, is_reported in (
                (AllowAny | HasApiKey, False),
                (AllowAny & HasApiKey, True),
                (AllowAny & AllowAny, False),
                (~AllowAny, True),
                # Nobody gets in.
                (IsAuthenticated, False),
            )
        ],
        *[
            (ByUserOrKey, {"permission_classes": permissions}, is_reported)
            for permissions, is_reported in (
                ([BaseHasAPIKey], True),
                ([OwnKey, HasApiKey], True),
                ([HasApiKey], False),
                ([~BaseHasAPIKey], False),
                ([BaseHasAPIKey, ~HasApiKey], True),
                ([BaseHasAPIKey | IsAuthenticated], True),
                ([~HasApiKey & (IsAdminUser | OwnKey)], True),
                ([IsAdminUser | IsAuthenticated, OwnKey], False),
                ([BaseHasAPIKey & IsAuthenticated], False),
                ([BaseHasAPIKey, ~IsAuthenticated], True),
                *[
                    ([BaseHasAPIKey, of_users], False)
                    for of_users in (
                        IsAuthenticated,
                        IsAdminUser,
                        IsAuthenticatedOrReadOnly,
                        DjangoModelPermissions,
                        DjangoObjectPermissions,
                    )
                ],
            )
        ],
        (Authenticates, {}, False),
        (Scoped, {}, False),
        (Permits, {}, False),
        (AuthenticatesLater, {}, False),
    ],
)
def test_callers_that_nothing_names(
    project: Project, view: Any, arguments: dict[str, Any], is_reported: bool
) -> None:
    """X2, S1: W010 is for endpoints of many callers who share one scope."""
    project.urls(view.as_view(**arguments))
    assert ids(check_callers()) == ["idempotency.W010"] * is_reported
    project.settings.IDEMPOTENCY = {"ANONYMOUS": "refuse"}
    assert check_callers() == []


# The quota.


@pytest.mark.parametrize(
    ("rate", "is_reported"),
    [
        *[(rate, False) for rate in (None, "0/d", "9/s", "10/min", "1000/day")],
        *[
            (rate, True)
            for rate in (
                *("", "9", "9/", "/h", "9/x", "9 per hour", "1.5/h", "-1/h", "9/h/d"),
                *(9, ("9", "h"), {}, True),
            )
        ],
    ],
)
def test_rates_of_the_quota(project: Project, rate: Any, is_reported: bool) -> None:
    """X2: E014 is for what would fail with the first new key."""
    project.quota(rate)
    assert ids(check_quota()) == ["idempotency.E014"] * is_reported
    for message in check_quota():
        assert repr(rate) in message.msg


def test_rates_that_are_none(project: Project) -> None:
    """X2: E014, where the project has something else than rates."""
    rest_framework = project.settings.REST_FRAMEWORK
    for rates, is_reported in (({}, False), (None, True), ("9/h", True)):
        project.settings.REST_FRAMEWORK = {
            **rest_framework,
            "DEFAULT_THROTTLE_RATES": rates,
        }
        assert ids(check_quota()) == ["idempotency.E014"] * is_reported


# Leases and retention.


def test_lease_of_an_endpoint(project: Project) -> None:
    """X2: E007, an endpoint's retention against the lease of the settings."""
    project.urls(short, leased)
    (message,) = check_endpoints()
    assert message.id == "idempotency.E007"
    assert message.msg.startswith("tests.test_project_checks.short: a lease of 0:01:00")
    project.settings.IDEMPOTENCY = {"LEASE": timedelta(seconds=59)}
    assert check_endpoints() == []


def test_lease_that_nobody_takes(project: Project) -> None:
    """X2: A short retention is no mistake where nothing is leased."""
    project.settings.IDEMPOTENCY = {"RETENTION": timedelta(seconds=10)}
    project.urls(Found.as_view())
    assert check_settings() == check_endpoints() == []


def test_wrong_settings_are_reported_once(project: Project) -> None:
    """X2: Checks of endpoints stand back while the settings can't be worked with."""
    project.urls(short, Lost.as_view())
    project.atomic_requests()
    project.settings.IDEMPOTENCY = {"RETENTION": 30, "USING": 1, "ENABLED": 0}
    assert check_leased_views() == check_endpoints() == check_enabled() == []
    assert check_methods() == check_callers() == check_reading() == []
    project.on("sqlite")
    project.atomic_requests(transaction_mode="IMMEDIATE")
    assert check_databases() == []


@api_view(["POST"])
@idempotent(store="tests.nowhere.store", check_replay="tests.nowhere.check")
def lost_options(request: Request) -> Response:
    return Response()


def test_options_that_lead_nowhere(project: Project) -> None:
    """X2: E008, whichever option has a dotted path."""
    project.urls(lost_options)
    found = check_endpoints()
    assert ids(found) == ["idempotency.E008"] * 2
    for message, name in zip(found, ("store", "check_replay"), strict=True):
        assert f"its {name} can't be 'tests.nowhere." in message.msg


def test_scope_of_the_settings(project: Project) -> None:
    """X2: A wrong SCOPE is a mistake of the settings alone."""
    project.urls(leased)
    with override_settings(IDEMPOTENCY={"SCOPE": "tests.nowhere.nobody"}):
        assert ids(check_settings()) == ["idempotency.E003"]
        assert check_endpoints() == []


# Databases.


def test_records_that_routers_keep_elsewhere(project: Project) -> None:
    """X2: E009, the routers contradict each other."""
    project.settings.DATABASE_ROUTERS = [KeepsElsewhere()]
    assert check_databases() == []
    project.settings.DATABASE_ROUTERS = [KeepsElsewhere(), NoTable()]
    assert ids(check_databases()) == ["idempotency.E009"]
    project.settings.IDEMPOTENCY = {"USING": "default"}
    assert check_databases() == []


@pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate", "EXCLUSIVE"])
def test_sqlite_with_turns(project: Project, mode: str) -> None:
    """X2, E3: With such transactions a request waits for its turn."""
    project.on("sqlite")
    project.atomic_requests(transaction_mode=mode)
    assert check_databases() == []


@pytest.mark.parametrize("options", [{}, {"transaction_mode": None}])
def test_sqlite_without_turns(project: Project, options: dict[str, Any]) -> None:
    """X2, E3: W003 is for SQLite alone, and for ATOMIC_REQUESTS alone."""
    project.on("sqlite")
    project.atomic_requests(**options)
    assert ids(check_databases()) == ["idempotency.W003"]
    project.patch.setitem(
        connections["default"].settings_dict, "ATOMIC_REQUESTS", False
    )
    assert check_databases() == []
    project.atomic_requests(**options)
    project.on("postgresql")
    assert check_databases() == []


def test_mariadb(project: Project) -> None:
    """X2: MariaDB is no MySQL, and is asked only where that is allowed."""
    project.on("mysql", mysql_is_mariadb=True)
    assert check_tested_databases(databases=["default"]) == []
    project.on("mysql", mysql_is_mariadb=False)
    assert check_tested_databases() == []
    assert check_tested_databases(databases=["other"]) == []


def test_untested_databases(project: Project) -> None:
    """X2: W004 names each database, its kind and its alias."""
    project.on("oracle", display_name="Oracle")
    project.on("oracle", "other", display_name="Oracle")
    project.urls(elsewhere)
    found = check_tested_databases(databases=["default", "other"])
    assert ids(found) == ["idempotency.W004"] * 2
    assert "in the database 'other', but is not tested on Oracle" in found[1].msg


def test_the_databases_of_the_suites(database: None) -> None:
    """X2: Each database that the tests run on is called tested."""
    assert check_tested_databases(databases=["default"]) == []
    assert check_servers(databases=["default"]) == []


def test_character_sets(database: None, project: Project) -> None:
    """X2: E012 is about the table, and before there is one about the database."""
    connection = connections["default"]
    if connection.vendor != "mysql":
        pytest.skip("MariaDB's own")
    project.patch.setattr(IdempotencyRecord._meta, "db_table", "narrow")

    def found(statement: str) -> list[str | None]:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        return ids(check_servers(databases=["default"]))

    wrong: list[str | None] = ["idempotency.E012"]
    for charset, expected in (("utf8mb4", []), ("latin1", wrong)):
        assert found(f"SET character_set_database = {charset}") == expected
    wide = "path longtext CHARACTER SET utf8mb4"
    for charset, expected in (("utf8mb4", []), ("utf8mb3", wrong)):
        narrow = f"scope varchar(9) CHARACTER SET {charset}"
        assert found(f"CREATE OR REPLACE TABLE narrow ({narrow}, {wide})") == expected
    assert found("DROP TABLE narrow") == wrong
    connection.close()


# Purges of several databases.


def purge_of(database: str, **fields: Any) -> dict[str, Any]:
    return {f"purge {database}": {"task": PURGE_TASK, "schedule": 60, **fields}}


@pytest.mark.parametrize(
    "arguments", [{"kwargs": {"database": "other"}}, {"args": ("other",)}]
)
def test_a_purge_for_each_database(project: Project, arguments: Any) -> None:
    """X2, P3: W001, the entry purges one database, and records are in two."""
    project.without_beat_tables()
    project.urls(elsewhere, leased)
    (message,) = check_jobs_are_scheduled()
    assert message.id == "idempotency.W001"
    assert "in the database 'other'" in message.msg
    assert '"kwargs": {"database": "other"}' in str(message.hint)
    current_app.conf.beat_schedule = purge_of("other", **arguments)
    (message,) = check_jobs_are_scheduled()
    assert message.msg == "Nothing schedules the purge of expired records."
    current_app.conf.beat_schedule.update(BEAT_SCHEDULE)
    assert check_jobs_are_scheduled() == []


@pytest.mark.usefixtures("tables")
def test_a_purge_for_each_database_in_the_tables(project: Project) -> None:
    """X2, P3: W001 and W002 tell the databases apart in the tables, too."""
    if not apps.is_installed("django_celery_beat"):
        pytest.skip("django-celery-beat is not installed.")

    def found() -> list[tuple[str | None, bool]]:
        messages = check_jobs_are_scheduled_in_database(databases=["default"])
        return [(message.id, "'other'" in message.msg) for message in messages]

    project.urls(elsewhere)
    assert found() == [("idempotency.W001", True)]
    add_row(name="unreadable", kwargs="other")
    add_row(name="off", kwargs='{"database": "other"}', enabled=False)
    assert found() == [("idempotency.W001", True)]
    current_app.conf.beat_schedule.update(
        purge_of("other", kwargs={"database": "other"})
    )
    assert found() == [("idempotency.W002", True)]
    add_row(name="on", args='["other"]')
    assert found() == []


# The demo project, as manage.py sees it.


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "module", ["testproject.settings", "testproject.demo_settings"]
)
@pytest.mark.parametrize(
    "is_deployed",
    [False, pytest.param(True, marks=once)],
    ids=["check", "check --deploy"],
)
def test_the_demo_project_is_clean(module: str, is_deployed: bool) -> None:
    """X2: Both checks find nothing; the second one where DEBUG is off."""
    deployed = {"DJANGO_DEBUG": "0", "DJANGO_SECRET_KEY": os.urandom(40).hex()}
    done = run_python(
        *("-W", "error", "manage.py", "check"),
        *("--fail-level=WARNING", "--database=default"),
        *(["--deploy"] if is_deployed else []),
        DJANGO_SETTINGS_MODULE=module,
        **(deployed if is_deployed else {}),
    )
    assert "no issues" in done.stdout


def test_stored_credentials(project: Project) -> None:
    """P5: W014 comes once, and not for what stores nothing or encrypts it."""

    class Another(Login):
        """One more."""

    class Forgetful(Login):
        idempotency_store = False

    project.urls(Login.as_view(), Another.as_view(), Forgetful.as_view(), never)
    (message,) = check_stored_credentials()
    assert "Login" in message.msg
    assert "Another" in message.msg
    assert "Forgetful" not in message.msg
    for entries in ([new_entry()], [new_entry(), new_entry()]):
        project.settings.IDEMPOTENCY = {"ENCRYPTION_KEYS": entries}
        assert check_stored_credentials() == []
    project.settings.IDEMPOTENCY = {"ENCRYPTION_KEYS": ["", new_entry()]}
    assert len(check_stored_credentials()) == 1
    # Other checks report wrong settings.
    project.settings.IDEMPOTENCY = {"ENCRYPTION_KEYS": 1}
    assert check_stored_credentials() == check_encryption_keys() == []
