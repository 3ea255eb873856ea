"""A view's answer finished once: finalised, warned about, rendered, given headers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.http import HttpResponseBase
from rest_framework.views import exception_handler

from idempotency import client_warnings
from idempotency.client_warnings import KEY_IGNORED
from idempotency.exceptions import IdempotencyError, TransactionFailed
from idempotency.handlers import parts_of
from idempotency.keyed_request import KeyedRequest
from idempotency.responses import ERROR_HEADER
from idempotency.signals import escaped, extras

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView

ExceptionHandler = Callable[[Exception, dict[str, Any]], "Response | None"]

logger = logging.getLogger("idempotency")


class ResponseFinalizer:
    """Stands in for ``finalize_response`` of one view instance.

    A response must be finished inside the transaction, to be stored (E1), and
    ``dispatch`` finalises what it gets. So the view's own ``finalize_response`` runs
    here, and a finished response passes. This is also where every answer of a view,
    refusals included, gets the app's headers.
    """

    def __init__(self, keyed: KeyedRequest, *, warn_in_body: bool = False) -> None:
        self.keyed = keyed
        self.view = keyed.view
        self.context = keyed.context
        self.warn_in_body = warn_in_body
        self.headers: dict[str, str] = {}
        self._refuses_success = False
        self._finished: HttpResponseBase | None = None
        self._finalize = self.view.finalize_response
        self.view.finalize_response = self  # type: ignore[method-assign, assignment]  # of this instance

    def finish(self, response: HttpResponseBase) -> HttpResponseBase:
        """Finalise and render a handler's response."""
        return self.render(self.finalize(response))

    def finalize(self, response: HttpResponseBase) -> HttpResponseBase:
        """Finalise a handler's response.

        What goes wrong is for Django to answer, as it would without the app: DRF has
        ended by then. The app's own refusals apart.
        """
        with self._errors_left_to_django():
            view = self.view
            response = self._with_warnings(response, *view.args, **view.kwargs)
            return self.let_pass(response)

    def render(self, response: HttpResponseBase) -> HttpResponseBase:
        """Render a finalised response; what goes wrong is Django's to answer, too."""
        with self._errors_left_to_django():
            if hasattr(response, "render"):
                response = response.render()
            return self.let_pass(response)

    @contextmanager
    def _errors_left_to_django(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            handle_exception = self.view.handle_exception

            def leave_to_django(error: Exception) -> Any:
                if isinstance(error, IdempotencyError):
                    return handle_exception(error)
                raise error

            self.view.handle_exception = leave_to_django  # type: ignore[method-assign, assignment]  # of this instance
            raise

    def refuse_success(self) -> None:
        """Let no answer below 400 out: the effects that it stands for are undone (O3).

        The project may make such an answer of a failure, in its EXCEPTION_HANDLER or
        in the view's ``handle_exception`` or ``finalize_response``.
        """
        self._refuses_success = True
        self._spare_others()

    def refuse(self, refusal: IdempotencyError) -> None:
        """Let the answer to a refusal of the app's say which it is (X1)."""
        self.headers[ERROR_HEADER] = refusal.default_code
        if refusal.wait is not None:
            # DRF's exception handler says so too; a project's own may not.
            self.headers["Retry-After"] = str(refusal.wait)
        handler = exception_handler_of(self.view)
        self.view.get_exception_handler = lambda: handler  # type: ignore[method-assign]  # of this instance
        self._spare_others()

    def _spare_others(self) -> None:
        """Let the answer to an error undo nothing of the request that sent this one.

        Nothing of the handler's is left to undo. But Django REST framework marks every
        transaction of ATOMIC_REQUESTS, which in a batch has other parts' effects (E2).
        """
        if not self._is_part():
            return
        handle_exception = self.view.handle_exception

        def handle(error: Exception) -> Any:
            clean = [
                connection
                for connection in connections.all(initialized_only=True)
                if connection.in_atomic_block and not connection.needs_rollback
            ]
            try:
                return handle_exception(error)
            finally:
                for connection in clean:
                    connection.set_rollback(False)

        self.view.handle_exception = handle  # type: ignore[method-assign, assignment]  # of this instance

    def _is_part(self) -> bool:
        """Tell whether a handler has sent the request, instead of a client."""
        match = self.keyed.request._request.resolver_match
        parts = None if match is None else parts_of(match.func)
        # A part may be a copy of the batch's request, with that one's match.
        return match is None or (parts is not None and parts.cls is not type(self.view))

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
        if response.status_code == 405 and KEY_IGNORED in self.context.warnings:
            self.context.warnings = ()  # nothing has acted (K5)
        response = self._finalize(self.keyed.request, response, *args, **kwargs)  # type: ignore[arg-type]  # stubs know no other responses
        self.view.headers = headers
        if self.context.warnings and self.warn_in_body:
            self.keyed.hooks.add_idempotency_warnings(response, self.context.warnings)
        return response

    def __call__(
        self, request: Request, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Do what ``dispatch`` expects of ``finalize_response``."""
        if response is not self._finished:
            response = self._with_warnings(response, *args, **kwargs)
        if self._refuses_success and response.status_code < 400:
            response = self._failure_instead_of(response, *args, **kwargs)
        for name, value in self.headers.items():
            response[name] = value
        if self.context.warnings:
            client_warnings.add_to_header(response, self.context.warnings)
        return response

    def _failure_instead_of(
        self, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        logger.error(
            "A failure was answered with status %d, but its effects were undone. The "
            "client was told %s instead. Record %s, %s %s",
            response.status_code,
            TransactionFailed.default_code,
            self.context.record_id,
            self.keyed.method,
            escaped(self.keyed.request.path),
            extra=extras(
                "success_refused",
                record_id=self.context.record_id,
                attempt=self.context.attempt,
                status_code=response.status_code,
            ),
        )
        refusal = TransactionFailed()
        self.refuse(refusal)
        failure: HttpResponseBase = self.view.handle_exception(refusal)
        failure = self._with_warnings(failure, *args, **kwargs)
        # Where the project answers every error below 400, its words may stay.
        failure.status_code = TransactionFailed.status_code
        return failure


def finalizer_of(keyed: KeyedRequest) -> ResponseFinalizer:
    """Return what finalizes the responses of a view already, or a new one."""
    finalize = keyed.view.finalize_response
    if isinstance(finalize, ResponseFinalizer):
        return finalize
    return ResponseFinalizer(keyed)


def exception_handler_of(view: APIView) -> ExceptionHandler:
    """Return a view's EXCEPTION_HANDLER, that of DRF with codes of the app's refusals.

    A format of the project's own is left alone.
    """
    own: ExceptionHandler = view.get_exception_handler()
    return _exception_handler if own is exception_handler else own


def _exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    response = exception_handler(error, context)
    if (
        response is not None
        and isinstance(error, IdempotencyError)
        and isinstance(error.detail, str)
    ):
        response.data = {**response.data, "code": error.default_code}
    return response
