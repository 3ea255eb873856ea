"""Move the equal parts of protected operations to a schema's components."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from drf_spectacular.plumbing import ComponentRegistry

Json = dict[str, Any]
Kind: TypeAlias = Literal["headers", "parameters", "responses"]


class Shared:
    """Replaces ``build()`` of a schema's registry of components.

    The parts stay in the operations until ``build()``, so that a project's schema
    classes can change them, and drf-spectacular finds the names of parameters. Hooks
    run later. Equal parts become one component; copies that a project made stay.
    """

    def __init__(self, build: Callable[[Json], Json]) -> None:
        self._build = build
        self._operations: list[Json] = []
        # By id(), because equal parts can have different names.
        self._parts: dict[int, tuple[str, Json]] = {}
        self._made: dict[Kind, Json] = {}

    def add(self, operation: Json) -> None:
        """Register an operation whose parts become components."""
        self._operations.append(operation)

    def part(self, name: str, value: Json) -> Json:
        """Register a value, which may still change, as a component; return it."""
        self._parts[id(value)] = name, value
        return value

    def __call__(self, extra_components: Json) -> Json:
        """Return all components, and replace the parts in operations by references.

        Hooks that add components call this again.
        """
        components = self._build(extra_components)
        if self._operations:
            self._made = self._make(components)
        for kind, made in self._made.items():
            components[kind] = components.get(kind, {}) | made
        return {
            kind: dict(sorted(found.items()))
            for kind, found in sorted(components.items())
        }

    def _make(self, others: Json) -> dict[Kind, Json]:
        made: dict[Kind, Json] = {}
        for operation in self._operations:
            for kind, holder, place in _places(operation):
                part = self._parts.get(id(holder[place]))
                if part is None:
                    continue
                known, taken = made.setdefault(kind, {}), others.get(kind, {})
                wanted, value = part
                name = next(
                    name
                    for name in _names(wanted)
                    if name not in taken and known.setdefault(name, value) == value
                )
                holder[place] = {"$ref": f"#/components/{kind}/{name}"}
        self._operations.clear()
        self._parts.clear()
        return made


def shared_of(registry: ComponentRegistry) -> Shared:
    """Return the ``Shared`` of a registry; the first call installs it."""
    found = vars(registry).get("build")
    if not isinstance(found, Shared):
        found = Shared(registry.build)
        registry.build = found  # type: ignore[method-assign]  # of this instance
    return found


def _places(operation: Json) -> Iterator[tuple[Kind, Any, Any]]:
    """Yield the places of parts: the kind, the container, and its key or index."""
    parameters = operation["parameters"]
    for index in range(len(parameters)):
        yield "parameters", parameters, index
    responses = operation["responses"]
    for status, response in responses.items():
        yield "responses", responses, status
        headers = response.get("headers", {})
        for name in headers:
            yield "headers", headers, name


def _names(name: str) -> Iterator[str]:
    """Yield a name, then the name with numbers."""
    yield name
    yield from (f"{name}_{number}" for number in count(2))
