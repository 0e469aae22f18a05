"""The README's generated parts: tree, table of parts, recipe reference. `python -m tests.test_docs` writes them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from pydantic import BaseModel

from data.recipe import Recipe
from tasks import parts

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def tree() -> str:
    lines = []
    for room in ("data", "tasks", "registry", "flows"):
        lines.append(f"{room}/")
        for path in sorted((ROOT / room).rglob("*.py")):
            place = path.relative_to(ROOT / room)
            if place.name != "__init__.py" or len(place.parts) > 1:
                about = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
                lines.append(f"  {place.as_posix():<23} {about.rstrip('.')}")
    return "```\n" + "\n".join(lines) + "\n```"


def part_table() -> str:
    rows = ["| family | name | settings | what it does |", "|---|---|---|---|"]
    rows += [
        f"| {family} | `{row['name']}` | {row['settings'] or '-'} | {row['about']} |".replace("|c|", "c")
        for family in parts.FAMILIES
        for row in parts.listing(family)
    ]
    return "\n".join(rows)


def reference() -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in Recipe.model_fields.items():
        inner = field.default if isinstance(field.default, BaseModel) else None
        if inner is None:
            rows.append(f"| `{name}` | {_plain(field.default)} | {field.description or ''} |")
            continue
        rows += _rows(name, inner)
    return "\n".join(rows)


def _rows(name: str, table: BaseModel) -> list[str]:
    rows = []
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        nested = isinstance(value, BaseModel)
        rows += (
            _rows(f"{name}.{key}", value) if nested else [f"| `{name}.{key}` | {_plain(value)} | {field.description or ''} |"]
        )
    return rows


def _plain(value: object) -> str:
    return "" if value in ("", None, ()) else f"`{value}`" if not isinstance(value, tuple) else "exact_match"


GENERATED = {"TREE": tree, "PARTS": part_table, "REFERENCE": reference}


def rendered(text: str) -> str:
    """The README with each block between its markers made anew."""
    for name, make in GENERATED.items():
        block = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        assert count == 1, f"README.md: expected one block {name}"
    return text


def test_readme_is_current() -> None:
    # Claim: the README's tree, parts and recipe reference are what the code says; `python -m tests.test_docs` renews them.
    assert README.read_text() == rendered(README.read_text())


def test_no_package_index_is_named() -> None:
    # Claim: no file that is shipped names the host of a package index.
    hosts = re.compile(r"https?://[a-z0-9.-]*(pypi|pythonhosted|debian|npmjs)", re.IGNORECASE)
    places = [ROOT, *(ROOT / room for room in ("data", "data/recipes", "tasks", "flows", "registry", "tests", ".ci"))]
    files = [path for place in places for path in place.iterdir() if path.is_file()]
    assert not [path.name for path in files if hosts.search(path.read_text(errors="replace"))]


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
