"""The recipes of docs/recipes.md do what they say: scopes, databases and tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.contrib.admin import site
from django.core.checks.registry import registry
from django.core.management import call_command
from django.db import IntegrityError, connection, connections
from django.test.utils import CaptureQueriesContext, isolate_apps
from django.urls import include, path
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView
from rest_framework_tracking.models import APIRequestLog

from idempotency.decorators import idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.tasks import purge_expired_records
from testproject.celery import app
from tests.app.models import Effect
from tests.conftest import KEY, code_of, key
from tests.support.processes import PATIENCE
from tests.support.recipe_modules import Recipe, blocks, cooked, sections
from tests.support.recipe_modules import serve as serve_views
from tests.test_docs import Assignment

Cook = Callable[..., Recipe]
Serve = Callable[..., APIClient]

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def cook() -> Iterator[Cook]:
    """Make recipes, and take their modules away again."""
    with ExitStack() as stack:
        yield lambda heading, **own: stack.enter_context(cooked(heading, **own))


@pytest.fixture
def serve(settings: Any, client: APIClient) -> Serve:
    """Put views at addresses by their names; return a client that is Ada."""

    def serve(**views: Any) -> APIClient:
        serve_views(settings, **views)
        return client

    return serve


def notes() -> list[str]:
    """Return the effects that there have been, in their order."""
    return [*Effect.objects.order_by("pk").values_list("note", flat=True)]


def is_replay(answer: Any) -> bool:
    return answer.headers.get("Idempotent-Replayed") == "true"


class TestPage:
    def test_every_recipe_has_a_test(self) -> None:
        """Each recipe on the page has a test."""
        tests = "".join(
            test.read_text(encoding="utf-8")
            for test in Path(__file__).parent.glob("test_recipes*.py")
        )
        for heading in sections():
            assert f'"{heading}"' in tests, heading

    def test_every_block_is_for_a_file(self) -> None:
        """Each code block names its file and has a language that tests run."""
        for heading in sections():
            for each in blocks(heading):
                kinds = {
                    "python": r"\w+\.py",
                    "html": r"\w+\.html",
                    "ini": r"pgbouncer\.ini",
                    "console": r"python manage\.py .+",
                }
                assert re.fullmatch(kinds[each.language], each.file), each

    def test_each_says_when_and_what(self) -> None:
        """Each recipe says when it is needed, and after its code what to mind."""
        for heading, text in sections().items():
            before, *_code, after = re.split(r"^```.*\n", text, flags=re.MULTILINE)
            assert before.strip(), heading
            assert after.strip(), heading


# Whose key it is


class TestSeveralTenants:
    HEADING = "Several tenants"

    @pytest.fixture
    def send(self, serve: Serve, settings: Any, monkeypatch: Any) -> Any:
        """Send to one tenant as one user."""

        @api_view(["POST"])
        @idempotent
        def create(request: Any) -> Response:
            effect = Effect.objects.create(note=request.tenant.pk)
            return Response({"tenant": effect.note}, status=201)

        client = serve(create=create)
        settings.MIDDLEWARE = [f"{__name__}.TenantMiddleware"]

        def send(tenant: str, user: str = "ada") -> Any:
            client.credentials(HTTP_X_TENANT=tenant, HTTP_X_USER=user)
            return client.post("/create/", {}, **key())

        return send

    def test_tenants_have_keys_of_their_own(
        self, cook: Cook, send: Any, settings: Any
    ) -> None:
        """S1: A user's key for one tenant is another key for another tenant."""
        settings.IDEMPOTENCY = cook(self.HEADING).settings["IDEMPOTENCY"]
        answers = [send("north"), send("south"), send("north"), send("north", "ben")]
        said = [answer.json()["tenant"] for answer in answers]
        assert said == ["north", "south", "north", "north"]
        assert [is_replay(answer) for answer in answers] == [False, False, True, False]
        assert notes() == ["north", "south", "north"]

    def test_why(self, send: Any) -> None:
        """S1: Without it, a tenant is shown what another one was answered."""
        assert send("north").json() == send("south").json() == {"tenant": "north"}
        assert notes() == ["north"]


class TenantMiddleware:
    """What a project of several tenants has: it knows the tenant by the request."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request.tenant = SimpleNamespace(pk=request.headers["X-Tenant"])
        return self.get_response(request)


class TestAPIKeys:
    HEADING = "API keys without a user"

    def test_clients_have_keys_of_their_own(self, cook: Cook, serve: Serve) -> None:
        """S1, S2: The scope is the client: other clients differ, rotation does not."""
        secrets = {"first": "north", "rotated": "north", "other": "south"}
        known = {
            sha256(secret.encode()).hexdigest(): SimpleNamespace(client_id=client)
            for secret, client in secrets.items()
        }

        class ApiKey:
            class objects:  # noqa: N801  # a manager
                @staticmethod
                def filter(digest: str) -> Any:
                    return SimpleNamespace(first=lambda: known.get(digest))

        models = {"ApiKey": ApiKey, "Assignment": Assignment}
        recipe = cook(self.HEADING, models=models)
        client = serve(create=recipe.views.create_assignment)

        def send(secret: str | None) -> Any:
            headers = {} if secret is None else {"HTTP_X_API_KEY": secret}
            return client.post("/create/", {"title": "x"}, **headers, **key())

        answers = [send("first"), send("rotated"), send("other")]
        assert [answer.status_code for answer in answers] == [201] * 3
        assert [is_replay(answer) for answer in answers] == [False, True, False]
        assert [send(who).status_code for who in ("wrong", None)] == [401, 401]
        assert len(notes()) == 2
        scopes = IdempotencyRecord.objects.values_list("scope", flat=True)
        assert sorted(scopes) == ["api-client:north", "api-client:south"]


class TestOAuth:
    HEADING = "OAuth client credentials"

    @pytest.fixture
    def toolkit(self, settings: Any) -> Iterator[None]:
        """Install django-oauth-toolkit for a test, its checks and its admin too."""
        pytest.importorskip("oauth2_provider", reason="django-oauth-toolkit is missing")
        before, in_the_admin = {*registry.registered_checks}, {**site._registry}
        settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "oauth2_provider"]
        yield
        registry.registered_checks &= before
        site._registry = in_the_admin

    @pytest.fixture
    def tables(self, toolkit: None, database: None) -> Iterator[None]:
        """Make its tables; its migrations would come to the same, and take long."""
        models = [*apps.get_app_config("oauth2_provider").get_models()]
        with connection.schema_editor() as editor:
            for model in models:
                editor.create_model(model)
        yield
        # Two of them refer to each other.
        with connection.constraint_checks_disabled(), connection.schema_editor() as e:
            for model in reversed(models):
                e.delete_model(model)

    @pytest.mark.usefixtures("tables")
    def test_a_new_token_is_the_same_caller(
        self, cook: Cook, serve: Serve, settings: Any
    ) -> None:
        """S1: The token's client is the scope, whichever of its tokens it sends."""
        from oauth2_provider.models import get_application_model  # noqa: PLC0415

        application: Any = get_application_model()
        settings.OAUTH2_PROVIDER = {"SCOPES": {"write": "Write"}}
        recipe = cook(self.HEADING, models={"Assignment": Assignment})
        client = serve(create=recipe.views.AssignmentView.as_view())
        urls = settings.ROOT_URLCONF.urlpatterns
        urls.append(path("o/", include("oauth2_provider.urls")))
        client.credentials()

        def register(name: str) -> Any:
            return application.objects.create(
                name=name,
                client_type=application.CLIENT_CONFIDENTIAL,
                authorization_grant_type=application.GRANT_CLIENT_CREDENTIALS,
                client_secret="secret",
            )

        def get_token(app: Any) -> str:
            grant = {
                "grant_type": "client_credentials",
                "client_id": app.client_id,
                "client_secret": "secret",
                "scope": "write",
            }
            answer = client.post("/o/token/", grant, format="multipart")
            return str(answer.json()["access_token"])

        def send(token: str) -> Any:
            bearer = {"HTTP_AUTHORIZATION": f"Bearer {token}"}
            return client.post("/create/", {"title": "x"}, **bearer, **key())

        north, south = register("north"), register("south")
        tokens = [get_token(north), get_token(north), get_token(south)]
        assert len({*tokens}) == 3
        answers = [send(token) for token in tokens]
        assert [answer.status_code for answer in answers] == [201] * 3
        assert [is_replay(answer) for answer in answers] == [False, True, False]
        assert send("made-up").status_code == 401
        assert len(notes()) == 2
        scopes = {*IdempotencyRecord.objects.values_list("scope", flat=True)}
        assert scopes == {f"oauth-client:{app.pk}" for app in (north, south)}

    @pytest.mark.usefixtures("toolkit")
    def test_a_token_with_a_user_is_the_user(self, cook: Cook, serve: Serve) -> None:
        """S1: Where there is a user, the scope is the usual one."""
        recipe = cook(self.HEADING, models={"Assignment": Assignment})
        user = SimpleNamespace(is_authenticated=True, pk=7)
        request: Any = SimpleNamespace(user=user, auth=SimpleNamespace())
        assert recipe.views.oauth_scope(request).endswith(":7")


# Databases


class Member:
    """A model of the reader's own, whose names are unique."""

    class objects:  # noqa: N801  # a manager
        @staticmethod
        def create(name: str) -> Effect:
            return Effect.objects.create(name=name, note=f"joined: {name}")


class TestSavepoints:
    HEADING = "ATOMIC_REQUESTS and savepoints"

    @pytest.mark.parametrize("headers", [{}, key()], ids=["without a key", "with one"])
    @pytest.mark.usefixtures("atomic_requests")
    def test_answers(self, cook: Cook, serve: Serve, headers: dict[str, str]) -> None:
        """E2, O1: With a key and without, the handler answers and acts the same."""
        recipe = cook(self.HEADING, models={"Member": Member})
        client = serve(join=recipe.views.join)
        Member.objects.create("ada")
        answers = [
            client.post("/join/", {"name": "ada"}, **headers) for _attempt in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert [answer.json() for answer in answers] == [{"joined": False}] * 2
        assert is_replay(answers[1]) is bool(headers)
        assert notes() == ["joined: ada"]
        assert client.post("/join/", {"name": "ben"}).json() == {"joined": True}

    @pytest.mark.parametrize("path", ["/caught/", "/get-or-create/"])
    @pytest.mark.usefixtures("atomic_requests")
    def test_why(self, serve: Serve, path: str) -> None:
        """E2, E5: Without the savepoint, success is a lie; get_or_create has one."""

        @api_view(["POST"])
        @idempotent
        def caught(request: Any) -> Response:
            Effect.objects.create(note="first")
            try:
                Member.objects.create("ada")
            except IntegrityError:
                return Response({"joined": False})
            raise AssertionError

        @api_view(["POST"])
        @idempotent
        def get_or_create(request: Any) -> Response:
            Effect.objects.create(note="first")
            # Finds nothing, tries to insert, and looks again.
            Effect.objects.filter(note="no").get_or_create(
                name="ben", defaults={"note": "second"}
            )
            return Response({"joined": False})

        client = serve(**{"caught": caught, "get-or-create": get_or_create})
        Member.objects.create("ada")
        answer = client.post(path, {}, **key())
        if path == "/caught/":
            assert answer.status_code == 503
            assert code_of(answer) == "idempotency_transaction_failed"
            assert notes() == ["joined: ada"]
        else:
            assert answer.status_code == 200
            assert notes() == ["joined: ada", "first", "second"]


@pytest.fixture
def alias() -> Iterator[Callable[..., None]]:
    """Add databases of a test's own."""
    added = []

    def add(name: str, database: dict[str, Any]) -> None:
        connections.settings[name] = {**connections.settings["default"], **database}
        added.append(name)

    yield add
    for name in added:
        connections[name].close()
        del connections[name], connections.settings[name]


class TestReadReplicas:
    HEADING = "Read replicas"

    def test_requests_read_from_where_they_write(
        self, cook: Cook, serve: Serve, settings: Any, alias: Any
    ) -> None:
        """E1, P2: No look-up of the app goes to the replica, nor a keyed handler's."""
        alias("replica", {"ATOMIC_REQUESTS": False})

        @api_view(["POST"])
        @idempotent
        def create(request: Any) -> Response:
            Effect.objects.create(note="an effect")
            return Response({"effects": Effect.objects.count()}, status=201)

        @api_view(["POST"])
        @idempotent(atomic=False, on_abandoned="rerun")
        def act(request: Any) -> Response:
            if request.idempotency.attempt == 1:
                raise RuntimeError
            return Response({}, status=201)

        settings.DATABASE_ROUTERS = cook(self.HEADING).settings["DATABASE_ROUTERS"]
        client = serve(create=create, act=act)
        with CaptureQueriesContext(connections["replica"]) as replica:
            answers = [client.post("/create/", {}, **key()) for _ in range(2)]
            assert client.post("/create/", {"n": 1}, **key()).status_code == 422
            leased = [client.post("/act/", {}, **key("leased-1")) for _ in range(3)]
            IdempotencyRecord.objects.purge()
        assert [answer.json() for answer in answers] == [{"effects": 1}] * 2
        assert [answer.status_code for answer in leased] == [500, 201, 201]
        assert [is_replay(a) for a in (*answers, *leased)] == [0, 1, 0, 0, 1]
        assert replica.captured_queries == []

    def test_the_router(self, cook: Cook, settings: Any, alias: Any) -> None:
        """Reads outside a transaction do go to the replica, and migrations don't."""
        alias("replica", {})
        recipe = cook(self.HEADING)
        settings.DATABASE_ROUTERS = recipe.settings["DATABASE_ROUTERS"]
        with CaptureQueriesContext(connections["replica"]) as replica:
            Effect.objects.count()
        assert len(replica.captured_queries) == 1
        router = recipe.routers.ReplicaRouter()
        assert router.allow_relation(None, None)
        assert router.allow_migrate("default", "idempotency")
        assert not router.allow_migrate("replica", "idempotency")


class TestSeveralDatabases:
    HEADING = "Several databases"

    @pytest.fixture
    def ledger(self, database: None, alias: Any, tmp_path: Path) -> None:
        """Make a second database, another one than the suite's, as the page says."""
        alias(
            "ledger",
            {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(tmp_path / "ledger.sqlite3"),
                "OPTIONS": {"transaction_mode": "IMMEDIATE"},
                "ATOMIC_REQUESTS": False,
            },
        )
        (migrate,) = [b for b in blocks(self.HEADING) if b.language == "console"]
        _, _, command, *arguments = migrate.file.split()
        call_command(command, *arguments, verbosity=0, skip_checks=True)
        with connections["ledger"].schema_editor() as editor:
            if Effect._meta.db_table not in (
                connections["ledger"].introspection.table_names()
            ):
                editor.create_model(Effect)

    @pytest.mark.usefixtures("ledger")
    def test_record_and_effect_are_in_one(
        self, cook: Cook, serve: Serve, settings: Any
    ) -> None:
        """E1, P3: using puts both there; each database's purge spares the other."""
        recipe = cook(self.HEADING, models={"Entry": Effect})
        client = serve(entries=recipe.views.EntryView.as_view())
        entries = Effect.objects.using("ledger")
        records = IdempotencyRecord.objects.using("ledger")
        with CaptureQueriesContext(connections["default"]) as default:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(recipe.views, "Response", lambda *_, **__: 1 / 0)
                failed = client.post("/entries/", {"note": "x"}, **key())
            assert (failed.status_code, entries.count(), records.count()) == (500, 0, 0)
            answers = [
                client.post("/entries/", {"note": "x"}, **key()) for _ in range(2)
            ]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert is_replay(answers[1])
        assert (entries.count(), records.count()) == (1, 1)
        assert default.captured_queries == []

        records.update(expires_at="2020-01-01T00:00:00Z")
        entry = recipe.settings["CELERY_BEAT_SCHEDULE"]
        by_default, by_ledger = (
            entry["purge-expired-idempotency-records"],
            entry["purge-the-ledger"],
        )
        assert by_default["task"] == by_ledger["task"] == purge_expired_records.name
        purge_expired_records(**by_default.get("kwargs", {}))
        assert records.count() == 1
        purge_expired_records(**by_ledger["kwargs"])
        assert records.count() == 0


class TestDatabaseForEachTenant:
    HEADING = "A database for each tenant"
    TENANTS = ("north", "south")

    @pytest.fixture(params=[False, True], ids=["", "ATOMIC_REQUESTS"])
    def databases(
        self, request: Any, database: None, alias: Any, tmp_path: Path
    ) -> None:
        """Make each tenant's database."""
        for name in self.TENANTS:
            alias(
                name,
                {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": str(tmp_path / name),
                    "OPTIONS": {"transaction_mode": "IMMEDIATE"},
                    "ATOMIC_REQUESTS": request.param,
                },
            )
            call_command("migrate", database=name, verbosity=0, skip_checks=True)
            with connections[name].schema_editor() as editor:
                if Effect._meta.db_table not in (
                    connections[name].introspection.table_names()
                ):
                    editor.create_model(Effect)

    @pytest.mark.usefixtures("databases")
    def test_all_of_a_request_is_in_the_tenants_database(
        self, cook: Cook, serve: Serve, settings: Any
    ) -> None:
        """E1, E11: In both modes record and effect are there, and nothing elsewhere."""
        recipe = cook(self.HEADING)
        names = ("ALLOWED_HOSTS", "TENANT_DATABASES", "DATABASE_ROUTERS", "IDEMPOTENCY")
        for name in names:
            setattr(settings, name, recipe.settings[name])
        settings.MIDDLEWARE = [*recipe.settings["MIDDLEWARE"], *settings.MIDDLEWARE]

        def act(request: Any) -> Response:
            effect = Effect.objects.create(note=request.get_host())
            derived.add(request.idempotency.derive("charge"))
            if request.data.get("fail"):
                raise RuntimeError
            return Response({"tenant": effect.note}, status=201)

        derived: set[str] = set()
        atomic = api_view(["POST"])(idempotent(act))

        class Leased(IdempotencyMixin, APIView):
            idempotency_atomic = False
            idempotency_on_abandoned = "rerun"

            def post(self, request: Any) -> Response:
                return act(request)

        client = serve(atomic=atomic, leased=Leased.as_view())

        def send(place: str, tenant: str, **data: Any) -> Any:
            client.defaults["HTTP_HOST"] = f"{tenant}.example"
            return client.post(f"/{place}/", data, **key(f"key-of-{place}"))

        with CaptureQueriesContext(connections["default"]) as default:
            for place in ("atomic", "leased"):
                for tenant in self.TENANTS:
                    answers = [send(place, tenant) for _ in range(2)]
                    assert {a.json()["tenant"] for a in answers} == {
                        f"{tenant}.example"
                    }
                    assert [is_replay(answer) for answer in answers] == [False, True]
            # One for each tenant and key.
            assert len(derived) == 4
            settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, "east.example"]
            client.defaults["HTTP_HOST"] = "east.example"
            assert client.post("/atomic/", {}, **key()).status_code == 404
            client.defaults["HTTP_HOST"] = "North.Example:8000"
            failed = client.post("/atomic/", {"fail": 1}, **key("another"))
            assert failed.status_code == 500
        assert default.captured_queries == []
        for name in self.TENANTS:
            notes = Effect.objects.using(name).values_list("note", flat=True)
            assert [*notes] == [f"{name}.example"] * 2
            assert IdempotencyRecord.objects.using(name).count() == 2
        schedule = recipe.settings["CELERY_BEAT_SCHEDULE"]
        IdempotencyRecord.objects.using("south").update(
            expires_at="2020-01-01T00:00:00Z"
        )
        for entry in schedule.values():
            purge_expired_records(**entry["kwargs"])
        left = [IdempotencyRecord.objects.using(n).count() for n in self.TENANTS]
        assert left == [2, 0]


# Links


class TestLinks:
    HEADING = "Links to further pages"

    def test_pages_can_be_posted_to(self, cook: Cook, serve: Serve) -> None:
        """F4: Neither link has the key, and every page can be asked for with one."""
        pagination = cook(self.HEADING).pagination.KeylessPagination

        @api_view(["POST"])
        @idempotent
        def search(request: Any) -> Response:
            pages = pagination()
            found = pages.paginate_queryset(Effect.objects.order_by("pk"), request)
            return pages.get_paginated_response([effect.note for effect in found])

        client = serve(search=search)
        Effect.objects.bulk_create(Effect(note=str(n)) for n in range(101))
        first = client.post(f"/search/?$idempotency={KEY}").json()
        second = client.post(f"{first['next']}&$idempotency=second-{KEY}").json()
        assert second["results"] == ["100"]
        assert second["next"] is None
        again = client.post(f"{second['previous']}?$idempotency=again-{KEY}").json()
        assert again == first
        assert KEY not in str([first, second])


# Tasks


@pytest.fixture
def eager() -> Iterator[None]:
    """Let tasks run where they are sent."""
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    yield
    app.conf.update(task_always_eager=False, task_eager_propagates=False)


class TestTasks:
    HEADING = "Tasks after the commit"

    @pytest.mark.usefixtures("eager")
    def test_sent_once_after_the_commit(self, cook: Cook, serve: Serve) -> None:
        """O5: The task runs for what was committed: not for failures and replays."""
        announced = []

        def announce(pk: int) -> None:
            assert not connection.in_atomic_block
            assert Effect.objects.filter(pk=pk).exists()
            announced.append(pk)

        objects = SimpleNamespace(create=Assignment.objects.create, announce=announce)
        models = {"Assignment": SimpleNamespace(objects=objects)}
        recipe = cook(self.HEADING, models=models)
        client = serve(create=recipe.views.create_assignment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe.views, "Response", lambda *_, **__: 1 / 0)
            assert client.post("/create/", {"title": "x"}, **key()).status_code == 500
        assert (announced, notes()) == ([], [])
        first, retry = (client.post("/create/", {"title": "x"}, **key()) for _ in "12")
        assert is_replay(retry)
        assert announced == [first.json()["id"]]
        app.tasks.unregister(recipe.tasks.announce.name)


class TestOutbox:
    HEADING = "An outbox"

    @pytest.fixture
    def sent(self) -> list[tuple[Any, str]]:
        """What has arrived at the other side: content and key."""
        return []

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls) -> Iterator[Recipe]:
        """Make the recipe, once: Celery has no two tasks of one name."""
        own: Any = {"models": {"Assignment": Assignment}, "webhooks": {"send": None}}
        with isolate_apps("tests.app"), cooked(cls.HEADING, **own) as recipe:
            yield recipe
        app.tasks.unregister(recipe.tasks.send_outbox.name)

    @pytest.fixture
    def recipe(
        self, made: Recipe, database: None, eager: None, sent: Any, monkeypatch: Any
    ) -> Iterator[Recipe]:
        """Give the recipe a table, and somebody to send to."""

        def send(content: Any, idempotency_key: str) -> None:
            sent.append((content, idempotency_key))

        monkeypatch.setattr(made.tasks, "send", send)
        with connection.schema_editor() as editor:
            editor.create_model(made.models.OutboxMessage)
        yield made
        with connection.schema_editor() as editor:
            editor.delete_model(made.models.OutboxMessage)

    def test_one_message_for_each_effect(
        self, recipe: Recipe, serve: Serve, sent: list[tuple[Any, str]]
    ) -> None:
        """E1, E10: The message commits with the effect, and with it alone."""
        client = serve(create=recipe.views.create_assignment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe.views, "Response", lambda *_, **__: 1 / 0)
            assert client.post("/create/", {"title": "x"}, **key()).status_code == 500
        messages = recipe.models.OutboxMessage.objects
        assert (notes(), messages.count(), sent) == ([], 0, [])
        for _attempt in range(2):
            answer = client.post("/create/", {"title": "x"}, **key())
            assert answer.status_code == 201
        assert notes() == ["x"]
        assert messages.exclude(sent_at=None).count() == messages.count() == 1
        assert sent == [({"created": "x"}, messages.get().key)]
        recipe.tasks.send_outbox()
        assert len(sent) == 1

    def test_what_a_lost_task_has_left(
        self, recipe: Recipe, serve: Serve, sent: Any, monkeypatch: Any
    ) -> None:
        """O5: Where the process died after the commit, the next run sends it."""
        monkeypatch.setattr(recipe.tasks.send_outbox, "delay_on_commit", lambda: None)
        client = serve(create=recipe.views.create_assignment)
        assert client.post("/create/", {"title": "x"}, **key()).status_code == 201
        assert sent == []
        recipe.tasks.send_outbox()
        assert [content for content, _key in sent] == [{"created": "x"}]

    def test_sent_again_under_the_same_key(
        self, recipe: Recipe, sent: list[tuple[Any, str]], monkeypatch: Any
    ) -> None:
        """E10: A process that dies after sending sends again, under the same key."""
        recipe.models.OutboxMessage.objects.create(key="k", content=1)
        with monkeypatch.context() as patch:
            patch.setattr(recipe.tasks.timezone, "now", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                recipe.tasks.send_outbox()
        assert sent == [(1, "k")]
        recipe.tasks.send_outbox()
        assert sent == [(1, "k"), (1, "k")]
        recipe.tasks.send_outbox()
        assert len(sent) == 2

    def test_the_key_is_derived(self, recipe: Recipe, serve: Serve, sent: Any) -> None:
        """E10: The same request under another key is another message."""
        client = serve(create=recipe.views.create_assignment)
        for value in (KEY, "another-key"):
            client.post("/create/", {"title": "x"}, **key(value))
        assert len({key for _content, key in sent}) == 2

    def test_workers_share_the_rows(
        self, recipe: Recipe, sent: Any, monkeypatch: Any
    ) -> None:
        """Two workers send different messages, neither waiting for the other."""
        if connection.vendor == "sqlite":
            pytest.skip("SQLite has no row locks.")
        messages = recipe.models.OutboxMessage.objects
        for number in range(2):
            messages.create(key=f"k{number}", content=number)
        is_sending, may_go_on = Event(), Event()
        send = recipe.tasks.send

        def send_slowly(content: Any, idempotency_key: str) -> None:
            if content == 0:
                is_sending.set()
                assert may_go_on.wait(PATIENCE)
            send(content, idempotency_key)

        def work() -> None:
            try:
                recipe.tasks.send_outbox()
            finally:
                connections.close_all()

        monkeypatch.setattr(recipe.tasks, "send", send_slowly)
        with ThreadPoolExecutor(2) as pool:
            slow = pool.submit(work)
            try:
                assert is_sending.wait(PATIENCE)
                # From a thread, so that a worker that waits fails the test.
                pool.submit(work).result(PATIENCE / 2)
                assert sent == [(1, "k1")]
            finally:
                may_go_on.set()
            slow.result(PATIENCE)
        assert sent == [(1, "k1"), (0, "k0")]


# What happens


@pytest.mark.usefixtures("atomic_requests")
class TestRequestLogs:
    HEADING = "Request logs with replays"

    @pytest.fixture
    def view(self, cook: Cook) -> Iterator[Any]:
        recipe = cook(self.HEADING, models={"Assignment": Assignment})
        yield recipe.views.AssignmentView
        APIRequestLog.objects.all().delete()

    @staticmethod
    def logged() -> list[tuple[int, bytes]]:
        rows = APIRequestLog.objects.order_by("pk")
        return [(row.status_code, row.response.encode()) for row in rows]

    def test_each_request(self, view: Any, serve: Serve) -> None:
        """R2b: First answer, replay and refusal have a row each, the bytes as sent."""
        client = serve(assignments=view.as_view(authentication_classes=[]))
        first = client.post("/assignments/", {"title": "Essay"}, **key())
        retry = client.post("/assignments/", {"title": "Essay"}, **key())
        refused = client.post("/assignments/", {"title": "Poem"}, **key())
        assert is_replay(retry)
        assert retry.content == first.content
        answers = (first, retry, refused)
        assert [each.status_code for each in answers] == [201, 201, 422]
        assert self.logged() == [(each.status_code, each.content) for each in answers]
        assert notes() == ["Essay"]

    def test_an_envelope(self, view: Any, serve: Serve) -> None:
        """R2b: An envelope left of it is put around the first answer alone."""

        class Enveloped(view):  # type: ignore[misc]  # from the page
            def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
                response = super().finalize_response(*args, **kwargs)
                response.data = {"data": response.data}
                return response

        client = serve(assignments=Enveloped.as_view(authentication_classes=[]))
        first = client.post("/assignments/", {"title": "Essay"}, **key())
        retry = client.post("/assignments/", {"title": "Essay"}, **key())
        assert [*first.json()] == ["data"]
        assert retry.content == first.content
        assert self.logged()[1] == (201, retry.content)
