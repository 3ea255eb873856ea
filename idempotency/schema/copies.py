"""Give views that ``protected()`` has copied drf-spectacular's extensions."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiViewExtension

from idempotency.routing import copy_like, original_of

Extension = type[OpenApiViewExtension]


class ExtensionOfOriginal(OpenApiViewExtension):  # type: ignore[no-untyped-call]  # of drf-spectacular
    """Describes a copy as the extension of the original view describes that.

    Extensions name a class, and a copy is a subclass of it.
    """

    priority = 1

    @classmethod
    def _matches(cls, target: Any) -> bool:
        return _extension_for(original_of(target)) is not None

    def view_replacement(self) -> Any:
        """Return a copy of the view that the original's extension returns."""
        original = original_of(self.target)
        extension: Any = _extension_for(original)
        # Releases of drf-spectacular create extensions with different arguments.
        own = object.__new__(extension)
        vars(own).update(vars(self), target=original)
        return copy_like(self.target, own.view_replacement())


def _extension_for(view_class: Any) -> Extension | None:
    if view_class is None:
        return None
    known: list[Extension] = OpenApiViewExtension._registry
    known = sorted(known, key=lambda each: each.priority, reverse=True)
    return next((each for each in known if each._matches(view_class)), None)
