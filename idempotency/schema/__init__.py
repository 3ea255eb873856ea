"""Describe protected operations in OpenAPI schemas of drf-spectacular (optional)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import get_doc

from idempotency.conf import get_settings
from idempotency.hooks import Hooks
from idempotency.mixins import IdempotencyMixin
from idempotency.protection import protection_of_view
from idempotency.schema import copies  # noqa: F401  # registers itself
from idempotency.schema.operations import describe

Json = dict[str, Any]

_get_description = AutoSchema.get_description
_get_operation = AutoSchema.get_operation


class Extended:
    """A method of ``AutoSchema`` that is extended for some views.

    Other views get the original method, so their tracebacks don't show the app.
    """

    def __init__(
        self, original: Any, extended: Any, concerns: Callable[[Any], bool]
    ) -> None:
        self.original = original
        self.extended = extended
        self.concerns = concerns

    def __get__(self, auto_schema: AutoSchema | None, owner: type) -> Any:
        """Return the original or the extended method."""
        # The property ``view`` raises if a schema has no view yet. Where @extend_schema
        # stands above @action, an attribute hides the property.
        own = {} if auto_schema is None else vars(auto_schema)
        view = own.get("view", own.get("_view"))
        concerned = auto_schema is None or (view is not None and self.concerns(view))
        function = self.extended if concerned else self.original
        return function.__get__(auto_schema, owner)


def install() -> None:
    """Extend ``AutoSchema``, from which the generator requires all schemas to derive.

    The extension points of drf-spectacular do not suffice. Projects replace the setting
    that lists hooks, and hooks run after the project's schema classes. A view can have
    only one view extension, and that would need a subclass of the view, which has side
    effects in metaclasses and ``__init_subclass__``.
    """
    AutoSchema.get_description = Extended(  # type: ignore[assignment]  # see above
        _get_description, get_description, lambda view: isinstance(view, Hooks)
    )
    AutoSchema.get_operation = Extended(  # type: ignore[assignment]  # see above
        _get_operation, get_operation, _is_protected
    )


def _is_protected(view: Any) -> bool:
    """Return whether any method of the view is protected."""
    methods = map(str.upper, view.http_method_names)
    return get_settings().ENABLED and any(
        protection_of_view(view, method) is not None for method in methods
    )


def get_description(self: AutoSchema) -> str:
    """Return a view's description, as it would be without the mixin's docstring."""
    description = _get_description(self)
    own = ("", get_doc(IdempotencyMixin), get_doc(Hooks))
    if not isinstance(self.view, Hooks) or description not in own:
        return description
    mro = type(self.view).__mro__
    return get_doc(mro[mro.index(Hooks) + 1])


def get_operation(self: AutoSchema, *args: Any, **kwargs: Any) -> Json | None:
    """Return an operation with its protection, if any."""
    operation = _get_operation(self, *args, **kwargs)
    if operation and get_settings().ENABLED:
        protection = protection_of_view(self.view, self.method)
        if protection is not None:
            describe(self, operation, protection.policy)
    return operation
