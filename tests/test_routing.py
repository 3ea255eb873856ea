"""Views of a URLconf that ``protected()`` protects, and what stays as it was."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial, wraps
from types import ModuleType
from typing import Any
from weakref import ReferenceType, ref

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import clear_url_caches, include, path, re_path, resolve, reverse
from django.urls.resolvers import RoutePattern, URLResolver
from django.views.decorators.cache import cache_page, never_cache
from rest_framework.decorators import action, api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.test import APIClient
from rest_framework.urlpatterns import format_suffix_patterns
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.audit import audit
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.mixins import IdempotencyMixin
from idempotency.models import IdempotencyRecord
from idempotency.protection import is_exempt, protection_of
from idempotency.routing import protected
from idempotency.signals import response_stored
from tests.app import views
from tests.app.models import Effect
from tests.app.views import behave
from tests.conftest import code_of, key

pytestmark = pytest.mark.usefixtures("database")

Serve = Callable[..., None]


class Notes(ViewSet):
    """A ViewSet with actions of every kind."""

    def create(self, request: Request, **kwargs: Any) -> Any:
        return behave(request)

    def retrieve(self, request: Request, pk: str) -> Any:
        return Response({"pk": pk})

    @action(detail=True, methods=["post"])
    def publish(self, request: Request, pk: str) -> Any:
        return behave(request)

    @idempotency_exempt
    @action(detail=False, methods=["post"])
    def search(self, request: Request) -> Any:
        return behave(request)

    @action(detail=False, methods=["post"])
    @idempotent(required=True)
    def strict(self, request: Request) -> Any:
        return behave(request)


class OwnDispatch(APIView):
    seen: list[str]

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().dispatch(request, *args, **kwargs)
        response["X-Dispatch"] = "own"
        return response

    def post(self, request: Request) -> Any:
        return behave(request)


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def unhelpful(view: Any) -> Any:
    """Wrap a view in a function that holds it in an object."""

    class Holder:
        def call(self, *args: Any, **kwargs: Any) -> Any:
            return self.view(*args, **kwargs)  # type: ignore[attr-defined]

    holder: Any = Holder()
    holder.view = view

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return holder.call(*args, **kwargs)

    return wrapper


def marked(view: Any) -> Any:
    """Wrap a view in a decorator that leaves a header."""

    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        response = view(request, *args, **kwargs)
        response["X-Marked"] = "yes"
        return response

    return wrapper


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Let a test choose the URLconf."""
    module: Any = ModuleType("routing_urls")
    sys.modules["routing_urls"] = module

    def set_patterns(*patterns: Any, app_name: str | None = None) -> None:
        module.urlpatterns = [*patterns]
        clear_url_caches()

    with override_settings(ROOT_URLCONF="routing_urls"):
        yield set_patterns
    del sys.modules["routing_urls"]
    clear_url_caches()


def assert_acts_once(client: APIClient, url: str, **headers: str) -> Any:
    before = Effect.objects.count()
    first, again = (client.post(url, {}, **key(), **headers) for _time in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again["Idempotent-Replayed"] == "true"
    assert again.content == first.content
    assert Effect.objects.count() == before + 1
    IdempotencyRecord.objects.all().delete()
    return again


def assert_acts_twice(client: APIClient, url: str) -> None:
    before = Effect.objects.count()
    for _time in range(2):
        assert "Idempotent-Replayed" not in client.post(url, {}, **key())
    assert Effect.objects.count() == before + 2


@pytest.fixture
def module() -> Iterator[Any]:
    """A package's URLconf with an app_name."""
    found: Any = ModuleType("package_urls")
    found.app_name = "package"
    found.urlpatterns = [path("view/", views.PlainView.as_view(), name="view")]
    sys.modules["package_urls"] = found
    yield found
    del sys.modules["package_urls"]


class TestPatterns:
    """What ``include()`` takes is taken, and its routes stay."""

    @pytest.mark.parametrize("how", ["module", "dotted path", "tuple"])
    def test_app_name(
        self, how: str, module: Any, client: APIClient, serve: Serve
    ) -> None:
        given = {
            "module": module,
            "dotted path": "package_urls",
            "tuple": (module.urlpatterns, "package"),
        }[how]
        serve(
            path("a/", include(protected(given))),
            path("b/", include(protected(given), namespace="second")),
            path("c/", include(given)),
        )
        assert reverse("package:view") == "/a/view/"
        assert reverse("second:view") == "/b/view/"
        assert_acts_once(client, "/a/view/")
        assert_acts_once(client, "/b/view/")
        assert_acts_twice(client, "/c/view/")

    def test_whole_project(self, client: APIClient, serve: Serve) -> None:
        """A router, nested includes, converters, regular expressions, languages."""
        router = DefaultRouter()
        router.register("notes", Notes, basename="note")
        serve(
            *protected(
                [
                    path("<int:year>/", include(([*router.urls], "notes"))),
                    path("deep/", include([path("er/", include([path("v/", PLAIN)]))])),
                    re_path(r"^old/(?P<pk>\d+)/$", Notes.as_view({"post": "publish"})),
                    path("page/", page, name="page"),
                    *i18n_patterns(path("spoken/", PLAIN, name="spoken")),
                ]
            )
        )
        assert reverse("spoken") != "/spoken/"
        for url in ("/deep/er/v/", "/old/3/", reverse("spoken")):
            assert_acts_once(client, url)
        assert reverse("notes:note-publish", args=[2026, 5]) == "/2026/notes/5/publish/"
        assert_acts_once(client, "/2026/notes.json")
        assert client.get("/page/").content == b"plain"

    def test_format_suffixes(self, client: APIClient, serve: Serve) -> None:
        """Routes with a format suffix share their view with those without."""
        urls = format_suffix_patterns([path("view", views.FormatView.as_view())])
        serve(*protected(urls))
        callbacks = {id(entry.callback) for entry in protected(urls)}
        assert len(callbacks) == 1
        assert_acts_once(client, "/view.json")
        assert [finding.route.path for finding in audit()] == ["/view"]

    def test_copies(self, client: APIClient, serve: Serve) -> None:
        """Other routes to the same views stay as they are."""
        router = DefaultRouter()
        router.register("notes", Notes, basename="note")
        serve(
            path("a/", include(protected(router.urls))),
            path("b/", include(router.urls)),
        )
        assert_acts_once(client, "/a/notes/1/publish/")
        assert_acts_twice(client, "/b/notes/1/publish/")

    def test_default_arguments(self, client: APIClient, serve: Serve) -> None:
        """Arguments of routes and of includes reach the view."""
        serve(
            path(
                "a/",
                include(protected([path("b/", Notes.as_view({"get": "retrieve"}))])),
                {"pk": "7"},
            )
        )
        assert client.get("/a/b/").json() == {"pk": "7"}


PLAIN = views.PlainView.as_view()


class TestViews:
    """Each kind of view acts once, and is otherwise what it was."""

    def test_relations(self, serve: Serve) -> None:
        """Schemas, permissions and clients find a subclass of the view's class."""
        serve(*protected([path("v/", PLAIN), path("n/", NOTES, {"pk": "1"})]))
        for url, original in (("/v/", views.PlainView), ("/n/", Notes)):
            found: Any = resolve(url).func
            assert issubclass(found.cls, original)
            assert issubclass(found.cls, IdempotencyMixin)
            assert found.cls is found.view_class if url == "/v/" else True
            for name in ("__name__", "__qualname__", "__module__", "__doc__"):
                assert getattr(found.cls, name) == getattr(original, name)
            assert found.csrf_exempt is True
        assert resolve("/n/").func.actions == {"post": "publish"}  # type: ignore[attr-defined]

    def test_own_dispatch(self, client: APIClient, serve: Serve) -> None:
        serve(*protected([path("", OwnDispatch.as_view())]))
        assert assert_acts_once(client, "/")["X-Dispatch"] == "own"

    @pytest.mark.parametrize(
        "decorate",
        [
            marked,
            lambda view: marked(never_cache(marked(view))),
            lambda view: marked(wraps(view)(partial(view))),
        ],
        ids=["one", "three", "partial"],
    )
    def test_decorators(self, client: APIClient, serve: Serve, decorate: Any) -> None:
        """What stands around a view function stays there."""
        serve(*protected([path("", decorate(PLAIN))]))
        assert assert_acts_once(client, "/")["X-Marked"] == "yes"

    def test_cached_page(self, client: APIClient, serve: Serve) -> None:
        """``cache_page`` goes on to cache reads alone."""
        serve(*protected([path("<pk>/", cache_page(60)(READABLE))]))
        assert_acts_once(client, "/1/")
        assert "max-age=60" in client.get("/1/")["Cache-Control"]

    def test_tracer(self, client: APIClient, serve: Serve) -> None:
        """The proxies of tracers stay around the view."""
        wrapt = pytest.importorskip("wrapt")
        calls: list[Any] = []

        @wrapt.decorator
        def traced(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
            calls.append(args)
            return wrapped(*args, **kwargs)

        serve(*protected([path("", traced(views.unprotected))]))
        assert_acts_once(client, "/")
        assert len(calls) == 2

    def test_other_closures(self, client: APIClient, serve: Serve) -> None:
        """What else decorators hold is left alone: proxies, unbound names."""
        wrapt = pytest.importorskip("wrapt")

        def decorate(view: Any) -> Any:
            def itself() -> Any:
                return itself, later

            @wraps(view)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                assert helper, itself
                return view(*args, **kwargs)

            helper = wrapt.FunctionWrapper(
                lambda: "plain", lambda f, _i, a, k: f(*a, **k)
            )
            if view is None:
                later = None
            return wrapper

        view = decorate(PLAIN)
        (pattern,) = protected([path("", view)])
        cells = dict(
            zip(view.__code__.co_freevars, view.__closure__ or (), strict=True)
        )
        new = pattern.callback.__closure__
        assert [cell is cells[name] for cell, name in zip(new, cells, strict=True)] == [
            name != "view" for name in cells
        ]

    def test_without_a_key(self, client: APIClient, serve: Serve) -> None:
        """K4: Without a key nothing is added."""
        serve(*protected([path("", PLAIN)]))
        answer = client.post("/", {})
        assert (answer.status_code, IdempotencyRecord.objects.count()) == (201, 0)
        assert not [name for name in answer.headers if name.startswith("Idem")]

    def test_leased(
        self, client: APIClient, serve: Serve, atomic_requests: bool
    ) -> None:
        """E11: Leased views are exempt from ATOMIC_REQUESTS, with a key."""
        lease = timedelta(seconds=60)
        options: Any = {"atomic": False, "lease": lease, "on_abandoned": "hold"}
        serve(*protected([path("", PLAIN)], **options))
        assert_acts_once(client, "/")
        policy = protection_of(resolve("/").func, "POST")
        assert policy is not None
        assert policy.policy.lease == lease


NOTES = Notes.as_view({"post": "publish"})
READABLE = Notes.as_view({"post": "publish", "get": "retrieve"})


class TestOwnProtection:
    """Views that are protected or exempt already stay that."""

    def test_marks(self, client: APIClient, serve: Serve) -> None:
        router = DefaultRouter()
        router.register("notes", Notes, basename="note")
        serve(*protected(router.urls))
        assert code_of(client.post("/notes/strict/")) == "idempotency_key_required"
        assert_acts_twice(client, "/notes/search/")
        assert is_exempt(resolve("/notes/search/").func, "POST")
        assert {finding.via for finding in audit()} == {
            *("routing", "decorator", "exempt")
        }

    @pytest.mark.parametrize("view", [views.required, marked(views.required)])
    def test_options(self, client: APIClient, serve: Serve, view: Any) -> None:
        serve(*protected([path("", view)], required=False))
        assert code_of(client.post("/")) == "idempotency_key_required"
        assert_acts_once(client, "/")

    def test_hidden_mark(self, client: APIClient, serve: Serve) -> None:
        """A decorator above ``@idempotent`` hides it from the mixin, not from here."""

        def above(handler: Any) -> Any:
            def wrapper(*args: Any) -> Any:
                return handler(*args)

            return wrapper

        class Hidden(APIView):
            @above
            @idempotent(required=True)
            def post(self, request: Request) -> Any:
                return behave(request)

        serve(*protected([path("", Hidden.as_view())], required=False))
        assert code_of(client.post("/")) == "idempotency_key_required"
        assert_acts_once(client, "/")

    def test_exempt_function(self, client: APIClient, serve: Serve) -> None:
        @api_view(["POST"])
        @idempotency_exempt
        def login(request: Request) -> Any:
            return behave(request)

        serve(*protected([path("", login)]))
        assert_acts_twice(client, "/")

    def test_mixin(self, serve: Serve) -> None:
        """Views with the mixin, and of an inner ``protected()``, are not copied."""
        view = views.MixinView.as_view()
        (mixed, inner) = protected(
            [path("", view), *protected([path("b", PLAIN)], required=True)]
        )
        assert mixed.callback is view
        protection = protection_of(inner.callback, "POST")
        assert protection is not None
        assert protection.policy.required


class TestExempt:
    """Views that the call leaves out."""

    URLS = (
        path("a/", PLAIN, name="a"),
        path("b/", include(([path("c/", NOTES, {"pk": "1"}, name="c")], "inner"))),
        path("f/", views.unprotected),
        path("page/", page, name="page"),
    )

    @pytest.mark.parametrize(
        ("exempt", "url"),
        [
            ("a", "/a/"),
            ("tests.app.views.PlainView", "/a/"),
            (views.PlainView, "/a/"),
            (PLAIN, "/a/"),
            ("inner:c", "/b/c/"),
            (Notes, "/b/c/"),
            (views.unprotected, "/f/"),
            ("tests.app.views.unprotected", "/f/"),
            ("page", None),
        ],
    )
    def test_names(
        self, client: APIClient, serve: Serve, exempt: Any, url: str | None
    ) -> None:
        serve(*protected([*self.URLS], exempt=[exempt]))
        for each in ("/a/", "/b/c/", "/f/"):
            if each == url:
                assert_acts_twice(client, each)
                assert is_exempt(resolve(each).func, "POST")
            else:
                assert_acts_once(client, each)

    def test_name_in_the_audit(self, client: APIClient, serve: Serve) -> None:
        """A ViewSet's action is left out by the name that the audit shows."""
        router = DefaultRouter()
        router.register("notes", Notes, basename="note")
        serve(*router.urls)
        names = {each.route.path: each.view for each in audit()}
        serve(*protected(router.urls, exempt=[names["/notes/<pk>/publish/"]]))
        assert_acts_twice(client, "/notes/1/publish/")
        assert_acts_once(client, "/notes/")

    def test_path_of_a_view(self, client: APIClient, serve: Serve) -> None:
        """A view that a module keeps is left out by its path, as it is imported."""
        serve(*protected([path("a/", PLAIN)], exempt=[f"{__name__}.PLAIN"]))
        assert_acts_twice(client, "/a/")

    def test_mixin(self) -> None:
        """A view that is protected by itself can't be left out here."""
        patterns = [path("", views.MixinView.as_view())]
        with pytest.raises(ImproperlyConfigured, match="Write @idempotency_exempt"):
            protected(patterns, exempt=[views.MixinView])

    def test_original(self) -> None:
        """The package's own view gets no mark."""
        protected([*self.URLS], exempt=["a"])
        assert not is_exempt(PLAIN, "POST")

    def test_callable_object(self) -> None:
        """A view that is an object stays what it is."""

        class Page:
            def __call__(self, request: HttpRequest) -> HttpResponse:
                return page(request)

        view = Page()
        first, _second = protected(
            [path("", view, name="it"), path("v/", PLAIN)], exempt=["it"]
        )
        assert first.callback is view


class TestMistakes:
    """Found when the URLconf is imported."""

    @pytest.mark.parametrize(
        ("patterns", "options", "said"),
        [
            ([path("", PLAIN)], {"lease": timedelta(1)}, "lease"),
            ([path("", PLAIN)], {"exempt": ["login"]}, r"give the .+ of a view\.$"),
            ([path("", PLAIN, name="a:in")], {"exempt": ["in"]}, "names are: a:in$"),
            ([path("", PLAIN)], {"exempt": "login"}, r"exempt=\['login'\]"),
            ([path("", page)], {}, "no view of Django REST framework"),
            ([], {}, "no view of Django REST framework"),
            ([PLAIN], {}, "is not one"),
            (include([path("", PLAIN)]), {}, r"include\(protected\(...\)\)"),
            ([path("", unhelpful(PLAIN))], {}, "a decorator that is not a function"),
        ],
        ids=[
            "option",
            "exempt",
            "alike",
            "text",
            "nothing",
            "empty",
            "view",
            "included",
            "decorator",
        ],
    )
    def test_refused(self, patterns: Any, options: Any, said: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=said):
            protected(patterns, **options)

    def test_coroutine(self) -> None:
        class Later(APIView):
            async def post(self, request: Request) -> Response:
                return Response()

        patterns = [path("", Later.as_view())]
        with pytest.raises(TypeError, match=r"coroutine.+exempt=\["):
            protected(patterns)
        protected(patterns, exempt=[Later])


@pytest.fixture
def user(database: None) -> Iterator[None]:
    """A user who can log in."""
    user = get_user_model().objects.create_user("routed", password="lovelace")
    yield
    user.delete()


@pytest.mark.usefixtures("user")
def test_login(client: APIClient, serve: Serve, settings: Any) -> None:
    """A retried login makes one session, and gets the first response."""
    pytest.importorskip("dj_rest_auth")
    settings.REST_AUTH = {"TOKEN_MODEL": None}
    settings.MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
    before = Session.objects.count()
    serve(path("auth/", include(protected("dj_rest_auth.urls"))))
    data = {"username": "routed", "password": "lovelace"}
    anonymous = APIClient()
    first, again = (anonymous.post("/auth/login/", data, **key()) for _time in range(2))
    assert first.status_code == again.status_code < 300
    assert again["Idempotent-Replayed"] == "true"
    assert again.content == first.content
    assert Session.objects.count() == before + 1


@pytest.mark.usefixtures("user")
def test_tokens(client: APIClient, serve: Serve) -> None:
    """A retried request for tokens gets the first ones."""
    views = pytest.importorskip("rest_framework_simplejwt.views")
    serve(*protected([path("", views.token_obtain_pair)]))
    data = {"username": "routed", "password": "lovelace"}
    first, again = (APIClient().post("/", data, **key()) for _time in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again["Idempotent-Replayed"] == "true"


def test_generator(client: APIClient, serve: Serve) -> None:
    """Patterns that are made one by one keep their own views."""
    made: list[ReferenceType[Any]] = []

    def numbered(number: int) -> Any:
        class Numbered(APIView):
            def post(self, request: Request) -> Response:
                return Response({"number": number})

        return Numbered.as_view()

    def patterns() -> Iterator[Any]:
        for number in range(5):
            gc.collect()
            # Otherwise a later view may get the id of an earlier one.
            assert all(each() is not None for each in made)
            view = numbered(number)
            made.append(ref(view))
            yield path(f"{number}/", view)

    serve(*protected(patterns()))
    for number in range(5):
        assert client.post(f"/{number}/").json() == {"number": number}


def test_sender(client: APIClient, serve: Serve) -> None:
    """Receivers that name the view's class hear of it, though it was copied."""
    serve(*protected([path("", PLAIN)]))
    senders: list[type] = []

    def listen(sender: type, **kwargs: Any) -> None:
        senders.append(sender)

    response_stored.connect(listen, sender=views.PlainView)
    try:
        client.post("/", **key())
    finally:
        response_stored.disconnect(listen, sender=views.PlainView)
    assert senders == [views.PlainView]


def test_resolver_of_its_own(client: APIClient, serve: Serve) -> None:
    """A project's own classes of patterns stay."""

    class Own(URLResolver):
        pass

    own = Own(RoutePattern("a/"), [path("v/", PLAIN)])
    (found,) = protected([own])
    assert type(found) is Own
    serve(found)
    assert_acts_once(client, "/a/v/")
