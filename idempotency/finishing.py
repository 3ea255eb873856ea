"""A view's answer finished once: finalised, warned about, rendered, given headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.http import HttpResponseBase

from idempotency import client_warnings
from idempotency.context import RequestContext
from idempotency.exceptions import IdempotencyError
from idempotency.hooks import Hooks

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView


class Finisher:
    """Stands in for ``finalize_response`` of one view instance.

    A response must be finished inside the transaction, to be stored (E1), and
    ``dispatch`` finalises what it gets. So the view's own ``finalize_response`` runs
    here, and a finished response passes. This is also where every answer of a view,
    refusals included, gets the app's headers.
    """

    def __init__(
        self,
        view: APIView,
        request: Request,
        hooks: Hooks,
        context: RequestContext,
        *,
        warn_in_body: bool,
    ) -> None:
        self.view = view
        self.request = request
        self.hooks = hooks
        self.context = context
        self.warn_in_body = warn_in_body
        self.headers: dict[str, str] = {}
        self._finished: HttpResponseBase | None = None
        self._finalize = view.finalize_response
        view.finalize_response = self  # type: ignore[method-assign, assignment]  # of this instance

    def finish(self, response: HttpResponseBase) -> HttpResponseBase:
        """Finalise and render a handler's response.

        What goes wrong is for Django to answer, as it would without the app: DRF has
        ended by then. The app's own refusals apart.
        """
        view = self.view
        try:
            response = self._with_warnings(response, *view.args, **view.kwargs)
            if hasattr(response, "render"):
                response = response.render()
        except Exception:
            handle_exception = view.handle_exception

            def leave_to_django(error: Exception) -> Any:
                if isinstance(error, IdempotencyError):
                    return handle_exception(error)
                raise error

            view.handle_exception = leave_to_django  # type: ignore[method-assign, assignment]  # of this instance
            raise
        return self.let_pass(response)

    def unmark_while_answering(self, alias: str) -> None:
        """Let a transaction that is to be undone be used to answer an error."""
        handle_exception = self.view.handle_exception

        def handle(error: Exception) -> Any:
            transaction.set_rollback(False, using=alias)
            try:
                return handle_exception(error)
            finally:
                transaction.set_rollback(True, using=alias)

        self.view.handle_exception = handle  # type: ignore[method-assign, assignment]  # of this instance

    def let_pass(self, response: HttpResponseBase) -> HttpResponseBase:
        """Take a response as finished already."""
        self._finished = response
        return response

    def _with_warnings(
        self, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        # DRF takes Vary out of the view's headers, and may finalise a second answer
        # where the transaction of the first one failed.
        headers = dict(self.view.headers)
        response = self._finalize(self.request, response, *args, **kwargs)  # type: ignore[arg-type]  # stubs know no other responses
        self.view.headers = headers
        if self.context.warnings and self.warn_in_body:
            self.hooks.add_idempotency_warnings(response, self.context.warnings)
        return response

    def __call__(
        self, request: Request, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Do what ``dispatch`` expects of ``finalize_response``."""
        if response is not self._finished:
            response = self._with_warnings(response, *args, **kwargs)
        for name, value in self.headers.items():
            response[name] = value
        if self.context.warnings:
            client_warnings.add_to_header(response, self.context.warnings)
        return response
