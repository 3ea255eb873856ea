"""A user's mistakes, each of which type checkers find in the line that says so."""

from __future__ import annotations

from datetime import timedelta

from django.contrib.auth.models import User
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from idempotency.context import context_of
from idempotency.decorators import idempotent


@idempotent
def bare(request: Request, number: int) -> Response:
    return Response()


@idempotent(retentions=timedelta(days=1))  # mistake: no such option
def unknown(request: Request) -> Response:
    return Response()


@idempotent(on_concurrent="queue")  # mistake: no such choice
def choice(request: Request) -> Response:
    return Response()


@idempotent(retention=30)  # mistake: no timedelta
def kind(request: Request) -> Response:
    return Response()


def call(request: Request) -> None:
    bare(request, "1")  # mistake: the signature is the handler's own


def resuming(request: Request) -> None:
    steps = context_of(request)
    steps.step("model", User)  # mistake: no JSON
    steps.step("time", timezone.now)  # mistake: no JSON
    steps.step("nested", lambda: {"at": [timezone.now()]})  # mistake: no JSON
    steps.step("set", lambda: {1, 2})  # mistake: no JSON
    steps.call("response", lambda key: Response())  # mistake: no JSON
    steps.call("charge", lambda: 1)  # mistake: the function gets a key
    steps.call("choice", str, on_abandoned="again")  # mistake: no such choice
