"""Endpoints whose callers nothing tells apart, and those that only read."""

from __future__ import annotations

from typing import Any

from django.core import checks
from django.core.checks import CheckMessage
from rest_framework.permissions import OR, AllowAny, OperandHolder
from rest_framework.views import APIView

from idempotency.checks.endpoints import Endpoint, find_endpoints
from idempotency.checks.settings import settings_are_right
from idempotency.conf import get_settings
from idempotency.handlers import attribute_of, is_class, places_of
from idempotency.protection import protection_of
from idempotency.routes import find_routes

# Permissions of Django REST framework that let only users act.
OF_USERS = {
    ("rest_framework.permissions", name)
    for name in (
        "IsAuthenticated",
        "IsAdminUser",
        "IsAuthenticatedOrReadOnly",
        "DjangoModelPermissions",
    )
}


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
            f"{name} lets callers in by a permission alone, and nothing names them: "
            "all of them share one scope, and one can get another's answer.",
            hint=(
                "Say who they are, by an authentication class or with the option "
                "scope: a callable that returns the id of the caller's API key, for "
                'example. Or write IDEMPOTENCY = {"ANONYMOUS": "refuse"}. If the '
                "permission does not look at the caller, or each of its callers is a "
                "user for an authentication class, silence this check."
            ),
            id="idempotency.W010",
        )
        for name in names
    ]


def _mixes_callers(endpoint: Endpoint) -> bool:
    """Tell whether a permission lets callers in whom no authentication class names.

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
    if any(_wants_a_user(each) for each in permissions):
        return False
    # Where a caller may be a user, too, only permissions that are known are reported.
    return any(
        _wants_an_api_key(each) if authenticators else not _lets_all_in(each)
        for each in permissions
    )


def _wants_a_user(permission: Any) -> bool:
    """Tell whether Django REST framework lets only users act by a permission."""
    if type(permission) is not OperandHolder:
        return is_class(permission) and not {*places_of(permission)}.isdisjoint(
            OF_USERS
        )
    found = map(_wants_a_user, _operands(permission))
    return all(found) if _is_either(permission) else any(found)


def _wants_an_api_key(permission: Any) -> bool:
    """Tell whether a permission lets a caller in by djangorestframework-api-key."""
    if type(permission) is OperandHolder:
        return any(map(_wants_an_api_key, _operands(permission)))
    return is_class(permission) and any(
        module.partition(".")[0] == "rest_framework_api_key" and name == "BaseHasAPIKey"
        for module, name in places_of(permission)
    )


def _lets_all_in(permission: Any) -> bool:
    if type(permission) is not OperandHolder:
        return permission is AllowAny
    found = map(_lets_all_in, _operands(permission))
    return any(found) if _is_either(permission) else all(found)


def _is_either(permission: Any) -> bool:
    return permission.operator_class is OR


def _operands(permission: OperandHolder) -> tuple[Any, Any]:
    return permission.op1_class, permission.op2_class


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
