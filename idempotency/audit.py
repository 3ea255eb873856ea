"""Find out which of a project's routes are protected, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

from idempotency.conf.policy import OPTIONS, Policy
from idempotency.handlers import dotted_name
from idempotency.protection import Protection, is_exempt, protection_of
from idempotency.routes import Route, find_routes

HEAD = ("METHOD", "PATH", "VIA", "MODE", "SCOPE", "POLICY", "VIEW")
# Options that have an entry of their own.
TOLD_APART = ("methods", "scope", "atomic")
CREDENTIALS = "leave out: credentials"
UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))

# Packages, modules, classes and methods that return credentials, or revoke the
# request's.
KNOWN = (
    "allauth.headless",
    "dj_rest_auth",
    "django.contrib.auth.views",
    "djoser.social",
    "djoser.views.TokenCreateView",
    "djoser.views.TokenDestroyView",
    "djoser.views.UserViewSet.reset_password_confirm",
    "djoser.views.UserViewSet.set_password",
    "djoser.webauthn",
    "knox",
    "oauth2_provider.views",
    "rest_framework.authtoken.views",
    "rest_framework_simplejwt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One method of one route, and how it is protected, if it is."""

    method: str
    route: Route
    protection: Protection | None
    exempt: bool

    @property
    def view(self) -> str:
        """The dotted name of the handler."""
        return self.route.view(self.method)

    @property
    def unprotected(self) -> bool:
        """Whether the route is neither protected nor exempt."""
        return self.protection is None and not self.exempt

    @property
    def is_drf(self) -> bool:
        """Whether it is a view of Django REST framework."""
        parts = self.route.parts
        return parts is not None and parts.is_drf

    @property
    def via(self) -> str:
        """``mixin``, ``decorator``, ``routing``, ``exempt`` or ``none``."""
        if self.protection is not None:
            return self.protection.via
        return "exempt" if self.exempt else "none"

    @property
    def credentials(self) -> bool:
        """Whether it is a known endpoint of credentials."""
        action = self.view.rpartition(".")[2]
        parts = self.route.parts
        return parts is not None and handles_credentials(parts.cls, action)

    def matches(self, pattern: str) -> bool:
        """Return whether a shell pattern matches the whole path, route name or view.

        The match is case-sensitive, and ``*`` also matches slashes and dots.
        """
        texts = (self.route.path, self.route.name or "", self.view)
        return any(fnmatchcase(text, pattern) for text in texts)

    def as_row(self) -> tuple[str, ...]:
        """Return the cells of a table with ``HEAD``."""
        mode, scope, policy = "-", "-", "-"
        if self.protection is not None:
            mode = _mode(self.protection.policy)
            scope = _text(self.protection.policy.scope)
            policy = ", ".join(_essentials(self.protection.policy))
        if self.credentials:
            policy = f"{policy}, {CREDENTIALS}".removeprefix("-, ")
        return self.method, self.route.path, self.via, mode, scope, policy, self.view

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON, with durations in seconds."""
        found: dict[str, Any] = {
            "method": self.method,
            "path": self.route.path,
            "name": self.route.name,
            "view": self.view,
            "via": self.via,
            "credentials": self.credentials,
        }
        if self.protection is None:
            return found
        policy = self.protection.policy
        mode = _mode(policy)
        return {
            **found,
            "mode": mode,
            "scope": _text(policy.scope),
            "policy": {
                name: _json(getattr(policy, name))
                for name, option in OPTIONS.items()
                if name not in TOLD_APART
                and (mode == "leased" or not option.is_leased_only)
            },
        }


def audit() -> list[Finding]:
    """Return all routes for POST, and other protected ones, in the URLconf's order."""
    return [
        Finding(
            method=method,
            route=route,
            protection=protection,
            exempt=is_exempt(route.callback, method),
        )
        for route in find_routes()
        for method in route.methods()
        for protection in [protection_of(route.callback, method)]
        if protection is not None or method == "POST"
    ]


def news(findings: list[Finding], *, all_kinds: bool) -> list[Finding]:
    """Return the findings to list, unprotected views of DRF first.

    With ``all_kinds``, unprotected routes of other kinds come last: plain Django views,
    such as the admin's, and other frameworks.
    """
    undecided = [each for each in findings if each.unprotected and each.is_drf]
    decided = [each for each in findings if not each.unprotected]
    others = [each for each in findings if each.unprotected and not each.is_drf]
    return [*undecided, *decided, *(others if all_kinds else ())]


def _mode(policy: Policy) -> str:
    return "atomic" if policy.atomic else "leased"


def _essentials(policy: Policy) -> Iterator[str]:
    yield "key required" if policy.required else "key optional"
    yield f"kept {_duration(policy.retention)}"
    if policy.using is not None:
        yield f"in {policy.using}"
    if policy.on_concurrent == "wait":
        yield f"waits {_duration(policy.wait_timeout)}"
    if not policy.atomic:
        yield f"lease {_duration(policy.lease)}"
        yield f"abandoned: {_text(policy.on_abandoned)}"
    if policy.completer is not None:
        yield f"completer: {_text(policy.completer)}"


def _duration(value: timedelta) -> str:
    """Return a duration in the format of ``purge_idempotency_records``: 45d."""
    for seconds, unit in UNITS:
        if not value % timedelta(seconds=seconds):
            return f"{value // timedelta(seconds=seconds)}{unit}"
    return f"{value.total_seconds()}s"


def _text(value: Any) -> str:
    if value is None:
        return "default"
    return dotted_name(value) if callable(value) else str(value)


def _json(value: Any) -> Any:
    if callable(value):
        return dotted_name(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Collection) and not isinstance(value, str):
        return sorted(value)
    return value


def handles_credentials(view_class: type, action: str) -> bool:
    """Return whether a view is, or derives from, a known view for credentials.

    ``action`` is the name of the handler's method. The packages are not imported.
    """
    return any(
        f"{cls.__module__}.{cls.__qualname__}.{action}.".startswith(f"{known}.")
        for cls in view_class.__mro__
        for known in KNOWN
    )
