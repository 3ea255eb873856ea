"""What protected operations have in common, said once among a schema's components."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from drf_spectacular.plumbing import ComponentRegistry

Json = dict[str, Any]
Kind: TypeAlias = Literal["headers", "parameters", "responses"]


class Shared:
    """Stands in for ``build()`` of one schema's registry of components.

    Until then the parts stand in the operations, where a project's schema classes see
    and change them, and drf-spectacular reads the names of parameters. Then operations
    are done, and no hook has seen them. Parts that are equal become one component;
    what a project has made its own copy of stays where it is.
    """

    def __init__(self, build: Callable[[Json], Json]) -> None:
        self._build = build
        self._operations: list[Json] = []
        # By identity: two equal parts may be told apart by their names.
        self._parts: dict[int, tuple[str, Json]] = {}
        self._made: dict[Kind, Json] = {}

    def add(self, operation: Json) -> None:
        """Look into an operation when components are built."""
        self._operations.append(operation)

    def part(self, name: str, value: Json) -> Json:
        """Let a value be a component of that name; it may still change."""
        self._parts[id(value)] = name, value
        return value

    def __call__(self, extra_components: Json) -> Json:
        """Return all components; let operations refer to those that are parts.

        Hooks that add components of their own call this again.
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
    """Return what stands in for a registry's ``build()``, from the first call on."""
    found = vars(registry).get("build")
    if not isinstance(found, Shared):
        found = Shared(registry.build)
        registry.build = found  # type: ignore[method-assign]  # of this instance
    return found


def _places(operation: Json) -> Iterator[tuple[Kind, Any, Any]]:
    """Yield where parts may stand: the kind, what holds them, and its key or index."""
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
    """Yield a name, and others for what is not the same."""
    yield name
    yield from (f"{name}_{number}" for number in count(2))
