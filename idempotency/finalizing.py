"""Finish a view's response once: finalize, add warnings, render, set headers."""

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
    """The replacement for ``finalize_response`` of one view instance.

    ``dispatch`` finalizes every response, but the app has to store a finished one
    inside the transaction (E1). So it calls the view's own ``finalize_response`` here,
    and ``dispatch`` gets finished responses unchanged. All responses of the view,
    refusals included, get the app's headers here.
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
        """Finalize and render a handler's response, unless that is done."""
        if response is self._finished:
            return response
        return self.render(self.finalize(response))

    def finalize(self, response: HttpResponseBase) -> HttpResponseBase:
        """Finalize a handler's response.

        Leave errors to Django: without the app, they would happen after DRF's error
        handling. Refusals of the app go to DRF.
        """
        with self._errors_left_to_django():
            view = self.view
            response = self._with_warnings(response, *view.args, **view.kwargs)
            return self.let_pass(response)

    def render(self, response: HttpResponseBase) -> HttpResponseBase:
        """Render a finalized response, and leave errors to Django, too."""
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

    def start_over(self) -> None:
        """Forget a response of which nothing has remained."""
        self.headers.clear()
        self._refuses_success = False

    def refuse_success(self) -> None:
        """Replace any response below 400, because its effects are undone (O3).

        A project can turn a failure into such a response in its EXCEPTION_HANDLER, or
        in the view's ``handle_exception`` or ``finalize_response``.
        """
        self._refuses_success = True
        self._spare_others()

    def refuse(self, refusal: IdempotencyError) -> None:
        """Put the code of a refusal into the response (X1)."""
        self.headers[ERROR_HEADER] = refusal.default_code
        if refusal.wait is not None:
            # DRF's exception handler does this, too, but a project's own may not.
            self.headers["Retry-After"] = str(refusal.wait)
        handler = exception_handler_of(self.view)
        self.view.get_exception_handler = lambda: handler  # type: ignore[method-assign]  # of this instance
        self._spare_others()

    def _spare_others(self) -> None:
        """Don't let an error of a batch's part roll back the whole batch (E2).

        The effects of this handler are undone already. But Django REST framework marks
        every transaction of ATOMIC_REQUESTS for rollback after an error.
        """
        match = self.keyed.http_request.resolver_match
        parts = None if match is None else parts_of(match.func)
        # A part has no match, or that of the batch.
        if match is not None and (parts is None or parts.cls is type(self.view)):
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

    def let_pass(self, response: HttpResponseBase) -> HttpResponseBase:
        """Mark a response as finished."""
        self._finished = response
        return response

    def _with_warnings(
        self, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        # DRF removes Vary from the view's headers, and finalizes a second response if
        # the transaction of the first one failed.
        headers = dict(self.view.headers)
        if response.status_code == 405 and KEY_IGNORED in self.context.warnings:
            self.context.warnings = ()  # no handler ran (K5)
        response = self._finalize(self.keyed.request, response, *args, **kwargs)  # type: ignore[arg-type]  # stubs know no other responses
        self.view.headers = headers
        if self.context.warnings and self.warn_in_body:
            self.keyed.hooks.add_idempotency_warnings(response, self.context.warnings)
        return response

    def __call__(
        self, request: Request, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Finish a response for ``dispatch``, in place of ``finalize_response``."""
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
            "The view responded to a failure with status %d, but its effects were "
            "undone. The client got %s instead. Record %s, %s %s",
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
        # The project may turn this error, too, into a response below 400.
        failure.status_code = TransactionFailed.status_code
        return failure


def finalizer_of(
    keyed: KeyedRequest, *, warn_in_body: bool = False
) -> ResponseFinalizer:
    """Return the finalizer that the view has already (E6), or a new one."""
    finalize = keyed.view.finalize_response
    if isinstance(finalize, ResponseFinalizer):
        return finalize
    return ResponseFinalizer(keyed, warn_in_body=warn_in_body)


def exception_handler_of(view: APIView) -> ExceptionHandler:
    """Return a view's own exception handler, or DRF's with the codes of refusals."""
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
