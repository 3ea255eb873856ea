"""No regular expression of the app's takes longer than its text is long."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import once
from tests.support.processes import ROOT

pytestmark = once

if sys.version_info >= (3, 11):
    from re import _constants as constants
    from re import _parser as parser
else:
    import sre_constants as constants
    import sre_parse as parser

# A pattern, its flags, and what the app does with it.
Use = tuple[str, int, str]
# Reads nothing but what another pattern has found to be well-formed.
GUARDED = {("QUOTED", "findall")}
# Each pattern meets texts of that length, made of its own parts.
LENGTH = 50_000
# Processor seconds for all texts of one pattern: many times what the slowest takes. One
# text alone takes a quadratic pattern as long.
SECONDS = 10
# Runs in a process of its own, which the system ends where a pattern is not linear.
TRIAL = """
import itertools, json, re, resource, sys
pattern, flags, use, atoms, seconds, length = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
run = getattr(re.compile(pattern, flags), use)
for pump in [*atoms, *map("".join, itertools.permutations(atoms, 2))]:
    for start in ["", *atoms]:
        text = start + pump * (length // len(pump)) + "\\n!"
        run("-", text) if use == "sub" else run(text)
"""
# What stands for a class of characters.
CATEGORIES = {
    constants.CATEGORY_DIGIT: "1",
    constants.CATEGORY_SPACE: " ",
    constants.CATEGORY_NOT_SPACE: "a",
    constants.CATEGORY_WORD: "a",
}


def modules() -> Iterator[tuple[ModuleType, ast.Module]]:
    for path in sorted((ROOT / "idempotency").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(
            isinstance(n, ast.Import) and n.names[0].name == "re" for n in tree.body
        ):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield import_module(name.removesuffix(".__init__")), tree


def find_uses() -> Iterator[tuple[str, Use]]:
    """Yield each pattern's name, or what it says, and each use of it."""
    for module, tree in modules():
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(ast.Name("re"), use),
                    args=[ast.Constant(str(written)), *_],
                ) if use != "compile":
                    yield written, (written, 0, use)
                case ast.Attribute(ast.Name(name), use) if use != "pattern":
                    found = getattr(module, name, None)
                    if isinstance(found, re.Pattern) and (name, use) not in GUARDED:
                        yield name, (found.pattern, found.flags, use)


USES = {f"{name}.{use[2]}": use for name, use in find_uses()}
# No two have one name, or the one would stand for both.
assert len({*USES.values()}) == len({use for _name, use in find_uses()})


def parts(parsed: Any) -> Iterator[str]:
    """Yield texts that stand for the parts of a parsed pattern."""
    run = ""
    for kind, value in parsed:
        if kind is constants.LITERAL:
            run += chr(value)
            continue
        yield run
        run = ""
        if kind is constants.RANGE:
            yield chr(value[0])
        elif kind is constants.CATEGORY:
            yield CATEGORIES[value]
        elif kind in (constants.ANY, constants.NOT_LITERAL):
            yield "a"
        elif kind is constants.IN:
            for each in value:
                yield from parts([each])
            yield "a"
        elif kind is constants.BRANCH:
            for branch in value[1]:
                yield from parts(branch)
        else:
            inner = value if isinstance(value, tuple) else (value,)
            for each in inner:
                if isinstance(each, parser.SubPattern):
                    yield from parts(each)
    yield run


def outcome_of(use: Use, *, seconds: int = SECONDS) -> int:
    pattern, flags, _method = use
    atoms = sorted({part for part in parts(parser.parse(pattern, flags)) if part})
    given = json.dumps([*use, atoms, seconds, LENGTH])
    return subprocess.run(
        [sys.executable, "-c", TRIAL], input=given, text=True, check=False
    ).returncode


def test_all_are_found() -> None:
    """A1: Each pattern that the app compiles is tried, in each way that it is used."""
    compiled = {
        name
        for module, tree in modules()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
        if isinstance(getattr(module, name := target.id), re.Pattern)
    }
    said = [
        node
        for _module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "re.compile"
    ]
    assert len(said) == len(compiled) > 8
    tried = {name.rpartition(".")[0] for name in USES}
    assert compiled <= tried | {name for name, _use in GUARDED}


@pytest.mark.parametrize("name", USES)
def test_linear(name: str) -> None:
    """A1: No text makes a pattern take time or memory out of proportion."""
    assert outcome_of(USES[name]) == 0


@pytest.mark.parametrize(
    ("pattern", "use"),
    [("(?:a+)+b", "match"), ("a+b", "search"), ('"(?:[^"]|a)*"', "fullmatch")],
)
def test_trial(pattern: str, use: str) -> None:
    """A1: The trial tells a pattern that is not linear."""
    ended = (-signal.SIGXCPU, -signal.SIGKILL)
    assert outcome_of((pattern, 0, use), seconds=1) in ended
