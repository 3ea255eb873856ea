"""Endpoints whose callers nothing tells apart, and those that only read."""

from __future__ import annotations

from typing import Any

from django.core import checks
from django.core.checks import CheckMessage
from rest_framework.permissions import AllowAny
from rest_framework.views import APIView

from idempotency.checks.endpoints import Endpoint, find_endpoints
from idempotency.checks.settings import settings_are_right
from idempotency.conf import get_settings
from idempotency.handlers import attribute_of
from idempotency.protection import protection_of
from idempotency.routes import find_routes


@checks.register("idempotency")
def check_callers(**kwargs: Any) -> list[CheckMessage]:
    """Warn where callers whom a permission chooses share the anonymous scope (S1)."""
    names = dict.fromkeys(
        endpoint.name for endpoint in find_endpoints() if _mixes_callers(endpoint)
    )
    if names and get_settings().ANONYMOUS == "refuse":
        return []
    return [
        checks.Warning(
            f"{name} lets some callers in by a permission, and its keys are nobody's: "
            "all of them share one scope, and one can get another's answer.",
            hint=(
                "Say who they are, by an authentication class or with the option "
                "scope: a callable that returns the id of the caller's API key, for "
                'example. Or write IDEMPOTENCY = {"ANONYMOUS": "refuse"}. If the '
                "permission does not look at the caller, silence this check."
            ),
            id="idempotency.W010",
        )
        for name in names
    ]


def _mixes_callers(endpoint: Endpoint) -> bool:
    """Tell whether nothing names the callers of an endpoint that has not all of them.

    What an override of ``get_authenticators`` finds is not known here.
    """
    cls = getattr(endpoint.callback, "cls", None)
    if (
        endpoint.protection.policy.scope is not None
        or getattr(cls, "get_authenticators", None) is not APIView.get_authenticators
    ):
        return False
    authenticators, permissions = (
        endpoint.callback.initkwargs.get(name, attribute_of(cls, name))
        for name in ("authentication_classes", "permission_classes")
    )
    # What is made for each view, by a property, only a view can tell.
    if not all(type(each) in (list, tuple) for each in (authenticators, permissions)):
        return False
    return not authenticators and any(each is not AllowAny for each in permissions)


@checks.register("idempotency")
def check_reading(**kwargs: Any) -> list[CheckMessage]:
    """Warn of keys on GET, which browsers, proxies and crawlers send by themselves."""
    if not settings_are_right():
        return []
    names = dict.fromkeys(
        route.view("GET")
        for route in find_routes()
        if "GET" in route.methods() and protection_of(route.callback, "GET") is not None
    )
    return [
        checks.Warning(
            f"{name} is protected on GET, too.",
            hint=(
                'Leave "GET" out of methods: what reads has no effect to protect, and '
                "its answers would be stored. If this GET acts, let it be a POST."
            ),
            id="idempotency.W011",
        )
        for name in names
    ]
