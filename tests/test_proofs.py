"""The tables of tests/README.md name tests: each must be there, in the file that the table says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
NAME = re.compile(r"`(test_\w+(?:\.py)?)`")


def defined() -> dict[str, set[str]]:
    """The names of the tests in every test file."""
    trees = {path.name: ast.parse(path.read_text()) for path in TESTS.glob("test_*.py")}
    return {name: {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} for name, tree in trees.items()}


def test_every_test_that_the_readme_names_is_there() -> None:
    # a renamed or deleted test would leave a promise of the README without its proof
    tests, wrong = defined(), []
    for line in (TESTS / "README.md").read_text().splitlines():
        for cell in line.split("|"):
            file = None
            for name in NAME.findall(cell):
                if name.endswith(".py"):
                    file = name
                    known = name in tests
                else:
                    known = name in (tests.get(file, set()) if file else set().union(*tests.values()))
                if not known:
                    wrong.append(f"{file or 'no file'}: {name}")
    assert not wrong
