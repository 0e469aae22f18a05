"""Dotted paths into a recipe, such as `loss.beta` or `score.0.weight`: reading `--set`, changing one value, flattening."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from data.errors import RecipeError


def parse_set(item: str) -> tuple[str, Any]:
    """Split `a.b=c` into path and value. The value is read as TOML; text that is not TOML stays a plain string.

    Raises:
        RecipeError: no `=`, or no path before it.
    """
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {item}: expected a.b=value")
    try:
        return path, tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML; or a number of thousands of digits, or thousands of brackets
        return path, text


def set_value(values: dict[str, Any], path: str, value: Any) -> None:
    """Change the value at one dotted path; tables that are missing on the way are added.

    Raises:
        RecipeError: the path leads through a number or a text, or past the end of a list.
    """
    table: Any = values
    *parents, last = path.split(".")
    try:
        for name in parents:
            if isinstance(table, list):
                table = table[int(name)]
            else:
                table[name] = table.get(name) if table.get(name) is not None else {}
                table = table[name]
        if isinstance(table, list):
            table[int(last)] = value
        else:
            table[last] = value
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"'{path}' leads to no setting of the recipe; expected a path such as loss.beta or score.0.weight"
        ) from error


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables and lists as one dictionary from dotted path to value; an empty table or list is a value itself."""
    if isinstance(value, (Mapping, list, tuple)) and not value:
        return {prefix: value}
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat
