"""The mixin: every POST action of a view is protected."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from django.utils.decorators import classonlymethod
from rest_framework.views import APIView

from idempotency.conf import get_settings
from idempotency.decorators import EXEMPT_ATTRIBUTE, OPTIONS_ATTRIBUTE
from idempotency.execution import execute, ignore_key
from idempotency.hooks import Hooks
from idempotency.policy import RULES, Options, validate_options

if TYPE_CHECKING:
    from django.http import HttpRequest
    from rest_framework.request import Request

PREFIX = "idempotency_"


class IdempotencyMixin(Hooks):
    """Give a view idempotency keys; stands left of the view class.

    Each attribute is an option of the same name; None leaves it to the settings.
    Durations are ``timedelta``. Wrong options are refused when the class is made, with
    ``ImproperlyConfigured``, and so is a mixin right of the view class, with
    ``TypeError``.
    """

    idempotency_required: bool | None = None
    idempotency_methods: Collection[str] | None = None
    idempotency_retention: timedelta | None = None
    idempotency_using: str | None = None
    idempotency_released_statuses: Collection[int] | None = None
    idempotency_atomic: bool | None = None
    idempotency_on_concurrent: str | None = None
    idempotency_wait_timeout: timedelta | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        mro = cls.__mro__
        if APIView in mro and mro.index(APIView) < mro.index(IdempotencyMixin):
            bases = [base for base in cls.__bases__ if base is not IdempotencyMixin]
            names = ", ".join(base.__name__ for base in [IdempotencyMixin, *bases])
            raise TypeError(
                "IdempotencyMixin must stand left of the view class. "
                f"Write: class {cls.__name__}({names})"
            )
        _validate(vars(cls), where=cls.__qualname__)

    @classonlymethod
    def as_view(cls, *args: Any, **initkwargs: Any) -> Any:
        """Check the options among ``initkwargs``, as those of ``@action`` are."""
        _validate(initkwargs, where=f"{cls.__qualname__}.as_view()")
        return super().as_view(*args, **initkwargs)  # type: ignore[misc]  # of the view class

    def initialize_request(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> Request:
        """Put the protection around the handler that ``dispatch`` is going to call."""
        drf_request: Request = super().initialize_request(request, *args, **kwargs)  # type: ignore[misc]  # of the view class
        name = (request.method or "").lower()
        handler = getattr(self, name, None)
        if hasattr(handler, OPTIONS_ATTRIBUTE) or hasattr(handler, EXEMPT_ATTRIBUTE):
            return drf_request
        options = self.get_idempotency_options()
        settings = get_settings()
        if request.method not in options.get("methods", settings.METHODS):
            if settings.ENABLED:
                ignore_key(self, drf_request)  # type: ignore[arg-type]  # a view, too
        elif handler is not None:
            setattr(self, name, partial(self._execute, handler, options))
        return drf_request

    def _execute(
        self,
        handler: Any,
        options: Options,
        request: Request,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = partial(handler, request, *args, **kwargs)
        return execute(self, request, run, options)  # type: ignore[arg-type]  # a view, too

    def get_idempotency_options(self) -> dict[str, Any]:
        """Return what the view itself says of the options."""
        found = {name: getattr(self, PREFIX + name) for name in OPTION_NAMES}
        return {name: value for name, value in found.items() if value is not None}


# The scope is a hook's to decide: get_idempotency_scope() reads its attribute.
OPTION_NAMES = tuple(name for name in RULES if name != "scope")


def _validate(attributes: Options, *, where: str) -> None:
    validate_options(
        {
            name.removeprefix(PREFIX): value
            for name, value in attributes.items()
            if name.startswith(PREFIX) and value is not None
        },
        where=where,
    )
