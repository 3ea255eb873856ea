"""The benchmarks that take longer run, too."""

from __future__ import annotations

import pytest

from tests.test_benchmarks import pytestmark as pytestmark  # noqa: PLC0414  # the same
from tests.test_benchmarks import run


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("admin", ["--records=2000"], "| overview |"),
        ("growth", ["--most=10000", "--rounds=2", "--requests=5"], "| 10,000 |"),
        ("http", ["--rounds=2", "--seconds=1"], "| replay |"),
    ],
)
def test_others(module: str, arguments: list[str], said: str) -> None:
    """A2, R6: They measure what they say."""
    assert said in run(module, "--database=sqlite", *arguments)
