"""A request to a protected handler, and how the app treats it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.views.generic.detail import SingleObjectMixin
from rest_framework.exceptions import APIException
from rest_framework.generics import GenericAPIView

from idempotency.conf import get_settings
from idempotency.conf.policy import Policy
from idempotency.context import RequestContext
from idempotency.exceptions import IdempotencyError
from idempotency.hooks import DEFAULT_HOOKS, ORIGINAL, Hooks, imported, scope_of

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

    from idempotency.models import IdempotencyRecord

Handler = Callable[[], HttpResponseBase]
# A handler of Django REST framework refuses a request by these, unless their status is
# 500 or more.
REFUSALS = (APIException, Http404, PermissionDenied)


def http_request_of(request: Any) -> Any:
    """Return Django's request, which Django REST framework's wraps."""
    return request if isinstance(request, HttpRequest) else request._request


class PlainView:
    """Stands for a plain view where execution expects one of Django REST framework's.

    ``owner`` is the instance of a class-based view, or None for a function.
    """

    # A handler refuses a request by these: Django makes a response below 500 of them.
    REFUSALS = (
        *(IdempotencyError, Http404, PermissionDenied),
        *(BadRequest, SuspiciousOperation, MultiPartParserError),
    )

    # What a hook of the app has refused the request by.
    refusal: APIException | None = None
    # The arguments of a URL, which Django REST framework's views hand on.
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  # never changed

    def __init__(self, request: HttpRequest, name: str, owner: Any) -> None:
        self.request = request
        self.name = name
        self.owner = owner
        self.headers: dict[str, str] = {}

    def finalize_response(
        self, request: HttpRequest, response: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return the response: Django has nothing to add."""
        return response

    def handle_exception(self, error: Exception) -> HttpResponseBase:
        """Return a response for a refusal of the app; leave other errors to Django."""
        if not isinstance(error, IdempotencyError) and error is not self.refusal:
            raise error
        response: HttpResponseBase = self.get_exception_handler()(self.request, error)
        return response

    def get_exception_handler(self) -> Any:
        """Return the function that makes the responses."""
        return imported(get_settings().REFUSAL_RESPONSE or refusal_response)


def refusal_response(request: HttpRequest, refusal: APIException) -> JsonResponse:
    """Return a refusal as JSON with ``detail`` and ``code`` (X1)."""
    detail = refusal.detail
    content = {"detail": detail, "code": getattr(detail, "code", refusal.default_code)}
    return JsonResponse(content, status=refusal.status_code)


# No repr: the request's repr has the query, which may have the key (X1).
@dataclass(slots=True, kw_only=True, repr=False)
class KeyedRequest:
    """A request with its view and policy; ``context`` is ``request.idempotency``."""

    view: APIView
    request: Request
    context: RequestContext
    policy: Policy = field(default_factory=Policy)
    # The app's, once it has refused the request.
    refusal: IdempotencyError | None = None

    @property
    def view_object(self) -> Any:
        """The project's view, or None for a plain function."""
        return self.view.owner if isinstance(self.view, PlainView) else self.view

    @property
    def hooks(self) -> Hooks:
        """The view's own hooks if it has the mixin, else the default ones."""
        view = self.view_object
        return view if isinstance(view, Hooks) else DEFAULT_HOOKS

    @property
    def http_request(self) -> Any:
        """Django's request."""
        return http_request_of(self.request)

    @property
    def view_name(self) -> str:
        """The dotted name of the view's class, or of a plain view's function."""
        if isinstance(self.view, PlainView):
            return self.view.name
        cls = type(self.view)
        return f"{cls.__module__}.{cls.__name__}"

    @property
    def sender(self) -> type:
        """The view's class, as the sender of signals; PlainView for plain functions."""
        view = self.view_object
        cls = type(self.view if view is None else view)
        original: type = vars(cls).get(ORIGINAL, cls)
        return original

    @property
    def action(self) -> str | None:
        """The name of the ViewSet's action, or None."""
        return getattr(self.view, "action", None)

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method or ""

    def is_failure(self, error: BaseException) -> bool:
        """Return whether a handler has failed, instead of refusing the request (O3)."""
        is_plain = isinstance(self.view, PlainView)
        refusals = PlainView.REFUSALS if is_plain else REFUSALS
        status_code = getattr(error, "status_code", 0)
        return not isinstance(error, refusals) or status_code >= 500

    def scope(self) -> str:
        """Return whose key it is, from the option or the hook (S1)."""
        try:
            return scope_of(self.request, self.policy.scope)
        except APIException as error:
            self._note_refusal(error)
            raise

    def may_store(self, response: HttpResponseBase) -> bool:
        """Return whether the option ``store`` and the hook keep a response (O4)."""
        store: Any = self.policy.store
        if store is not True and store is not False:
            store = imported(store)(response)
        return bool(store) and self.hooks.should_store_response(response)

    def check_replay(self, record: IdempotencyRecord) -> None:
        """Run the option ``check_replay`` and the hook, which may raise a refusal (S2).

        ``"object"`` calls a generic view's ``get_object()`` if the URL names an object.
        """
        option = self.policy.check_replay
        try:
            if not callable(option) and option == "object":
                self._get_object()
            elif option is not None:
                imported(option)(self.request, record)
            self.hooks.check_replay(self.request, record)
        except APIException as error:
            self._note_refusal(error)
            raise

    def _get_object(self) -> None:
        view = self.view_object
        is_generic = isinstance(view, GenericAPIView | SingleObjectMixin)
        if is_generic and _names_an_object(view):
            view.get_object()

    def _note_refusal(self, error: APIException) -> None:
        """Let a plain view respond to an APIException by which a hook refuses."""
        if isinstance(self.view, PlainView) and error.status_code < 500:
            self.view.refusal = error


def _names_an_object(view: Any) -> bool:
    if isinstance(view, SingleObjectMixin):
        return bool({view.pk_url_kwarg, view.slug_url_kwarg} & {*view.kwargs})  # type: ignore[attr-defined]  # of the view class
    is_detail: bool | None = getattr(view, "detail", None)  # set by routers
    if is_detail is None:
        # The view's own get_object() may use any part of the URL.
        has_own = type(view).get_object is not GenericAPIView.get_object
        lookup = view.lookup_url_kwarg or view.lookup_field
        is_detail = bool(view.kwargs) if has_own else lookup in view.kwargs
    return is_detail
