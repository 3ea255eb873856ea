"""Views for each way to protect a handler; a test chooses the handler."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.decorators import action, api_view
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import IntegerField, ModelSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency.context import context_of
from idempotency.decorators import idempotency_exempt, idempotent
from idempotency.mixins import IdempotencyMixin
from tests.app.authentication import UserHeaderAuthentication
from tests.app.models import Effect
from tests.support.rendezvous import meet


def create_effect(request: Request) -> Any:
    """Act once, and answer differently each time that it runs."""
    effect = Effect.objects.create(note=str(request.data))
    return Response(
        {"effect": effect.pk}, status=201, headers={"Location": f"/e/{effect.pk}"}
    )


class Behaviour:
    """The handler of all views."""

    handler: Callable[[Request], Any] = staticmethod(create_effect)


def behave(request: Request) -> Any:
    return Behaviour.handler(request)


class MixinView(IdempotencyMixin, APIView):
    def post(self, request: Request) -> Any:
        return behave(request)

    def get(self, request: Request) -> Any:
        return behave(request)


class MixinViewSet(IdempotencyMixin, ViewSet):
    def create(self, request: Request) -> Any:
        return behave(request)

    def list(self, request: Request) -> Any:
        return behave(request)

    @action(detail=False, methods=["post"])
    def extra(self, request: Request) -> Any:
        return behave(request)

    @idempotency_exempt
    @action(detail=False, methods=["post"])
    def search(self, request: Request) -> Any:
        return behave(request)

    @action(detail=False, methods=["post"])
    @idempotent(required=True)
    def strict(self, request: Request) -> Any:
        return behave(request)


@api_view(["GET", "POST"])
@idempotent
def function(request: Request) -> Any:
    return behave(request)


class MethodView(APIView):
    @idempotent
    def post(self, request: Request) -> Any:
        return behave(request)

    def get(self, request: Request) -> Any:
        return behave(request)


class ActionViewSet(ViewSet):
    @action(detail=False, methods=["post"])
    @idempotent
    def act(self, request: Request) -> Any:
        return behave(request)


class PlainView(APIView):
    """A view of somebody else's."""

    def post(self, request: Request) -> Any:
        return behave(request)

    def get(self, request: Request) -> Any:
        return behave(request)


class FormatView(APIView):
    def post(self, request: Request, format: str | None = None) -> Any:  # noqa: A002
        return behave(request)


class PlainViewSet(ViewSet):
    def create(self, request: Request) -> Any:
        return behave(request)


class EffectSerializer(ModelSerializer[Effect]):
    """What a view of Django REST framework's own, with nothing of ours, acts by."""

    effect = IntegerField(source="pk", read_only=True)

    class Meta:
        model = Effect
        fields = ("effect", "note")


class MeetingSerializer(EffectSerializer):
    def create(self, validated_data: dict[str, Any]) -> Effect:
        """Act, and meet the test where it wants to be met."""
        effect = super().create(validated_data)
        meet_if_asked(self.context["request"])
        return effect


@api_view(["GET", "POST"])
def unprotected(request: Request) -> Any:
    return behave(request)


@api_view(["POST"])
@idempotent(required=True)
def required(request: Request) -> Any:
    return behave(request)


@api_view(["POST"])
@idempotent(on_concurrent="wait")
def waiting(request: Request) -> Any:
    return behave(request)


@api_view(["POST"])
@idempotent
def rendezvous(request: Request) -> Any:
    """Act, and meet the test where it wants to be met."""
    return act_and_meet(request)


@api_view(["POST"])
@idempotent(on_concurrent="wait", wait_timeout=timedelta(seconds=60))
def patient_rendezvous(request: Request) -> Any:
    """The same, with duplicates that wait."""
    return act_and_meet(request)


def act_and_meet(request: Request) -> Any:
    """Meet the test before COMMIT and, where it says so, after it."""
    response = create_effect(request)
    meet_if_asked(request)
    return response


def meet_if_asked(request: Request) -> None:
    place = request.META.get("HTTP_X_MEET")
    if place and request.META.get("HTTP_X_WHEN") == "after":
        transaction.on_commit(lambda: meet(place))
    elif place:
        meet(place)


def plain_body(request: Any, act: Callable[[Request], Any] = behave) -> Any:
    """Do what a test chose for views of DRF, in Django's terms."""
    request._request, request.data = request, request.body.decode()
    try:
        response = act(request)
    except PermissionDenied:
        raise DjangoPermissionDenied from None
    if not isinstance(response, Response):
        return response
    headers = {**response.headers}
    headers.pop("Content-Type", None)
    return JsonResponse(
        response.data, status=response.status_code, headers=headers, safe=False
    )


def with_user(view: Any) -> Any:
    """Log in whom the header names, as a middleware does."""

    @wraps(view)
    def logged_in(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        found = UserHeaderAuthentication().authenticate(Request(request))
        if found is not None:
            request.user = found[0]
        return view(request, *args, **kwargs)

    return logged_in


@with_user
@idempotent
def plain_function(request: HttpRequest) -> Any:
    return plain_body(request)


@with_user
@idempotent
def plain_rendezvous(request: HttpRequest) -> Any:
    return plain_body(request, act_and_meet)


@transaction.non_atomic_requests
@with_user
@idempotent(atomic=False, on_abandoned="hold")
def leased_plain_rendezvous(request: HttpRequest) -> Any:
    return plain_body(request, act_and_meet)


@transaction.non_atomic_requests
@api_view(["POST"])
@idempotent(atomic=False, on_abandoned="resume")
def resuming_rendezvous(request: Request) -> Any:
    """Act, meet the test where it wants to be met, and act once more."""
    steps, note = context_of(request), str(request.data)

    def act() -> dict[str, Any]:
        return {"effect": Effect.objects.create(note=note).pk}

    told = steps.step("first", act)
    meet_if_asked(request)
    return steps.step("last", lambda: Response({**told, "last": act()}, status=201))


class PlainDjangoView(IdempotencyMixin, View):
    def post(self, request: HttpRequest) -> Any:
        return plain_body(request)

    def get(self, request: HttpRequest) -> Any:
        return plain_body(request)


@method_decorator(idempotent, name="post")
class PlainMethodView(View):
    def post(self, request: HttpRequest) -> Any:
        return plain_body(request)
