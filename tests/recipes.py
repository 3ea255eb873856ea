"""The recipes of docs/recipes.md as modules that tests can call."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the file that its first line names, and it all."""

    language: str
    file: str
    source: str


def sections() -> dict[str, str]:
    """Return what the page says under each heading."""
    _, *parts = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(heading: str) -> list[Block]:
    """Return a recipe's blocks of code, in the page's order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", sections()[heading], re.DOTALL | re.M)
    return [
        Block(language, *re.findall(r"^(?:#|//|;|\$) (.+)", source)[:1], source)
        for language, source in found
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
def cooked(heading: str, **modules: dict[str, Any]) -> Iterator[Recipe]:
    """Run all Python of a recipe; ``modules`` are those of the reader's own.

    Each block becomes the module that its first line names, for as long as this lasts.
    """
    recipe = Recipe()
    recipe.settings = {}
    with patch.dict(sys.modules):
        for name, content in modules.items():
            vars(_module(name)).update(content)
        for each in blocks(heading):
            if each.language == "python":
                name = each.file.removesuffix(".py")
                module = _module(name)
                if name == "models":
                    # Django asks for the app of a model by its module.
                    module.__name__ = "tests.app.models"
                page = f"docs/recipes.md, {heading}, {each.file}"
                exec(compile(each.source, page, "exec"), vars(module))
                setattr(recipe, name, module)
                if name == "settings":
                    found = {k: v for k, v in vars(module).items() if k.isupper()}
                    recipe.settings = found
        yield recipe


def _module(name: str) -> ModuleType:
    return sys.modules.setdefault(name, ModuleType(name))
