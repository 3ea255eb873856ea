"""Protected operations in the OpenAPI schemas of drf-spectacular, which is optional."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import get_doc

from idempotency.conf import get_settings
from idempotency.hooks import Hooks
from idempotency.mixins import IdempotencyMixin
from idempotency.protection import protection_of_view
from idempotency.schema.operations import describe

Json = dict[str, Any]

_get_description = AutoSchema.get_description
_get_operation = AutoSchema.get_operation


class Extended:
    """A method of ``AutoSchema`` that does more for the views that it concerns.

    For all others it is what it was, so a traceback of theirs is their own.
    """

    def __init__(
        self, original: Any, extended: Any, concerns: Callable[[Any], bool]
    ) -> None:
        self.original = original
        self.extended = extended
        self.concerns = concerns

    def __get__(self, auto_schema: AutoSchema | None, owner: type) -> Any:
        """Return the method of a schema, or what a class calls with one."""
        # Not by the property, which raises where a schema has no view yet.
        view = getattr(auto_schema, "_view", None)
        concerned = auto_schema is None or (view is not None and self.concerns(view))
        function = self.extended if concerned else self.original
        return function.__get__(auto_schema, owner)


def install() -> None:
    """Let schemas show what is protected.

    No extension point of drf-spectacular does that. A hook has to stand in the
    project's settings, which replace the list, and comes after the project's schema
    classes. Of view extensions each view has one at most, the project's own as well as
    anybody's, and such an extension needs a subclass of the view, which the view's
    metaclass or ``__init_subclass__`` would take for one of the project's. But the
    generator wants every schema class to derive from ``AutoSchema``. So this is the
    one place that neither a setting nor a project's own class takes away, and both may
    still change what is described here.
    """
    AutoSchema.get_description = Extended(  # type: ignore[assignment]  # see above
        _get_description, get_description, _has_mixin
    )
    AutoSchema.get_operation = Extended(  # type: ignore[assignment]  # see above
        _get_operation, get_operation, _is_protected
    )


def _has_mixin(view: Any) -> bool:
    return isinstance(view, Hooks)


def _is_protected(view: Any) -> bool:
    """Tell whether any method of a view is: which one it is about is said later."""
    methods = map(str.upper, view.http_method_names)
    return get_settings().ENABLED and any(
        protection_of_view(view, method) is not None for method in methods
    )


def get_description(self: AutoSchema) -> str:
    """Return what a view says of itself; what the mixin says is not for clients.

    Nor is it for the project's settings to say where docstrings end: those of the bases
    behind the mixin count as they do without it.
    """
    description = _get_description(self)
    own = ("", get_doc(IdempotencyMixin), get_doc(Hooks))
    if not isinstance(self.view, Hooks) or description not in own:
        return description
    mro = type(self.view).__mro__
    return get_doc(mro[mro.index(Hooks) + 1])


def get_operation(self: AutoSchema, *args: Any, **kwargs: Any) -> Json | None:
    """Return an operation, and how it is protected if it is."""
    operation = _get_operation(self, *args, **kwargs)
    if operation and get_settings().ENABLED:
        protection = protection_of_view(self.view, self.method)
        if protection is not None:
            describe(self, operation, protection.policy)
    return operation
