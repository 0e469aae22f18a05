"""The README's generated parts: tree, table of parts, recipe reference. `python -m tests.test_docs` writes them."""

from __future__ import annotations

import ast
import json
import re
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from data.recipe.recipe import Recipe
from tasks.run import parts

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
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *_rows("", Recipe, None, {})])


def _rows(prefix: str, model: type[BaseModel], table: BaseModel | None, listed: dict[type, str]) -> list[str]:
    """A row per setting of a model; those of a nested one follow its own row, once: `listed` says where a model stands."""
    rows = []
    for key, field in model.model_fields.items():
        place = prefix + key
        value = getattr(table, key) if table else field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else _plain(value)
        inner, many = _nested(field.annotation), typing.get_origin(field.annotation) is tuple
        if isinstance(value, BaseModel) and type(value) not in listed:  # a table with defaults of its own needs no row itself
            listed[type(value)] = f"`{place}`"
            rows += _rows(f"{place}.", type(value), value, listed)
            continue
        meaning = _choices(field.annotation, field.description or "")
        if inner in listed:
            default = ""
            meaning = meaning or f"as {listed[inner]}"
        rows.append(f"| `{place}` | {default} | {meaning} |")
        if inner and inner not in listed:
            listed[inner] = f"`[[{place}]]`" if many else f"`{place}`"
            rows += _rows(f"[[{place}]] " if many else f"{place}.", inner, None, listed)
    return rows


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, also in `Model | None` and `tuple[Model, ...]`."""
    kinds = [annotation, *typing.get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _choices(annotation: Any, meaning: str) -> str:
    """The meaning, and behind it the values that a Literal allows."""
    kinds = [annotation, *typing.get_args(annotation)]
    literal = next((kind for kind in kinds if typing.get_origin(kind) is Literal), None)
    allowed = f"{'one' if literal is annotation else 'any'} of {', '.join(typing.get_args(literal))}" if literal else ""
    said = "; ".join(filter(None, [meaning, allowed]))
    return re.sub(r"<(\w+)>", r"&lt;\1&gt;", said)  # a word between < and > would be taken for HTML


def _plain(value: object) -> str:
    if value in ("", None, ()):
        return ""
    if isinstance(value, tuple):  # what was set of each table, or the plain values as TOML has them
        sets = [list(one.model_dump(exclude_unset=True).values()) if isinstance(one, BaseModel) else one for one in value]
        value = ", ".join(str(one[0]) for one in sets if isinstance(one, list)) or json.dumps(sets)
    return f"`{value}`".replace("\n", "\\n")  # a line break would end the row


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
