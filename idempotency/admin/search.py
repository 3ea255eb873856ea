"""Find callers and endpoints by what a customer or a log says of them (contract A1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.conf import settings
from django.contrib.admin.views.main import PAGE_VAR, SEARCH_VAR
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db.models import Subquery
from django.http import HttpRequest, HttpResponseRedirect
from django.template.response import TemplateResponse

from idempotency import scopes
from idempotency.admin.decoding import presentable
from idempotency.admin.lists import (
    LISTED,
    CallerFilter,
    EndpointFilter,
    Records,
    of_endpoint,
    that_have,
)
from idempotency.admin.permissions import Permissions
from idempotency.conf import get_settings
from idempotency.routes import MAX_LENGTH, find_routes, route_of

# Callers, and endpoints, that a search offers.
OFFERED = 20
# A method, if any, and a route or path.
ENDPOINT = re.compile(r"(?:(?P<method>[A-Za-z]+)\s+)?(?P<path>/\S*)")
METHODS = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A caller or endpoint that has records, with the filter that lists them."""

    parameter: str
    value: str
    label: str
    detail: str
    records: Records


class Search(Permissions):
    """Let the list's search find callers and endpoints besides keys."""

    def get_scope_of_user(self, user: Any) -> str | None:
        """Return the scope of a user's records, or None if there is none.

        Override it if your endpoints have a ``scope`` of their own.
        """
        return scopes.user_scope(user)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Offer the callers and endpoints that match; go to the only one."""
        response = super().changelist_view(request, extra_context)
        if not isinstance(response, TemplateResponse):
            return response
        context: Any = response.context_data
        found = context.get("cl")  # not on the page of an action
        if found is None or not found.query:
            return response
        offers = self._with_records(request, found.query.strip())
        if len(offers) == 1 and not found.result_count:
            return HttpResponseRedirect(self._chosen(request, offers[0]))
        context["offers"] = [(self._chosen(request, offer), offer) for offer in offers]
        return response

    def _chosen(self, request: HttpRequest, offer: Offer) -> str:
        """Return the address of an offer's records, with the filters as they are."""
        chosen = request.GET.copy()
        for name in (SEARCH_VAR, PAGE_VAR):
            chosen.pop(name, None)
        chosen[offer.parameter] = offer.value
        return f"{request.path}?{chosen.urlencode()}"

    def _with_records(self, request: HttpRequest, term: str) -> list[Offer]:
        """Return the offers for a search term that have records."""
        every = self.get_queryset(request)
        offers = [*self._callers(request, every, term), *_endpoints(every, term)]
        if self.restricts_single_records:
            may = self.has_view_permission
            return [
                offer
                for offer in offers
                if any(may(request, each) for each in offer.records[:LISTED])
            ]
        # One statement for all; a table without records has no row. The latest record
        # instead of any, so that PostgreSQL reads the index and not the table.
        latest = [
            Subquery(offer.records.order_by("-created_at").values("created_at")[:1])
            for offer in offers
        ]
        return [
            offer
            for row in every.order_by("pk").values_list(*latest)[:1]
            for offer, created_at in zip(offers, row, strict=True)
            if created_at is not None
        ]

    def _callers(
        self, request: HttpRequest, every: Records, term: str
    ) -> Iterator[Offer]:
        """Yield callers: users, and the term as a scope or a user's primary key."""
        by_key = f"user:{settings.AUTH_USER_MODEL.lower()}:{term}"
        names = {
            scope: str(user)
            for user in self._users(request, term)
            if (scope := self.get_scope_of_user(user)) is not None
        }
        for scope in [*names, *({term, by_key} - names.keys())]:
            yield Offer(
                parameter=CallerFilter.parameter_name,
                value=scope,
                label=presentable(names.get(scope, scope)),
                detail=presentable(scope if scope in names else ""),
                records=that_have(every, "scope", [scope]),
            )

    def _users(self, request: HttpRequest, term: str) -> list[Any]:
        """Return users that match, if this site has an admin that shows them."""
        model: Any = get_user_model()
        if not self.admin_site.is_registered(model):
            return []
        users = self.admin_site.get_model_admin(model)
        if not users.has_view_permission(request):
            return []
        every = users.get_queryset(request).order_by()
        named: list[Any] = []
        with suppress(ValidationError, ValueError):  # of another type than text
            named = [*every.filter(**{model.USERNAME_FIELD: term})[:1]]
        if not users.get_search_fields(request):
            return named
        found, may_repeat = users.get_search_results(request, every, term)
        if may_repeat:
            found = found.distinct()
        return [*named, *(each for each in found[:OFFERED] if each not in named)]


def _endpoints(every: Records, term: str) -> Iterator[Offer]:
    """Yield endpoints by a route, a path, or a part of a route or of a view's name."""
    asked = ENDPOINT.fullmatch(term)
    methods = {*METHODS, *get_settings().policy.methods}
    part = term
    if asked is not None:
        part = asked["path"]
        if asked["method"]:
            methods = {asked["method"].upper()}
    exact = [] if asked is None else [part[:MAX_LENGTH], route_of(part)]
    found = {
        (method, route): "" for route in exact for method in sorted(methods) if route
    }
    found |= islice(_endpoints_with(part.casefold(), exact, methods), OFFERED)
    for (method, route), view in found.items():
        value = f"{method} {route}"
        yield Offer(
            parameter=EndpointFilter.parameter_name,
            value=value,
            label=presentable(value),
            detail=view,
            records=of_endpoint(every, method, route),
        )


def _endpoints_with(
    part: str, exact: list[str | None], methods: set[str]
) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield methods, routes and views of the project with these names."""
    for found in find_routes():
        route = found.path[:MAX_LENGTH]
        for method in sorted(methods.intersection(found.methods())):
            view = found.view(method)
            if route in exact or part in f"{route} {view}".casefold():
                yield (method, route), view
