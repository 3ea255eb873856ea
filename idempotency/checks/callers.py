"""Check who calls endpoints: callers that share a scope, and keys on GET."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

Rule = Callable[[Any], bool]
Combine = Callable[[Iterable[bool]], bool]

# Permissions of Django REST framework that require a user for POST.
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
    """Warn if callers that only a permission identifies share a scope (S1)."""
    names = dict.fromkeys(
        endpoint.name for endpoint in find_endpoints() if _mixes_callers(endpoint)
    )
    if names and get_settings().ANONYMOUS == "refuse":
        return []
    return [
        checks.Warning(
            f"{name} admits callers by a permission alone. They all share one scope, "
            "so one caller can get another's response.",
            hint=(
                "Identify callers by an authentication class, or by the option scope: "
                "for example, a callable that returns the id of the caller's API key. "
                'Or set IDEMPOTENCY = {"ANONYMOUS": "refuse"}. Silence this check if '
                "the permission does not depend on the caller, or if an authentication "
                "class finds a user for every caller."
            ),
            id="idempotency.W010",
        )
        for name in names
    ]


def _mixes_callers(endpoint: Endpoint) -> bool:
    """Return whether a permission admits callers that no authentication identifies.

    Views that override ``get_authenticators`` are not checked.
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
    # A property's value depends on the view's instance.
    if not all(type(each) in (list, tuple) for each in (authenticators, permissions)):
        return False
    if any(_holds(each, _wants_a_user, either=all, both=any) for each in permissions):
        return False
    # With authenticators, the caller may be a user: report known permissions only.
    if authenticators:
        return any(
            _holds(each, _wants_an_api_key, either=any, both=any)
            for each in permissions
        )
    return not all(
        _holds(each, _lets_all_in, either=any, both=all) for each in permissions
    )


def _holds(permission: Any, rule: Rule, *, either: Combine, both: Combine) -> bool:
    """Return whether a permission, or its operands combined, fulfils a rule."""
    if type(permission) is not OperandHolder:
        return rule(permission)
    operator: Any = permission.operator_class
    combine = either if operator is OR else both
    return combine(
        _holds(operand, rule, either=either, both=both)
        for operand in (permission.op1_class, permission.op2_class)
    )


def _wants_a_user(permission: Any) -> bool:
    return is_class(permission) and any(p in OF_USERS for p in places_of(permission))


def _wants_an_api_key(permission: Any) -> bool:
    return is_class(permission) and any(
        module.partition(".")[0] == "rest_framework_api_key" and name == "BaseHasAPIKey"
        for module, name in places_of(permission)
    )


def _lets_all_in(permission: Any) -> bool:
    return permission is AllowAny


@checks.register("idempotency")
def check_reading(**kwargs: Any) -> list[CheckMessage]:
    """Warn about keys on GET, which browsers, proxies and crawlers also send."""
    if not settings_are_right():
        return []
    names = dict.fromkeys(
        route.view("GET")
        for route in find_routes()
        if "GET" in route.methods() and protection_of(route.callback, "GET") is not None
    )
    return [
        checks.Warning(
            f"{name} is also protected on GET.",
            hint=(
                'Remove "GET" from methods: reading has no effect to protect, and the '
                "responses would be stored. If this GET has an effect, make it a POST."
            ),
            id="idempotency.W011",
        )
        for name in names
    ]
