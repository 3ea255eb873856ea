"""The samples of a page's sections as modules that tests can call."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from django.urls import path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = "docs/recipes.md"

# The first line of a block names its file, in a comment.
FILE = re.compile(r"\A(?:#|//|;|\$|<!--) (.+?)(?: -->)?$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the file that its first line names, and it all."""

    language: str
    file: str
    source: str


def sections(page: str = RECIPES) -> dict[str, str]:
    """Return what a page says under each heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(heading: str, page: str = RECIPES) -> list[Block]:
    """Return a section's blocks of code, in the page's order."""
    fence = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    found = fence.findall(sections(page)[heading])
    return [
        Block(language, *FILE.findall(source), source) for language, source in found
    ]


def block(heading: str, file: str) -> str:
    """Return the block of a recipe that is for one file."""
    (found,) = [each.source for each in blocks(heading) if each.file == file]
    return found


class Recipe:
    """A recipe's Python files, as attributes, and what its settings.py says."""

    settings: dict[str, Any]

    def __getattr__(self, name: str) -> ModuleType:
        raise AttributeError(f"the recipe has no {name}.py")


@contextmanager
def cooked(
    heading: str, /, page: str = RECIPES, **modules: dict[str, Any]
) -> Iterator[Recipe]:
    """Run all Python of a section; ``modules`` are those of the reader's own.

    Each block becomes the module that its first line names, for as long as this lasts.
    """
    recipe = Recipe()
    recipe.settings = {}
    python = [each for each in blocks(heading, page) if each.language == "python"]
    names = {*modules, *(each.file.removesuffix(".py") for each in python)}
    assert not names & {*sys.modules}, "a recipe's module has the name of another one"
    try:
        for name in names:
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(modules.get(name, {}))
        # Django asks for the app of a model by its module.
        if "models" in names:
            sys.modules["models"].__name__ = "tests.app.models"
        for each in python:
            name = each.file.removesuffix(".py")
            place = f"{page}, {heading}, {each.file}"
            exec(compile(each.source, place, "exec"), vars(sys.modules[name]))
            setattr(recipe, name, sys.modules[name])
        if "settings" in names:
            found = vars(sys.modules["settings"])
            recipe.settings = {k: v for k, v in found.items() if k.isupper()}
        yield recipe
    finally:
        # Not all that was imported meanwhile: others may hold on to it.
        for name in names:
            del sys.modules[name]


def serve(settings: Any, **views: Any) -> ModuleType:
    """Put views at addresses by their names; return the root of the addresses."""
    urls: Any = ModuleType("urls")
    urls.urlpatterns = [path(f"{name}/", view) for name, view in views.items()]
    settings.ROOT_URLCONF = urls
    found: ModuleType = urls
    return found
