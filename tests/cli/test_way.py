"""Tests that docs/way.md names existing functions of existing modules, and is short."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (\d+) \| `([\w.]+)` \| `([\w/]+\.py)` \| .+ \|$",
    (REPOSITORY / "docs/way.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_both_ways_are_short_and_numbered():
    numbers = [int(number) for number, _, _ in ROWS]
    second = numbers.index(1, 1)
    assert numbers == [*range(1, second + 1), *range(1, len(numbers) - second + 1)]
    assert second <= 15
    assert len(numbers) - second <= 15


@pytest.mark.parametrize(("name", "module"), [row[1:] for row in ROWS])
def test_every_function_is_in_its_module(name, module):
    nodes = ast.parse((REPOSITORY / "keras_pneumo" / module).read_text(encoding="utf-8")).body
    for part in name.split("."):
        (node,) = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
        nodes = node.body
