"""Options: what is refused, where, and with which words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.utils.decorators import method_decorator
from rest_framework.decorators import action, api_view
from rest_framework.generics import CreateAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.conf import policy
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.mixins import IdempotencyMixin
from tests.app.models import Effect
from tests.app.views import create_effect
from tests.conftest import key

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"required": 1}, "required must be True or False"),
    ({"methods": "POST"}, "methods must be a collection of HTTP methods"),
    ({"methods": ()}, "methods must be"),
    ({"methods": ("post",)}, "in capitals"),
    ({"methods": ("X" * 17,)}, "methods must be"),
    ({"methods": (1,)}, "methods must be"),
    ({"retention": 30}, r"retention must be a positive datetime\.timedelta"),
    ({"retention": timedelta(0)}, "positive"),
    ({"using": "no-such-alias"}, "an alias from the DATABASES setting"),
    ({"using": 1}, "an alias"),
    ({"scope": 3}, "a callable that takes the request"),
    ({"scope": "nodots"}, "dotted path"),
    ({"released_statuses": 400}, "a collection of HTTP statuses"),
    ({"released_statuses": (500,)}, "from 200 to 499"),
    ({"released_statuses": (True,)}, "from 200 to 499"),
    ({"store": "never"}, "store must be True, False, or a callable"),
    ({"check_replay": "view"}, 'check_replay must be "object", or a callable'),
    ({"on_concurrent": "queue"}, '"refuse" or "wait"'),
    ({"wait_timeout": 5}, "wait_timeout must be a positive"),
    ({"retention": timedelta(days=40_000)}, "positive"),
    ({"atomic": 0}, "atomic must be True or False"),
    ({"atomic": False}, "atomic=False needs on_abandoned"),
    ({"lease": 30}, "lease must be a positive"),
    ({"lease": timedelta(seconds=30)}, "lease has no effect without atomic=False"),
    ({"on_abandoned": "retry"}, '"hold", "rerun", "resume" or a callable'),
    ({"on_abandoned": "hold"}, "on_abandoned has no effect without atomic=False"),
    ({"atomic": True, "on_abandoned": "hold"}, "on_abandoned has no effect"),
    (
        {
            "atomic": False,
            "on_abandoned": "hold",
            "lease": timedelta(days=1),
            "retention": timedelta(days=1),
        },
        "is not shorter than the retention",
    ),
    (
        {"requird": True},
        "The options are atomic, check_replay, completer, lease, methods",
    ),
    (
        {"on_concurrent": "refuse", "wait_timeout": timedelta(seconds=1)},
        "wait_timeout has no effect",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_of_a_decorator(options: dict[str, Any], message: str) -> None:
    """X2: A wrong option is refused at import, with what to write."""
    with pytest.raises(ImproperlyConfigured, match=message):
        idempotent(**options)


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_of_a_mixin(options: dict[str, Any], message: str) -> None:
    """X2: It is refused as an attribute and as an argument of as_view(), too."""
    attributes = {f"idempotency_{name}": value for name, value in options.items()}
    with pytest.raises(ImproperlyConfigured, match=f"PayView: .*{message}"):
        type("PayView", (IdempotencyMixin, APIView), attributes)

    class Pay(IdempotencyMixin, APIView):
        pass

    with pytest.raises(ImproperlyConfigured, match=message):
        Pay.as_view(**attributes)


def test_right_options() -> None:
    """Every option as the documentation writes it."""
    idempotent(
        required=True,
        methods=["POST", "PATCH"],
        retention=timedelta(days=1),
        using="default",
        scope="tests.test_policy.some_scope",
        released_statuses={400},
        atomic=True,
        on_concurrent="wait",
        wait_timeout=timedelta(seconds=1),
    )
    idempotent(scope=lambda request: "mine", released_statuses=())
    idempotent(atomic=False, lease=timedelta(seconds=30), on_abandoned="hold")
    idempotent(atomic=False, on_abandoned=lambda record, request: None)


def test_mixin_after_the_view() -> None:
    """X2: A mixin right of the view class is refused, with the right order."""
    with pytest.raises(TypeError, match=r"class Pay\(IdempotencyMixin, APIView\)"):

        class Pay(APIView, IdempotencyMixin):
            pass


def test_mixin_without_a_view() -> None:
    """X2: A mixin of a project's own may build on ours."""

    class OurMixin(IdempotencyMixin):
        idempotency_required = True

    class Pay(OurMixin, APIView):
        pass

    assert Pay().get_idempotency_options() == {"required": True}


@pytest.mark.parametrize("decorator", [idempotent, idempotency_exempt, idempotent()])
def test_above_api_view(decorator: Any) -> None:
    """X2: A decorator above @api_view is refused, with the right order."""

    @api_view(["POST"])
    def pay(request: Request) -> Response:
        return Response()

    right = r'@api_view\(\["POST"\]\)\n +@idempot\w+\n +def pay\(request\)'
    with pytest.raises(TypeError, match=right):
        decorator(pay)


def test_above_other_things() -> None:
    """X2: A class, a coroutine or no callable at all is refused with a reason."""

    class Pay(APIView):
        pass

    async def pay(request: Request) -> Response:
        return Response()

    with pytest.raises(TypeError, match="IdempotencyMixin"):
        idempotent(Pay)
    with pytest.raises(TypeError, match="decorates handlers only"):
        idempotent("pay")  # type: ignore[call-overload]  # that is the mistake
    with pytest.raises(TypeError, match="coroutine"):
        idempotent(pay)


def test_mixin_above_coroutines() -> None:
    """X2: The mixin on handlers that are coroutines is refused, too."""

    class Pay(IdempotencyMixin, APIView):
        async def post(self, request: Request) -> Response:
            return Response()

    class Payments(IdempotencyMixin, ViewSet):
        def list(self, request: Request) -> Response:
            return Response()

        async def create(self, request: Request) -> Response:
            return Response()

    class Generic(IdempotencyMixin, CreateAPIView):
        async def create(self, request: Request) -> Response:
            return Response()

    with pytest.raises(TypeError, match=r"Pay\.post\(\): it is a coroutine"):
        Pay.as_view()
    with pytest.raises(TypeError, match=r"Payments\.create\(\): it is a coroutine"):
        Payments.as_view({"post": "create"})
    with pytest.raises(TypeError, match=r"Generic\.create\(\): it is a coroutine"):
        Generic.as_view()
    Payments.as_view({"get": "list"})


def test_without_a_request() -> None:
    """X2: A function that gets no request raises an error that says what it needs."""

    @idempotent
    def helper() -> None:
        raise AssertionError

    with pytest.raises(ImproperlyConfigured, match="without its request"):
        helper()


def test_the_mixin_without_a_view() -> None:
    """X2: A class that is not a view is refused as soon as it is routed."""

    class Plain(IdempotencyMixin):
        pass

    with pytest.raises(TypeError, match=r"Plain is not one. Derive it from APIView"):
        Plain.as_view()


@pytest.mark.usefixtures("database")
def test_places_that_work() -> None:
    """E6: Both orders with @action, and method_decorator, protect a handler."""

    class Actions(ViewSet):
        @idempotent
        @action(detail=False, methods=["post"])
        def above(self, request: Request) -> Any:
            return create_effect(request)

        @action(detail=False, methods=["post"])
        @idempotent(required=True)
        def below(self, request: Request) -> Any:
            return create_effect(request)

    @method_decorator(idempotent(required=True), name="post")
    class Pay(APIView):
        def post(self, request: Request) -> Any:
            return create_effect(request)

    assert {a.__name__ for a in Actions.get_extra_actions()} == {"above", "below"}
    views = {
        "/above/": Actions.as_view({"post": "above"}),
        "/below/": Actions.as_view({"post": "below"}),
        "/pay/": Pay.as_view(),
    }
    for at, view in views.items():
        answers = [
            view(APIRequestFactory().post(at, {}, HTTP_X_USER="ada", **key(at * 9)))
            for _ in range(2)
        ]
        assert answers[0].content == answers[1].content
    assert Effect.objects.count() == 3


def test_exempt_in_both_orders() -> None:
    """@idempotency_exempt works above and below @action."""

    class Actions(IdempotencyMixin, ViewSet):
        @idempotency_exempt
        @action(detail=False, methods=["post"])
        def above(self, request: Request) -> Any:
            return Response({"has": hasattr(request, "idempotency")})

        @action(detail=False, methods=["post"])
        @idempotency_exempt
        def below(self, request: Request) -> Any:
            return Response({"has": hasattr(request, "idempotency")})

    for name in ("above", "below"):
        request = APIRequestFactory().post("/", {}, HTTP_X_USER="ada", **key())
        assert Actions.as_view({"post": name})(request).data == {"has": False}


def test_types_of_the_options() -> None:
    """Every row of the table has a rule, and a default that keeps it (X2)."""
    for name, option in policy.OPTIONS.items():
        default = getattr(policy.Policy(), name)
        assert default is None or option.rule.holds(default), name
